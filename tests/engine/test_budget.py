"""Shares and counts as users write them."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.errors import OptionError
from clusterucb.options.amounts import Seconds, Tokens, parse_budget, parse_count, parse_until, samples_of

shares = st.decimals(min_value=0, max_value=100, places=6, allow_nan=False).filter(lambda share: share > 0)


@given(shares, st.integers(1, 10**12), st.sampled_from(["{:f}%", " {:f} %", "0{:f}%"]))
def test_share_is_the_exact_floor_and_at_least_one(share: Decimal, n_samples: int, spelling: str) -> None:
    exact = Fraction(share) * n_samples / 100
    assert samples_of(parse_count("--budget", spelling.format(share)), n_samples) == max(exact.__floor__(), 1)


@pytest.mark.parametrize(
    ("spec", "n_samples", "count"),
    [
        ("20%", 800, 160),
        ("29%", 100, 29),  # 28 in floating point
        ("0.29%", 10_000, 29),
        (".5%", 1000, 5),
        ("5.%", 100, 5),
        ("100%", 7, 7),
        ("1%", 99, 1),
        ("0.0001%", 3, 1),
        ("500", 800, 500),
        (500, 800, 500),
        (" 12 ", 10, 12),  # the engine clips; a count is a count
    ],
)
def test_spellings(spec: str | int, n_samples: int, count: int) -> None:
    assert samples_of(parse_count("--budget", spec), n_samples) == count


@pytest.mark.parametrize(
    ("spec", "spelling"),
    [("0.2", "20%"), (".05", "5%"), (0.2, "20%"), ("0.333", "33.3%"), ("0.001", "0.1%"), ("0.50", "50%")],
)
def test_bare_fraction_is_refused_with_the_right_spelling(spec: str | float, spelling: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_count("--budget", spec)  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"--budget is {str(spec)!r}; expected a percentage of the pool such as 20%, or a whole number of "
        f"samples. Write {spelling} for that share."
    )


@pytest.mark.parametrize(
    "spec",
    [
        *["0", "0%", "0.0%", "101%", "100.01%", "-5", "-5%", "1.5", "20.0", "5%%", "nan", "nan%", "inf%"],
        *["20 percent", "%", "", "1e3", "1_000", "1,000", "0x10", True, False, None],
    ],
)
def test_anything_else_is_refused(spec: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_count("--select", spec)
    message = f"--select is {str(spec)!r}; expected a percentage of the pool such as 20%, or a whole number"
    assert message in str(caught.value)
    assert "Write" not in str(caught.value)


@given(st.text(alphabet="0123456789.%e-+ _٣²", max_size=8) | st.text(max_size=4), st.integers(1, 10**6))
def test_any_text_is_a_count_or_an_option_error(spec: str, n_samples: int) -> None:
    try:
        count = samples_of(parse_count("--budget", spec), n_samples)
    except OptionError:
        return
    assert count >= 1


# Tokens and times -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "budget"),
    [
        ("30Mtok", Tokens(30_000_000)),
        ("1.5 k tok", Tokens(1500)),
        ("2Gtok", Tokens(2 * 10**9)),
        ("800 tokens", Tokens(800)),
        ("2h", Seconds(7200)),
        ("1h 30min", Seconds(5400)),
        ("1.5h", Seconds(5400)),
        ("90min", Seconds(5400)),
        ("2min30s", Seconds(150)),
        ("45 s", Seconds(45)),
        ("20%", Fraction(1, 5)),
        ("500", 500),
        (500, 500),
    ],
)
def test_spellings_of_budgets(spec, budget):
    found = parse_budget("--budget", spec)
    assert found == budget
    assert type(found) is type(budget)


@pytest.mark.parametrize(
    "spec", ["0tok", "0h", "0.2", "2 hours", "2H", "h", "30MB", "0.1tok", "-2h", "5m", "", "2h%"]
)
def test_other_budgets_are_refused(spec):
    with pytest.raises(OptionError) as caught:
        parse_budget("--budget", spec)
    assert str(caught.value).startswith(
        f"--budget is {spec!r}; expected a percentage of the pool such as 20%, or a whole number of samples, tokens "
        "such as 30Mtok, or a time such as 2h or 1h 30min."
    )


@pytest.mark.parametrize("spec", ["9" * 5000, "9" * 5000 + "%", "9" * 5000 + "h", "9" * 5000 + "tok"])
@pytest.mark.parametrize("parse", [parse_count, parse_budget, parse_until])
def test_a_number_of_thousands_of_digits_is_refused(parse, spec):
    with pytest.raises(OptionError, match=r"--budget has 5,00\d characters \(9{20}…\); expected an amount"):
        parse("--budget", spec)

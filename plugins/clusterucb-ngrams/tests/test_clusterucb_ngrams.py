"""Test hashed n-grams: similar texts have similar rows, and only the text matters."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import clusterucb as cu
import numpy as np
import pytest
from clusterucb import plugins
from clusterucb.errors import OptionError
from clusterucb.features import FeatureBatch
from clusterucb.samples.pool import Message, Sample
from clusterucb.testing import FeatureSuite
from sklearn.feature_extraction.text import HashingVectorizer

from clusterucb_ngrams import NGrams


class TestNGramsKeepTheContract(FeatureSuite):
    @pytest.fixture
    def feature(self) -> NGrams:
        return NGrams()


class TestFewNGramsKeepTheContract(FeatureSuite):
    @pytest.fixture
    def feature(self) -> NGrams:
        return NGrams(dim=1, n_min=3, n_max=3)


def asked(prompt: str, answer: str) -> tuple[Message, ...]:
    return Message("user", prompt), Message("assistant", answer)


def blocks_of(*conversations: Sequence[Message], **options: Any) -> dict[str, np.ndarray]:
    def refuse() -> Any:
        raise AssertionError("the text is enough")

    samples = [Sample(tuple(messages), "", "", "", "", b"", "", 1) for messages in conversations]
    return dict(NGrams(**options).compute(FeatureBatch(samples, [], refuse, refuse)))


def answers(*texts: str, **options: Any) -> np.ndarray:
    return blocks_of(*(asked("", text) for text in texts), **options)["answer"]


def random_texts(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("abcdefgh  "), rng.integers(1, 400))) for _ in range(n)]


# What is in a row ------------------------------------------------------------------------------------------


def test_blocks_are_unit_rows_of_dim_columns() -> None:
    found = blocks_of(asked("How far?", "Two miles."), asked("Why?", "Because."), dim=40)
    assert list(found) == ["prompt", "answer"]
    for block in found.values():
        assert block.shape == (2, 40)
        assert block.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(block, axis=1), 1, rtol=1e-6)


def test_equal_texts_have_equal_rows_wherever_they_stand() -> None:
    found = blocks_of(asked("red hill", "blue cow"), asked("blue cow", "red hill"), asked("red hill", "no"))
    np.testing.assert_array_equal(found["prompt"][0], found["prompt"][2])
    np.testing.assert_array_equal(found["prompt"][0], found["answer"][1])
    np.testing.assert_array_equal(found["prompt"][1], found["answer"][0])


def test_prompt_and_answer_are_apart() -> None:
    found = blocks_of(
        asked("red hill", "blue cow"), asked("red hill", "far away"), asked("small", "blue cow")
    )
    same_prompt = (found["prompt"][0] == found["prompt"]).all(axis=1)
    same_answer = (found["answer"][0] == found["answer"]).all(axis=1)
    assert same_prompt.tolist() == [True, True, False]
    assert same_answer.tolist() == [True, False, True]


def test_turns_of_a_conversation_go_by_their_role() -> None:
    turns = [
        Message("system", "Be brief."),
        Message("user", "Red?"),
        Message("assistant", "Yes."),
        Message("user", "Blue?"),
        Message("assistant", "No."),
    ]
    found = blocks_of(turns, asked("Be brief.\nRed?\nBlue?", "Yes.\nNo."))
    for block in found.values():
        np.testing.assert_array_equal(block[0], block[1])


def test_turns_are_not_joined_to_one_word() -> None:
    turns = [Message("user", "sun"), Message("user", "set"), Message("assistant", "")]
    apart, joined = blocks_of(turns, asked("sunset", ""))["prompt"]
    assert apart @ joined < 0.9


def test_alike_texts_are_nearer_than_others() -> None:
    one, like, other = answers(
        "The cat sat on the mat and looked at the dog.",
        "A cat is sitting on the mats and looks at a dog.",
        'int main(void) { return printf("%d", 7); }',
    )
    assert one @ like > one @ other + 0.2


def test_case_and_white_space_do_not_matter() -> None:
    rows = answers("Red Hill", "red\n\n  hill", " RED\thill ")
    assert (rows == rows[0]).all()


def test_hashing_is_that_of_scikit_learn() -> None:
    texts = ["abc", "xyz uvw", "größe 日本"]  # no n-gram occurs twice, so all have the same weight
    expected = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 3), n_features=64).transform(texts)
    np.testing.assert_allclose(answers(*texts, dim=64, n_max=3), expected.toarray(), atol=1e-6)


def test_repeats_weigh_by_the_logarithm_of_their_count() -> None:
    once, other, mixed = answers("ab", "cd", "ab " * 7 + "cd", dim=4096, n_min=4, n_max=4)
    assert once @ other == 0
    assert (mixed @ once) / (mixed @ other) == pytest.approx(3)  # log 8 to log 2


def test_products_are_those_of_unhashed_rows_but_for_collisions() -> None:
    texts = random_texts(60)
    exact, hashed = answers(*texts, dim=1 << 18), answers(*texts, dim=1024)
    error = (hashed @ hashed.T - exact @ exact.T)[np.triu_indices(60, 1)]
    assert abs(error.mean()) < 0.02
    assert error.std() < 0.06


@pytest.mark.parametrize(("n_min", "n_max"), [(1, 1), (2, 2), (1, 3), (4, 4)])
def test_lengths_are_those_asked_for(n_min: int, n_max: int) -> None:
    text = "abcdefghijklmnop"
    n_columns = np.count_nonzero(answers(text, dim=1 << 20, n_min=n_min, n_max=n_max))
    padded = f" {text} "
    ngrams = {padded[at : at + n] for n in range(n_min, n_max + 1) for at in range(len(padded) - n + 1)}
    assert n_columns == len(ngrams)


# What plays no part ----------------------------------------------------------------------------------------


def test_rows_do_not_depend_on_the_batch() -> None:
    texts = random_texts(80)
    whole = answers(*texts)
    rng = np.random.default_rng(1)
    for size in (1, 2, 3, 17, 80):
        rows = rng.choice(80, size, replace=False)
        assert answers(*(texts[row] for row in rows)).tobytes() == whole[rows].tobytes()


def test_rows_are_the_same_in_another_process() -> None:
    code = (
        "from test_clusterucb_ngrams import answers, random_texts\n"
        "print(answers(*random_texts(5)).tobytes().hex())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": __file__.rpartition("/")[0]},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {answers(*random_texts(5)).tobytes().hex()}


def test_nothing_is_declared_as_cost() -> None:
    assert (NGrams().forward_passes, NGrams().gradients) == (0, 0)


# Extremes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " ", "\n\t  \u00a0"])
def test_empty_text_gives_zeros(text: str) -> None:
    found = blocks_of(asked(text, "yes"), [Message("assistant", "yes")], asked("why", text))
    assert not found["prompt"][:2].any()
    assert not found["answer"][2].any()
    assert found["answer"][:2].any(axis=1).all()


def test_batch_of_nothing_but_empty_texts_gives_zeros() -> None:
    for block in blocks_of(asked("", ""), asked("", ""), dim=5).values():
        np.testing.assert_array_equal(block, np.zeros((2, 5), np.float32))


@pytest.mark.parametrize(
    "text",
    [
        "Größe",
        "日本語のテキスト",
        "שלום עולם",
        "👩\u200d👩\u200d👧 🏳️\u200d🌈",
        "e\u0301",
        "\x00\x01\ufeff",
        "𝔘𝔫𝔦",
        "İ",
    ],
)
def test_every_script_has_a_row(text: str) -> None:
    row, other = answers(text, "plain")
    assert np.isfinite(row).all()
    assert np.linalg.norm(row) == pytest.approx(1)
    assert not np.array_equal(row, other)


@pytest.mark.parametrize("text", ["word " * 40_000, "x" * 200_000, "漢字" * 100_000])
def test_long_text_has_a_unit_row(text: str) -> None:
    row = answers(text)[0]
    assert np.isfinite(row).all()
    assert np.linalg.norm(row) == pytest.approx(1)


def test_word_shorter_than_every_ngram_counts_as_a_whole() -> None:
    rows = answers("a", "b", n_min=9, n_max=9, dim=4096)
    assert np.count_nonzero(rows, axis=1).tolist() == [1, 1]
    assert rows[0] @ rows[1] == 0


# Options, installation and use -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "ngrams: dim is 0; expected a whole number of at least 1"),
        ({"dim": 2.5}, "ngrams: dim is 2.5; expected a whole number of at least 1"),
        ({"dim": True}, "ngrams: dim is True; expected a whole number of at least 1"),
        ({"n_min": 0}, "ngrams: n_min is 0; expected a whole number of at least 1"),
        ({"n_max": -1}, "ngrams: n_max is -1; expected a whole number of at least 1"),
        ({"n_max": "4"}, "ngrams: n_max is '4'; expected a whole number of at least 1"),
        ({"n_min": 5}, "ngrams: n_min is 5; expected at most n_max, which is 4"),
    ],
)
def test_unusable_hyper_parameter_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        NGrams(**options)
    assert message in str(caught.value)


def test_feature_is_installed_under_its_name() -> None:
    found = plugins.load()
    assert found.make("feature", "ngrams", {"dim": "64", "n_max": "3"}) == NGrams(dim=64, n_max=3)
    assert found.table["feature", "ngrams"].provider == "clusterucb-ngrams"


def test_option_of_the_command_line_is_refused_with_its_name() -> None:
    with pytest.raises(OptionError, match="feature ngrams: dim is 'wide'; expected a whole number"):
        plugins.load().make("feature", "ngrams", {"dim": "wide"})
    with pytest.raises(OptionError, match="ngrams: n_min is 5; expected at most n_max, which is 4"):
        plugins.load().make("feature", "ngrams", {"n_min": "5"})


def test_search_finds_the_texts_of_one_kind() -> None:
    rng = np.random.default_rng(0)
    kinds = ("red blue green", "add sum double", "for if while", "cow dog cat", "hill sea lake")
    truth = rng.permutation(np.arange(400) % len(kinds))
    texts = [" ".join(rng.choice(kinds[kind].split(), 8)) for kind in truth]
    scores = np.where(truth == 2, 1.0, 0.0) + rng.normal(scale=0.1, size=400)
    found = cu.search(
        blocks_of(*(asked("Go on.", text) for text in texts)),
        lambda drawn: scores[drawn],
        clusterer=cu.KMeans(15),
        policy=cu.UCB(),
        budget=150,
        n_select=50,
    )
    assert (truth[found.rows] == 2).mean() > 0.95

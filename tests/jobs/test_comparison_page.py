from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

import clusterucb.jobs.comparison
from clusterucb.report import page
from helpers import browsing
from helpers.browsing import HOSTILE, Outline

TEMPLATE = Path(clusterucb.jobs.comparison.__file__).with_name("page.html")


def render(content: dict[str, Any]) -> str:
    return page.render(TEMPLATE, content)


POLICIES = ("UCB", "UCB1", "ThresholdHard", "ClusterMean", "Random")
BUDGETS = (("5%", 50), ("10%", 100), ("20%", 200))


def measured(mean: float, seeds: int) -> dict[str, Any]:
    values = [mean + 0.01 * (seed - (seeds - 1) / 2) for seed in range(seeds)]
    return {"mean": mean, "std": 0.01 if seeds > 1 else 0.0, "seeds": values}


def compared(
    names: list[str] | None = None,
    budgets: tuple[tuple[str, int], ...] = BUDGETS,
    seeds: int = 5,
    sources: list[str] | None = None,
) -> dict[str, Any]:
    """Return a comparison in which the first strategy is the best, and the second close to it."""
    names = names or ["ucb@kmeans[n_clusters=50]", "ucb1@kmeans", "threshold-hard@kmeans", "random"]
    sources = sources or [f"source {i}" for i in range(30)]
    strategies = [
        {
            "name": name,
            "policy": "Random" if name == "random" else POLICIES[i % 4],
            "clusterer": "kmeans",
            "features": "embedding",
            "options": {},
            "overhead": 0.01 * (i + 1),
            "points": [
                {
                    "budget": budget,
                    "n_budget": n,
                    "cost": n / 1000 + 0.01 * (i + 1),
                    "gradients": n,
                    "seconds": 0.03 * (i + 1),
                    "total_seconds": 60.0 * (i + 1),
                    "recall": measured(0.3 + n / 400 - (0.005 if i == 1 else 0.04 * i), seeds),
                    "mass": measured(0.7 + n / 1000 - 0.01 * i, seeds),
                }
                for budget, n in budgets
            ],
        }
        for i, name in enumerate(names)
    ]
    return {
        "clusterucb": "0.1.0",
        "pool": ["data/pool.jsonl"],
        "target": ["data/dev.jsonl"],
        "model": "models/tiny",
        "pool_samples": 1000,
        "n_select": 50,
        "select": "5%",
        "subtasks": ["food", "escher"],
        "seeds": seeds,
        "rule": "round-robin",
        "batch_size": 8,
        "truth": {"scored": 1000, "failed": 0, "served": {"food": 1.0, "escher": 0.97}},
        "strategies": strategies,
        "overlap": {
            "budget": budgets[-1][0],
            "names": names,
            "jaccard": [[1.0 if i == j else 0.4 for j in range(len(names))] for i in range(len(names))],
        },
        "sources": {
            "budget": budgets[-1][0],
            "truth": {source: 30 - i for i, source in enumerate(sources)},
            "strategies": {
                name: {source: 25.5 - i for i, source in enumerate(sources[:20])} for name in names
            },
        },
    }


def hostile() -> dict[str, Any]:
    given = compared(HOSTILE, sources=HOSTILE)
    given.update(pool=HOSTILE, target=[HOSTILE[0]], model=HOSTILE[1], subtasks=HOSTILE, select=HOSTILE[1])
    given.update(clusterucb=HOSTILE[0], rule=HOSTILE[1])
    for strategy in given["strategies"]:
        for point, text in zip(strategy["points"], HOSTILE, strict=False):
            point["budget"] = text
        strategy["policy"] = strategy["name"]
    given["overlap"]["budget"] = given["sources"]["budget"] = HOSTILE[2]
    return given


def test_page_is_one_file_that_loads_nothing() -> None:
    page = render(compared())
    outline = Outline(page)
    assert page.startswith("<!doctype html>")
    assert outline.open == []
    assert outline.loads == ["data:,"]
    assert outline.handlers == []
    assert len(set(outline.ids)) == len(outline.ids)
    assert not re.search(r"@import|url\((?!#)|https?:(?!//www\.w3\.org/2000/svg)", page)
    assert "@@" not in page


@pytest.mark.parametrize("given", [compared(), hostile()], ids=["plain", "hostile"])
def test_data_is_embedded_unchanged_and_inert(given: dict[str, Any]) -> None:
    outline = Outline(render(given))
    data, _ = outline.scripts
    assert json.loads(data) == given
    assert data.isascii()
    assert not set("<>&") & set(data)


def test_hostile_names_change_no_element_and_no_code() -> None:
    plain, evil = Outline(render(compared())), Outline(render(hostile()))
    assert evil.tags == plain.tags
    assert evil.scripts[1] == plain.scripts[1]
    assert evil.policy == plain.policy


def test_only_the_templates_own_code_is_allowed() -> None:
    page = render(hostile())
    outline = Outline(page)
    (style,) = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    for directive, content in (("style-src", style), ("script-src", outline.scripts[1])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in outline.policy
    assert outline.policy.startswith("default-src 'none'")
    assert "unsafe" not in outline.policy


def test_page_makes_text_only() -> None:
    script = Outline(render(compared())).scripts[1]
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script
    )


def test_numbers_that_json_lacks_are_missing() -> None:
    given = compared()
    given["strategies"][0]["points"][0]["recall"] = {"mean": math.nan, "std": math.inf, "seeds": (math.nan,)}
    data = json.loads(Outline(render(given)).scripts[0])
    assert data["strategies"][0]["points"][0]["recall"] == {"mean": None, "std": None, "seeds": [None]}


def test_page_can_be_written_as_utf8_and_is_the_same_each_time(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(render(hostile()), "utf-8")
    assert (tmp_path / "page.html").read_text("utf-8") == render(hostile())


# ---- in a browser


class Shown(browsing.Shown):
    """A comparison in a browser."""

    def __init__(self, browser: Any, tmp_path: Path, given: dict[str, Any], width: int = 1400) -> None:
        super().__init__(browser, tmp_path, render(given), width)


@pytest.mark.parametrize("width", [360, 1400])
def test_each_strategy_has_a_curve_with_a_band_and_seeds(browser: Any, tmp_path: Path, width: int) -> None:
    with Shown(browser, tmp_path, compared(), width) as shown:
        assert shown.count("#curves path.curve") == shown.count("#curves path.band") == 4
        assert shown.count("#curves .dot") == 12
        assert shown.count("#curves .seed") == 60
        assert shown.count("#curves .label") == (4 if width == 1400 else 0)
        assert shown.count("#legend button[aria-pressed=true]") == 4
        assert "best 50 of 1,000 samples" in shown.page.title()
        assert shown.text("#lead") == (
            "With a budget of 20% (200 draws), ucb@kmeans[n_clusters=50] found 80% of the 50 samples that an "
            "exhaustive search selects, more than any other strategy here, at a total cost of 21.0% of what "
            "scoring the whole pool costs. One other is within one standard deviation of it. "
            "Random draws found 68%."
        )


def test_legend_hides_and_shows_by_mouse_and_keyboard(browser: Any, tmp_path: Path) -> None:
    with Shown(browser, tmp_path, compared()) as shown:
        button = shown.page.locator("#legend button").nth(1)
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
        assert shown.count("#curves path.curve") == 3
        button.focus()
        shown.page.keyboard.press("Enter")
        assert button.get_attribute("aria-pressed") == "true"
        assert shown.count("#curves path.curve") == 4
        assert shown.count("#curves svg.focused .strategy.on") == 1
        shown.page.locator("#all").click()
        assert shown.count("#curves path.curve") == 0
        shown.page.locator("#all").click()
        assert shown.count("#curves path.curve") == 4


def test_switches_change_the_curves_the_axes_and_the_table(browser: Any, tmp_path: Path) -> None:
    with Shown(browser, tmp_path, compared()) as shown:
        curve = "#curves .strategy[data-index='0'] path.curve"
        paths = [shown.page.locator(curve).get_attribute("d")]
        assert "Total cost" in shown.texts("#curves .x-title")[0]
        shown.page.locator("#controls button", has_text="Budget").click()
        assert "Budget" in shown.texts("#curves .x-title")[0]
        paths.append(shown.page.locator(curve).get_attribute("d"))
        assert "Recall" in shown.texts("#curves .y-title")[0]
        assert shown.count("#curves .cut") == 0
        shown.page.locator("#controls button", has_text="Score mass").click()
        paths.append(shown.page.locator(curve).get_attribute("d"))
        assert len(set(paths)) == 3
        assert "Score mass" in shown.texts("#curves .y-title")[0]
        assert "starts at" in shown.texts("#curves .cut")[0]
        assert shown.text("#results-title") == "Score mass at every budget"
        assert shown.texts("#controls button[aria-pressed=true]") == ["Score mass", "Budget"]
        assert shown.texts("#curves .x-tick")[0] == "0%"


def test_pointing_at_a_curve_tells_its_numbers(browser: Any, tmp_path: Path) -> None:
    with Shown(browser, tmp_path, compared()) as shown:
        box = shown.page.locator("#curves .strategy[data-index='2'] .dot").nth(1).bounding_box()
        shown.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        told = shown.text("#tip")
        for text in ("threshold-hard@kmeans", "47.0% ± 1.0", "78.0%", "10% (100 draws)", "13.0%", "90 ms"):
            assert text in told
        shown.page.mouse.move(2, 2)
        assert not shown.page.locator("#tip").is_visible()


def test_arrow_keys_walk_along_the_curves(browser: Any, tmp_path: Path) -> None:
    with Shown(browser, tmp_path, compared()) as shown:
        shown.page.locator("#curves").focus()
        for press in ("ArrowRight", "ArrowRight", "ArrowDown"):
            shown.page.keyboard.press(press)
            shown.page.evaluate("dispatchEvent(new Event('scroll'))")  # as where the focus was out of sight
        assert "ucb1@kmeans" in shown.text("#tip")
        assert "10%" in shown.text("#tip")
        assert "ucb1@kmeans" in shown.text("#spoken")
        shown.page.keyboard.press("Escape")
        assert not shown.page.locator("#tip").is_visible()


def test_table_sorts_and_marks_the_best_and_what_is_close(browser: Any, tmp_path: Path) -> None:
    with Shown(browser, tmp_path, compared()) as shown:
        names = "#results tbody th bdi"
        best_first = ["ucb@kmeans[n_clusters=50]", "ucb1@kmeans", "threshold-hard@kmeans", "random"]
        assert shown.texts(names) == best_first
        assert shown.count("#results td.best") == shown.count("#results td.near") == 3
        assert shown.count("#results [data-index='0'] td.best") == 3
        column = shown.page.locator("#results thead button").nth(2)
        column.click()
        assert shown.page.locator("#results th[aria-sort=descending]").inner_text().startswith("10%")
        column.focus()
        shown.page.keyboard.press("Enter")
        assert shown.page.locator("#results th[aria-sort=ascending]").inner_text().startswith("10%")
        assert shown.texts(names) == best_first[::-1]
        shown.page.keyboard.press("Enter")  # the focus stays on the heading
        assert shown.texts(names) == best_first
        shown.page.locator("#results thead button").first.click()
        assert shown.texts(names) == [
            "random",
            "threshold-hard@kmeans",
            "ucb@kmeans[n_clusters=50]",
            "ucb1@kmeans",
        ]


def test_overlap_has_a_number_for_each_pair(browser: Any, tmp_path: Path) -> None:
    with Shown(browser, tmp_path, compared()) as shown:
        assert shown.texts("#overlap tbody td:not(.self)") == ["40"] * 12
        shown.page.locator("#overlap tbody td:not(.self)").first.hover()
        assert (
            shown.text("#tip")
            == "ucb@kmeans[n_clusters=50] and ucb1@kmeans share 40.0% of what either selected"
        )


def test_sources_show_the_largest_and_the_rest(browser: Any, tmp_path: Path) -> None:
    with Shown(browser, tmp_path, compared()) as shown:
        assert shown.count("#sources .ring") == shown.count("#sources .found") == 13
        names = shown.texts("#sources text.name")
        assert names == [f"source {i}" for i in range(12)] + ["18 other sources"]
        assert shown.page.locator("#sources-pick").input_value() == "0"
        shown.page.locator("#sources-pick").select_option("2")
        assert "threshold-hard@kmeans" in shown.text("#sources-guide")


@pytest.mark.parametrize("width", [360, 1400])
def test_hostile_names_are_shown_as_text_and_run_nothing(browser: Any, tmp_path: Path, width: int) -> None:
    given = hostile()
    with Shown(browser, tmp_path, given, width) as shown:
        legend = shown.texts("#legend bdi")
        assert "</script><script>window.ran = 1</script>" in legend
        assert "<img src=x onerror='window.ran = 1'>" in legend
        assert "�evil��[31m�" in legend
        assert "line�para�&amp;&lt;" in legend
        assert {"__proto__", "constructor", "@@DATA@@ @@POLICY@@"} <= set(legend)
        assert shown.count("img") == 0
        assert shown.count("script") == 2
        shown.page.locator("#sources-pick").select_option("1")
        shown.page.locator("#curves").focus()
        shown.page.keyboard.press("ArrowRight")
        shown.page.locator("#results thead button").first.click()
        assert len(shown.texts("#results tbody th")) == len(HOSTILE)
        assert shown.count("#sources text.name") == len(HOSTILE)


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize(
    ("given", "curves", "dots"),
    [
        (compared(["alone"]), 1, 3),
        (compared(seeds=1), 4, 12),
        (compared(budgets=BUDGETS[:1]), 0, 4),
        (compared(["alone"], BUDGETS[:1], 1), 0, 1),
        (compared([f"ucb@kmeans[n_clusters={i}]" for i in range(25)]), 25, 75),
        (compared() | {"overlap": None, "sources": None}, 4, 12),
        (compared() | {"strategies": [], "overlap": None, "sources": None}, 0, 0),
    ],
    ids=["one strategy", "one seed", "one budget", "one point", "25 strategies", "curves alone", "nothing"],
)
def test_small_and_large_comparisons(
    browser: Any, tmp_path: Path, given: dict[str, Any], curves: int, dots: int, width: int
) -> None:
    with Shown(browser, tmp_path, given, width) as shown:
        assert shown.count("#curves path.curve") == curves
        assert shown.count("#curves [clip-path] .dot") == dots
        assert shown.count("#curves path.band") == (curves if given["seeds"] > 1 else 0)
        assert shown.count("#results tbody tr") == len(given["strategies"])
        assert ("±" in shown.text("#results")) == (given["seeds"] > 1 and dots > 0)
        assert shown.page.locator("#overlap").is_visible() == (
            bool(given["overlap"]) and len(given["strategies"]) > 1
        )
        assert shown.page.locator("#sources").is_visible() == bool(given["sources"])


def test_exhaustive_search_is_the_yardstick_and_does_not_stretch_the_axis(
    browser: Any, tmp_path: Path
) -> None:
    given = compared()
    whole = {
        "budget": "100%",
        "n_budget": 1000,
        "cost": 1.01,
        "gradients": 1000,
        "seconds": 0.1,
        "total_seconds": 300.0,
    }
    perfect = {"recall": measured(1.0, 5), "mass": measured(1.0, 5)}
    given["strategies"].append(
        {"name": "exhaustive", "policy": "Exhaustive", "overhead": 0.01, "points": [whole | perfect]}
    )
    with Shown(browser, tmp_path, given) as shown:
        assert "exhaustive: 100%, off the scale at 101%" in shown.page.locator("#curves").text_content()
        assert "25%" not in shown.texts("#curves .x-tick")
        assert shown.count("#results tbody tr") == 4
        assert "ucb@kmeans" in shown.text("#lead")


def test_missing_numbers_are_left_out(browser: Any, tmp_path: Path) -> None:
    given = compared()
    given["strategies"][0]["points"][0]["recall"] = {"mean": math.nan, "std": math.nan, "seeds": []}
    with Shown(browser, tmp_path, given) as shown:
        assert shown.count("#curves .dot") == 11
        assert "–" in shown.text("#results [data-index='0']")
        assert "NaN" not in shown.page.content().split("</main>")[0]

"""The page of a trial: inert, and readable in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

import clusterucb.jobs.trial
from clusterucb.report import page
from helpers.browsing import HOSTILE, Outline, Shown

TEMPLATE = Path(clusterucb.jobs.trial.__file__).with_name("page.html")


def apart(mean: float) -> dict[str, Any]:
    low, high = mean - 0.05, mean + 0.05
    return {
        "mean": mean,
        "low": low,
        "high": high,
        "verdict": "lower" if high < 0 else "higher" if low > 0 else "unclear",
    }


def arm(name: str, mean: float, subtasks: list[str]) -> dict[str, Any]:
    trained = name != "nothing"
    losses = {subtask: 1 + mean + 0.1 * number for number, subtask in enumerate(subtasks)}
    less = {"subtasks": {subtask: apart(mean) for subtask in subtasks}, "mean": apart(mean)}
    return {
        "name": name,
        "samples": 40 if trained else 0,
        "tokens": 3000,
        "selecting": {"passes": 180.4 if name == "selection" else 0, "seconds": 61.0},
        "training": {"passes": 80 if trained else 0, "seconds": 31.0},
        "subtasks": losses,
        "mean": 1.1 + mean,
        "worst": max(losses.values()),
        "by_rate": [1.0 + mean, 1.2 + mean] if trained else [1.3],
        "elsewhere": 2.1 if trained else None,
        "less_random": None if name == "random" else less,
        "curve": [
            {"step": step, "samples": 8 * step, "subtasks": losses, "mean": 1.4 - 0.02 * step}
            for step in ([4, 7, 10] if trained else [0])
        ],
    }


def trial(
    subtasks: list[str], names: list[str], verdict: str = "Training on the selection helps."
) -> dict[str, Any]:
    means = [-0.2, 0.0, 0.1, 0.3, 0.2, -0.1, -0.05, 0.02, 0.04, 0.01]
    return {
        "clusterucb": "0.1.0",
        "verdict": [verdict],
        "confidence": 0.95,
        "seeds": 3,
        "epochs": 2,
        "learning_rates": [2e-4, 5e-5],
        "batch_size": 8,
        "elsewhere": 32,
        "arms": [arm(name, mean, subtasks) for name, mean in zip(names, means, strict=False)],
        "runs": {"selection": "runs/a"},
        "pool": ["data/pool.jsonl"],
        "target": ["data/dev.jsonl"],
        "model": "models/tiny",
        "pool_samples": 1000,
        "judges": dict.fromkeys(subtasks, 30),
    }


PLAIN = trial(["food", "words"], ["selection", "random", "nothing"])
HARD = trial(HOSTILE, ["selection", *HOSTILE[:6], "random", "nothing"], HOSTILE[0])


@pytest.mark.parametrize("given", [PLAIN, HARD], ids=["plain", "hostile"])
def test_the_page_is_one_inert_file(given: dict[str, Any]) -> None:
    html = page.render(TEMPLATE, given)
    outline, plain = Outline(html), Outline(page.render(TEMPLATE, PLAIN))
    assert outline.tags == plain.tags
    assert (outline.open, outline.loads, outline.handlers) == ([], ["data:,"], [])
    assert json.loads(outline.scripts[0]) == given
    (style,) = re.findall("<style>(.*?)</style>", html, re.DOTALL)
    for directive, content in (("style-src", style), ("script-src", outline.scripts[1])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in outline.policy
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", outline.scripts[1])


@pytest.mark.parametrize("width", [360, 1280])
def test_every_arm_and_subtask_is_drawn(browser: Any, tmp_path: Path, width: int) -> None:
    with Shown(browser, tmp_path, page.render(TEMPLATE, PLAIN), width) as shown:
        assert shown.text("#title") == "Yes: training on the selection lowers the loss more"
        assert shown.texts("#apart .group") == ["food", "words", "mean of the subtasks"]
        assert shown.count("#apart .whisker") == 3
        assert shown.count("#curves path.curve") == 2
        assert shown.count("#curves .dot") == 8  # the start and three measurements of each
        assert shown.count("#results tbody tr") == 3
        assert shown.count("#results td.lower") == 3
        assert "−0.200 [−0.250, −0.150]" in shown.text("#apart")


def test_switches_change_the_curves(browser: Any, tmp_path: Path) -> None:
    with Shown(browser, tmp_path, page.render(TEMPLATE, PLAIN)) as shown:
        before = shown.texts("#curves text")
        shown.page.get_by_role("button", name="Steps", exact=True).click()
        assert "Steps" in shown.texts("#curves text")
        assert shown.texts("#curves text") != before
        shown.page.get_by_role("button", name="words", exact=True).click()
        assert "Loss on the judges of words" in shown.texts("#curves text")


@pytest.mark.parametrize("width", [360, 1280])
def test_hostile_names_are_shown_as_text_and_run_nothing(browser: Any, tmp_path: Path, width: int) -> None:
    with Shown(browser, tmp_path, page.render(TEMPLATE, HARD), width) as shown:
        assert shown.count("#apart .whisker") == 7 * (len(HOSTILE) + 1)
        assert shown.text("#lead") == HOSTILE[0]
        assert shown.count("img") == 0


@pytest.mark.parametrize(
    ("mean", "title"),
    [
        (0.3, "No: random samples lower the loss more"),
        (0.01, "These judges cannot tell the selection from random samples"),
    ],
)
def test_the_title_says_when_a_selection_did_not_help(
    browser: Any, tmp_path: Path, mean: float, title: str
) -> None:
    given = {**PLAIN, "arms": [arm("selection", mean, ["food", "words"]), *PLAIN["arms"][1:]]}
    with Shown(browser, tmp_path, page.render(TEMPLATE, given)) as shown:
        assert shown.text("#title") == title

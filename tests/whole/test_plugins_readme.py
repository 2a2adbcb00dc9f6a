"""The authors' page: its files and commands, as they stand, make packages that pass their suites."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

import clusterucb
from clusterucb import clusterers, features, hookspecs, policies, testing
from helpers.pages import blocks, furnish, run

PLUGINS = Path(__file__).parents[2] / "plugins"
PAGE = (PLUGINS / "README.md").read_text()
BLOCKS = blocks(PLUGINS / "README.md")


def test_the_page_followed_from_top_to_bottom(tmp_path):
    furnish(tmp_path)
    (site := tmp_path / "site").mkdir()
    # Into a folder of this test, with what is there already.
    into = {
        "PYTHONPATH": str(site),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PIP_TARGET": str(site),
        "PIP_UPGRADE": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
    }
    for block in BLOCKS:
        text = block.text.replace("pip wheel", "env -u PIP_TARGET -u PIP_UPGRADE pip wheel")
        run(block._replace(text=text), tmp_path, **into)
    assert (tmp_path / "runs" / "greedy" / "selected.jsonl").read_bytes()
    compared = (tmp_path / "runs" / "compared" / "comparison.json").read_text()
    assert "optimist[weight=0.9]" in compared
    assert [wheel.name for wheel in (tmp_path / "dist").iterdir()] == ["optimist-0.1.0-py3-none-any.whl"]


def test_a_policy_and_its_passing_suite_take_less_than_thirty_lines():
    files = [block for language, block in BLOCKS if language != "bash" and block.startswith("# greedy/")]
    assert len(files) == 3
    lines = [line for block in files for line in block.splitlines()[1:] if line.strip()]
    assert len(lines) < 30


def test_every_package_is_listed_and_has_what_the_page_asks_for():
    packages = sorted(path.parent for path in PLUGINS.glob("*/pyproject.toml"))
    assert re.findall(r"^\| \[`([\w-]+)`\]", PAGE, flags=re.M) == sorted(
        (package.name for package in packages), key=PAGE.index
    )
    for package in packages:
        names = {path.name for path in package.iterdir()}
        assert {"README.md", "CHANGELOG.md", "src", "tests"} <= names
        assert "TO BE" not in (package / "README.md").read_text()


@pytest.mark.parametrize("hook", [name for name in vars(hookspecs) if name.startswith("clusterucb_")])
def test_every_hook_has_a_package_here_with_a_test_and_a_place_on_the_page(hook):
    sources = [path for path in PLUGINS.glob("*/src/*/__init__.py") if f"\ndef {hook}(" in path.read_text()]
    assert sources
    suite = {"policies": "PolicySuite", "clusterers": "ClustererSuite", "features": "FeatureSuite"}
    for source in sources:
        (test,) = (source.parents[2] / "tests").glob("test_*.py")
        assert f"({suite[hook.removeprefix('clusterucb_')]})" in test.read_text()
    assert f"`{hook}`" in PAGE


@pytest.mark.parametrize(
    "module", [clusterers, features, policies, testing], ids=lambda module: module.__name__
)
def test_nothing_is_public_by_accident(module):
    own = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    hooks = {name for name in own if name.startswith("clusterucb_")}
    assert own - hooks - {"annotations", "hookimpl"} == set(module.__all__)


def test_every_name_on_the_page_is_public():
    named = re.findall(r"`clusterucb\.(?:(policies|clusterers|features|testing|errors)\.)?([A-Z]\w+)`", PAGE)
    assert len(named) >= 6
    for module, name in named:
        home = getattr(clusterucb, module) if module else clusterucb
        assert name in getattr(home, "__all__", vars(home))

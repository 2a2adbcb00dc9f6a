"""The README and the pages of the site: their code runs as it stands, and what they say is what is there."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import clusterucb
from clusterucb import errors, hookspecs, testing
from clusterucb.samples.pool import read_pool
from helpers.pages import blocks, environment, furnish, run
from structure import FLOORS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
RUNNING = [page for page in PAGES if any(block.language in ("bash", "python") for block in blocks(page))]
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
RESULTS = ROOT / "benchmarks" / "results"


def names(paths):
    return [path.name for path in paths]


@pytest.mark.parametrize("page", RUNNING, ids=names(RUNNING))
def test_commands_and_programs_of_a_page_run_in_order(page, tmp_path, request):
    furnish(tmp_path)
    running = [block for block in blocks(page) if block.language in ("bash", "python")]
    # Those of the README, and of the page on plugins, start as a user starts them.
    warm = None if page.name == "README.md" else request.getfixturevalue("programs")
    for block in running:
        run(block, tmp_path, warm)
    commands = "\n".join(block.text for block in running)
    for name in re.findall(r"clusterucb select [^\n]*?(?:\\\n[^\n]*?)*--out (\S+)", commands):
        assert (tmp_path / name / "selected.jsonl").read_bytes()


def test_every_page_that_should_run_does():
    assert {"README.md", "get-started.md", "select.md", "compare.md", "production.md"} <= set(names(RUNNING))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names(NOTEBOOKS))
def test_notebooks_run_and_are_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    there = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, kernel_name="python3", timeout=300, resources=there).execute()
    assert any(cell.get("outputs") for cell in notebook.cells)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "get-started.md"], ids=lambda page: page.name)
def test_rows_have_the_shape_that_is_shown(page, tmp_path):
    (block,) = [block for block in blocks(page) if block.language == "json"]
    (tmp_path / "pool.jsonl").write_text(block.text)
    pool = read_pool([tmp_path / "pool.jsonl"])
    assert len(pool.samples) == len(block.text.splitlines()) == 2


def test_every_make_target_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    shown = [block.text for page in PAGES for block in blocks(page) if not block.language]
    targets = [line.split("#")[0].split()[1] for text in shown for line in text.splitlines()]
    targets += re.findall(r"^make ([a-z-]+)", CONTRIBUTING.read_text(), flags=re.M)
    for page in [*PAGES, CONTRIBUTING]:
        targets += re.findall(r"`make ([a-z-]+)`", page.read_text())
    assert {"demo", "test", "docs", "lint", "setup"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_lead_to_files_that_exist(page):
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_every_file_that_contributing_names_exists():
    text = CONTRIBUTING.read_text()
    assert len(text.splitlines()) <= 150
    named = re.findall(r"`(?:\.venv/bin/python )?([\w./-]+/|[\w./-]+\.(?:py|md|txt|hpp|cuh?))`", text)
    assert {"engine/loop.py", "tests/structure.py", "csrc/", "tests/data/former/"} <= set(named)
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "python" / "clusterucb" / name).exists(), name


def test_contributing_draws_the_rooms_that_the_structure_has():
    (picture,) = [block.text for block in blocks(CONTRIBUTING) if block.language == "text"]
    floors: dict[int, list[str]] = {}
    for number, room in re.findall(r"^(\d| ) +(\w+)", picture, flags=re.M):
        floor = int(number) if number.strip() else min(floors)
        floors.setdefault(floor, []).append(room)
    assert floors == {number: list(rooms) for number, rooms in enumerate(FLOORS)}


def test_no_inner_module_is_named_on_a_page():
    public = {"engine", "errors", "hookspecs", "testing", "plugins", "kernels", "training"}
    for page in [*PAGES, *sorted(DOCS.glob("api/*.md"))]:
        for name in re.findall(r"(?<![.\w])clusterucb\.([a-z_]+)\b", page.read_text()):
            assert name in public | set(clusterucb.__all__) | set(vars(hookspecs)), f"{page.name}: {name}"


def test_the_api_has_every_public_name():
    text = "".join(page.read_text() for page in DOCS.glob("api/*.md"))
    documented = set(re.findall(r"^\.\. \w+:: clusterucb\.([\w.]+)", text, flags=re.M))
    hooks = {name for name in hookspecs.__all__ if name.startswith("clusterucb_")}
    raised = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    assert set(clusterucb.__all__) <= documented
    assert {f"hookspecs.{name}" for name in hooks} <= documented
    assert {f"testing.{name}" for name in testing.__all__} <= documented
    assert {f"errors.{name}" for name in raised - set(clusterucb.__all__)} <= documented


@pytest.fixture(scope="module")
def figures():
    spec = importlib.util.spec_from_file_location("figures", DOCS / "figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["recall", "store"])
def test_figures_are_those_of_the_committed_results(name, figures):
    svg = (DOCS / "_static" / f"{name}.svg").read_text()
    drawn = re.search(r"<dc:description>(.*?)</dc:description>", svg, flags=re.S)[1]
    assert json.loads(drawn.replace("&quot;", '"')) == getattr(figures, name)()


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "benchmarks.md"], ids=lambda page: page.name)
def test_the_recall_that_is_quoted_is_that_of_the_committed_results(page):
    pools = json.loads((RESULTS / "replay-smollm2-135m.json").read_text())["pools"]
    found = {
        strategy: [
            next(row["recall"][-1] for row in pools[pool] if row["strategy"] == strategy)
            for pool in ("templated", "diverse", "code")
        ]
        for strategy in ("surrogate", "ucb", "random")
    }
    text = " ".join(page.read_text().split())
    for strategy in ("surrogate", "ucb"):
        one, two, three = (f"{value:.2f}".lstrip("0") for value in found[strategy])
        assert re.search(rf"{re.escape(one)}, {re.escape(two)} and {re.escape(three)} ", text), strategy
    assert np.allclose(found["random"], 0.2, atol=0.02)


def test_a_repeated_job_writes_the_same_bytes_but_where_the_pages_say(tmp_path):
    furnish(tmp_path)
    for name in ("first", "second"):
        command = (
            "clusterucb select pool.jsonl --target dev.jsonl --model path/to/model --warmup-steps 2 --annotate "
            f"--scores-parquet --export trl,llamafactory,axolotl --out repeated/{name}"
        )
        subprocess.run(command.split(), cwd=tmp_path, env=environment(), capture_output=True, check=True)
    first, second = (
        {
            str(path.relative_to(tmp_path / "repeated" / name)): path.read_bytes()
            for path in (tmp_path / "repeated" / name).rglob("*")
            if path.is_file()
        }
        for name in ("first", "second")
    )
    assert first.keys() ^ second.keys() <= {"features-cached.json"}
    different = {name for name in first.keys() & second.keys() if first[name] != second[name]}
    paths = {
        "config.yaml",
        "export-trl/sft.py",
        "export-llamafactory/sft.yaml",
        "export-axolotl/axolotl.yaml",
    }
    assert different - {"trail.jsonl"} == {"manifest.json", "report.html", *paths}
    for name in paths:
        assert first[name].replace(b"repeated/first", b"repeated/second") == second[name]

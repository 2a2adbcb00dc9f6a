"""The page of a run: it says what the run's other files say, at any time, and is inert and readable in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import threading
import urllib.parse
import urllib.request
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clusterucb as cu
import clusterucb.report.run_page
from clusterucb import filenames
from clusterucb.cli import main as cli
from clusterucb.errors import ClusterUCBWarning, RunError
from clusterucb.jobs.report import Served, report
from clusterucb.report.page import render
from clusterucb.report.run_page.content import page_content
from clusterucb.run.manifest_file import read_manifest, write_manifest
from helpers.browsing import HOSTILE, Outline, Shown
from helpers.selections import N, arguments, write_job
from helpers.tiny import interrupt, read_rows, rows, write_rows

ESTIMATED = {"budget": "60%", "cold_start": 0.5}  # enough random draws for estimates of the recall
TEMPLATE = Path(clusterucb.report.run_page.__file__).with_name("page.html")


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    return write_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def run(job: Path, tmp_path_factory) -> cu.Result:
    return cu.select(**arguments(job, tmp_path_factory.mktemp("run") / "run", **ESTIMATED))


@pytest.fixture(scope="module")
def hostile(job: Path, tmp_path_factory) -> cu.Result:
    """Return a run whose pool and target have hostile texts, sources, ids and subtasks."""
    folder = tmp_path_factory.mktemp("hostile")
    texts = [text.replace("\ud800", "\ufffd") for text in HOSTILE]
    pool = [
        {
            **row,
            "id": f"{texts[at % len(texts)]} {at}",
            "source": texts[at % len(texts)],
            "prompt": f"{texts[at % 7]} {at}",
        }
        for at, row in enumerate(rows(40))
    ]
    target = [{**row, "subtask": texts[at % 4]} for at, row in enumerate(rows(8, seed=3))]
    options = arguments(job, folder / "run", rule="standardized", **ESTIMATED)
    options |= {
        "pool": write_rows(folder / "pool.jsonl", pool),
        "target": write_rows(folder / "dev.jsonl", target),
    }
    return cu.select(**options)


def without_result(folder: Path) -> Path:
    """Make a run folder what it is after a kill: scores, and no result."""
    manifest = read_manifest(folder)
    manifest.status, manifest.outcome = "running", None
    assert manifest.files is not None
    del manifest.files[filenames.DETAILS]
    write_manifest(folder, manifest)
    for name in (filenames.DETAILS, filenames.TRAIL, filenames.RUN_PAGE):
        (folder / name).unlink(missing_ok=True)
    return folder


def unpacked(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def test_the_page_says_what_the_other_files_say(run: cu.Result) -> None:
    content = page_content(run.out)
    scores = {line["id"]: line for line in read_rows(run.out / "scores.jsonl")}
    assert (content["status"], content["pool"], content["scored"], content["failed"]) == (
        "finished",
        N,
        len(scores),
        0,
    )
    assert [one["id"] for one in content["listed"]["selected"]] == run.ids
    for one in content["listed"]["selected"]:
        line = scores[one["id"]]
        assert one["score"] == line["score"]
        assert (one["draw"], one["arm"]) == (line["draw"], line["cluster"])
        assert one["scores"] == pytest.approx(list(line["subtasks"].values()), abs=1e-5)
    texts = {sample.id: sample for sample in run.samples}
    for one in content["listed"]["selected"]:
        assert "".join(text for _, text, learnt in one["turns"] if learnt) == texts[one["id"]].answer
    ranked = sorted(scores.values(), key=lambda line: -line["score"])
    others = [line["id"] for line in ranked if not line["selected"]]
    assert [one["id"] for one in content["listed"]["below"]] == others[:10]
    assert [one["id"] for one in content["listed"]["worst"]] == [line["id"] for line in ranked[::-1][:10]]
    assert content["config"] == (run.out / "config.yaml").read_text()
    assert content["cost"]["total"] == run.cost.total
    recall = run.selection.recall
    assert recall is not None
    assert content["outcome"]["recall"]["estimate"] == recall.estimate
    assert content["trail"][-1]["draws"] <= len(scores)
    assert [point["draws"] for point in content["trail"]] == sorted(
        {point["draws"] for point in content["trail"]}
    )


def test_its_figures_count_every_sample_once(run: cu.Result) -> None:
    content = page_content(run.out)
    lines = read_rows(run.out / "scores.jsonl")
    of_arms = content["arms"]["rows"]
    assert sum(row["draws"] for row in of_arms) + content["arms"]["others"]["draws"] == len(lines)
    assert sum(row["selected"] for row in of_arms) + content["arms"]["others"]["selected"] == len(run)
    for row in of_arms:
        own = [line for line in lines if line["cluster"] == row["arm"]]
        assert row["draws"] == len(own) == sum(row["times"])
        assert row["mean"] == pytest.approx(np.mean([np.mean([*line["subtasks"].values()]) for line in own]))
    assert content["arms"]["edges"][0] == 0
    assert content["arms"]["edges"][-1] == len(lines)
    for histogram in content["scores"].values():
        assert (sum(histogram["drawn"]), sum(histogram["selected"])) == (len(lines), len(run))
    lengths = content["lengths"]
    assert [sum(lengths[name]) for name in ("pool", "drawn", "selected")] == [N, len(lines), len(run)]
    assert sum(row["pool"] for row in content["sources"]["rows"]) == N
    assert sum(row["drawn"] for row in content["sources"]["rows"]) == len(lines)
    assert sum(row["selected"] for row in content["sources"]["rows"]) == len(run)
    recall = run.selection.recall
    missed = content["outcome"]["n_select"] * (1 - recall.estimate)
    assert content["missed"][0] == pytest.approx(missed)
    assert sum(count for _, count in content["missed"][1]) == pytest.approx(missed, abs=1e-3)
    for name, curve in content["best"]["curves"].items():  # each of the four subtasks would select one
        scores = [line["subtasks"][name] for line in lines]
        for draws, mean in zip(content["best"]["draws"], curve, strict=True):
            assert mean == pytest.approx(max(scores[:draws]), abs=1e-5)


def test_the_map_has_every_sample_of_a_small_pool(run: cu.Result) -> None:
    shown = page_content(run.out)["map"]
    n_drawn = len(read_rows(run.out / "scores.jsonl"))
    assert shown["drawn"] == n_drawn
    assert len(unpacked(shown["x"], "<u2")) == len(unpacked(shown["source"], "<u4")) == N
    assert shown["shown_of"] == [n_drawn, N - n_drawn]
    assert len(shown["selected"]) == len(run)
    assert len(shown["texts"]) == N
    lines = read_rows(run.out / "scores.jsonl")
    for score in shown["scores"][1:]:
        values = score["low"] + (unpacked(score["values"], "<u2") - 1.0) / 65534 * (
            score["high"] - score["low"]
        )
        assert values == pytest.approx([line["subtasks"][score["name"]] for line in lines], abs=1e-4)


def test_the_same_folder_gives_the_same_page_wherever_it_is_made(run: cu.Result, tmp_path: Path) -> None:
    page = (run.out / filenames.RUN_PAGE).read_bytes()
    assert report([run.out]) == [run.out / filenames.RUN_PAGE]
    assert (run.out / filenames.RUN_PAGE).read_bytes() == page
    copy = shutil.copytree(run.out, tmp_path / "copy")
    before, now = page_content(run.out), page_content(copy)
    assert {**before, "folder": ""} == {**now, "folder": ""}


def test_a_run_that_is_interrupted_has_a_page_and_a_resumed_one_another(job, tmp_path, monkeypatch) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, {4})
        with pytest.raises(KeyboardInterrupt):
            cu.select(**arguments(job, out, **ESTIMATED))
    content = page_content(out)
    assert content["status"] == "running"
    assert 0 < content["scored"] < 54
    assert (out / filenames.RUN_PAGE).exists()
    killed = page_content(without_result(out))
    assert (killed["outcome"], killed["listed"]["selected"], killed["trail"]) == (None, [], [])
    result = cu.select(**arguments(job, out, **ESTIMATED))
    assert [one["id"] for one in page_content(out)["listed"]["selected"]] == result.ids
    cu.select(**arguments(job, out, **{**ESTIMATED, "budget": "80%"}))
    assert page_content(out)["scored"] > len(result.selection.drawn_rows)


def test_a_run_without_estimates_random_scores_and_one_subtask_have_pages(job, tmp_path) -> None:
    result = cu.select(**arguments(job, tmp_path / "capped", max_per_source=2))
    content = page_content(result.out)
    assert (content["trail"], content["calibration"], content["missed"]) == ([], None, None)
    whole = cu.select(**arguments(job, tmp_path / "whole", policy=cu.Random(), budget="100%"))
    content = page_content(whole.out)
    assert content["scored"] == N
    assert content["calibration"] is None
    one = write_rows(tmp_path / "one.jsonl", rows(3, seed=9)[:3])
    target = [{**row, "subtask": "one"} for row in read_rows(one)]
    options = arguments(job, tmp_path / "one") | {"target": write_rows(one, target)}
    content = page_content(cu.select(**options).out)
    assert list(content["scores"]) == ["one"]
    assert [score["name"] for score in content["map"]["scores"]] == ["score"]


def test_nothing_is_kept_of_a_run_that_nobody_keeps(job) -> None:
    assert cu.select(**{**arguments(job, ""), "out": None}).out is None


def test_a_read_only_run_is_shown_without_writing(
    run: cu.Result, job: Path, tmp_path: Path, monkeypatch
) -> None:
    copy = shutil.copytree(run.out, tmp_path / "copy")
    (copy / filenames.RUN_PAGE).unlink()
    monkeypatch.setattr("clusterucb.run.folder._shown_only", lambda folder: True)
    assert cu.select(**arguments(job, copy, **ESTIMATED)).ids == run.ids
    assert not (copy / filenames.RUN_PAGE).exists()


@pytest.mark.parametrize("name", [filenames.OVERVIEW, filenames.DETAILS])
@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff" * 40, None])
def test_damaged_files_of_the_page_are_named_and_made_again(run, job, tmp_path, name, damage) -> None:
    copy = shutil.copytree(run.out, tmp_path / "copy")
    (copy / name).write_bytes((copy / name).read_bytes()[:-9] if damage is None else damage)
    with pytest.raises(
        RunError, match=rf"{name} is damaged .*: remove it and repeat the clusterucb select command"
    ):
        report([copy])
    (copy / name).unlink()
    with pytest.raises(RunError, match=f"{name} was removed: repeat the clusterucb select command"):
        report([copy])
    if name == filenames.OVERVIEW:
        with pytest.warns(ClusterUCBWarning, match="was removed; it is computed again"):
            assert cu.select(**arguments(job, copy, **ESTIMATED)).ids == run.ids
    else:
        assert cu.select(**arguments(job, copy, **ESTIMATED)).ids == run.ids
    assert [one["id"] for one in page_content(copy)["listed"]["selected"]] == run.ids


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b'{"draws": "1"}', b'{"draws":3,"seconds":1,"recall":[0.1', b"\xff\xfe", b"null\n\n7"],
)
def test_lines_of_the_trail_that_say_nothing_are_passed_over(run, tmp_path, line) -> None:
    copy = shutil.copytree(run.out, tmp_path / "copy")
    with (copy / filenames.TRAIL).open("ab") as trail:
        trail.write(b"\n" + line)
    assert page_content(copy)["trail"] == page_content(run.out)["trail"]


def test_a_link_in_place_of_the_trail_is_not_written_through(job, tmp_path) -> None:
    out = tmp_path / "run"
    result = cu.select(**arguments(job, out, **ESTIMATED))
    (tmp_path / "elsewhere").write_text("mine")
    (out / filenames.TRAIL).unlink()
    (out / filenames.TRAIL).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"trail.jsonl is a link; expected a file"):
        cu.select(**arguments(job, out, **{**ESTIMATED, "budget": "90%"}))
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert len(result)


def test_what_is_no_selection_is_refused_by_name(run: cu.Result, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "empty", "holds no run"), (tmp_path / "nowhere", "holds no run")):
        assert cli.run(["report", str(folder)]) == 2
        assert message in capsys.readouterr().err
    copy = shutil.copytree(run.out, tmp_path / "copy")
    manifest = read_manifest(copy)
    manifest.identity.job = "compare"
    write_manifest(copy, manifest)
    assert cli.run(["report", str(copy)]) == 2
    assert "holds no selection" in capsys.readouterr().err
    assert cli.run(["report", str(run.out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"pages": [str(run.out / "report.html")]}


def test_pages_open_in_a_browser_where_there_is_one(run: cu.Result, monkeypatch, capsys) -> None:
    opened: list[str] = []
    monkeypatch.setattr(
        "clusterucb.jobs.report.webbrowser.open", lambda address: opened.append(address) or True
    )
    assert cli.run(["report", str(run.out), "--open"]) == 0
    assert opened == [(run.out / "report.html").absolute().as_uri()]
    monkeypatch.setattr("clusterucb.jobs.report.webbrowser.open", lambda _: False)
    assert cli.run(["report", str(run.out), "--open"]) == 0
    assert "no browser was found; open file://" in capsys.readouterr().err


def test_a_served_page_is_for_its_own_address_and_refreshed_while_the_run_is_at_work(run, tmp_path) -> None:
    copy = shutil.copytree(run.out, tmp_path / "copy")
    with pytest.raises(RunError, match="holds no run"):
        Served([copy, tmp_path / "nowhere"])
    served = Served([copy])
    threading.Thread(target=served.serve, daemon=True).start()
    try:
        with urllib.request.urlopen(served.address) as answer:
            assert b"selected samples" in answer.read()
            assert answer.headers["Refresh"] is None
        manifest = read_manifest(copy)
        manifest.status = "running"
        write_manifest(copy, manifest)
        with urllib.request.urlopen(served.address) as answer:
            assert answer.headers["Refresh"] == "5"
        shutil.rmtree(copy)
        with urllib.request.urlopen(served.address) as answer:
            assert b"holds no run" in answer.read()
            assert answer.headers["Refresh"] == "5"
        place = urllib.parse.urlsplit(served.address)
        for path, host in (("/", "localhost"), ("/1", "127.0.0.1"), (place.path, "elsewhere.example")):
            connection = HTTPConnection(place.hostname, place.port)
            connection.request("GET", path, headers={"Host": host})
            assert connection.getresponse().status == 404
        assert place.hostname == "127.0.0.1"
    finally:
        served._server.shutdown()


def test_the_page_is_one_inert_file(run: cu.Result, hostile: cu.Result) -> None:
    contents = [page_content(one.out) for one in (run, hostile)]
    outlines = [Outline(render(TEMPLATE, content)) for content in contents]
    assert outlines[0].tags == outlines[1].tags
    for outline, content in zip(outlines, contents, strict=True):
        assert (outline.open, outline.loads, outline.handlers) == ([], ["data:,"], [])
        assert json.loads(outline.scripts[0]) == json.loads(json.dumps(content))
        html = render(TEMPLATE, content)
        (style,) = re.findall("<style>(.*?)</style>", html, re.DOTALL)
        for directive, part in (("style-src", style), ("script-src", outline.scripts[1])):
            digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
            assert f"{directive} 'sha256-{digest}'" in outline.policy
        assert "default-src 'none'" in outline.policy
    missing = set(re.findall(r'at\("([\w-]+)"\)', TEMPLATE.with_suffix(".js").read_text())) - set(
        outlines[0].ids
    )
    assert not missing


@pytest.mark.parametrize("width", [1280, 400])
def test_it_is_read_in_a_browser(run: cu.Result, browser: Any, tmp_path: Path, width: int) -> None:
    with Shown(browser, tmp_path, (run.out / filenames.RUN_PAGE).read_text("utf-8"), width) as shown:
        assert shown.text("h1").startswith(f"{len(run)} of {N} samples selected")
        assert shown.count("#list > li") == len(run)
        first = shown.page.locator("#list button.row").first
        first.click()
        assert run.samples[0].answer in shown.text("#list li:first-child .learnt")
        shown.page.locator("#list-find").fill("no such text")
        assert shown.count("#list > li") == 0
        shown.page.locator("#list-find").fill(run.ids[0].upper())
        assert shown.count("#list > li") >= 1
        shown.page.locator("#map").focus()
        shown.page.keyboard.press("ArrowRight")
        assert "selected" in shown.text("#tip")
        assert "selected" in shown.page.locator("#spoken").text_content()
        shown.page.keyboard.press("Escape")
        shown.page.locator("#recall").focus()
        shown.page.keyboard.press("ArrowRight")
        assert "samples scored" in shown.page.locator("#spoken").text_content()
        shown.page.keyboard.press("Escape")
        shown.page.get_by_role("button", name="source", exact=True).click()
        shown.page.get_by_role("button", name="time", exact=True).click()
        shown.page.get_by_role("button", name="mean score").click()
        assert shown.count("#sources [aria-sort=descending]") == 1


def test_hostile_names_and_texts_are_shown_as_they_are(
    hostile: cu.Result, browser: Any, tmp_path: Path
) -> None:
    with Shown(browser, tmp_path, (hostile.out / filenames.RUN_PAGE).read_text("utf-8")) as shown:
        for button in shown.page.locator("#list button.row").all():
            button.click()
        assert "<script>" in shown.text("#list")
        shown.page.locator("#map").focus()
        for _ in range(6):
            shown.page.keyboard.press("ArrowRight")


def test_a_run_at_work_is_read_in_a_browser(run: cu.Result, browser: Any, tmp_path: Path) -> None:
    copy = without_result(shutil.copytree(run.out, tmp_path / "copy"))
    with Shown(browser, tmp_path, render(TEMPLATE, page_content(copy))) as shown:
        assert "scored so far" in shown.text("h1")
        assert not shown.page.locator("#list-section").is_visible()
        assert not shown.page.locator("#outlook-section").is_visible()
        assert shown.page.locator("#map").is_visible()


def test_subtasks_with_whole_numbers_as_names_keep_their_scores(
    job: Path, browser: Any, tmp_path: Path
) -> None:
    names = ["2", "10", "1", "x"]
    target = [{**row, "subtask": names[at % 4]} for at, row in enumerate(rows(12, seed=9))]
    options = arguments(job, tmp_path / "run", **ESTIMATED)
    result = cu.select(**{**options, "target": write_rows(tmp_path / "dev.jsonl", target)})
    line = next(line for line in read_rows(result.out / "scores.jsonl") if line["id"] == result.ids[0])
    with Shown(browser, tmp_path, (result.out / filenames.RUN_PAGE).read_text("utf-8")) as shown:
        shown.page.locator("#list button.row").first.click()
        said = shown.text("#list li:first-child .talk p")
        found = dict(re.findall(r"(\w+) (−?[\d.]+)(?:,|$)", said.rpartition(" · ")[2]))
        assert found.keys() == line["subtasks"].keys()
        for name, score in line["subtasks"].items():
            assert float(found[name].replace("−", "-")) == pytest.approx(score, abs=1e-3)


def test_a_run_at_work_says_nothing_of_its_cost(run: cu.Result, browser: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(run.out, tmp_path / "copy")
    trail = (copy / filenames.TRAIL).read_bytes()
    without_result(copy)
    (copy / filenames.TRAIL).write_bytes(trail)
    with Shown(browser, tmp_path, render(TEMPLATE, page_content(copy))) as shown:
        assert not shown.page.locator("#cost-section").is_visible()
        assert "of a gradient of every pool sample" not in shown.text("#lead")


def test_a_pool_that_is_scored_whole_needs_no_larger_budget(job: Path, browser: Any, tmp_path: Path) -> None:
    result = cu.select(**arguments(job, tmp_path / "run", budget="100%"))
    with Shown(browser, tmp_path, (result.out / filenames.RUN_PAGE).read_text("utf-8")) as shown:
        assert "budget" not in shown.text("#search-say").replace("the budget is spent", "")
        assert "Between" not in shown.text("#lead")


def test_a_selection_of_another_size_has_no_details_of_the_former(
    job: Path, tmp_path: Path, monkeypatch
) -> None:
    options = arguments(job, tmp_path / "run", **ESTIMATED)
    cu.select(**options)
    with monkeypatch.context() as patch:
        patch.setattr("clusterucb.jobs.stages.page.keep_details", failing)
        with pytest.raises(KeyboardInterrupt):
            cu.select(**{**options, "select": "15%"})
    content = page_content(tmp_path / "run")
    assert content["listed"]["selected"] == []
    assert cu.select(**{**options, "select": "15%"}).ids == [
        one["id"] for one in page_content(tmp_path / "run")["listed"]["selected"]
    ]


def failing(*_: object) -> None:
    raise KeyboardInterrupt


def test_time_goes_on_when_a_killed_run_is_resumed(job: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, {4})
        with pytest.raises(KeyboardInterrupt):
            cu.select(**arguments(job, out, **ESTIMATED))
    (out / filenames.TRAIL).write_bytes(b'{"draws":1,"seconds":5000.0,"recall":[0,0,1]}')
    cu.select(**arguments(job, out, **ESTIMATED))
    seconds = [point["seconds"] for point in page_content(out)["trail"]]
    assert seconds == sorted(seconds)
    assert seconds[-1] > 5000

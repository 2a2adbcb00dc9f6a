"""Measure the page of a large run: making it, its size, and how fast a browser shows it.

    python benchmarks/bench_report.py [--rows 200000] [--scored 100000] [--json FILE]

A selection from a made pool (`bench_scale.py`) looks its scores up. Then `clusterucb report` makes the page in a
process of its own; its time stands beside that of an interpreter that only imports numpy. A browser opens the page. Its
own clock says when the first content was painted, and how long it takes to answer a pointer on the map, to colour the
map anew, and to search the list of selected samples: from the event until the next frame is painted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_scale import ROOT, Table, write_job

TRIES = 5
# Do something, and resolve with the milliseconds until the next frame is painted.
_ANSWERED = """([selector, what]) => new Promise((done) => {
  const node = document.querySelector(selector), box = node.getBoundingClientRect(), began = performance.now();
  if (what === "point") node.dispatchEvent(new PointerEvent("pointermove", {bubbles: true,
    clientX: box.left + box.width * Math.random(), clientY: box.top + box.height * Math.random()}));
  else if (what === "type") {
    node.value = "row-" + Math.floor(9 * Math.random()); node.dispatchEvent(new Event("input"));
  }
  else node.click();
  requestAnimationFrame(() => { const channel = new MessageChannel();
    channel.port1.onmessage = () => done(performance.now() - began); channel.port2.postMessage(0); });
})"""


def make_run(folder: Path, n_rows: int, n_scored: int) -> None:
    """Select from a made pool, with scores that are looked up, into ``run`` in a folder."""
    os.environ["CLUSTERUCB_CACHE_LIMIT"] = "0"
    import clusterucb as cu
    from clusterucb.engine.draws import RowScores
    from clusterucb.jobs.stages.influence import Influence

    write_job(folder, n_rows)
    tables: list[Table] = []

    def looked_up(influence: Influence, rows):
        if not tables:
            tables.append(Table(influence._material.sources))
        return RowScores(tables[0].scores[rows])

    Influence.score = looked_up
    cu.select(
        str(folder / "pool.jsonl"),
        str(folder / "dev.jsonl"),
        model=str(folder / "model"),
        out=folder / "run",
        policy=cu.Random(),
        budget=str(n_scored),
        select="5%",
        batch_size=2000,
        warmup_steps=1,
    )


def timed(command: list[str]) -> tuple[float, float]:
    """Run a command, and return its seconds and its largest resident set in gigabytes."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed")
    return time.perf_counter() - began, 1024 * usage.ru_maxrss / 1e9


def in_browser(page: Path) -> dict[str, float]:
    """Return what a browser measures of a page, in milliseconds: the medians of several tries."""
    from playwright.sync_api import sync_playwright

    found: dict[str, list[float]] = {}
    with sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=shutil.which("chromium-headless-shell"), args=["--no-sandbox"]
        )
        for _ in range(TRIES):
            shown = browser.new_page(viewport={"width": 1280, "height": 900})
            shown.goto(page.as_uri())
            shown.wait_for_timeout(500)
            paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            found.setdefault("first paint", []).append(shown.evaluate(paint))
            for name, selector, what in (
                ("a pointer on the map", "#map", "point"),
                ("colours of the map", "#map-controls button[aria-pressed=false]", "click"),
                ("the list searched", "#list-find", "type"),
            ):
                found.setdefault(name, []).append(shown.evaluate(_ANSWERED, [selector, what]))
            shown.close()
        browser.close()
    return {name: round(statistics.median(times), 1) for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--scored", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--in-folder", type=Path, help=argparse.SUPPRESS)  # only makes the run
    options = parser.parse_args()
    if options.in_folder:
        make_run(options.in_folder, options.rows, options.scored)
        return
    with tempfile.TemporaryDirectory() as temporary:
        sizes = ["--rows", str(options.rows), "--scored", str(options.scored)]
        # in a process of its own, because a child's largest resident set begins with that of its parent
        subprocess.run([sys.executable, __file__, "--in-folder", temporary, *sizes], check=True)
        run = Path(temporary) / "run"
        plain, _ = timed([sys.executable, "-c", "import numpy"])
        seconds, gigabytes = timed([sys.executable, "-m", "clusterucb", "report", str(run)])
        page = run / "report.html"
        found = {
            "rows": options.rows,
            "scored": options.scored,
            "seconds": round(seconds, 2),
            "times an interpreter with numpy": round(seconds / plain, 1),
            "gigabytes": round(gigabytes, 2),
            "megabytes of the page": round(page.stat().st_size / 1e6, 2),
            "milliseconds in a browser": in_browser(page),
        }
    print(json.dumps(found, indent=2))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    sys.path.append(str(ROOT / "tests"))
    main()

"""Measure a whole selection from millions of rows: reading, features, decisions and writing, and their memory.

    python benchmarks/bench_scale.py [--rows 1000000,3000000,10000000] [--search-only] [--json FILE]

`cu.select` runs as a user calls it, with its default features, clusters and policy, in a process of its own. One thing
is made: scores come from a table, because a gradient of each of two million draws would take weeks. A row's scores are
those of its source with noise, for three subtasks. The model is a tiny one with 64 hidden dimensions, so that a row has
130 features.

The parts of a run are

- reading: reading and encoding the pool, in canonical order;
- features: computing and storing the features;
- decisions: everything that the search itself does (clusters, cold start, policy, estimates of the recall, selection),
  without the scorer and without recording the draws;
- recording: the ledger, which holds each draw before it is scored, and its scores;
- writing: the files of the result.

With ``--search-only``, features are made, in files that are mapped into memory, and `cu.search` runs on them: this
measures the decisions without the hour that reading and encoding take.

Each part has its wall time, its processor time and the largest resident set. A resident set has two parts: what the
process holds itself (RssAnon), and pages of files that are mapped into memory, which the system can reclaim at any
time. A busy machine stretches wall times and, less, processor times; the load is in the results.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))

from helpers import tiny  # noqa: E402  (it lies in tests/)

HIDDEN = 64
N_SOURCES, WORDS_OF_SOURCE = 300, 12
SUBTASKS = ("colours", "sums", "places")
SECONDS, GIGABYTES = 20, 6  # the limits of decisions at ten million rows, on two cores
PARTS = ("reading", "features", "decisions", "recording", "scoring", "writing")


def write_pool(path: Path, n_rows: int) -> None:
    """Write a pool of distinct rows. A row has a few words of its source, so that features tell of the scores."""
    choose = random.Random(0)
    words = ["".join(choose.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(1000)]
    sources = [choose.sample(words, WORDS_OF_SOURCE) for _ in range(N_SOURCES)]
    with path.open("w") as lines:
        for number in range(n_rows):
            source = number % N_SOURCES
            one, two, three = choose.choices(sources[source], k=3)
            lines.write(
                f'{{"id": "row-{number}", "prompt": "{number} {one}", "completion": "{two} {three}", '
                f'"source": "s{source}"}}\n'
            )


class Clock:
    """Sums the wall and processor seconds of named parts. Time of a part inside another counts for the inner one."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, float, float]] = []  # part, begin and end, by time.time()
        self.wall = dict.fromkeys(PARTS, 0.0)
        self.cpu = dict.fromkeys(PARTS, 0.0)
        self._inner = [[0.0, 0.0]]

    @contextmanager
    def part(self, name: str):
        began, wall, cpu = time.time(), time.perf_counter(), time.process_time()
        self._inner.append([0.0, 0.0])
        try:
            yield
        finally:
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            inner_wall, inner_cpu = self._inner.pop()
            self.wall[name] += wall - inner_wall
            self.cpu[name] += cpu - inner_cpu
            self._inner[-1][0] += wall
            self._inner[-1][1] += cpu
            self.spans.append((name, began, time.time()))

    def around(self, owner: object, attribute: str, name: str) -> None:
        """Let every call of ``owner.attribute`` count as a part."""
        function = getattr(owner, attribute)

        def timed(*arguments, **options):
            with self.part(name):
                return function(*arguments, **options)

        setattr(owner, attribute, timed)


class Table:
    """Looks up the scores of rows: those of the rows' sources, with noise."""

    def __init__(self, sources) -> None:
        import numpy as np

        rng = np.random.default_rng(0)
        number = {f"s{source}": source for source in range(N_SOURCES)}
        of_row = np.fromiter((number[source] for source in sources), np.int64, len(sources))
        of_source = rng.normal(size=(N_SOURCES, len(SUBTASKS)))
        self.scores = of_source[of_row]
        self.scores += rng.normal(size=self.scores.shape)


def made_features(folder: Path, n_rows: int):
    """Return features like those of a made pool, f16[N, k] mapped from files, and the source of each row."""
    import numpy as np

    rng = np.random.default_rng(0)
    words = rng.normal(size=(N_SOURCES, WORDS_OF_SOURCE, HIDDEN)).astype(np.float32)
    of_row = rng.integers(0, N_SOURCES, n_rows)
    blocks = {}
    for name, n_words in (("prompt", 1), ("answer", 2), ("length", 0)):
        width = HIDDEN if n_words else 2
        rows = np.memmap(folder / name, np.float16, "w+", shape=(n_rows, width))
        for begin in range(0, n_rows, 1 << 16):
            here = of_row[begin : begin + (1 << 16)]
            some = 0.3 * rng.standard_normal((len(here), width), np.float32)
            for _ in range(n_words):
                some += words[here, rng.integers(0, WORDS_OF_SOURCE, len(here))] / n_words
            rows[begin : begin + len(here)] = some
        rows.flush()
        blocks[name] = np.asarray(np.memmap(folder / name, np.float16, "r", shape=(n_rows, width)))
    return blocks, np.array([f"s{source}" for source in range(N_SOURCES)], object)[of_row]


def timed_policy(name: str):
    """Return a policy, and a list that gets the seconds of each of its decisions."""
    from clusterucb import plugins

    policy, seconds = plugins.load().make("policy", name, {}), []
    decide = policy.ask

    def ask(*arguments):
        began = time.perf_counter()
        rows = decide(*arguments)
        seconds.append(time.perf_counter() - began)
        return rows

    policy.ask = ask
    return policy, seconds


def search_only(folder: Path, options: argparse.Namespace) -> None:
    """Search among made features, and print what it took as JSON."""
    import clusterucb as cu
    from clusterucb.options.amounts import parse_count

    n_rows, clock = options.one_search, Clock()
    policy, seconds = timed_policy(options.policy)
    features, sources = made_features(folder, n_rows)
    table = Table(sources).scores
    budget, n_select = (int(n_rows * parse_count("", text)) for text in (options.budget, options.select))

    def looked_up(rows):
        with clock.part("scoring"):
            return table[rows]

    with clock.part("decisions"):
        found = cu.search(
            features,
            looked_up,
            clusterer=cu.KMeans(),
            policy=policy,
            budget=cu.engine.Budget(draws=budget, watch=lambda _: None),
            n_select=n_select,
            side=cu.SideInformation(columns={"source": sources}),
            schedule=cu.Schedule(batch_size=8),
        )
    print(json.dumps(summary(clock, table, found, seconds)), flush=True)


def summary(clock: Clock, scores, selection, seconds: list[float]) -> dict[str, object]:
    """Return what a process measured, and what it found."""
    return {
        "wall": clock.wall,
        "cpu": clock.cpu,
        "spans": clock.spans,
        "decisions": len(seconds),
        "longest decision": max(seconds),
        "draws": selection.n_scored,
        "arms": len(selection.draws),
        "estimated recall": selection.recall and selection.recall.estimate,
        "recall": recall_of(scores, selection.rows),
    }


def run(folder: Path, options: argparse.Namespace) -> None:
    """Select for real, and print what each part took as JSON."""
    os.environ["CLUSTERUCB_CACHE_LIMIT"] = "0"
    import clusterucb as cu
    from clusterucb.engine.draws import RowScores
    from clusterucb.jobs.stages.features import PoolFeatures
    from clusterucb.jobs.stages.influence import Influence
    from clusterucb.run.ledger import Ledger

    policy, seconds = timed_policy(options.policy)
    job, clock, tables = import_module("clusterucb.jobs.select"), Clock(), []

    def looked_up(influence: Influence, rows):
        if not tables:
            tables.append(Table(influence._material.sources))
        return RowScores(tables[0].scores[rows])

    Influence.score = looked_up
    for owner, attribute, name in (
        (job, "open_job", "reading"),
        (PoolFeatures, "blocks", "features"),
        (job, "search", "decisions"),
        (Influence, "score", "scoring"),
        (Ledger, "begin", "recording"),
        (Ledger, "finish", "recording"),
        (job, "finish", "writing"),
    ):
        clock.around(owner, attribute, name)
    found = cu.select(
        str(folder / "pool.jsonl"),
        str(folder / "dev.jsonl"),
        model=str(folder / "model"),
        out=folder / "run",
        policy=policy,
        budget=options.budget,
        select=options.select,
        warmup_steps=1,
    )
    print(json.dumps(summary(clock, tables[0].scores, found.selection, seconds)), flush=True)


def recall_of(scores, rows) -> float:
    """Return the share of each subtask's best rows, as many as it selects in turn, that is among ``rows``."""
    import numpy as np

    seats = -(-len(rows) // scores.shape[1])
    found = [np.isin(np.argpartition(-one, seats)[:seats], rows).mean() for one in scores.T]
    return float(np.mean(found))


class Memory:
    """Watches the memory of a process from outside: time, anonymous and mapped bytes."""

    def __init__(self, process: int) -> None:
        self.seen: list[tuple[float, int, int]] = []
        self._status = Path(f"/proc/{process}/status")
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while True:
            try:
                lines = self._status.read_text().splitlines()
            except OSError:
                return
            held = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
            if not held:
                return
            self.seen.append((time.time(), 1024 * held["RssAnon"], 1024 * held["RssFile"]))
            time.sleep(0.05)

    def peaks(self, spans) -> dict[str, dict[str, float]]:
        """Return the largest gigabytes of each part, and of the whole run."""
        times = {name: [(begin, end) for part, begin, end in spans if part == name] for name in PARTS}
        times["whole run"] = [(0.0, float("inf"))]
        peaks = {}
        for name, parts in times.items():
            seen = [
                (anonymous, anonymous + mapped)
                for at, anonymous, mapped in self.seen
                if any(begin <= at <= end for begin, end in parts)
            ]
            own, whole = (max(some, default=0) / 1e9 for some in zip(*(seen or [(0, 0)]), strict=True))
            peaks[name] = {"own": round(own, 2), "resident": round(whole, 2)}
        return peaks


def write_job(folder: Path, n_rows: int) -> None:
    """Write a model, a target and a pool."""
    tiny.write_model(folder / "model", hidden_size=HIDDEN)
    target = tiny.rows(6, seed=3)
    tiny.write_rows(
        folder / "dev.jsonl", [{**row, "subtask": SUBTASKS[at % 3]} for at, row in enumerate(target)]
    )
    write_pool(folder / "pool.jsonl", n_rows)


def measured(n_rows: int, options: argparse.Namespace) -> dict[str, object]:
    """Make a pool, select from it in a process of its own, and return what was measured."""
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        (folder / "tmp").mkdir()
        if options.search_only:
            given = ["--one-search", str(n_rows)]
        else:
            write_job(folder, n_rows)
            given = []
        load, began = os.getloadavg()[0], time.perf_counter()
        given += ["--policy", options.policy, "--budget", options.budget, "--select", options.select]
        process = subprocess.Popen(
            [sys.executable, __file__, "--one", str(folder), *given],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(folder / "tmp")},
        )
        memory = Memory(process.pid)
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"the selection from {n_rows:,} rows failed")
        found = json.loads(output.splitlines()[-1])
    spans, wall, cpu = (found.pop(name) for name in ("spans", "wall", "cpu"))
    return {
        "rows": n_rows,
        "what": "search among made features" if options.search_only else "selection",
        "policy": options.policy,
        "load before": round(load, 1),
        "load after": round(os.getloadavg()[0], 1),
        "seconds": {name: round(value, 1) for name, value in wall.items()},
        "processor seconds": {name: round(value, 1) for name, value in cpu.items()},
        "gigabytes": memory.peaks(spans),
        "whole run": {
            "seconds": round(time.perf_counter() - began, 1),
            "processor seconds": round(usage.ru_utime + usage.ru_stime, 1),
            "resident gigabytes": round(usage.ru_maxrss * 1024 / 1e9, 2),
        },
        **{name: round(value, 3) if isinstance(value, float) else value for name, value in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="1000000,3000000,10000000")
    parser.add_argument("--policy", default="surrogate")
    parser.add_argument("--budget", default="20%")
    parser.add_argument("--select", default="5%")
    parser.add_argument("--search-only", action="store_true", help="measure decisions alone")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one-search", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        (search_only if options.one_search else run)(options.one, options)
        return
    results = []
    for n_rows in map(int, options.rows.split(",")):
        results.append(measured(n_rows, options))
        print(json.dumps(results[-1], indent=1), flush=True)
        if options.json:
            options.json.write_text(
                json.dumps(
                    {"limits": {"seconds": SECONDS, "gigabytes": GIGABYTES}, "runs": results}, indent=1
                )
                + "\n"
            )


if __name__ == "__main__":
    main()

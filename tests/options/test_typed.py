"""Options as a type checker sees them: a misspelt or mistyped one is its error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from helpers import typed_options

ROOT = Path(__file__).parents[2]
GOOD = """
import clusterucb as cu

store = cu.sketch("pool.jsonl", model="m", out="s", sketch_dim=512, adapter="a")
result = cu.select(
    [{"text": "a"}], "dev.jsonl", model="m", tokenizer=None, budget=50, select="5%", policy=cu.UCB(beta=2.0),
    rule="mean", prior=["runs/a"], lora_targets=["q_proj"], subtask_weights={"a": 2}, store=None, seed=1,
)
print(result.ids, result.cost.total)
cu.score("pool.jsonl", "dev.jsonl", model="m", scorer="exact").values.shape
cu.plan("pool.jsonl", "dev.jsonl", model="m", budget="1h", until="recall=0.9").seconds
cu.compare("p", "d", model="m", out="c", strategies=[cu.Contender("r", cu.Random())], select=5, scores="runs/a")
found = cu.search([[1.0]], lambda rows: rows, clusterer=None, policy=cu.Random(), budget=1, n_select=1)
cu.search([[1.0]], lambda rows: rows, clusterer=None, policy=cu.Random(), budget=cu.Budget(draws=1), n_select=1)
"""
BAD = """
import clusterucb as cu

cu.select("p", "d", model="m", budjet="20%")
cu.select("p", "d", model="m", seed="1")
cu.select("p", "d", model="m", rule="median")
cu.select("p", "d", model="m", policy=3)
cu.score("p", "d", model="m", budget="20%")
cu.sketch("p", model="m", out="s", sketch_dim=1.5)
cu.plan("p", "d", model="m", until=0.9)
cu.compare("p", "d", model="m", out="c", strategies=[], budget="20%")
cu.search([[1.0]], lambda rows: rows, clusterer=None, policy=cu.Random(), budget=1, n_select=1, seed=3)
cu.UCB(gamma=1)
"""


# Only this package is followed: what a user's checker makes of torch and transformers is not ours.
SETTINGS = """
[mypy]
strict = true
follow_imports = silent
ignore_missing_imports = true
[mypy-torch.*,transformers.*,peft.*,pandas.*,datasets.*,rich.*,cyclopts.*,numpy.*,yaml.*,jinja2.*,msgspec.*]
follow_imports = skip
"""


def errors(folder: Path, **sources: str) -> dict[tuple[str, int], str]:
    """Return the type checker's errors by file and line."""
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    (folder / "mypy.ini").write_text(SETTINGS)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", *(f"{name}.py" for name in sources)],
        env={**os.environ, "MYPYPATH": str(ROOT / "python")},
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert not done.stderr, done.stderr
    lines = re.findall(r"^(\w+)\.py:(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    return {(name, int(number)): message for name, number, message in lines}


def test_the_committed_types_follow_from_the_settings() -> None:
    assert typed_options.FILE.read_text() == typed_options.source()


def test_a_misspelt_or_mistyped_option_is_an_error_of_the_type_checker(tmp_path: Path) -> None:
    wrong = [("bad", number) for number, line in enumerate(BAD.splitlines(), 1) if line.startswith("cu.")]
    found = errors(tmp_path, good=GOOD, bad=BAD)
    assert sorted(found) == wrong
    assert 'Unexpected keyword argument "budjet"' in found[wrong[0]]

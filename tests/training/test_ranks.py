"""All processes of a training compute the passes of a round, with the bytes of one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from helpers import loops
from helpers.selections import write_job

SIZE = 2


def test_rounds_of_several_processes_are_those_of_one(tmp_path: Path) -> None:
    write_job(tmp_path)
    alone = loops.trained(tmp_path, tmp_path / "alone", budget="40%", batch_tokens=64)
    command = [sys.executable, loops.__file__, tmp_path, tmp_path]
    processes = [
        subprocess.Popen([*command, str(rank), str(SIZE), tmp_path / "meeting"], stderr=subprocess.PIPE)
        for rank in range(SIZE)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert not process.returncode, errors.decode()[-3000:]
    for one in alone.rounds:
        name = f"round-{one.number:04}/scores.jsonl"
        assert (tmp_path / "rounds-0" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    n_answers = [int((tmp_path / str(rank)).read_text()) for rank in range(SIZE)]
    assert n_answers[0] == 0
    assert min(n_answers[1:]) > 10

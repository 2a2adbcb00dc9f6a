"""A training in a loop of its own, with rounds of selection.

python loops.py JOB OUT RANK SIZE MEETING

The process RANK of SIZE that all train alike, and share the passes of rounds. They meet at the file MEETING. Writes the
number of requests that this process answered to OUT/RANK.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from clusterucb.training import Reselect
from clusterucb.training.ranks import Ranks
from clusterucb.workers.worker import Worker

STEPS = 9


def trained(
    job: Path, out: Path, ranks: Ranks | None = None, resumed_at: int | None = None, **changes: Any
) -> Reselect:
    """Train in a loop, and return the selection. ``resumed_at`` is a step before which another object goes on."""
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(job / "model"),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    tokenizer = AutoTokenizer.from_pretrained(job / "model")
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
    options = {"every": 3, "warmup": 2, "select": 12, **changes}

    def opened() -> Reselect:
        found = Reselect(job / "pool.jsonl", job / "dev.jsonl", **options)
        found.open(tokenizer, model, batch_size=4, out=out, ranks=ranks)
        return found

    selection = opened()
    selection.begin()
    for step in range(STEPS):
        if step == resumed_at:
            selection.save(out / "checkpoint")
            shutil.rmtree(out / "round-0001", ignore_errors=True)
            selection = opened()
            selection.resume(out / "checkpoint", step)
        if ranks and ranks.rank:
            if ranks.decided(None):
                selection.serve(model, optimizer)
            rows = ranks.decided(None)
        elif ranks:
            ranks.decided(selection.is_due(step))
            rows = ranks.decided(selection.rows(step, model, optimizer))
        else:
            rows = selection.rows(step, model, optimizer)
        model(**selection.batch(rows)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return selection


def main(job: Path, out: Path, rank: int, size: int, meeting: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    compute, n_answers = Worker.compute, 0

    def counted(*request: Any) -> Any:
        nonlocal n_answers
        n_answers += 1
        return compute(*request)

    Worker.compute = counted
    trained(job, out / f"rounds-{rank}", Ranks(rank, size), budget="40%", batch_tokens=64)
    (out / str(rank)).write_text(str(n_answers))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]), *map(int, sys.argv[3:5]), sys.argv[5])

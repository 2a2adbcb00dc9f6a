"""Writes tests/data/deepspeed_states/: checkpoints of ZeRO 1, 2 and 3 of two processes, by DeepSpeed itself on a CPU.

Runs are those of `make_optimizer_states`: `STEPS` steps with a learning rate of 0 on the same batch.

Run from the root, with DeepSpeed in DIR:
    DS_BUILD_OPS=0 pip install --no-deps --no-build-isolation --target DIR deepspeed hjson msgpack py-cpuinfo einops
        ninja pydantic pydantic-core annotated-types typing-inspection
    python tests/data/make_deepspeed_states.py DIR
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parent))
import make_optimizer_states as made

FOLDER = Path(__file__).parent / "deepspeed_states"
STAGES = (1, 2, 3)
TAG = f"global_step{made.STEPS}"


def _work(rank: int, libraries: str, stage: int, port: int, folder: str) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        DS_ACCELERATOR="cpu",
    )
    sys.path.append(libraries)
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo")
    lora = made.model(whole=False)
    engine, *_ = deepspeed.initialize(
        model=lora,
        optimizer=torch.optim.AdamW(made.trainable(lora), **made.SETTINGS),
        config={
            "train_micro_batch_size_per_gpu": len(made.rows()),
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    for _ in range(made.STEPS):
        engine.backward(engine(input_ids=made.rows(), labels=made.rows()).loss)
        engine.step()
    engine.save_checkpoint(folder, tag=TAG)


if __name__ == "__main__":
    for stage in STAGES:
        with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            torch.multiprocessing.spawn(_work, (sys.argv[1], stage, port, folder), nprocs=2)
            kept = FOLDER / f"zero{stage}" / TAG
            kept.mkdir(parents=True, exist_ok=True)
            for file in (Path(folder) / TAG).glob("*_states.pt"):
                if "zero_pp_rank_1_mp_rank_00_model" not in file.name:
                    shutil.copyfile(file, kept / file.name)

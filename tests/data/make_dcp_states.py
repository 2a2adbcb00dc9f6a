"""Writes tests/data/dcp_states/: folders of torch.distributed.checkpoint, by two processes of FSDP on a CPU.

Runs are those of `make_optimizer_states`: `STEPS` steps with a learning rate of 0 on the same batch.

Run from the root, with accelerate: python tests/data/make_dcp_states.py
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parent))
import make_optimizer_states as made

FOLDER = Path(__file__).parent / "dcp_states"
KINDS = ("accelerate-fsdp1", "accelerate-fsdp2", "torch", "torch-flat")


def _work(rank: int, port: int, folder: Path) -> None:
    accelerator = made.accelerator_of(rank, port)
    _of_fsdp1(folder, accelerator)
    _of_fsdp2(folder, accelerator)
    torch.distributed.destroy_process_group()


def _of_fsdp1(folder: Path, accelerator) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin, save_fsdp_optimizer
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP  # noqa: N817
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    trained = FSDP(
        made.model(whole=False),
        auto_wrap_policy=ModuleWrapPolicy({LlamaDecoderLayer}),
        use_orig_params=True,
        device_id=torch.device("cpu"),
    )
    made.train(trained, optimizer := torch.optim.AdamW(made.trainable(trained), **made.SETTINGS))
    plugin = FullyShardedDataParallelPlugin(fsdp_version=1, state_dict_type="SHARDED_STATE_DICT")
    save_fsdp_optimizer(plugin, accelerator, optimizer, trained, folder / "accelerate-fsdp1")


def _of_fsdp2(folder: Path, accelerator) -> None:
    import torch.distributed.checkpoint as dcp
    from accelerate.utils import FullyShardedDataParallelPlugin, save_fsdp_optimizer
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (made.PROCESSES,))
    trained = made.model(whole=False)
    for layer in trained.base_model.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(trained, mesh=mesh)
    made.train(trained, optimizer := torch.optim.AdamW(made.trainable(trained), **made.SETTINGS))
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    save_fsdp_optimizer(plugin, accelerator, optimizer, trained, folder / "accelerate-fsdp2")
    dcp.save({"optim": get_optimizer_state_dict(trained, optimizer)}, checkpoint_id=folder / "torch")
    flat = StateDictOptions(flatten_optimizer_state_dict=True)
    state = get_optimizer_state_dict(trained, optimizer, options=flat)
    dcp.save(state, checkpoint_id=folder / "torch-flat")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made_in:
        for kind in KINDS:
            (Path(made_in) / kind).mkdir()
        made.in_two_processes(_work, Path(made_in))
        for kind in KINDS:
            written = next((Path(made_in) / kind).glob("**/.metadata")).parent
            shutil.rmtree(FOLDER / kind, ignore_errors=True)
            shutil.copytree(written, FOLDER / kind / ("optimizer_0" if kind.startswith("accel") else ""))

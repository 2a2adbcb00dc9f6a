"""Writes tests/data/optimizer_states/: states of Adam and AdamW by the libraries that people train with.

Every run takes `STEPS` steps with a learning rate of 0 on the same batch. So the gradient is the same at each
step, and the moments follow from it in closed form, whatever wrote them: `moments` of the tests compares each
file with that. Files of `LORA` are of a LoRA's training, those of `WHOLE` of every parameter's, and those of
`IN_PARTS` hold one of two processes' part, which is refused.

Run from the root, with accelerate: python tests/data/make_optimizer_states.py
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.models import tiny_llama, with_lora

FOLDER = Path(__file__).parent / "optimizer_states"
STEPS = 3
SETTINGS = {"lr": 0.0, "betas": (0.85, 0.98), "eps": 1e-6, "weight_decay": 0.1}
LORA = ("adamw-fused.pt", "adam-of-all.pt", "accelerate-fsdp1.bin", "fsdp2.bin", "fsdp2-joined.pt")
WHOLE = ("trainer.pt", "fsdp1.bin")
IN_PARTS = ("fsdp1-flat.bin", "fsdp1-sharded.bin", "fsdp2-sharded.bin")
PROCESSES = 2


def model(whole: bool) -> nn.Module:
    """Return a tiny model, of which every parameter is trained or its LoRA alone; the same on every machine."""
    base = tiny_llama(vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=2)
    made = base if whole else with_lora(base, r=2)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, weight in sorted(made.named_parameters()):
            weight.normal_(std=0.3, generator=draw)
    return made


def rows() -> torch.Tensor:
    """Return the token ids i64[4, 6] of the batch."""
    return torch.randint(16, (4, 6), generator=torch.Generator().manual_seed(1))


def train(trained: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Take the steps."""
    for _ in range(STEPS):
        trained(input_ids=rows(), labels=rows()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def trainable(made: nn.Module) -> list[nn.Parameter]:
    """Return what requires a gradient."""
    return [weight for weight in made.parameters() if weight.requires_grad]


def write_in_one_process(folder: Path) -> None:
    """Write what needs no other process."""
    lora = model(whole=False)
    train(lora, optimizer := torch.optim.AdamW(trainable(lora), **SETTINGS, fused=True))
    torch.save(optimizer.state_dict(), folder / "adamw-fused.pt")
    train(lora, optimizer := torch.optim.Adam(lora.parameters(), **SETTINGS))
    torch.save(optimizer.state_dict(), folder / "adam-of-all.pt")
    write_of_trainer(folder / "trainer.pt")


def write_of_trainer(path: Path) -> None:
    """Write the state of a Hugging Face Trainer that trains every parameter, in its two groups."""
    from transformers import Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=STEPS,
            per_device_train_batch_size=len(rows()),
            learning_rate=SETTINGS["lr"],
            adam_beta1=SETTINGS["betas"][0],
            adam_beta2=SETTINGS["betas"][1],
            adam_epsilon=SETTINGS["eps"],
            weight_decay=SETTINGS["weight_decay"],
            max_grad_norm=0,
            save_steps=STEPS,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
        )
        dataset = [{"input_ids": ids, "labels": ids} for ids in rows()]
        Trainer(model(whole=True), arguments, train_dataset=dataset).train()
        path.write_bytes((Path(folder) / f"checkpoint-{STEPS}" / "optimizer.pt").read_bytes())


def in_two_processes(work, folder: Path) -> None:
    """Call ``work(rank, port, folder)`` in each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, folder), nprocs=PROCESSES)


def accelerator_of(rank: int, port: int):
    """Return the accelerator of one of the processes."""
    from accelerate import Accelerator

    os.environ.update(
        {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(PROCESSES)},
        RANK=str(rank),
        LOCAL_RANK=str(rank),
    )
    return Accelerator(cpu=True)


def _work(rank: int, port: int, folder: Path) -> None:
    """Write what FSDP makes, by torch itself and by accelerate."""
    accelerator = accelerator_of(rank, port)
    _write_of_fsdp1(folder, accelerator)
    _write_of_fsdp2(folder, accelerator)
    torch.distributed.destroy_process_group()


def _write_of_fsdp1(folder, accelerator) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin, save_fsdp_optimizer
    from torch.distributed.fsdp import FullOptimStateDictConfig, FullStateDictConfig, StateDictType
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP  # noqa: N817
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    def trained(whole: bool):
        made = FSDP(
            model(whole),
            auto_wrap_policy=ModuleWrapPolicy({LlamaDecoderLayer}),
            use_orig_params=not whole,
            device_id=torch.device("cpu"),
        )
        train(made, optimizer := torch.optim.AdamW(trainable(made), **SETTINGS))
        return made, optimizer

    # On a CPU, "offloading" copies nothing: with use_orig_params each moment would be overwritten by the next.
    kept = FullOptimStateDictConfig(offload_to_cpu=False)
    made, optimizer = trained(whole=True)
    with FSDP.state_dict_type(made, StateDictType.FULL_STATE_DICT, FullStateDictConfig(), kept):
        _save(FSDP.optim_state_dict(made, optimizer), folder / "fsdp1.bin", accelerator)

    made, optimizer = trained(whole=False)
    _save(optimizer.state_dict(), folder / "fsdp1-flat.bin", accelerator)
    with FSDP.state_dict_type(made, StateDictType.SHARDED_STATE_DICT):
        _save(FSDP.optim_state_dict(made, optimizer), folder / "fsdp1-sharded.bin", accelerator)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=1, state_dict_type="FULL_STATE_DICT", optim_state_dict_config=kept
    )
    save_fsdp_optimizer(plugin, accelerator, optimizer, made, folder)
    if accelerator.is_main_process:
        (folder / "optimizer.bin").rename(folder / "accelerate-fsdp1.bin")


def _write_of_fsdp2(folder, accelerator) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin, save_fsdp_optimizer
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (PROCESSES,))
    made = model(whole=False)
    for layer in made.base_model.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(made, mesh=mesh)
    train(made, optimizer := torch.optim.AdamW(trainable(made), **SETTINGS))
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    _save(get_optimizer_state_dict(made, optimizer, options=options), folder / "fsdp2.bin", accelerator)
    _save(get_optimizer_state_dict(made, optimizer), folder / "fsdp2-sharded.bin", accelerator)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    save_fsdp_optimizer(plugin, accelerator, optimizer, made, folder)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        dcp_to_torch_save(folder / "optimizer_0", folder / "fsdp2-joined.pt")


def _save(state, path: Path, accelerator) -> None:
    if accelerator.is_main_process:
        torch.save(state, path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made_in:
        write_in_one_process(Path(made_in))
        in_two_processes(_work, Path(made_in))
        FOLDER.mkdir(exist_ok=True)
        for name in (*LORA, *WHOLE, *IN_PARTS):
            (FOLDER / name).write_bytes((Path(made_in) / name).read_bytes())

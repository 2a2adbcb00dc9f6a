"""Hostile adapters, optimiser states, runs and stores."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whole.adversary.inputs.models import headers
from whole.adversary.inputs.payloads import EVERY, Evil, Hostile, evils, select

_ADAPTERS: dict[str, dict[str, Any]] = {
    "a library of its own": {
        "auto_mapping": {"base_model_class": "Model", "parent_library": "canary_module"}
    },
    "megatron": {"megatron_config": {"x": 1}, "megatron_core": "canary_module"},
    "another base": {"base_model_name_or_path": "evil/evil", "revision": EVERY},
    "a type of controls": {"peft_type": EVERY},
    "another type": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 10**12},
    "a task of controls": {"task_type": EVERY},
    "targets that are slow": {"target_modules": "(a|aa|.)+(a|.)+(a|.)+(a|.)+$x"},
    "targets of a slow pattern": {"target_modules": r"((\w+\.?)+)+!"},
    "targets of a bad pattern": {"target_modules": "(((" * 999},
    "targets of controls": {"target_modules": [EVERY]},
    "targets of numbers": {"target_modules": [5, None]},
    "left out by a slow pattern": {"exclude_modules": r"((\w+\.?)+)+!"},
    "a rank of 10**9": {"r": 10**9},
    "a rank of 10**18": {"r": 10**18},
    "a rank below 0": {"r": -8},
    "a rank of a text": {"r": "8"},
    "a rank of NaN": {"r": float("nan")},
    "an alpha of NaN": {"lora_alpha": float("nan")},
    "an infinite alpha": {"lora_alpha": 1e400},
    "an alpha of a text": {"lora_alpha": EVERY},
    "ranks by slow patterns": {"rank_pattern": {r"((\w+\.?)+)+!": 8}, "alpha_pattern": {r"((\w+\.?)+)+!": 8}},
    "ranks of 10**9": {"rank_pattern": {"q_proj": 10**9}},
    "copied layers": {"layer_replication": [[0, 10**9]]},
    "an initialisation by a singular value": {"init_lora_weights": "pissa_niter_1000000000"},
    "an initialisation of controls": {"init_lora_weights": EVERY},
    "layers by a slow pattern": {"layers_pattern": r"((\w+\.?)+)+!", "layers_to_transform": [0]},
    "layers without end": {"layers_to_transform": list(range(1_000_000)), "layers_pattern": "layers"},
    "whole modules": {"modules_to_save": ["lm_head", EVERY]},
    "parameters of controls": {"target_parameters": [EVERY]},
    "tokens without end": {"trainable_token_indices": list(range(1_000_000))},
    "tokens of numbers": {"trainable_token_indices": {"embed_tokens": [10**18, -5]}},
    "unknown fields": {EVERY: EVERY, "__class__": "x", "__init__": 1},
    "quantised values": {"loftq_config": {"loftq_bits": 10**9}, "init_lora_weights": "loftq"},
    "ranks of the run": {"runtime_config": {"ephemeral_gpu_offload": "x"}},
    "DoRA of a text": {"use_dora": EVERY},
    "a dropout of 10**9": {"lora_dropout": 1e9},
    "a bias of controls": {"bias": EVERY},
    "a version of controls": {"peft_version": EVERY},
}


def _adapter(folder: Path) -> Path:
    shutil.copytree("run/adapter", folder / "adapter")
    (folder / "adapter" / "canary_module.py").write_text("open('canary', 'w').close()")
    return folder / "adapter"


def _with_adapter(adapter: Path, *more: object) -> list[str]:
    return select("pool.jsonl", "--adapter", adapter, *more)


def adapters() -> Iterator[Hostile]:
    """Yield hostile adapters."""

    def edited(changes: dict[str, Any]) -> Callable[[Path], list[str]]:
        def make(folder: Path) -> list[str]:
            adapter = _adapter(folder)
            path = adapter / "adapter_config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
            return _with_adapter(adapter)

        return make

    for name, changes in _ADAPTERS.items():
        yield Hostile(f"an adapter with {name}", edited(changes))
    for name, content in {"deep nesting": b"[" * 200_000, "a list": b"[]", "bytes": b"\xff\xfe\0" * 9, "5 MB": b'{"a": "' + b"x" * 5_000_000 + b'"}'}.items():  # fmt: skip
        yield Hostile(f"an adapter with {name} as its configuration", _put("adapter_config.json", content))
    for name, content in headers().items():
        yield Hostile(f"an adapter with {name}", _put("adapter_model.safetensors", content))
    for name, content in {"controls": json.dumps([EVERY]).encode(), "a number": b"5", "deep nesting": b"[" * 99_999, "lists": b"[[1], {}]", "bytes": b"\xff"}.items():  # fmt: skip
        yield Hostile(f"an adapter with frozen weights of {name}", _put("clusterucb_frozen.json", content))


def _put(file: str, content: bytes) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        adapter = _adapter(folder)
        (adapter / file).write_bytes(content)
        return _with_adapter(adapter)

    return make


def _states() -> dict[str, Callable[[], object]]:
    """Return objects in place of an optimiser state, by name."""
    reduced = {f"a pickle with {name}": (lambda name=name: {"state": evils()[name]}) for name in evils()}
    rebuilt = torch._utils._rebuild_tensor_v2
    return {
        **reduced,
        "a tensor of another size": lambda: {"state": {0: {"exp_avg": Evil(rebuilt, torch.zeros(4).untyped_storage(), 0, (10**12,), (1,), False, {})}}},
        "a tensor of no stride": lambda: {"state": {0: {"exp_avg": torch.zeros(1).expand(10**12)}}, "param_groups": []},
        "numbers as names": lambda: {"state": {10**30: {}}, "param_groups": [{"params": [10**30]}]},
        "groups without end": lambda: {"state": {}, "param_groups": [{"params": list(range(10**6))}]},
        "controls as names": lambda: {"state": {EVERY: {EVERY: torch.zeros(3)}}, "param_groups": [{"params": [EVERY], EVERY: 1}]},
        "a list": lambda: [1, 2],
        "a set": lambda: {1, 2},
        "an array of objects": lambda: {"state": np.array([1, "x", None], dtype=object)},
        "itself": _loop,
        "NaN": lambda: {"state": {0: {"exp_avg": torch.full((4,), float("nan")), "step": float("nan")}}, "param_groups": [{"params": [0], "betas": (float("nan"), 2)}]},
        "betas of texts": lambda: {"state": {0: {"exp_avg": torch.zeros(4), "exp_avg_sq": torch.zeros(4), "step": EVERY}}, "param_groups": [{"params": [0], "betas": EVERY, "lr": "x"}]},
        "sparse tensors": lambda: {"state": {0: {"exp_avg": torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), torch.ones(1), (10**12,))}}, "param_groups": [{"params": [0]}]},
    }  # fmt: skip


def _loop() -> dict[str, Any]:
    state: dict[str, Any] = {}
    state["state"] = state
    return state


def _opcodes() -> dict[str, bytes]:
    """Return pickles that are written by hand, by name."""
    return {
        "deep lists": b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b".",
        "a memo of 2**31": b"\x80\x02}r\xff\xff\xff\x7f.",
        "a text of 2 GB": b"\x80\x02X\xff\xff\xff\x7f",
        "a frame of 2**63": b"\x80\x04\x95" + b"\xff" * 8,
        "bytes of 2**63": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f",
        "a number of 2**31 digits": b"\x80\x02\x8b\xff\xff\xff\x7f",
        "a global of controls": b"\x80\x02c\x1b[2J\nx\x9b31m\n)R.",
        "a global of torch": b"\x80\x02ctorch\nload\nX\x06\x00\x00\x00canary\x85R.",
        "a global of torch.storage": b"\x80\x02ctorch.storage\n_load_from_bytes\nC\x05"
        + b"\x80\x02]q."
        + b"\x85R.",
        "an extension": b"\x80\x02\x82\x01.",
        "a persistent id": b"\x80\x02X\x01\x00\x00\x00xQ.",
        "protocol 0": b"cos\nsystem\n(S'touch canary'\ntR.",
        "protocol 0, by INST": b"(S'touch canary'\nios\nsystem\n.",
    }


def optimisers() -> Iterator[Hostile]:
    """Yield hostile optimiser states, as files of torch and as plain pickles, and of DeepSpeed and FSDP."""
    for name, make in _states().items():
        yield Hostile(
            f"an optimiser state of {name}", _state(lambda path, make=make: torch.save(make(), path))
        )
        if name.startswith("a pickle"):
            yield Hostile(
                f"an old optimiser state of {name}",
                _state(
                    lambda path, make=make: torch.save(make(), path, _use_new_zipfile_serialization=False)
                ),
            )
            yield Hostile(f"a folder of DeepSpeed of {name}", _deepspeed(make))
            yield Hostile(f"a folder of FSDP of {name}", _fsdp(make))
    for name, content in _opcodes().items():
        yield Hostile(
            f"an optimiser state of {name}", _state(lambda path, content=content: path.write_bytes(content))
        )
        yield Hostile(f"a folder of FSDP of {name}", _fsdp(content))
    for file in ("trainer_state.json", "training_args.bin", "scheduler.pt", "rng_state.pth"):
        yield Hostile(f"an adapter with a pickle as {file}", _put(file, pickle.dumps(evils()["exec"])))


def _state(write: Callable[[Path], object]) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        adapter = _adapter(folder)
        write(adapter / "optimizer.pt")
        return _with_adapter(adapter)

    return make


def _deepspeed(made: Callable[[], object]) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        step = folder / "global_step1"
        step.mkdir()
        for name in ("zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"):
            torch.save(made(), step / name)
        (folder / "latest").write_text(f"../{EVERY}")
        return _with_adapter(_adapter(folder), "--optimizer", step)

    return make


def _fsdp(made: Callable[[], object] | bytes) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        state = folder / "optimizer_0"
        state.mkdir()
        content = made if isinstance(made, bytes) else pickle.dumps(made())
        (state / ".metadata").write_bytes(content)
        (state / "__0_0.distcp").write_bytes(content)
        return _with_adapter(_adapter(folder), "--optimizer", state)

    return make


def runs() -> Iterator[Hostile]:
    """Yield hostile runs and stores, which are read as such."""
    uses = {
        "a prior": lambda run: select("pool.jsonl", "--prior", run),
        "a trial": lambda run: ["try", str(run), "--seeds", "1", "--epochs", "1", "--out", "out"],
        "a store": lambda run: select("pool.jsonl", "--store", run),
    }
    for use, command in uses.items():
        for name, put in {
            "a link as its manifest": lambda run: _link(run / "manifest.json", "/etc/passwd"),
            "a pipe as its manifest": lambda run: _pipe(run / "manifest.json"),
            "a link as its ledger": lambda run: _link(run / "ledger.sqlite", Path("model/config.json").absolute()),
            "a pipe as its ledger": lambda run: _pipe(run / "ledger.sqlite"),
            "a ledger of views": lambda run: _ledger(run / "ledger.sqlite"),
            "a deep manifest": lambda run: (run / "manifest.json").write_bytes(b"[" * 1_000_000),
            "a manifest of 50 MB": lambda run: (run / "manifest.json").write_bytes(b'{"a": "' + b"x" * 50_000_000 + b'"}'),
            "a manifest of controls": lambda run: (run / "manifest.json").write_text(json.dumps({EVERY: EVERY, "format": EVERY})),
            "a manifest of another version": lambda run: (run / "manifest.json").write_text(json.dumps({"format": 99, "clusterucb": EVERY})),
            "a huge number as its format": lambda run: (run / "manifest.json").write_text('{"format": 1e999}'),
            "a pickle as its scores": lambda run: (run / "scores.jsonl").write_bytes(pickle.dumps(evils()["exec"])),
        }.items():  # fmt: skip
            yield Hostile(f"{name}, as {use}", _run(put, command))


def _run(put: Callable[[Path], object], command: Callable[[Path], list[str]]) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        shutil.copytree("run", folder / "run")
        put(folder / "run")
        return command(folder / "run")

    return make


def _link(path: Path, to: str | Path) -> None:
    path.unlink()
    path.symlink_to(to)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _ledger(path: Path) -> None:
    """Replace every table of a ledger by a view that never ends."""
    with sqlite3.connect(path) as ledger:
        names = [name for (name,) in ledger.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for name in names:
            ledger.execute(f"DROP TABLE {name}")
            ledger.execute(
                f"CREATE VIEW {name} AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x FROM n) SELECT x FROM n"
            )
    ledger.close()


def all_kept() -> Iterator[Hostile]:
    """Yield every hostile adapter, optimiser state, run and store."""
    for family in (adapters, optimisers, runs):
        yield from family()

"""A state whose tensors have no data, another layout or other numbers is read, or refused as damaged."""

from __future__ import annotations

import copy
import warnings
from contextlib import suppress

import pytest
import torch

from clusterucb.errors import ModelError
from clusterucb.model.moments import load_moments
from clusterucb.model.parameters import ParameterManifest
from helpers.models import tiny_llama, with_lora

ODD = {
    "meta": lambda values: values.to("meta"),
    "sparse": lambda values: values.to_sparse(),
    "rows": lambda values: values.reshape(1, -1).to_sparse_csr(),
    "complex": lambda values: values.to(torch.complex64),
    "quantised": lambda values: torch.quantize_per_tensor(values.float(), 0.1, 0, torch.qint8),
    "nested": lambda values: torch.nested.nested_tensor([values.reshape(1, -1)]),
    "parameter": lambda values: torch.nn.Parameter(values, requires_grad=values.is_floating_point()),
    "int": lambda values: values.int(),
    "bool": lambda values: values.bool(),
    "float8": lambda values: values.to(torch.float8_e4m3fn),
    "half": lambda values: values.half(),
    "empty": lambda values: values.flatten()[:0],
    "one": lambda _: torch.ones(1),
    "list": lambda values: values.tolist(),
    "none": lambda _: None,
    "text": lambda _: "x",
    "dict": lambda _: {"a": 1},
}
SHAPE = (4, 24)
ENTRIES = {
    "adam": {"step": torch.tensor(3.0), "exp_avg": torch.ones(SHAPE), "exp_avg_sq": torch.full(SHAPE, 2.0)},
    "bitsandbytes": {
        "step": torch.tensor(3.0),
        **{f"state{n}": torch.zeros(SHAPE, dtype=torch.uint8) for n in (1, 2)},
        **{f"qmap{n}": torch.linspace(0, 1, 256) + n for n in (1, 2)},
        **{f"absmax{n}": torch.ones(1) for n in (1, 2)},
    },
    "adafactor": {
        "step": torch.tensor(3.0),
        "exp_avg_sq_row": torch.ones(SHAPE[0]),
        "exp_avg_sq_col": torch.ones(SHAPE[1]),
    },
}
SETTINGS = {name: torch.tensor([0.9, 0.99]) for name in ("betas", "eps", "params", "amsgrad", "maximize")}


def read_or_refused(path, state, model, manifest):
    """Read a state, or have it refused; any other error fails the test."""
    try:
        torch.save(state, path)
    except (RuntimeError, NotImplementedError):  # torch cannot even write it
        return
    with suppress(ModelError):
        load_moments(path, model, manifest)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("odd", ODD)
def test_odd_tensors_are_read_or_refused(tmp_path, odd):
    model = with_lora(tiny_llama(), target_modules=["q_proj"], layers_to_transform=[0])
    frozen = [weight.requires_grad_(False) for name, weight in model.named_parameters() if "lora_B" in name]
    manifest = ParameterManifest.of(model)
    assert len(manifest.parameters) == len(frozen) == 1
    path = tmp_path / "optimizer.pt"
    group = {"params": [0], "betas": (0.9, 0.99), "eps": 1e-8}
    for entries in ENTRIES.values():
        load = {"state": {0: copy.deepcopy(entries)}, "param_groups": [group]}
        torch.save(load, path)
        load_moments(path, model, manifest)
        for name, values in entries.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                changed = {**entries, name: ODD[odd](values)}
            read_or_refused(path, {"state": {0: changed}, "param_groups": [group]}, model, manifest)
    for name, values in SETTINGS.items():
        changed = {**group, name: ODD[odd](values)}
        read_or_refused(path, {"state": {0: ENTRIES["adam"]}, "param_groups": [changed]}, model, manifest)


@pytest.mark.parametrize(
    ("odd", "what"),
    [
        ("meta", r"a tensor without data \(of the device meta\)"),
        ("sparse", r"a torch\.sparse_coo tensor of torch\.float32"),
        ("complex", r"a tensor of torch\.complex64"),
        ("quantised", r"a tensor of torch\.qint8"),
    ],
)
def test_the_message_says_what_the_tensor_is(tmp_path, odd, what):
    model = with_lora(tiny_llama(), target_modules=["q_proj"], layers_to_transform=[0])
    entries = {**ENTRIES["adam"], "exp_avg": ODD[odd](ENTRIES["adam"]["exp_avg"])}
    state = {"state": {0: entries}, "param_groups": [{"params": [0]}]}
    torch.save(state, tmp_path / "optimizer.pt")
    with pytest.raises(
        ModelError, match=rf"is damaged: exp_avg of parameter 0 is {what}; expected a dense tensor of numbers"
    ):
        load_moments(tmp_path / "optimizer.pt", model, ParameterManifest.of(model))

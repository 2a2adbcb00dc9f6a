"""A state without names is taken in the order that gradients confirm; a wrong or ambiguous order is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from clusterucb.errors import ModelError
from clusterucb.gradients.accumulate import Checkpoint
from clusterucb.gradients.order import check_order
from clusterucb.gradients.per_sample import PerSampleGradients
from clusterucb.model.moments import load_moments
from clusterucb.model.parameters import ParameterManifest
from helpers.encoding import encoded
from helpers.models import tiny_llama, with_lora

SAMPLES = encoded(1, [40, 31, 52, 28, 60, 33, 45, 50, 36, 41, 39, 48, 55, 30, 42, 44])
MORE = encoded(3, [30 + 7 * number % 30 for number in range(64)])


def layer(name):
    return int(re.search(r"\.layers\.(\d+)\.", name)[1])


def order_of(named, kind):
    """Return the parameters in the order in which an optimiser got them."""
    swapped = {0: 1, 1: 0}

    def exchanged(*pairs):
        names = [name for name, _ in named]
        places = {}
        for first, second in pairs:
            places |= {names.index(first): names.index(second), names.index(second): names.index(first)}
        return [named[places.get(number, number)] for number in range(len(named))]

    def matrix(number, role):
        return next(name for name, _ in named if f".{number}.self_attn.{role}" in name)

    return {
        "A of q and v": lambda: exchanged(
            *((matrix(number, "q_proj.lora_A"), matrix(number, "v_proj.lora_A")) for number in range(4))
        ),
        "A of q in two layers": lambda: exchanged((matrix(0, "q_proj.lora_A"), matrix(2, "q_proj.lora_A"))),
        "B of v in two layers": lambda: exchanged((matrix(1, "v_proj.lora_B"), matrix(3, "v_proj.lora_B"))),
        "the model's": lambda: named,
        "last layer first": lambda: sorted(named, key=lambda one: -layer(one[0])),
        "two layers swapped": lambda: sorted(
            named, key=lambda one: swapped.get(layer(one[0]), layer(one[0]))
        ),
    }[kind]()


def trained(kind, folder, steps=6, seed=0, made=torch.optim.AdamW, **lora):
    """Train a LoRA, and return its checkpoint with the moments of a file without names."""
    model = with_lora(tiny_llama(seed, hidden_size=48, num_hidden_layers=4), **lora)
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    optimizer = made([weight for _, weight in order_of(named, kind)], lr=1e-3)
    samples = encoded(2, [45, 38, 50, 33, 47, 42] * 7)
    for sample in samples[:steps]:
        ids = torch.from_numpy(sample.tokens)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    path = Path(folder) / "optimizer.pt"
    torch.save(optimizer.state_dict(), path)
    manifest = ParameterManifest.of(model)
    gradients = PerSampleGradients(model, manifest, adapter="default")
    return Checkpoint(gradients, manifest.size, moments=load_moments(path, model, manifest)), path


@pytest.mark.parametrize("seed", range(4))
def test_the_models_order_is_confirmed(tmp_path, seed):
    checkpoint, path = trained("the model's", tmp_path, seed=seed)
    assert checkpoint.moments.by_position
    assert "by position, in the order of model.named_parameters(), trainable" in checkpoint.moments.matched
    found = check_order(checkpoint, path, SAMPLES, "cpu")
    assert found == "order confirmed by gradients of 16 samples"


@pytest.mark.parametrize("kind", ["last layer first", "two layers swapped"])
@pytest.mark.parametrize("seed", range(4))
def test_another_order_is_refused(tmp_path, kind, seed):
    checkpoint, path = trained(kind, tmp_path, seed=seed)
    with pytest.raises(
        ModelError,
        match=rf"{path} has no names \(16 parameters matched by position, .*\), and gradients of 16 samples (do not "
        r"fit this order: the moments taken for model\.layers\.\S+ fit the gradients of model\.layers\.\S+,|cannot "
        r"tell whether this order is right:) .*\. Expected .*param_names.*--preconditioner sgd",
    ):
        check_order(checkpoint, path, SAMPLES, "cpu")


@pytest.mark.parametrize("kind", ["A of q and v", "A of q in two layers", "B of v in two layers"])
@pytest.mark.parametrize("seed", range(3))
def test_two_exchanged_parameters_are_found_with_more_samples(tmp_path, kind, seed):
    checkpoint, path = trained(kind, tmp_path, steps=40, seed=seed)
    with pytest.raises(
        ModelError, match=r"gradients of 64 samples do not fit this order: the moments taken for "
    ):
        check_order(checkpoint, path, MORE, "cpu")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "lora",
    [
        {"layers_to_transform": [1]},
        {"layers_to_transform": [1], "target_modules": ["q_proj", "o_proj"]},
        {"layers_to_transform": [0, 3], "target_modules": ["down_proj"]},
        {"target_modules": "all-linear"},
    ],
)
def test_the_right_order_of_few_or_many_parameters_is_confirmed(tmp_path, lora, seed):
    checkpoint, path = trained("the model's", tmp_path, seed=seed, steps=40, **lora)
    assert check_order(checkpoint, path, MORE, "cpu") == "order confirmed by gradients of 64 samples"


def test_who_knows_the_order_can_name_the_parameters(tmp_path):
    checkpoint, path = trained("last layer first", tmp_path)
    model, manifest = checkpoint.gradients.model, checkpoint.gradients.manifest
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    state = torch.load(path)
    state["param_groups"][0]["param_names"] = [name for name, _ in order_of(named, "last layer first")]
    torch.save(state, path)
    assert not load_moments(path, model, manifest).by_position


def test_an_order_that_cannot_be_told_from_chance_is_refused(tmp_path):
    checkpoint, path = trained("the model's", tmp_path)
    draw = np.random.default_rng(0)
    checkpoint.moments.m[:] = draw.normal(size=checkpoint.moments.m.size)
    checkpoint.moments.v[:] = draw.random(checkpoint.moments.v.size)
    with pytest.raises(
        ModelError, match=r"cannot tell whether this order is right: .* Expected samples like .*param_names"
    ):
        check_order(checkpoint, path, SAMPLES, "cpu")


def test_parameters_of_different_shapes_need_no_check(tmp_path):
    model = with_lora(tiny_llama(), target_modules=["q_proj"], layers_to_transform=[0], r=3)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    manifest = ParameterManifest.of(model)
    moments = load_moments(tmp_path / "optimizer.pt", model, manifest)
    checkpoint = Checkpoint(
        PerSampleGradients(model, manifest, adapter="default"), manifest.size, moments=moments
    )
    assert check_order(checkpoint, tmp_path, [], "cpu") == "every shape occurs once"

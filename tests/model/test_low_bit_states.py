"""States of few bits are decoded exactly as their libraries decode them; Adafactor gives its second moment."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from clusterucb.errors import ModelError
from clusterucb.model.moments import load_moments
from clusterucb.model.parameters import ParameterManifest
from helpers.models import tiny_llama, with_lora

sys.path.append(str(Path(__file__).parents[1] / "data"))
import make_low_bit_states as low
import make_optimizer_states as made

DECODED = json.loads((low.FOLDER / "decoded.json").read_text())


def asked(name):
    model = low.model(name.partition("-")[0])
    return model, ParameterManifest.of(model)


def expected(model):
    """Return Adam's moments of the script's steps, by parameter."""
    beta1, beta2 = made.SETTINGS["betas"]
    model.zero_grad()
    model(input_ids=made.rows(), labels=made.rows()).loss.backward()
    return {
        name: ((1 - beta1**made.STEPS) * weight.grad, (1 - beta2**made.STEPS) * weight.grad**2)
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def pieces(moments, manifest):
    for one in manifest:
        segment = slice(one.offset, one.offset + one.size)
        yield one, [torch.from_numpy(flat[segment].reshape(one.shape)) for flat in (moments.m, moments.v)]


@pytest.mark.parametrize("name", DECODED)
def test_moments_are_those_that_the_library_decodes(name):
    model, manifest = asked(name)
    got = load_moments(low.FOLDER / name, model, manifest)
    assert (got.step, got.beta1, got.beta2) == (made.STEPS, *made.SETTINGS["betas"])
    assert name.partition("-")[0] in got.matched
    coarse = 0.0 if "-32" in name else 0.2 if "4" in name else 0.04  # of a block's largest
    for one, moments in pieces(got, manifest):
        assert [low.digest(moment) for moment in moments] == DECODED[name][one.torch_name]
        for moment, true in zip(moments, expected(model)[one.torch_name], strict=True):
            assert (moment - true).abs().max() <= (coarse + 1e-4) * true.abs().max()


def test_the_library_writes_what_is_committed(tmp_path):
    pytest.importorskip("bitsandbytes")
    for name, (optimizer, model) in low.of_bitsandbytes().items():
        path = tmp_path / name
        torch.save(optimizer.state_dict(), path)
        got = load_moments(path, model, manifest := ParameterManifest.of(model))
        for one, moments in pieces(got, manifest):
            entries = optimizer.state[model.get_parameter(one.torch_name)]
            for moment, true in zip(moments, low.decoded(entries), strict=True):
                assert torch.equal(moment, true)


@pytest.fixture
def eight():
    """Return the content of bitsandbytes' file of 8 bits."""
    return torch.load(low.FOLDER / "bitsandbytes-8.pt", weights_only=True)


def load(folder, content, name="bitsandbytes-8.pt"):
    torch.save(content, folder / "optimizer.pt")
    return load_moments(folder / "optimizer.pt", *asked(name))


def same(one, other):
    return np.array_equal(one.m, other.m) and np.array_equal(one.v, other.v)


def test_older_and_paged_forms_hold_the_same(tmp_path, eight):
    committed = load_moments(low.FOLDER / "bitsandbytes-8.pt", *asked("bitsandbytes-8.pt"))
    hidden = "__bnb_optimizer_quant_state__"
    older = eight | {
        "state": {key: {"step": one["step"], **one[hidden]} for key, one in eight["state"].items()}
    }
    assert same(load(tmp_path, older), committed)
    for one in eight["state"].values():
        for number in (1, 2):  # as functional.get_paged makes them
            one[hidden][f"state{number}"].is_paged = True
            one[hidden][f"state{number}"].page_deviceid = 0
    assert same(load(tmp_path, eight), committed)


def test_blocks_of_2048_and_one_scale_for_all_are_read(tmp_path, eight):
    book = eight["state"][0]["__bnb_optimizer_quant_state__"]["qmap1"]
    for key, one in eight["state"].items():
        hidden = one.pop("__bnb_optimizer_quant_state__")
        states = {f"state{at}": hidden[f"state{at}"] for at in (1, 2)} | {"qmap1": book, "qmap2": book.abs()}
        scales = {"absmax1": torch.tensor([2.0]), "absmax2": torch.tensor([3.0])}
        if key % 2:
            scales = {
                "max1": torch.tensor([2.0]),
                "max2": torch.tensor([3.0]),
                "new_max1": torch.tensor([9.0]),
            }
        one |= states | scales
    model, manifest = asked("bitsandbytes-8.pt")
    got = load(tmp_path, eight)
    keys = [name for name, weight in model.named_parameters() if weight.requires_grad]
    for one, (m, v) in pieces(got, manifest):
        entries = eight["state"][keys.index(one.torch_name)]
        torch.testing.assert_close(m, 2 * book[entries["state1"].int()])
        torch.testing.assert_close(v, 3 * book.abs()[entries["state2"].int()])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda one: one.update(absmax1=torch.ones(5)),
            r"state1 of parameter 0 has 320 codes of torch.uint8, .* 5 sc",
        ),
        (
            lambda one: one.update(qmap2=torch.ones(16)),
            r"a code book of 16 numbers and 2 scales; expected .* 256 num",
        ),
        (lambda one: one.pop("qmap1"), r"a code book of no numbers"),
        (lambda one: one.pop("absmax2"), r"state2 .* and 0 scales"),
        (lambda one: one.update(state1=7), r"state1 of parameter 0 is a int, not a tensor"),
        (lambda one: one.update(state1=torch.zeros(40, 8, dtype=torch.int16)), r"320 codes of torch.int16"),
        (lambda one: one.pop("state2"), r"parameter 0 has state1 and no state2"),
        (
            lambda one: one.update(state1=torch.zeros(41, 8), state2=torch.zeros(41, 8)),
            r"exp_avg of shape \(41, 8\)",
        ),
        (lambda one: one.update(absmax2=one["absmax2"] * torch.nan), r"not finite"),
    ],
)
def test_damaged_states_of_bitsandbytes_are_refused(tmp_path, eight, spoil, message):
    spoil(eight["state"][0]["__bnb_optimizer_quant_state__"])
    with pytest.raises(ModelError, match=message):
        load(tmp_path, eight)


@pytest.mark.parametrize(
    ("of_group", "of_one", "message"),
    [
        ({"betas": (0.9, 0.999, 0.9999), "alpha": 5.0}, {}, r"is the state of AdEMAMix \(bitsandbytes\)"),
        ({}, {"unorm_vec": torch.ones(1)}, r"is the state of LAMB \(bitsandbytes\)"),
        (
            {"betas": (0.9, 0.99), "eps": 0.0},
            {"state2": None},
            r"Lion \(bitsandbytes\): .* no second moment\. Use",
        ),
        (
            {"betas": (0.9, 0)},
            {"state2": None},
            r"is the state of SGD, RMSprop, Adagrad or LARS \(bitsandbytes\)",
        ),
    ],
)
def test_other_optimisers_of_bitsandbytes_are_refused_by_name(tmp_path, eight, of_group, of_one, message):
    eight["param_groups"][0].update(of_group)
    for one in eight["state"].values():
        hidden = one["__bnb_optimizer_quant_state__"]
        hidden.update(of_one)
        if hidden["state2"] is None:
            del hidden["state2"]
    with pytest.raises(ModelError, match=message):
        load(tmp_path, eight)


def test_damaged_states_of_torchao_are_refused(tmp_path):
    name = "torchao-8.pt"
    content = (low.FOLDER / name).read_bytes()
    (tmp_path / "optimizer.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"cannot be read as an optimiser state \("):
        load_moments(tmp_path / "optimizer.pt", *asked(name))


@pytest.mark.parametrize("kind", [torch.optim.Adafactor, transformers.Adafactor])
def test_adafactor_gives_its_second_moment_and_no_first(tmp_path, kind):
    model = with_lora(tiny_llama())
    manifest = ParameterManifest.of(model)
    weights = made.trainable(model)
    options = {"relative_step": False, "scale_parameter": False} if kind is transformers.Adafactor else {}
    optimizer = kind(weights, lr=1e-30, **options)
    draw = torch.Generator().manual_seed(3)
    both = []
    for _ in range(2):
        both.append(squares := {})
        for weight in weights:
            rows, columns = (torch.rand(size, generator=draw) + 0.1 for size in weight.shape)
            weight.grad = torch.outer(rows, columns)
            squares[weight] = weight.grad**2
        optimizer.step()
    before, squares = both
    path = tmp_path / "optimizer.pt"
    torch.save(optimizer.state_dict(), path)
    got = load_moments(path, model, manifest)
    assert (got.first, got.step, got.beta2, got.m.any()) == (False, 2, 0.0, np.False_)
    keep = 1 - 2**-0.8  # of Adafactor's second step
    for one, (_, v) in pieces(got, manifest):
        weight = model.get_parameter(one.torch_name)
        mean = keep * before[weight] + (1 - keep) * squares[weight]
        factored = torch.outer(mean.mean(1), mean.mean(0)) / mean.mean()
        torch.testing.assert_close(v, factored, rtol=1e-4, atol=1e-9)


def test_adafactor_without_one_of_its_factors_is_damaged(tmp_path):
    model = with_lora(tiny_llama())
    optimizer = torch.optim.Adafactor(made.trainable(model))
    for weight in made.trainable(model):
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    state = optimizer.state_dict()
    del state["state"][0]["col_var"]
    torch.save(state, tmp_path / "optimizer.pt")
    with pytest.raises(
        ModelError, match=r"is damaged: parameter 0 has row_var, step, not both factors; save it"
    ):
        load_moments(tmp_path / "optimizer.pt", model, ParameterManifest.of(model))

"""Training takes the steps of a plain loop, and losses of answers do not depend on who shares a pass."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from clusterucb.gradients.fine_tuning import Training, answer_losses, rising_and_falling
from clusterucb.gradients.passes import Passes
from clusterucb.samples.encoded import Encoded
from helpers.models import VOCABULARY, tiny_llama, with_lora


def samples_of(seed: int, n: int) -> list[Encoded]:
    rng = np.random.default_rng(seed)
    samples = []
    for length in rng.integers(3, 30, size=n).tolist():
        labels = rng.random(length) < 0.5
        labels[0], labels[-1] = False, True
        samples.append(Encoded(rng.integers(0, VOCABULARY, length), labels, ~labels))
    return samples


def loss_of(model: torch.nn.Module, sample: Encoded) -> torch.Tensor:
    """Return one sample's loss from full logits, without padding."""
    ids = torch.from_numpy(np.asarray(sample.tokens, np.int64))
    labels = torch.from_numpy(sample.labels)
    logits = model(input_ids=ids[None]).logits[0]
    return cross_entropy(logits[:-1].float()[labels[1:]], ids[1:][labels[1:]])


@pytest.mark.parametrize("limit", [None, 1, 60])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_steps_are_those_of_a_plain_loop(limit: int | None, checkpointing: bool) -> None:
    model = with_lora(tiny_llama(), r=3)
    plain = copy.deepcopy(model)
    batches = [samples_of(number, 4) for number in range(5)]
    rates = rising_and_falling(1e-2, 5).tolist()
    training = Training(model, limit=limit, checkpointing=checkpointing)
    losses = list(training.steps(batches, rates))

    weights = [weight for weight in plain.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.0)
    expected = []
    for samples, rate in zip(batches, rates, strict=True):
        loss = torch.stack([loss_of(plain, sample) for sample in samples]).mean()
        loss.backward()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        expected.append(float(loss.detach()))
    assert losses == pytest.approx(expected, rel=1e-4)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_losses_are_those_of_one_sample_at_a_time() -> None:
    model, samples = with_lora(tiny_llama(), r=3), samples_of(7, 9)
    with torch.no_grad():
        expected = [float(loss_of(model, sample)) for sample in samples]
    done: list[int] = []
    for tokens in (1, 40, 1000):
        losses = answer_losses(model, samples, Passes(tokens), advance=done.append)
        assert losses.tolist() == pytest.approx(expected, rel=1e-5)
    assert sum(done) == 3 * len(samples)
    assert all(weight.grad is None for weight in model.parameters())


@given(st.floats(1e-6, 1.0), st.integers(1, 300))
def test_rates_rise_to_the_largest_and_fall(rate: float, n_steps: int) -> None:
    rates = rising_and_falling(rate, n_steps)
    assert len(rates) == n_steps
    assert rates.max() == pytest.approx(rate)
    assert (rates > 0).all()
    peak = int(rates.argmax())
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:]) < 0).all()

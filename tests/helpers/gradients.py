"""Samples, and their gradients one sample at a time."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from clusterucb.gradients.passes import PaddedBatch
from clusterucb.samples.encoded import Encoded
from helpers.models import VOCABULARY


def samples_of(seed, lengths):
    """Return (tokens, labels) of each length, with labels in random places."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for length in lengths:
        labels = torch.rand(length, generator=generator) < 0.5
        labels[0], labels[-1] = False, True
        samples.append((torch.randint(VOCABULARY, (length,), generator=generator), labels))
    return samples


def batch_of(samples):
    return PaddedBatch.of([Encoded(ids.numpy(), labels.numpy(), ~labels.numpy()) for ids, labels in samples])


def batch_of_one(model, manifest, ids, labels):
    """Return one sample's gradient in the flat space, by autograd on full logits with an attention mask."""
    model.zero_grad()
    logits = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0]
    cross_entropy(logits[:-1].float()[labels[1:]], ids[1:][labels[1:]]).backward()
    flat = torch.zeros(manifest.size)
    for one in manifest:
        flat[one.offset : one.offset + one.size] = model.get_parameter(one.torch_name).grad.flatten()
    return flat


def flat_gradients(gradients, manifest, batch):
    flat = torch.zeros(len(batch.lengths), manifest.size)

    def sink(offset, gradient):
        flat[:, offset : offset + gradient.shape[1]] += gradient

    return flat, gradients.backward(batch, sink)


def relative(got, expected):
    return ((got - expected).norm() / expected.norm()).item()

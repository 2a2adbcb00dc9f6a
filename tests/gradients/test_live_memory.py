"""Memory of tensors is counted to the byte, from when they are made until they are gone."""

from __future__ import annotations

import torch

from clusterucb.gradients.peak_memory import peak_bytes

_KB = torch.zeros(256)


def test_what_is_held_at_a_time_counts_and_what_is_gone_does_not():
    def compute():
        one = torch.zeros(256)
        two = one + 1
        del one
        three = two * 2
        del two
        three.add_(1)

    assert peak_bytes(compute) == 2048


def test_views_and_what_was_there_before_are_free():
    assert peak_bytes(lambda: _KB.view(16, 16).t()[3:]) == 0
    assert peak_bytes(lambda: (_KB.add_(0), _KB * 2)) == 1024


def test_what_autograd_keeps_counts_until_the_backward_pass():
    weight = torch.zeros(256, requires_grad=True)

    def compute():
        hidden = weight
        for _ in range(10):
            hidden = hidden.exp()  # each keeps its result
        hidden.sum().backward()

    peak = peak_bytes(compute)
    assert 10 * 1024 <= peak <= 13 * 1024

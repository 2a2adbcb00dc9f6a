"""The moments of the runs of `make_optimizer_states`, in closed form."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np

from clusterucb.model.parameters import ParameterManifest

sys.path.append(str(Path(__file__).parents[1] / "data"))
import make_optimizer_states as made


def asked(whole, *patterns):
    """Return a model of the script's, and a manifest: of its LoRA, or of linear layers by patterns."""
    model = made.model(whole)
    return model, ParameterManifest.matching(model, patterns) if whole else ParameterManifest.of(model)


@functools.cache
def gradients(whole):
    model = made.model(whole)
    model(input_ids=made.rows(), labels=made.rows()).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def assert_moments(got, model, manifest, decay=0.0):
    """Compare with what Adam makes of the same gradient, `made.STEPS` times, computed here."""
    beta1, beta2 = made.SETTINGS["betas"]
    assert (got.step, got.beta1, got.beta2, got.eps) == (made.STEPS, beta1, beta2, made.SETTINGS["eps"])
    m, v = np.zeros(manifest.size), np.zeros(manifest.size)
    of_model = gradients(whole=not hasattr(model, "peft_config"))
    for one in manifest:
        segment = slice(one.offset, one.offset + one.size)
        weight = model.get_parameter(one.torch_name).detach().numpy()
        g = (of_model[one.torch_name].numpy() + decay * weight).astype(np.float64).ravel()
        m[segment] = (1 - beta1**made.STEPS) * g
        v[segment] = (1 - beta2**made.STEPS) * g**2
    for here, expected in ((got.m, m), (got.v, v)):
        assert expected.any()
        np.testing.assert_allclose(here, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
        assert not here[expected == 0].any()  # holes

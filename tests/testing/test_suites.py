"""The suites for plugins: every built-in strategy passes, and each mistake fails the test of its property."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import clusterucb.clusterers
import clusterucb.features
import clusterucb.policies
from clusterucb.clusterers import KMeans
from clusterucb.features import Column, Concatenation, Embedding, Gradient, Hidden, Lexical
from clusterucb.policies import UCB
from clusterucb.testing import ClustererSuite, FeatureSuite, PolicySuite, outcomes
from helpers.broken_policies import POLICIES, Draws, SeedsNumpy
from helpers.broken_strategies import (
    CLUSTERERS,
    FEATURES,
    Gaps,
    GlobalCut,
    Good,
    Length,
    LongestWord,
    TorchNoise,
)
from helpers.models import tiny_gpt2

SUITES = {"policy": PolicySuite, "clusterer": ClustererSuite, "feature": FeatureSuite}
BUILT_IN = [
    *(("policy", name, make) for name, make in clusterucb.policies.clusterucb_policies().items()),
    *(("clusterer", name, make) for name, make in clusterucb.clusterers.clusterucb_clusterers().items()),
    *(("feature", name, make) for name, make in clusterucb.features.clusterucb_features().items()),
    *(("clusterer", f"kmeans of {n}", lambda n=n: KMeans(n_clusters=n)) for n in (1, 2, 3, 7, 20, 100)),
    ("feature", "last hidden state", lambda: Hidden(depth=1)),
    ("feature", "lexical of more columns than samples", lambda: Lexical(dim=200)),
    ("feature", "one that learns", LongestWord),
    (
        "feature",
        "all joined",
        lambda: Concatenation((Embedding(), Lexical(), Hidden(), Column(), Gradient())),
    ),
    ("feature", "two of a kind", lambda: Concatenation((Hidden(depth=0.1), Hidden(depth=1)))),
]


def failed(kind: str, make) -> dict[str, str]:
    """Return the message of each test that a strategy fails."""
    return {one.property: one.message for one in outcomes(SUITES[kind], make) if not one.passed}


@pytest.mark.parametrize(("kind", "name", "make"), BUILT_IN, ids=[f"{one[0]} {one[1]}" for one in BUILT_IN])
def test_built_in_strategy_passes(kind: str, name: str, make) -> None:
    assert failed(kind, make) == {}


MISTAKES = [
    *(("policy", cls, set(names)) for cls, *names in POLICIES),
    *(("clusterer", cls, set(names)) for cls, *names in CLUSTERERS),
    *(("feature", cls, set(names)) for cls, *names in FEATURES),
]


@pytest.mark.parametrize(
    ("kind", "broken", "properties"), MISTAKES, ids=[f"{one[0]} {one[1].__name__}" for one in MISTAKES]
)
def test_mistake_fails_the_test_of_its_property(kind: str, broken: type, properties: set[str]) -> None:
    with np.errstate(all="ignore"):
        messages = failed(kind, broken)
    assert set(messages) == properties
    for message in messages.values():
        assert message.startswith("got ")
        assert "expected " in message


def test_every_property_is_broken_by_some_mistake() -> None:
    broken = {name for _, _, properties in MISTAKES for name in properties}
    assert broken == {
        one.property
        for kind, make in [("policy", UCB), ("clusterer", KMeans), ("feature", Length)]
        for one in outcomes(SUITES[kind], make)
    }


# Running -----------------------------------------------------------------------------------------------------


class TestUnderPytest(PolicySuite):
    @pytest.fixture
    def policy(self):
        return UCB(beta=2)


class TestClustererUnderPytest(ClustererSuite):
    @pytest.fixture
    def clusterer(self):
        return Good()


class TestFeatureUnderPytest(FeatureSuite):
    @pytest.fixture
    def feature(self):
        return Embedding()


class TestFeatureWithModelOfItsOwn(FeatureSuite):
    @pytest.fixture
    def feature(self):
        return Hidden(depth=0.5)

    @pytest.fixture
    def model(self):
        return tiny_gpt2()


def test_property_that_is_broken_on_purpose_can_be_overridden() -> None:
    class Except(ClustererSuite):
        def test_labels_have_no_gaps(self, clusterer) -> None:
            """Gaps are meant."""

    found = outcomes(Except, Gaps)
    assert [one.property for one in found] == [one.property for one in outcomes(ClustererSuite, Gaps)]
    assert all(one.passed for one in found)


@pytest.mark.parametrize(
    ("kind", "make"), [("policy", SeedsNumpy), ("clusterer", GlobalCut), ("feature", TorchNoise)]
)
def test_global_random_numbers_go_on_as_if_no_suite_had_run(kind: str, make) -> None:
    def drawn():
        return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    expected = drawn()
    random.setstate(states[0]), np.random.set_state(states[1]), torch.set_rng_state(states[2])  # noqa: NPY002
    outcomes(SUITES[kind], make)
    assert drawn() == expected


def test_strategy_that_cannot_be_used_at_all_fails_with_its_reason() -> None:
    class Undeclared(Draws):
        def start(self, pool):
            pool.columns["similarity"]

    messages = failed("policy", Undeclared)
    assert messages["ask returns no row twice"] == "got KeyError: 'similarity'; expected no exception"

    class Declared(Undeclared):
        columns = ("similarity",)

    assert failed("policy", Declared) == {}


def test_neither_pytest_nor_torch_nor_assert_statements_are_needed() -> None:
    program = """
        import sys
        sys.modules["pytest"] = None
        import clusterucb as cu
        from clusterucb.testing import ClustererSuite, FeatureSuite, PolicySuite, outcomes

        for suite, make in [(PolicySuite, cu.UCB), (ClustererSuite, cu.KMeans), (FeatureSuite, cu.Gradient)]:
            print(all(one.passed for one in outcomes(suite, make)), "torch" in sys.modules)

        class Floats(cu.Random):
            def ask(self, n, available, rng):
                return super().ask(n, available, rng).astype(float)

        print(sum(not one.passed for one in outcomes(PolicySuite, Floats)))
    """
    done = subprocess.run(
        [sys.executable, "-O", "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("True False\n" * 3 + "3\n", "")

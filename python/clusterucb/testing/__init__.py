"""Tests that every plugin has to pass: a suite for each kind of strategy.

A plugin's test is a subclass with one fixture; pytest then runs every property of the contract:

    import pytest
    from clusterucb.testing import PolicySuite

    class TestGreedy(PolicySuite):
        @pytest.fixture
        def policy(self):
            return Greedy()

`ClustererSuite` wants a fixture ``clusterer`` and `FeatureSuite` a fixture ``feature``; `FeatureSuite` has a
fixture ``model`` besides, which may be overridden. A property that a strategy breaks on purpose is overridden
with a method that does nothing.

The suites need neither files nor a model of yours, and no torch unless a feature uses the model. They run without
pytest, too: `outcomes` calls every test of a suite, as ``clusterucb plugins check`` does.
"""

from clusterucb.testing._checks import Outcome, outcomes
from clusterucb.testing.clusterer import ClustererSuite
from clusterucb.testing.feature import FeatureSuite
from clusterucb.testing.policy import PolicySuite

__all__ = ["ClustererSuite", "FeatureSuite", "Outcome", "PolicySuite", "outcomes"]

"""Provide the tests that every plugin must pass: a suite for each kind of strategy.

To test a plugin, write a subclass with one fixture; pytest then checks every property of the contract:

    import pytest
    from clusterucb.testing import PolicySuite

    class TestGreedy(PolicySuite):
        @pytest.fixture
        def policy(self):
            return Greedy()

`ClustererSuite` needs a fixture ``clusterer``, and `FeatureSuite` a fixture ``feature``. `FeatureSuite` also has a
fixture ``model``, which you may override. If a strategy breaks a property on purpose, override the test with a method
that does nothing.

The suites need no files and no model of yours, and no torch unless a feature uses the model. They also run without
pytest: `outcomes` calls every test of a suite, as ``clusterucb plugins check`` does.
"""

from clusterucb.testing._checks import Outcome, outcomes
from clusterucb.testing.clusterer import ClustererSuite
from clusterucb.testing.feature import FeatureSuite
from clusterucb.testing.policy import PolicySuite

__all__ = ["ClustererSuite", "FeatureSuite", "Outcome", "PolicySuite", "outcomes"]

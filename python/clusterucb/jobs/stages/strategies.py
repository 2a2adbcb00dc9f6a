"""Check the strategies that a selection is given, and fill in the defaults."""

from __future__ import annotations

from typing import Any, NamedTuple

import clusterucb
from clusterucb.clusterers.kmeans import KMeans
from clusterucb.engine.clusterer import Clusterer
from clusterucb.engine.policy import Policy
from clusterucb.errors import OptionError
from clusterucb.features.base import Feature
from clusterucb.features.embedding import Embedding
from clusterucb.features.gradient import Gradient
from clusterucb.features.similarity import check_comparable
from clusterucb.plugins import KINDS, load
from clusterucb.policies.surrogate import Surrogate
from clusterucb.wording import one_line


class ChosenStrategies(NamedTuple):
    """The strategies that describe, cluster and draw in a selection."""

    features: Feature
    clusterer: Clusterer
    policy: Policy


def chosen(
    features: Feature | str | None,
    clusterer: Clusterer | str | None,
    policy: Policy | str | None,
    *,
    store: bool,
) -> ChosenStrategies:
    """Check the given strategies, and return them with the defaults filled in.

    Args:
        features, clusterer, policy: the given objects, or texts that name them, such as ``ucb[beta=1.5]``; None for the
            default.
        store: whether there is a gradient store.

    Raises:
        OptionError: an object is of another kind, a text names nothing that is installed, or the policy cannot use the
            features.
    """
    the_policy: Policy = _checked("policy", Surrogate() if policy is None else policy)
    default = default_features(the_policy, store=store)
    the_features: Feature = _checked("feature", default if features is None else features)
    check_comparable(the_policy, the_features)
    the_clusterer: Clusterer = _checked("clusterer", KMeans() if clusterer is None else clusterer)
    return ChosenStrategies(the_features, the_clusterer, the_policy)


def default_features(policy: Policy, *, store: bool) -> Feature:
    """Return the features that a policy gets by default.

    With a gradient store, a policy that does not predict scores gets the store's sketches, because it learns from the
    clusters alone. A policy that predicts scores gets cheap features, because the store also gives it estimated scores.
    """
    return Gradient() if store and not policy.predicts else Embedding()


def _checked(kind: str, strategy: object) -> Any:
    if isinstance(strategy, str):
        strategy = load().spelt(kind, strategy)
    if not isinstance(strategy, KINDS[kind]):
        base = KINDS[kind].__name__
        raise OptionError(
            f"{kind} is {one_line(repr(strategy)):.80}; expected an object of a class derived from clusterucb.{base}, "
            "or the name of an installed one"
            f"{_meant(kind, strategy)}"
        )
    return strategy


def _meant(kind: str, strategy: object) -> str:
    """Return a question that suggests an object of a class that was given; "" if none was."""
    cls = strategy
    if not (isinstance(cls, type) and issubclass(cls, KINDS[kind])):
        return ""
    public = getattr(clusterucb, cls.__name__, None) is cls
    place = "clusterucb" if public else cls.__module__
    return f". Did you mean {'features' if kind == 'feature' else kind}={place}.{cls.__qualname__}()?"

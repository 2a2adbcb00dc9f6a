"""The hooks that a plugin may implement: all there is to the public plugin interface.

A plugin is a module named by an entry point in the group ``clusterucb``; it marks its hooks with
`hookimpl`. Each hook returns a dictionary from the name that the command line uses to a class whose
constructor takes plain hyper-parameters (a dataclass, say):

    # pyproject.toml
    [project.entry-points.clusterucb]
    greedy = "my_package"

    # my_package.py
    from clusterucb.hookspecs import hookimpl
    from clusterucb.policies import IndexPolicy

    class Greedy(IndexPolicy):
        def index(self, arms, rng):
            return arms.mean

    @hookimpl
    def clusterucb_policies():
        return {"greedy": Greedy}

After ``pip install``, ``clusterucb select ... --policy greedy`` works. `clusterucb.testing` has the tests that it
should pass; ``plugins/README.md`` leads from nothing to a published package.

Public beside the hooks is what strategies are written with: what `clusterucb.policies`, `clusterucb.clusterers`,
`clusterucb.features`, `clusterucb.testing` and `clusterucb` itself list in ``__all__``, `clusterucb.errors`,
and ``clusterucb.plugins.registry.load().make(kind, name, options)``, which makes an installed strategy as the command
line does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from clusterucb.engine.clusterer import Clusterer
    from clusterucb.engine.policy import Policy
    from clusterucb.features.base import Feature

__all__ = ["clusterucb_clusterers", "clusterucb_features", "clusterucb_policies", "hookimpl"]

PROJECT = "clusterucb"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def clusterucb_clusterers() -> dict[str, type[Clusterer]]:
    """Return clusterers by name: what groups the pool into the arms.

    Required of a class is ``fit_predict(pool, rng) -> i64[N]``, the cluster of each of the pool's N rows:
    0..K-1, or -1 for noise. ``pool.matrix()`` is the features, f32[N, k].

    Returns:
        A dictionary from the name that the command line uses to a class derived from `clusterucb.Clusterer`;
        never an empty one.

    Example:
        >>> class Halves(Clusterer):
        ...     def fit_predict(self, pool, rng):
        ...         return (pool.columns["tokens"] > 100).astype(int)
        >>> @hookimpl
        ... def clusterucb_clusterers():
        ...     return {"halves": Halves}
    """
    raise NotImplementedError


@hookspec
def clusterucb_policies() -> dict[str, type[Policy]]:
    """Return policies by name: what decides which rows are drawn next.

    Required of a class is ``ask(n, available, rng) -> i64[min(n, available.sum())]``, distinct rows where
    ``available``, bool[N], is true. A class derived from `clusterucb.policies.IndexPolicy` has that already,
    and needs ``index(arms, rng) -> f64[K]``: the arm with the largest value is drawn from next.

    Returns:
        A dictionary from the name that the command line uses to a class derived from `clusterucb.Policy`;
        never an empty one.

    Example:
        >>> class Greedy(IndexPolicy):
        ...     def index(self, arms, rng):
        ...         return arms.mean
        >>> @hookimpl
        ... def clusterucb_policies():
        ...     return {"greedy": Greedy}
    """
    raise NotImplementedError


@hookspec
def clusterucb_features() -> dict[str, type[Feature]]:
    """Return features by name: what the pool is clustered by.

    Required of a class is ``compute(batch) -> {block: f32[m, k]}``, named blocks of finite numbers with a
    row for each of the batch's m samples, which does not depend on the other samples. What has to be known of the
    pool before comes from ``fit(batch) -> {array: numbers}``, optional: `clusterucb.features.Feature.fit`.

    Returns:
        A dictionary from the name that the command line uses to a class derived from `clusterucb.Feature`;
        never an empty one.

    Example:
        >>> class Length(Feature):
        ...     def compute(self, batch):
        ...         return {"length": np.array([[len(sample)] for sample in batch.encoded], np.float32)}
        >>> @hookimpl
        ... def clusterucb_features():
        ...     return {"length": Length}
    """
    raise NotImplementedError

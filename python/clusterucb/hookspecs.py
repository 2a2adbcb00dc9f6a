"""Define the hooks that a plugin may implement. They are the whole plugin interface.

A plugin is a module that an entry point in the group ``clusterucb`` names. It marks its hooks with `hookimpl`. Each
hook returns a dictionary that maps names, as the command line spells them, to classes. The constructor of such a
class takes plain hyper-parameters, as a dataclass's does:

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

After ``pip install``, ``clusterucb select ... --policy greedy`` works. `clusterucb.testing` has the tests that the
plugin should pass. ``plugins/README.md`` explains every step from an empty folder to a published package.

A strategy may also use these public names: everything that `clusterucb`, `clusterucb.policies`,
`clusterucb.clusterers`, `clusterucb.features` and `clusterucb.testing` list in ``__all__``, the module
`clusterucb.errors`, and ``clusterucb.plugins.load().make(kind, name, options)``, which makes an installed
strategy in the same way as the command line.
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
    """Return clusterers by name. A clusterer groups the pool into the arms.

    Each class must implement ``fit_predict(pool, rng) -> i64[N]``. It returns the cluster of each of the pool's N
    rows: 0..K-1, or -1 for noise. ``pool.matrix()`` returns the features, f32[N, k].

    Returns:
        A dictionary that maps names, as the command line spells them, to classes derived from
        `clusterucb.Clusterer`. It must not be empty.

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
    """Return policies by name. A policy decides which rows are drawn next.

    Each class must implement ``ask(n, available, rng) -> i64[min(n, available.sum())]``. It returns distinct rows
    where ``available``, bool[N], is true. `clusterucb.policies.IndexPolicy` implements ``ask`` already. A class
    derived from it must implement ``index(arms, rng) -> f64[K]`` instead: the next draw is from the arm with the
    largest index.

    Returns:
        A dictionary that maps names, as the command line spells them, to classes derived from
        `clusterucb.Policy`. It must not be empty.

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
    """Return features by name. Features describe the samples, and the pool is clustered by them.

    Each class must implement ``compute(batch) -> {block: f32[m, k]}``. It returns named blocks of finite numbers,
    with one row for each of the batch's m samples. A row must not depend on the other samples. A feature that has to
    learn something from the pool first also implements ``fit(batch) -> {array: numbers}``; see
    `clusterucb.features.Feature.fit`.

    Returns:
        A dictionary that maps names, as the command line spells them, to classes derived from
        `clusterucb.Feature`. It must not be empty.

    Example:
        >>> class Length(Feature):
        ...     def compute(self, batch):
        ...         return {"length": np.array([[len(sample)] for sample in batch.encoded], np.float32)}
        >>> @hookimpl
        ... def clusterucb_features():
        ...     return {"length": Length}
    """
    raise NotImplementedError

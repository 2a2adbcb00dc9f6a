"""Test the contract of features.

A feature has no ``rng``: the same samples give the same rows in any batch, so that a resumed run ends with the same
bits. What a feature learns from the pool is arrays that the run saves, not state. A feature must declare its passes
and gradients, since a run computes its cost from them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from clusterucb.features.base import Feature
from clusterucb.testing._checks import (
    require,
    require_description,
    require_no_global_randomness,
    same_bits,
    seeded,
)
from clusterucb.testing._samples import N_SAMPLES, Bench

if TYPE_CHECKING:
    from torch import nn

_EVERYTHING = range(N_SAMPLES)
# Each sample alone, all in another order, one sample twice, and a sample between two others.
_BATCHES: tuple[Sequence[int], ...] = (
    *((row,) for row in _EVERYTHING),
    tuple(reversed(_EVERYTHING)),
    (2, 2),
    (4, 0, 1),
)


def _fixture(function: Callable[..., Any]) -> Any:
    """Make a pytest fixture. Without pytest, `outcomes` runs the suite and needs no fixture."""
    try:
        import pytest
    except ImportError:
        return function
    return pytest.fixture(function)


class FeatureSuite:
    """Tests for a feature; the subclass has a fixture ``feature`` that returns the feature."""

    kind: ClassVar[str] = "feature"

    @_fixture
    def model(self) -> nn.Module | None:
        """Return the model that the feature gets; None makes a tiny random Llama when the feature uses the model."""
        return None

    # Blocks ---------------------------------------------------------------------------------------------------

    def test_compute_returns_named_blocks(self, feature: Feature, model: nn.Module | None) -> None:
        """`compute` returns a dict with at least one block."""
        blocks: Any = _computed(feature, Bench(model))
        named = isinstance(blocks, Mapping) and blocks and all(isinstance(name, str) for name in blocks)
        require(
            named,
            f"{blocks!r:.80} from compute",
            "a dict of one or more blocks by name",
            'Return {"name": block}',
        )

    def test_every_block_has_a_row_for_each_sample(self, feature: Feature, model: nn.Module | None) -> None:
        """Every block is a matrix [m, k], with a row for each of the m samples."""
        bench = Bench(model)
        for rows in (_EVERYTHING, *_BATCHES):
            for name, block in _blocks(feature, bench, rows).items():
                require(
                    block.ndim == 2 and len(block) == len(rows),
                    f"block {name!r} of shape {block.shape} for {len(rows)} samples",
                    f"[{len(rows)}, k], a row for each sample",
                    "Return a single number for each sample as a block [m, 1]: values[:, None]",
                )

    def test_no_block_is_empty(self, feature: Feature, model: nn.Module | None) -> None:
        """Every block has columns."""
        for name, block in _blocks(feature, Bench(model)).items():
            require(
                block.shape[-1:] != (0,),
                f"block {name!r} of shape {block.shape}",
                "one or more columns",
                "Leave the block out, or give it columns",
            )

    def test_blocks_are_numbers(self, feature: Feature, model: nn.Module | None) -> None:
        """Blocks hold numbers; a run saves them as f32."""
        for name, block in _blocks(feature, Bench(model)).items():
            require(
                block.dtype.kind in "fiub",
                f"block {name!r} of {block.dtype}",
                "float32",
                "Return arrays of numbers: np.array(rows, np.float32)",
            )

    def test_blocks_are_finite(self, feature: Feature, model: nn.Module | None) -> None:
        """All numbers are finite, also for short samples, samples without content and failed gradients."""
        for name, block in _comparable(_blocks(feature, Bench(model))).items():
            bad = np.flatnonzero(~np.isfinite(block).reshape(len(block), -1).all(axis=1))
            require(
                not len(bad),
                f"NaN or infinity in block {name!r}, row {bad[:1]}",
                "finite numbers",
                "Look for samples without content tokens, gradient sketches of zero, and log(0)",
            )

    def test_blocks_are_the_same_in_every_batch(self, feature: Feature, model: nn.Module | None) -> None:
        """Every batch has the same blocks with the same columns, since a run joins the batches of a pool."""
        bench = Bench(model)
        widths = _widths(feature, bench, _EVERYTHING)
        for rows in _BATCHES:
            of_batch = _widths(feature, bench, rows)
            require(
                of_batch == widths,
                f"blocks of widths {of_batch} in one batch, and {widths} in another",
                "the same names and widths in every batch",
                "Choose names and columns in advance, not by the samples of a batch",
            )

    def test_row_does_not_depend_on_its_batch(self, feature: Feature, model: nn.Module | None) -> None:
        """A row is the same in any batch, to the bit: a resumed run has other batches."""
        bench = Bench(model)
        whole = _comparable(_blocks(feature, bench))
        for rows in _BATCHES:
            part = _comparable(_blocks(feature, bench, rows))
            for name in whole.keys() & part.keys():
                expected = whole[name][list(rows)] if len(whole[name]) == N_SAMPLES else part[name]
                if part[name].shape != expected.shape:
                    continue  # other tests report it
                require(
                    part[name].tobytes() == expected.tobytes(),
                    f"different rows of block {name!r} for samples {list(rows)} in a batch of their own",
                    "the same bits in any batch",
                    "Do not normalise over the batch, and pass samples through a model one by one",
                )

    def test_similar_by_names_blocks(self, feature: Feature, model: nn.Module | None) -> None:
        """`similar_by` names blocks of the feature, in which samples are compared with the target."""
        missing = set(feature.similar_by) - _blocks(feature, Bench(model)).keys()
        require(
            not missing,
            f"similar_by = {feature.similar_by!r}, but no block {', '.join(sorted(missing))}",
            "names of blocks",
            "Use the names of the blocks that `compute` returns",
        )

    # Fit ------------------------------------------------------------------------------------------------------

    def test_fit_returns_named_arrays(self, feature: Feature, model: nn.Module | None) -> None:
        """`fit` returns None, or arrays that a run can save."""
        learnt: Any = _fitted(feature, Bench(model))
        arrays = {name: np.asarray(array) for name, array in _named(learnt).items()}
        named = isinstance(learnt, Mapping) and all(
            isinstance(name, str) and array.dtype.kind in "fiub" for name, array in arrays.items()
        )
        require(
            learnt is None or named,
            f"{learnt!r:.80} from fit",
            "a dict of arrays of numbers by name, or None",
            'Return {"name": array}',
        )

    def test_fit_gives_the_same_for_the_same_samples(self, feature: Feature, model: nn.Module | None) -> None:
        """The same samples give the same arrays: a run that is interrupted before it saves them fits again."""
        bench = Bench(model)
        first = _named(_fitted(feature, bench))
        again = _named(_fitted(feature, bench))
        require(
            first.keys() == again.keys() and same_bits([*first.values()], [again[name] for name in first]),
            "other arrays from a second fit to the same samples",
            "the same arrays",
            "Give every random generator a fixed seed, and keep nothing between calls",
        )

    def test_what_fit_returned_is_all_that_is_needed(self, feature: Feature, model: nn.Module | None) -> None:
        """`compute` needs only the arrays from `fit`: a resumed run finds nothing else in its folder."""
        bench, fresh = Bench(model), copy.deepcopy(feature)
        expected = _comparable(_blocks(feature, bench))
        with seeded(0):
            learnt = bench.fit(feature)
            try:
                blocks = _comparable(_arrays(bench.compute_with(learnt, fresh)))
            except Exception as error:  # a feature that misses its state may raise any exception
                blocks = {}
                got = f"{type(error).__name__}: {error}"
            else:
                got = "other rows"
        require(
            blocks.keys() == expected.keys()
            and same_bits([*blocks.values()], [expected[name] for name in blocks]),
            f"{got} from a copy of the feature whose `fit` was never called",
            "the rows of the fitted feature",
            "Keep nothing in the feature: return arrays from fit, and use batch.fitted in compute",
        )

    def test_fit_makes_no_pass(self, feature: Feature, model: nn.Module | None) -> None:
        """`fit` does not run the model, since a run would not count the cost."""
        bench = Bench(model)
        _fitted(feature, bench)
        require(
            not bench.n_passes,
            "a pass of the model in fit",
            "passes only in compute",
            "Learn from samples and tokens only",
        )

    # Nothing else changes -------------------------------------------------------------------------------------

    def test_same_samples_give_the_same_rows(self, feature: Feature, model: nn.Module | None) -> None:
        """A feature keeps nothing from an earlier call."""
        bench = Bench(model)
        first = _blocks(feature, bench)
        _blocks(feature, bench, (1, 4))
        again = _blocks(feature, bench)
        for name in first.keys() & again.keys():
            require(
                same_bits([first[name]], [again[name]]),
                f"other rows of block {name!r} when the same samples came again",
                "the same rows",
                "Keep nothing between calls",
            )

    def test_global_randomness_plays_no_part(self, feature: Feature, model: nn.Module | None) -> None:
        """A feature does not use np.random, random or torch.rand."""

        def answer() -> list[NDArray[Any]]:
            blocks = Bench(model).compute(feature)
            return [np.asarray(block) for block in _named(blocks).values()]

        require_no_global_randomness(
            answer, "a generator with a fixed seed, np.random.default_rng(seed), made in compute"
        )

    def test_samples_are_left_as_they_are(self, feature: Feature, model: nn.Module | None) -> None:
        """A feature does not change the samples: the run takes their gradients later."""
        bench, untouched = Bench(model), Bench(model)
        with seeded(0):
            batch = replace(bench.batch(), fitted=bench.fit(feature))
            feature.compute(batch)
        require(
            list(batch.samples) == untouched.samples and list(batch.encoded) == bench.encoded,
            "other samples in the batch, or another order",
            "batch.samples and batch.encoded as they were",
            "Sort or drop samples only in a list of your own",
        )
        for got, expected in zip(bench.encoded, untouched.encoded, strict=True):
            for name in ("tokens", "labels", "content"):
                require(
                    np.array_equal(getattr(got, name), getattr(expected, name)),
                    f"a change of the {name} of a sample",
                    "the samples as they were",
                    f"Work on {name}.copy()",
                )

    def test_model_is_left_as_it_was(self, feature: Feature, model: nn.Module | None) -> None:
        """A feature does not change the model: the run takes gradients of it later."""
        with seeded(0):
            changed = Bench(model).changes_of_model(feature)
        require(
            not changed,
            f"a change of the model: {', '.join(changed[:3])}",
            "weights, hooks and modes as they were",
            "Remove hooks in a `finally` block, and compute under torch.inference_mode()",
        )

    def test_hyper_parameters_are_kept(self, feature: Feature, model: nn.Module | None) -> None:
        """A run's manifest records the hyper-parameters."""
        require_description(feature, lambda: _computed(feature, Bench(model)))

    # Cost -----------------------------------------------------------------------------------------------------

    def test_forward_passes_are_declared(self, feature: Feature, model: nn.Module | None) -> None:
        """A feature that runs the model sets `forward_passes`, from which a run computes its cost."""
        bench = Bench(model)
        _computed(feature, bench)
        require(
            not bench.n_passes or feature.forward_passes > 0,
            f"a pass of the model, but forward_passes = {feature.forward_passes}",
            "the number of passes over each sample, with a partial pass as a fraction",
            "Set forward_passes = 1 in the class",
        )

    def test_gradients_are_declared(self, feature: Feature, model: nn.Module | None) -> None:
        """A feature that uses gradient sketches sets `gradients`, from which a run computes its cost."""
        bench = Bench(model)
        _computed(feature, bench)
        require(
            not bench.n_gradients or feature.gradients > 0,
            f"a use of gradient_sketches, but gradients = {feature.gradients}",
            "the number of gradients of each sample",
            "Set gradients = 1 in the class",
        )


def _computed(feature: Feature, bench: Bench, rows: Sequence[int] = _EVERYTHING) -> object:
    """Return what `Feature.compute` returns, under the same global seed each time."""
    with seeded(0):
        return bench.compute(feature, rows)


def _fitted(feature: Feature, bench: Bench) -> object:
    """Return what `Feature.fit` returns, under the same global seed each time."""
    with seeded(0):
        return bench.fit_raw(feature)


def _named(returned: object) -> dict[str, Any]:
    """Return a dict as it is, and {} for anything else."""
    return dict(returned) if isinstance(returned, Mapping) else {}


def _blocks(feature: Feature, bench: Bench, rows: Sequence[int] = _EVERYTHING) -> dict[str, NDArray[Any]]:
    """Return a feature's blocks as arrays, or {} if `Feature.compute` does not return a dict."""
    return _arrays(_computed(feature, bench, rows))


def _arrays(returned: object) -> dict[str, NDArray[Any]]:
    """Return the values of a dict as arrays, and {} for anything else."""
    return {name: np.asarray(block) for name, block in _named(returned).items()}


def _comparable(blocks: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """Return the blocks that hold numbers and have rows, as the f32 arrays that a run would save."""
    numbers = {name: block for name, block in blocks.items() if block.dtype.kind in "fiub" and block.ndim}
    return {name: np.ascontiguousarray(block, np.float32) for name, block in numbers.items()}


def _widths(feature: Feature, bench: Bench, rows: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of a row of each block."""
    return {name: block.shape[1:] for name, block in _blocks(feature, bench, rows).items()}

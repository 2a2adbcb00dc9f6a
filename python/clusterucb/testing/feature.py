"""What every feature has to keep to.

A feature has no rng: the same samples give the same rows, in any batch, so that a run that was interrupted goes on
to the same bits. What it learns from the pool is arrays that are written down, not state. What it takes of the model
has to be declared, since a run reports its cost from that.
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
# Alone, in another order, one beside itself, and with others before and after it.
_BATCHES: tuple[Sequence[int], ...] = (
    *((row,) for row in _EVERYTHING),
    tuple(reversed(_EVERYTHING)),
    (2, 2),
    (4, 0, 1),
)


def _fixture(function: Callable[..., Any]) -> Any:
    """Make a fixture; without pytest `outcomes` does without it."""
    try:
        import pytest
    except ImportError:
        return function
    return pytest.fixture(function)


class FeatureSuite:
    """Tests of a feature; a subclass has a fixture ``feature`` that returns it."""

    kind: ClassVar[str] = "feature"

    @_fixture
    def model(self) -> nn.Module | None:
        """The model that the feature sees; None: a tiny random Llama, made when the feature asks for it."""
        return None

    # Blocks ---------------------------------------------------------------------------------------------------

    def test_compute_returns_named_blocks(self, feature: Feature, model: nn.Module | None) -> None:
        """A dict with a block at least."""
        found: Any = _computed(feature, Bench(model))
        named = isinstance(found, Mapping) and found and all(isinstance(name, str) for name in found)
        require(
            named,
            f"{found!r:.80}",
            "a dict of one or more blocks by name",
            'Return {"name": block}',
        )

    def test_every_block_has_a_row_for_each_sample(self, feature: Feature, model: nn.Module | None) -> None:
        """Blocks are matrices [m, k]."""
        bench = Bench(model)
        for rows in (_EVERYTHING, *_BATCHES):
            for name, block in _blocks(feature, bench, rows).items():
                require(
                    block.ndim == 2 and len(block) == len(rows),
                    f"block {name!r} of shape {block.shape} for {len(rows)} samples",
                    f"[{len(rows)}, k], a row for each sample",
                    "A single number for each sample is a block [m, 1]: values[:, None]",
                )

    def test_no_block_is_empty(self, feature: Feature, model: nn.Module | None) -> None:
        """A block without columns says nothing."""
        for name, block in _blocks(feature, Bench(model)).items():
            require(
                block.shape[-1:] != (0,),
                f"block {name!r} of shape {block.shape}",
                "one or more columns",
                "Leave the block out, or give it columns",
            )

    def test_blocks_are_numbers(self, feature: Feature, model: nn.Module | None) -> None:
        """They are kept as f32."""
        for name, block in _blocks(feature, Bench(model)).items():
            require(
                block.dtype.kind in "fiub",
                f"block {name!r} of {block.dtype}",
                "float32",
                "Return arrays of numbers: np.array(rows, np.float32)",
            )

    def test_blocks_are_finite(self, feature: Feature, model: nn.Module | None) -> None:
        """For short samples, samples without content and failed gradients, too."""
        for name, block in _comparable(_blocks(feature, Bench(model))).items():
            bad = np.flatnonzero(~np.isfinite(block).reshape(len(block), -1).all(axis=1))
            require(
                not len(bad),
                f"NaN or infinity in block {name!r}, row {bad[:1]}",
                "finite numbers",
                "Mind samples without content tokens, zero rows of gradients, and log(0)",
            )

    def test_blocks_are_the_same_in_every_batch(self, feature: Feature, model: nn.Module | None) -> None:
        """The batches of a pool are put together."""
        bench = Bench(model)
        widths = _widths(feature, bench, _EVERYTHING)
        for rows in _BATCHES:
            found = _widths(feature, bench, rows)
            require(
                found == widths,
                f"blocks and widths {found} in one batch, {widths} in another",
                "the same names and widths in every batch",
                "Choose names and columns beforehand, not by what a batch holds",
            )

    def test_row_does_not_depend_on_its_batch(self, feature: Feature, model: nn.Module | None) -> None:
        """To the bit: a run that was interrupted has other batches."""
        bench = Bench(model)
        whole = _comparable(_blocks(feature, bench))
        for rows in _BATCHES:
            part = _comparable(_blocks(feature, bench, rows))
            for name in whole.keys() & part.keys():
                expected = whole[name][list(rows)] if len(whole[name]) == N_SAMPLES else part[name]
                if part[name].shape != expected.shape:
                    continue  # other tests say so
                require(
                    part[name].tobytes() == expected.tobytes(),
                    f"another block {name!r} for samples {list(rows)} in a batch of their own",
                    "the same bits in any batch",
                    "Normalise by nothing of the batch; pass samples through a model one by one",
                )

    def test_similar_by_names_blocks(self, feature: Feature, model: nn.Module | None) -> None:
        """They are what samples are compared with the target by."""
        missing = set(feature.similar_by) - _blocks(feature, Bench(model)).keys()
        require(
            not missing,
            f"similar_by = {feature.similar_by!r}, and no block {', '.join(sorted(missing))}",
            "names of blocks",
            "Spell them as `compute` does",
        )

    # Fit ------------------------------------------------------------------------------------------------------

    def test_fit_returns_named_arrays(self, feature: Feature, model: nn.Module | None) -> None:
        """They are written to the run folder; or None."""
        found: Any = _fitted(feature, Bench(model))
        arrays = {name: np.asarray(array) for name, array in _named(found).items()}
        named = isinstance(found, Mapping) and all(
            isinstance(name, str) and array.dtype.kind in "fiub" for name, array in arrays.items()
        )
        require(
            found is None or named,
            f"{found!r:.80} from fit",
            "a dict of arrays of numbers by name, or None",
            'Return {"name": array}',
        )

    def test_fit_gives_the_same_for_the_same_samples(self, feature: Feature, model: nn.Module | None) -> None:
        """A run that was interrupted before it was written goes on to the same bits."""
        bench = Bench(model)
        first = _named(_fitted(feature, bench))
        again = _named(_fitted(feature, bench))
        require(
            first.keys() == again.keys() and same_bits([*first.values()], [again[name] for name in first]),
            "something else from a second fit to the same samples",
            "the same arrays",
            "Give what draws random numbers a seed of its own, and keep nothing between calls",
        )

    def test_what_fit_returned_is_all_that_is_needed(self, feature: Feature, model: nn.Module | None) -> None:
        """A run that was interrupted computes with what it finds in its folder."""
        bench, fresh = Bench(model), copy.deepcopy(feature)
        expected = _comparable(_blocks(feature, bench))
        with seeded(0):
            learnt = bench.fit(feature)
            try:
                found = _comparable(_arrays(bench.compute_with(learnt, fresh)))
            except Exception as error:  # whatever is missing
                found = {}
                got = f"{type(error).__name__}: {error}"
            else:
                got = "other rows"
        require(
            found.keys() == expected.keys()
            and same_bits([*found.values()], [expected[name] for name in found]),
            f"{got} from a copy of the feature that has not fitted itself",
            "the rows of the one that has",
            "Keep nothing in the feature: return arrays from fit, and compute with batch.fitted",
        )

    def test_fit_makes_no_pass(self, feature: Feature, model: nn.Module | None) -> None:
        """A run's cost would not know of it."""
        bench = Bench(model)
        _fitted(feature, bench)
        require(
            not bench.n_passes,
            "a pass of the model in fit",
            "passes in compute alone",
            "Learn from samples and tokens",
        )

    # Nothing else changes -------------------------------------------------------------------------------------

    def test_same_samples_give_the_same_rows(self, feature: Feature, model: nn.Module | None) -> None:
        """Nothing is left of an earlier call."""
        bench = Bench(model)
        first = _blocks(feature, bench)
        _blocks(feature, bench, (1, 4))
        again = _blocks(feature, bench)
        for name in first.keys() & again.keys():
            require(
                same_bits([first[name]], [again[name]]),
                f"another block {name!r} when the same samples came again",
                "the same rows",
                "Keep nothing between calls",
            )

    def test_global_randomness_plays_no_part(self, feature: Feature, model: nn.Module | None) -> None:
        """No np.random, no random, no torch.rand."""

        def answer() -> list[NDArray[Any]]:
            found = Bench(model).compute(feature)
            return [np.asarray(block) for block in _named(found).values()]

        require_no_global_randomness(
            answer, "a generator with a seed of its own, np.random.default_rng(seed), made in compute"
        )

    def test_samples_are_left_as_they_are(self, feature: Feature, model: nn.Module | None) -> None:
        """Their gradients are still to be taken."""
        bench, untouched = Bench(model), Bench(model)
        with seeded(0):
            batch = replace(bench.batch(), fitted=bench.fit(feature))
            feature.compute(batch)
        require(
            list(batch.samples) == untouched.samples and list(batch.encoded) == bench.encoded,
            "other samples in the batch, or another order",
            "batch.samples and batch.encoded as they were",
            "Sort and drop in a list of your own",
        )
        for got, expected in zip(bench.encoded, untouched.encoded, strict=True):
            for name in ("tokens", "labels", "content"):
                require(
                    np.array_equal(getattr(got, name), getattr(expected, name)),
                    f"other {name} in a sample",
                    "the samples as they were",
                    f"Work on {name}.copy()",
                )

    def test_model_is_left_as_it_was(self, feature: Feature, model: nn.Module | None) -> None:
        """It is the model that gradients are taken of."""
        with seeded(0):
            changed = Bench(model).changes_of_model(feature)
        require(
            not changed,
            f"a change of the model: {', '.join(changed[:3])}",
            "its weights, hooks and modes as they were",
            "Remove hooks in a finally, and compute under torch.inference_mode()",
        )

    def test_hyper_parameters_are_kept(self, feature: Feature, model: nn.Module | None) -> None:
        """The manifest of a run records them."""
        require_description(feature, lambda: _computed(feature, Bench(model)))

    # Cost -----------------------------------------------------------------------------------------------------

    def test_forward_passes_are_declared(self, feature: Feature, model: nn.Module | None) -> None:
        """A run reports its cost by them."""
        bench = Bench(model)
        _computed(feature, bench)
        require(
            not bench.n_passes or feature.forward_passes > 0,
            f"a pass of the model, and forward_passes = {feature.forward_passes}",
            "the passes over each sample, a part of one as a part",
            "Set forward_passes = 1 in the class",
        )

    def test_gradients_are_declared(self, feature: Feature, model: nn.Module | None) -> None:
        """A run reports its cost by them."""
        bench = Bench(model)
        _computed(feature, bench)
        require(
            not bench.n_gradients or feature.gradients > 0,
            f"gradient_sketches taken, and gradients = {feature.gradients}",
            "the gradients of each sample",
            "Set gradients = 1 in the class",
        )


def _computed(feature: Feature, bench: Bench, rows: Sequence[int] = _EVERYTHING) -> object:
    with seeded(0):
        return bench.compute(feature, rows)


def _fitted(feature: Feature, bench: Bench) -> object:
    with seeded(0):
        return bench.fit_raw(feature)


def _named(found: object) -> dict[str, Any]:
    return dict(found) if isinstance(found, Mapping) else {}


def _blocks(feature: Feature, bench: Bench, rows: Sequence[int] = _EVERYTHING) -> dict[str, NDArray[Any]]:
    """Return a feature's blocks as arrays; none where it returns something else."""
    return _arrays(_computed(feature, bench, rows))


def _arrays(found: object) -> dict[str, NDArray[Any]]:
    return {name: np.asarray(block) for name, block in _named(found).items()}


def _comparable(blocks: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """Return the blocks that are numbers with rows, as they would be kept."""
    fit = {name: block for name, block in blocks.items() if block.dtype.kind in "fiub" and block.ndim}
    return {name: np.ascontiguousarray(block, np.float32) for name, block in fit.items()}


def _widths(feature: Feature, bench: Bench, rows: Sequence[int]) -> dict[str, tuple[int, ...]]:
    return {name: block.shape[1:] for name, block in _blocks(feature, bench, rows).items()}

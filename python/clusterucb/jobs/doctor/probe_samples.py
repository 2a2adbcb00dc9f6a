"""Choose the samples to probe a model with: a few, of rising lengths, short enough for the probes to take seconds.

Samples of a pool are cut to at most `_LONGEST` tokens around the place where their labels begin, because results in a
few seconds are worth more than the last tokens. Without a pool, samples are made up here and rendered with the chat
template, so that their tokens are ones that the model knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from clusterucb.errors import ModelError
from clusterucb.model.loaded import LoadedModel
from clusterucb.model.source import ModelSource
from clusterucb.options.gradients import GradientSettings
from clusterucb.samples.encode import Encoder
from clusterucb.samples.encoded import Encoded
from clusterucb.samples.message import Message
from clusterucb.samples.pieces import Unusable
from clusterucb.wording import counted, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LONGEST = 120  # tokens
_SHARES = (0.1, 0.2, 0.4, 1.0)  # lengths of the samples, as shares of the longest
_TEXT = (
    "Rivers carry what the rain takes from the hills, and leave it where the land is flat.",
    "A good loaf needs 500 grams of flour, 350 of water, some salt, and a night of patience!",
    "Of all primes only 2 is even: whoever doubts it may divide any other by two.",
    "She asked when the last train leaves; he did not know, so they walked along the line.",
    "Copper bends, glass breaks, and wood does either, depending on the grain and on the day.",
    "The library closes at 18:30 on weekdays, but its garden stays open until it is dark.",
    "To sort a list, split it in halves, sort each of them, and merge the two from the front.",
    "Whales sing lower every year, and nobody has found out why they should.",
)


def probing_samples(
    samples: Sequence[Encoded] | None,
    source: ModelSource | LoadedModel,
    settings: GradientSettings,
    base: PreTrainedModel,
) -> tuple[list[Encoded], str]:
    """Return a few samples of rising lengths, and a description of them."""
    longest = min(_LONGEST, settings.max_length, getattr(base.config, "max_position_embeddings", _LONGEST))
    if samples:
        by_length = sorted(samples, key=len)
        picked = [by_length[at] for at in np.linspace(0, len(by_length) - 1, len(_SHARES)).astype(int)]
        longest = min(longest, len(by_length[-1]))
        found = [_window(one, length) for one, length in zip(picked, _lengths(longest), strict=True)]
        what = "of the pool"
    else:
        found, what = _made_up(source, settings, base, _lengths(longest))
    shown = sorted(map(len, found))
    return found, f"{counted(len(found), 'sample')} of {shown[0]} to {shown[-1]} tokens, {what}"


def _lengths(longest: int) -> list[int]:
    return [max(2, int(longest * share)) for share in _SHARES]


def _window(sample: Encoded, length: int) -> Encoded:
    """Return at most ``length`` tokens around the place where the labels begin."""
    first = int(sample.labels.argmax())
    start = max(min(first - max(length // 4, 1), len(sample) - length), 0)
    here = slice(start, start + length)
    labels = sample.labels[here].copy()
    labels[0] = False
    return Encoded(sample.tokens[here], labels, sample.content[here])


def _made_up(
    source: ModelSource | LoadedModel,
    settings: GradientSettings,
    base: PreTrainedModel,
    lengths: Sequence[int],
) -> tuple[list[Encoded], str]:
    """Return encoded conversations, or random tokens if the tokenizer cannot encode any, and a description of them."""
    try:
        tokenizer = source.tokenizer()
        return [
            Encoder(tokenizer, max_length=length)(
                [Message("user", _TEXT[at]), Message("assistant", " ".join(_TEXT[at + 1 :] + _TEXT[:at]))]
            )
            for at, length in enumerate(lengths)
        ], "made up"
    except (ModelError, Unusable) as error:
        why = one_line(error)
    rng = np.random.default_rng(settings.seed)
    size = base.get_input_embeddings().num_embeddings
    found = []
    for length in lengths:
        labels = np.arange(length) >= length // 2
        found.append(Encoded(rng.integers(size, size=length), labels, labels))
    return found, f"of random tokens, because no conversation can be encoded ({why})"

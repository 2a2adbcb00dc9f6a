"""Find selected samples that are nearly the same text."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

SHARE = 0.7  # of the word triples of two near-duplicates, those that both have
MOST = 2000  # texts that are compared
_COMMON = 50  # a triple in more texts than this tells nothing, as in a template that all samples share


def near_duplicates(texts: Sequence[str]) -> list[tuple[int, int, float]]:
    """Return each text that is a near-duplicate of an earlier one: (position of the nearest such, its own, share).

    Two texts are near-duplicates if both have at least `SHARE` of the sequences of three words that either has, without
    those that more than `_COMMON` texts have.
    """
    triples = [_triples(text) for text in texts[:MOST]]
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for at, own in enumerate(triples):
        for triple in own:
            holders[triple].append(at)
    common = {triple for triple, where in holders.items() if len(where) > _COMMON}
    shared: Counter[tuple[int, int]] = Counter()
    for triple, where in holders.items():
        if triple not in common:
            shared.update((a, b) for place, a in enumerate(where) for b in where[place + 1 :])
    sizes = [len(own - common) for own in triples]
    nearest: dict[int, tuple[float, int]] = {}
    for (a, b), both in shared.items():
        share = both / (sizes[a] + sizes[b] - both)
        if share >= SHARE:
            nearest[b] = max(nearest.get(b, (0.0, 0)), (share, -a))
    return [(-minus, later, share) for later, (share, minus) in sorted(nearest.items())]


def _triples(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(words, words[1:], words[2:], strict=False)) or {tuple(words)}

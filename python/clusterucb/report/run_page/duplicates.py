"""Find selected samples that are nearly the same text."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

SHARE = 0.7  # of the sequences of two near-duplicates, those that both have
MOST = 2000  # texts that are compared
_WORDS = 1000  # of a text that are compared
_COMMON = 100  # a sequence that more texts have finds no candidates: texts of one template have many of them
_LONGEST_WORD = (
    40  # letters; a text with a longer "word" has no spaces between words, and its letters are compared
)


def near_duplicates(texts: Sequence[str]) -> list[tuple[int, int, float]]:
    """Return each text that is a near-duplicate of an earlier one: (position of the nearest such, its own, share).

    Two texts are near-duplicates if both have at least `SHARE` of the sequences of three words (of five letters, in a
    script without spaces) that either has. A near-duplicate is not compared with later texts: these are near the same
    earlier one, or are compared with it alone.
    """
    first: dict[frozenset[tuple[str, ...]], int] = {}
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    kept: dict[int, frozenset[tuple[str, ...]]] = {}
    found = []
    for at, text in enumerate(texts[:MOST]):
        own = _sequences(text)
        if own in first:
            found.append((first[own], at, 1.0))
            continue
        first[own] = at
        shared = Counter(other for one in own for other in holders[one] if len(holders[one]) <= _COMMON)
        shares = {other: len(own & kept[other]) / len(own | kept[other]) for other in shared}
        nearest = max(shares, key=lambda other: (shares[other], -other), default=None)
        if nearest is not None and shares[nearest] >= SHARE:
            found.append((nearest, at, shares[nearest]))
            continue
        kept[at] = own
        for one in own:
            holders[one].append(at)
    return found


def _sequences(text: str) -> frozenset[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())[:_WORDS]
    if any(len(word) > _LONGEST_WORD for word in words):
        words = list("".join(words)[: 5 * _WORDS])
        return frozenset(zip(words, words[1:], words[2:], words[3:], words[4:], strict=False))
    return frozenset(zip(words, words[1:], words[2:], strict=False)) or frozenset({tuple(words) or (text,)})

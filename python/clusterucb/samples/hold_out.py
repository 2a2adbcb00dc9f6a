"""Hold out a part of a target: its samples judge a selection, and have no part in making it.

The split depends on the samples' contents alone. Samples are in the order of their content hashes, which is as good as
random, so the last ones of each subtask are held out. The order of lines and files changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import replace
from fractions import Fraction

from clusterucb.errors import OptionError
from clusterucb.samples.pool import Pool


def hold_out(target: Pool, share: Fraction) -> tuple[Pool, Pool]:
    """Split a target into the samples that choose and the samples that judge.

    Args:
        target: the target, with the samples in canonical order.
        share: the share of each subtask that judges. Each side gets at least one sample of each subtask.

    Raises:
        OptionError: a subtask has a single sample.
    """
    rows: dict[str, list[int]] = {}
    for row, sample in enumerate(target.samples):
        rows.setdefault(sample.subtask, []).append(row)
    choosing: list[int] = []
    judging: list[int] = []
    for subtask, own in rows.items():
        if len(own) == 1:
            raise OptionError(
                f"--hold-out is given, and subtask {subtask!r} has 1 target sample; expected at least 2, one that "
                "chooses and one that judges"
            )
        n_choosing = len(own) - min(max(round(share * len(own)), 1), len(own) - 1)
        choosing += own[:n_choosing]
        judging += own[n_choosing:]
    return _part(target, choosing, f"without {share}"), _part(target, judging, f"held out {share}")


def without(judges: Pool, hashes: Collection[str]) -> Pool:
    """Return the judges whose content hash is not among ``hashes``."""
    rows = [row for row, sample in enumerate(judges.samples) if sample.content_hash not in hashes]
    return _part(judges, rows, f"without {' '.join(sorted(hashes))}")


def _part(target: Pool, rows: list[int], name: str) -> Pool:
    fingerprint = hashlib.sha256(f"{target.fingerprint} {name}".encode()).hexdigest()
    at = sorted(rows)
    return replace(
        target, samples=target.samples.take(at), content_keys=target.content_keys[at], fingerprint=fingerprint
    )

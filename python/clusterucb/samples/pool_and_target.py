"""Encode the pool and the target as tokens, which every later stage works on.

A sample that cannot be encoded is rejected like a line that cannot be read. The remaining samples are still in
canonical order. N, which percentages refer to, is the number of the remaining samples.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import InputError, OptionError, warn
from clusterucb.progress import Observer, Silent
from clusterucb.samples.encode import Encoder
from clusterucb.samples.encoded import Encoded
from clusterucb.samples.pieces import Unusable
from clusterucb.samples.pool import Pool, Rejected, Sample, Samples, not_usable, overlap
from clusterucb.samples.rejected import RejectedLines
from clusterucb.samples.sample import counts_by_kind, kinds_in_words
from clusterucb.samples.tokens import EncodedSamples, TokenFile
from clusterucb.wording import did_you_mean

_MANY_FULL = 0.05  # if a larger share of the samples fills the maximum length, a warning is given
_SLOW = 20_000  # encoding at least this many samples shows progress
_BATCH, _BATCH_BYTES = 256, 1 << 20  # samples, and bytes of their lines, that are encoded together
WARMUP_BATCH = 4  # samples in one warm-up step


@dataclass(frozen=True)
class Material:
    """The encoded samples of a pool and a target.

    Attributes:
        samples: the pool's N samples in canonical order, on the disk.
        encoded: the tokens of the pool's samples, on the disk.
        sources: the ``source`` of each of the pool's samples, [N].
        contents: u8[N, 32], the content hash of each of the pool's samples.
        target: the encoded samples of each subtask, with the subtasks sorted by name.
        target_samples: the same samples before encoding.
        pool_rejected: the pool's rejected lines with their reasons.
        target_rejected: the target's rejected lines with their reasons.
        pool_files, target_files: the files, as they were given.
        sketched: bool[N]. True where a gradient store holds the sample; None without a store.
    """

    samples: Samples
    encoded: EncodedSamples
    sources: NDArray[np.object_]
    contents: NDArray[np.uint8]
    target: Mapping[str, Sequence[Encoded]]
    target_samples: Mapping[str, Sequence[Sample]]
    pool_rejected: RejectedLines
    target_rejected: RejectedLines
    pool_files: Sequence[str] = ()
    target_files: Sequence[str] = ()
    sketched: NDArray[np.bool_] | None = None

    @property
    def unsketched(self) -> NDArray[np.int64]:
        """The pool rows that no gradient store holds, i64[n]; all rows without a store."""
        return np.arange(len(self.samples)) if self.sketched is None else np.flatnonzero(~self.sketched)

    @property
    def n_target(self) -> int:
        """Number of target samples over all subtasks."""
        return sum(map(len, self.target.values()))

    def forget(self) -> None:
        """Let the system take back the memory of the pool's samples and tokens that were read, and lie on the disk."""
        self.samples.forget()
        self.encoded.forget()

    def columns(self) -> dict[str, NDArray[np.generic]]:
        """Return the columns of the pool that strategies may use besides the features, each [N]."""
        return {
            "source": self.sources,
            "tokens": self.encoded.lengths,
            "label_tokens": self.encoded.n_labels,
        }

    def longest(self) -> int:
        """Return the number of tokens of the longest sample in pool and target."""
        return max(int(self.encoded.lengths.max()), *map(len, chain(*self.target.values())), 0)

    def largest_token(self) -> int:
        """Return the largest token id in pool and target."""
        in_target = (int(sample.tokens.max()) for sample in chain(*self.target.values()))
        return max(self.encoded.largest_token, *in_target, 0)

    def subtask_contents(self) -> dict[str, str]:
        """Return a hex SHA-256 of each subtask's contents. Subtasks with equal hashes give equal scores."""
        return {
            name: hashlib.sha256("".join(sample.content_hash for sample in samples).encode()).hexdigest()
            for name, samples in self.target_samples.items()
        }

    def weights(self, given: Mapping[str, float] | None) -> NDArray[np.float64] | None:
        """Return the weights of the subtasks, f64[S], or None if no weights are given.

        Args:
            given: weights by subtask. A subtask without a weight gets 1.

        Raises:
            OptionError: ``given`` names a subtask that the target does not have.
        """
        for name in given or ():
            if name not in self.target:
                raise OptionError(
                    f"--subtask-weights names {name!r}; expected subtasks of the target: {', '.join(self.target)}."
                    f"{did_you_mean(name, self.target)}"
                )
        return np.array([given.get(name, 1.0) for name in self.target]) if given else None

    def rejected_rows(self, reasons: Iterable[tuple[int, str]]) -> list[Rejected]:
        """Return a rejected line for each (row, reason) of a pool sample that is not used."""
        return [Rejected.of(self.samples[row], reason) for row, reason in reasons]

    def warmup_rows(self, steps: int, seed: int) -> NDArray[np.int64]:
        """Return the pool rows of each warm-up step, i64[steps, min(4, N)]: epochs over the pool in random order."""
        rng = np.random.default_rng([seed, 0, 0])
        size = min(WARMUP_BATCH, len(self.encoded))
        epochs = -(-steps * size // len(self.encoded))
        order = np.concatenate([rng.permutation(len(self.encoded)) for _ in range(epochs)])
        return order[: steps * size].reshape(steps, size)


def encode(
    pool: Pool,
    target: Pool | None,
    encoder: Encoder,
    *,
    strict: bool = False,
    observer: Observer | None = None,
) -> Material:
    """Encode a pool and, if given, a target. Warn about pool samples that are also in the target.

    Args:
        pool: the pool's samples.
        target: the target's samples, or None.
        encoder: the encoder that turns conversations into tokens.
        strict: raise an error at the first sample that cannot be encoded.
        observer: the observer of the progress. By default, none.

    Raises:
        InputError: no sample of the pool, or none of the target, can be encoded; or (if ``strict``) one of them cannot.
    """
    if target and (shared := overlap(pool, target)):
        first = min(shared, key=lambda sample: (pool.files.index(sample.file), sample.line))
        warn(
            f"samples in both the pool and the target: {len(shared)}, the first is "
            f"{first.file}:{first.line}. They score high but teach nothing new; remove them from the pool or "
            "from the target",
        )
    if target and len(target.samples) > len(pool.samples):
        warn(
            f"the target has {len(target.samples):,} samples, more than the pool's {len(pool.samples):,}; check that "
            "the pool and the target are not swapped"
        )
    subtasks: dict[str, list[Encoded]] = {}
    read: dict[str, list[Sample]] = {}
    target_rejected = RejectedLines(())
    if target:
        subtasks, read, target_rejected = encode_subtasks(target, encoder, "target", strict=strict)
    samples, encoded, sources, contents, rejected = _encode(
        pool, encoder, "pool", strict, observer or Silent()
    )
    files = (pool.files, target.files if target else ())
    return Material(samples, encoded, sources, contents, subtasks, read, rejected, target_rejected, *files)


def encode_subtasks(
    target: Pool, encoder: Encoder, what: str, *, strict: bool
) -> tuple[dict[str, list[Encoded]], dict[str, list[Sample]], RejectedLines]:
    """Return the encoded samples of each subtask, the same samples before encoding, and all rejected lines.

    Args:
        target: the samples of a target.
        encoder: the encoder that turns conversations into tokens.
        what: what the samples are, for messages.
        strict: raise an error at the first sample that cannot be encoded.

    Raises:
        InputError: no sample can be encoded, or (if ``strict``) one of them cannot.
    """
    subtasks: dict[str, list[Encoded]] = {}
    read: dict[str, list[Sample]] = {}
    samples, encoded, _, _, rejected = _encode(target, encoder, what, strict, Silent())
    for sample, tokens in sorted(zip(samples, encoded, strict=True), key=lambda pair: pair[0].subtask):
        subtasks.setdefault(sample.subtask, []).append(tokens)
        read.setdefault(sample.subtask, []).append(sample)
    return subtasks, read, rejected


def _encode(
    pool: Pool, encoder: Encoder, what: str, strict: bool, observer: Observer
) -> tuple[Samples, EncodedSamples, NDArray[np.object_], NDArray[np.uint8], RejectedLines]:
    """Return the samples that can be encoded, their tokens, sources and content hashes, and all rejected lines.

    Every line is read from the disk once.
    """
    tokens, rejected = TokenFile(), pool.rejected.copy()
    kept, sources = np.ones(len(pool.samples), bool), np.empty(len(pool.samples), object)
    contents = bytearray()
    first: Rejected | None = None
    shown = observer if len(kept) >= _SLOW else Silent()
    at = 0
    with shown.count(f"Encoding the {what}", len(kept)) as advance:
        for samples, found in _encoded(_batches(pool.samples), encoder):
            for sample, encoded in zip(samples, found, strict=True):
                if isinstance(encoded, Unusable):
                    kept[at] = False
                    line = Rejected.of(sample, str(encoded))
                    if strict:
                        raise not_usable(line) from encoded
                    first = first or line
                    rejected.add(line)
                else:
                    sources[len(tokens)] = sys.intern(sample.source)
                    contents += bytes.fromhex(sample.content_hash)
                    tokens.add(encoded)
                at += 1
            advance(len(samples))
    if first and not kept.any():
        raise InputError(
            f"no sample of the {what} can be encoded ({kinds_in_words(counts_by_kind(rejected))}; first: "
            f"{first.file}:{first.line}: {first.reason}); expected answers with at least one token, and a chat "
            "template that fits them"
        )
    for note in encoder.notes(what):
        warn(note)
    pool_tokens = tokens.close()
    if (n_full := int((pool_tokens.lengths >= encoder.max_length).sum())) > _MANY_FULL * len(pool_tokens):
        warn(
            f"{n_full:,} of {len(pool_tokens):,} samples of the {what} reach --max-length {encoder.max_length}: their "
            "prompts, or the ends of their answers, are cut"
        )
    sources = sources[: len(pool_tokens)]
    sources.flags.writeable = False
    usable = pool.samples if kept.all() else pool.samples.take(np.flatnonzero(kept))
    hashes = np.frombuffer(bytes(contents), np.uint8).reshape(-1, 32)
    return usable, pool_tokens, sources, hashes, rejected


def _encoded(
    batches: Iterable[list[Sample]], encoder: Encoder
) -> Iterator[tuple[list[Sample], list[Encoded | Unusable]]]:
    """Yield batches with their encoded samples. The tokenizer works on the next batch meanwhile."""
    with ThreadPoolExecutor(1) as executor:
        waiting = None
        for samples in batches:
            texts = encoder.texts(sample.messages for sample in samples)
            following = samples, texts, executor.submit(encoder.tokenised, texts)
            if waiting:
                before, its_texts, tokenised = waiting
                yield before, encoder.labelled(its_texts, tokenised.result())
            waiting = following
        if waiting:
            before, its_texts, tokenised = waiting
            yield before, encoder.labelled(its_texts, tokenised.result())


def _batches(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Yield samples in lists that are worth one call of the tokenizer, and fit into memory."""
    batch: list[Sample] = []
    size = 0
    for sample in samples:
        batch.append(sample)
        size += len(sample.raw)
        if len(batch) == _BATCH or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

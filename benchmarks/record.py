"""Write the scores and reduced features of a run that scored its whole pool to one small file.

    python benchmarks/record.py FOLDER/templated-scores tests/data/templated.npz
    python benchmarks/record.py FOLDER/diverse-scores tests/data/diverse.npz --components 32
    python benchmarks/record.py FOLDER/diverse-sketched tests/data/diverse-sketched.npz --scores-only
    python benchmarks/record.py FOLDER/diverse-store tests/data/diverse-components.npz

`tests/policies/test_recall.py` and `benchmarks/replay.py` replay this file. `benchmarks/strategies.py` makes the runs.
The file holds the leading principal components of the embeddings in half precision, which keeps the clusters. For a
gradient store, it holds the leading principal components of the sketches.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from clusterucb.jobs.stages.prior import components
from clusterucb.run.gradient_store import GradientStore, is_store
from clusterucb.run.ledger import Ledger
from clusterucb.run.manifest_file import read_manifest
from clusterucb.run.pool_sketches import PoolSketches


def scores_of(run: Path) -> dict[str, np.ndarray]:
    """Return the scores f64[N] of all samples by subtask.

    Raises:
        SystemExit: if more than 1 % of the samples have no score.
    """
    inputs = read_manifest(run).inputs
    n_samples, subtasks = inputs.pool_samples, inputs.subtasks
    path, tokens = run / "ledger.sqlite", np.zeros(n_samples, np.int64)
    with Ledger(path, subtasks=subtasks, tokens=tokens, read_only=True) as ledger:
        scores = ledger.scores()
    if len(rows := np.flatnonzero(np.isnan(scores).all(axis=1))) > n_samples / 100:
        raise SystemExit(
            f"{run} has no scores for {len(rows)} of {n_samples} samples; give a run with --budget 100%"
        )
    return dict(zip(subtasks, scores.T, strict=True))


def features_of(run: Path, n_components: int) -> dict[str, np.ndarray]:
    """Return a run's embeddings as principal components f16[N, k], and its lengths."""
    shards = [load_file(path) for path in sorted(run.glob("features-[0-9]*.safetensors"))]
    features = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
    centred = features["embedding"] - features["embedding"].mean(axis=0)
    left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    return {
        "embedding": (left * lengths)[:, :n_components].astype(np.float16),
        "length": features["length"].astype(np.float16),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--components", type=int, default=16)
    parser.add_argument("--scores-only", action="store_true")
    options = parser.parse_args()
    if is_store(options.run):
        store = GradientStore(options.run)
        leading = components(PoolSketches(store, np.arange(len(store))))[:, : options.components]
        np.savez_compressed(options.file, components=leading.astype(np.float16))
        return
    scores = scores_of(options.run)
    np.savez_compressed(
        options.file,
        subtasks=np.array(list(scores)),
        scores=np.stack(list(scores.values()), axis=1).astype(np.float32),
        **({} if options.scores_only else features_of(options.run, options.components)),
    )


if __name__ == "__main__":
    main()

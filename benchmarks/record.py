"""Write the scores of a run that scored its whole pool, and its features in brief, as one small file.

    python benchmarks/record.py FOLDER/templated-scores tests/data/templated.npz
    python benchmarks/record.py FOLDER/diverse-scores tests/data/diverse.npz --components 32

`tests/test_recall.py` replays it. The runs are those of `benchmarks/strategies.py`. Their embeddings are replaced by
their leading principal components, in half precision, which keeps the clusters.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from clusterucb.ledger import Ledger


def recorded(run: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return a run's feature blocks, each f32[N, k], and for each subtask the scores f64[N] of all samples."""
    shards = [load_file(path) for path in sorted(run.glob("features-[0-9]*.safetensors"))]
    features = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
    n_samples = len(next(iter(features.values())))
    subtasks = json.loads((run / "manifest.json").read_text())["subtasks"]
    with Ledger(run / "ledger.sqlite", subtasks=subtasks, tokens=np.zeros(n_samples), failure=str) as ledger:
        scores = ledger.scores()
    if len(rows := np.flatnonzero(np.isnan(scores).all(axis=1))) > n_samples / 100:
        raise SystemExit(
            f"{run} has no scores for {len(rows)} of {n_samples} samples; give a run with --budget 100%"
        )
    return features, dict(zip(subtasks, scores.T, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--components", type=int, default=16)
    options = parser.parse_args()
    features, scores = recorded(options.run)
    centred = features["embedding"] - features["embedding"].mean(axis=0)
    left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    np.savez_compressed(
        options.file,
        embedding=(left * lengths)[:, : options.components].astype(np.float16),
        length=features["length"].astype(np.float16),
        subtasks=np.array(list(scores)),
        scores=np.stack(list(scores.values()), axis=1).astype(np.float32),
    )


if __name__ == "__main__":
    main()

"""Write the scores of a run that scored its whole pool, and its features in brief, as one small file.

    python benchmarks/record.py RUN tests/data/recorded.npz

`tests/test_recall.py` replays it. The run is that of `benchmarks/replay.py` on `benchmarks/real_pool.py`. Its
embeddings are replaced by their 16 principal components, in half precision, which keeps the clusters.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from replay import recorded

COMPONENTS = 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    features, scores = recorded(options.run)
    centred = features["embedding"] - features["embedding"].mean(axis=0)
    left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    np.savez_compressed(
        options.file,
        embedding=(left * lengths)[:, :COMPONENTS].astype(np.float16),
        length=features["length"].astype(np.float16),
        subtasks=np.array(list(scores)),
        scores=np.stack(list(scores.values()), axis=1).astype(np.float32),
    )


if __name__ == "__main__":
    main()

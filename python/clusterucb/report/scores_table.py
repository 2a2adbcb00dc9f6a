"""Write ``scores.parquet``: the rows of ``scores.jsonl`` as a table for pandas, polars and DuckDB.

Decisions:
    - A subtask's scores are a plain column ``score_NAME``, and not a field of a struct: pandas would read a struct as a
      column of dicts, and DuckDB users would have to unpack it.
    - The prefix ``score_`` keeps a subtask called ``id`` apart from the ids.
    - The same rows give the same bytes, with the same version of pyarrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clusterucb.atomic import whole_file
from clusterucb.engine.loop import Selection
from clusterucb.samples.pool import Sample

_ROWS = 65_536  # rows of the table that are in memory at a time


def write_scores(
    path: Path, selection: Selection, samples: Sequence[Sample], subtasks: Sequence[str]
) -> None:
    """Write a row for each scored sample, in draw order.

    Args:
        path: the Parquet file.
        selection: the search's result.
        samples: the pool's N samples in canonical order.
        subtasks: the names of the S subtasks, in the order of their scores.

    Raises:
        RunError: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "id": pa.string(),
        "source": pa.string(),
        "file": pa.string(),
        "line": pa.int64(),
        "score": pa.float64(),
        **{f"score_{name}": pa.float64() for name in subtasks},
        "cluster": pa.int64(),
        "draw": pa.int64(),
        "selected": pa.bool_(),
    }
    schema = pa.schema(list(columns.items()))
    scored = np.flatnonzero(~np.isnan(selection.drawn_scores))
    chosen = np.isin(selection.drawn_rows, selection.rows)
    with whole_file(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as table:
        for start in range(0, len(scored), _ROWS):
            draws = scored[start : start + _ROWS]
            rows = selection.drawn_rows[draws]
            some = [samples[row] for row in rows.tolist()]
            values = [
                [sample.id for sample in some],
                [sample.source for sample in some],
                [sample.file for sample in some],
                [sample.line for sample in some],
                selection.drawn_scores[draws],
                *selection.subtask_scores[draws].T,
                selection.labels[rows],
                draws,
                chosen[draws],
            ]
            arrays = [pa.array(value, kind) for value, kind in zip(values, columns.values(), strict=True)]
            table.write_table(pa.Table.from_arrays(arrays, schema=schema))

"""A real notebook: progress is shown in place, and a result shows itself."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

from helpers.tiny import write_model

TESTS = Path(__file__).parents[1]


def test_a_selection_in_a_notebook(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    code = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
        "from helpers.tiny import rows\n"
        "import clusterucb as cu\n"
        f"cu.select(rows(40), rows(4, seed=3), model={str(tmp_path / 'model')!r}, warmup_steps=2)"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, kernel_name="python3", timeout=300).execute()
    outputs = notebook.cells[0].outputs
    shown = [one.data["text/plain"] for one in outputs if one.output_type == "display_data"]
    assert any(line.startswith("Scoring: 8 of 8 draws") for line in shown)
    assert sum(line.startswith("Scoring") for line in shown) == 1  # in place
    (result,) = [one.data for one in outputs if one.output_type == "execute_result"]
    assert result["text/plain"].startswith("<Result: 2 of 40 samples selected, 8 scored")
    assert "<table" in result["text/html"]

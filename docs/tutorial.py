"""Execute docs/tutorial.ipynb and store it with its outputs.

    python docs/tutorial.py          # writes docs/tutorial.ipynb

What is stored is what a notebook draws: a chart is kept as its data, without the copy of plotly.js that comes along,
and what has a picture without its spelling in letters.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent / "tutorial.ipynb"
CHART = "application/vnd.plotly.v1+json"
PATIENCE_SECONDS = 900
_QUIET = {"PYTHONWARNINGS": "ignore:IProgress not found", "TQDM_DISABLE": "1"}
_FRAME = "The text view, a frame: open this notebook in Jupyter to see it."


def execute(path: Path = NOTEBOOK) -> Any:
    """Return a notebook with the outputs of this machine, executed in a folder that is gone afterwards.

    Args:
        path: the notebook; what outputs it has are replaced.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=PATIENCE_SECONDS,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=os.environ | _QUIET)
    return notebook


def slim(notebook: Any) -> None:
    """Drop what a notebook can draw without, and what differs from one time to the next."""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for cell in notebook.cells:
        cell.metadata = {}
        outputs = cell.get("outputs", [])
        for output in outputs:
            data = output.get("data", {})
            if CHART in data:
                output.data = {CHART: data[CHART]}
            elif "text/html" in data:
                said = {"text/plain": _FRAME} if data["text/html"].startswith("<iframe") else {}
                output.data = {"text/html": data["text/html"], **said}
        # The first chart of a notebook is preceded by an output that holds nothing but plotly.js.
        kept = [output for output in outputs if "require" not in str(output.get("data", {}).get("text/html", ""))[:400]]
        if cell.cell_type == "code":
            cell.outputs = kept


if __name__ == "__main__":
    executed = execute()
    slim(executed)
    nbformat.write(executed, NOTEBOOK)
    print(f"{NOTEBOOK}: {NOTEBOOK.stat().st_size:,} bytes")

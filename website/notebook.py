"""Run docs/tutorial.ipynb and keep its outputs and pictures in the file.

    python website/notebook.py

tests/system/test_notebook.py runs it too, in a folder for itself, and compares the kinds of outputs.
"""

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"
CELL_TIMEOUT_S = 600


def execute(folder: Path) -> NotebookNode:
    """Run the cells with the folder as current folder, and return the notebook with their outputs."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook, timeout=CELL_TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()
    for cell in notebook.cells:
        cell.metadata = {}  # it has the times of the run
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="acuity-") as empty:
        os.environ |= {"OMP_NUM_THREADS": "1"}
        nbformat.write(execute(Path(empty)), NOTEBOOK)

"""The tutorial's notebook runs to its end, and keeps outputs of the kinds that it gives now."""

import runpy
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def test_the_notebook_keeps_its_pictures_and_names_no_folder_of_its_author() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    pictures = [kind for kinds in _kinds(notebook) for kind in kinds if kind == "image/png"]
    assert len(pictures) == 2
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert "/tmp" not in text
    assert "error" not in {output["output_type"] for cell in _code(notebook) for output in cell["outputs"]}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs_and_shows_the_kinds_of_outputs_that_it_keeps(
    tmp_path: Path, nothing_of_the_users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = nothing_of_the_users / "notebook"
    monkeypatch.setenv("ACUITY_EMBEDDED_DIR", str(server))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "run").mkdir()
    executed = runpy.run_path(str(ROOT / "website" / "notebook.py"))["execute"](tmp_path / "run")
    assert _kinds(executed) == _kinds(nbformat.read(NOTEBOOK, as_version=4))
    progress = [str(output) for cell in _code(executed) for output in cell["outputs"] if "finished" in str(output)]
    assert any("6/6" in output for output in progress)


def _code(notebook: NotebookNode) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _kinds(notebook: NotebookNode) -> list[set[str]]:
    """For each cell with code the kinds of its outputs: MIME types, or the name of a stream."""
    return [
        {kind for output in cell["outputs"] for kind in output.get("data", [output.get("name", output["output_type"])])}
        for cell in _code(notebook)
    ]

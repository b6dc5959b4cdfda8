"""The notebook docs/quickstart.ipynb: what is committed, and a run of it, cut down."""

import os

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

PATH = ROOT / "docs/quickstart.ipynb"
SETTINGS = "DOCUMENTS, EPOCHS = 400, 6"


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell):
    """The text of a cell's outputs."""
    return "".join(x.get("text") or x["data"]["text/plain"] for x in cell.outputs)


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(PATH, 4)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook run beside links to the repository's files, so that it leaves nothing there."""
    folder = tmp_path_factory.mktemp("repository")
    for path in ROOT.iterdir():
        if path.name not in ("runs", "dataset") and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    notebook = nbformat.read(PATH, 4)
    assert SETTINGS in notebook.cells[1].source
    notebook.cells[1].source = notebook.cells[1].source.replace("400, 6", "24, 2")
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # a warning of the debugger
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": folder}}).execute()
    return notebook


@pytest.mark.slow
def test_it_runs_as_committed(committed, executed):
    """Every cell, with outputs of the same kinds; nothing is an error."""
    for cell, again in zip(code(committed), code(executed), strict=True):
        assert cell.execution_count
        kinds = [{x.output_type for x in y.outputs} for y in (cell, again)]
        assert kinds[0] == kinds[1] and "error" not in kinds[0]
    for notebook in (committed, executed):
        texts = [shown(cell) for cell in code(notebook)]
        assert "test\nF1" in texts[2] and "HingeABL" in texts[3]
        assert "image/png" in code(notebook)[4].outputs[-1].data
        assert "place of birth" in texts[5] and "KB" in texts[6]
        assert not any(str(ROOT) in text for text in texts)


def test_trained_long_enough_to_show_the_effect(committed):
    """What is committed: HingeABL misses less, and the pair of the figure was picked."""
    rows = dict(line.split(None, 1) for line in shown(code(committed)[3]).splitlines()[1:])
    scores = {loss: [float(x) for x in row.split()] for loss, row in rows.items()}
    assert scores["ATL"][0] > 50 and scores["HingeABL"][0] > 50
    assert scores["HingeABL"][4] < scores["ATL"][4]

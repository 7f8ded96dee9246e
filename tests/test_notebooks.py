"""The committed notebooks: readable, in order, without traces of the machine that ran them."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
NUMBERS = [f"{number:02}" for number in range(10)]
LONGEST_CELL = 25
MACHINE_PATH = re.compile(r"(?<![\w./])/(?:home|root|tmp|work|mnt|Users|private)/\w|[A-Z]:\\\\\w")
TIME_STAMP = re.compile(r"\b20\d\d-\d\d-\d\d[T ]\d\d:\d\d")

every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)


def _read(path):
    return nbformat.read(path, as_version=4)


def _code(path):
    return [cell for cell in _read(path).cells if cell.cell_type == "code"]


def _tree(cell):
    lines = cell.source.splitlines()
    return ast.parse("\n".join("" if line.startswith(("%", "!")) else line for line in lines))


def _texts(cell):
    """Every text among the outputs of a cell."""
    for output in cell.outputs:
        yield output.get("text", "")
        for kind, value in output.get("data", {}).items():
            if not kind.startswith("image/png"):
                yield str(value)


def test_every_notebook_is_there():
    assert [path.name[:2] for path in PATHS] == NUMBERS


@every_notebook
def test_valid(path):
    nbformat.validate(_read(path))


@every_notebook
def test_one_parameters_cell(path):
    tagged = [c for c in _code(path) if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    names = {n.id for n in ast.walk(_tree(tagged[0])) if isinstance(n, ast.Name)}
    assert {"profile", "corpus"} <= names


@every_notebook
def test_cells_are_short(path):
    """What a cell defines fits into it, so no function or class is longer either."""
    for number, cell in enumerate(_code(path), 1):
        lines = len(cell.source.splitlines())
        assert cell.source.strip(), f"code cell {number} is empty"
        assert lines <= LONGEST_CELL, f"code cell {number} has {lines} lines"


@every_notebook
def test_prose_leads(path):
    cells = _read(path).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    in_a_row = 0
    for number, cell in enumerate(cells, 1):
        in_a_row = in_a_row + 1 if cell.cell_type == "code" else 0
        assert in_a_row <= 3, f"cell {number}: the fourth code cell without a word between"


@every_notebook
def test_executed_in_order(path):
    counts = [cell.execution_count for cell in _code(path)]
    assert counts == list(range(1, len(counts) + 1))


@every_notebook
def test_outputs_hold_no_errors_and_no_stderr(path):
    for number, cell in enumerate(_code(path), 1):
        for output in cell.outputs:
            assert output.output_type != "error", f"code cell {number}"
            assert output.get("name") != "stderr", f"code cell {number}"


@every_notebook
def test_no_traces_of_the_machine(path):
    for number, cell in enumerate(_code(path), 1):
        for text in [cell.source, *_texts(cell)]:
            assert not MACHINE_PATH.search(text), f"code cell {number}: a path of a machine"
            assert not TIME_STAMP.search(text), f"code cell {number}: a time stamp"


@every_notebook
def test_metadata_is_plain(path):
    notebook = _read(path)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}, cell.source[:60]
        kinds = {kind for o in cell.get("outputs", []) for kind in o.get("data", {})}
        assert "application/vnd.jupyter.widget-view+json" not in kinds

"""The committed notebooks: readable, in order, without traces of the machine that ran them."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

PATHS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
LONGEST_CELL = 25
MACHINE_PATH = re.compile(r"(?<![\w./])/(?:home|root|tmp|work|mnt|Users|private)/\w|[A-Z]:\\\\\w")
TIME_STAMP = re.compile(r"\b20\d\d-\d\d-\d\d[T ]\d\d:\d\d")


@pytest.fixture(params=PATHS, ids=lambda path: path.name)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_is_there():
    assert [path.name[:2] for path in PATHS] == [f"{number:02}" for number in range(10)]


def test_one_parameters_cell(notebook):
    [tagged] = [c for c in code(notebook) if "parameters" in c.metadata.get("tags", [])]
    names = {n.id for n in ast.walk(ast.parse(tagged.source)) if isinstance(n, ast.Name)}
    assert {"profile", "corpus"} <= names


def test_prose_leads_and_cells_are_short(notebook):
    """What a cell defines fits into it, so no function or class is longer either."""
    assert notebook.cells[0].source.startswith("# ")
    in_a_row = 0
    for number, cell in enumerate(notebook.cells, 1):
        in_a_row = in_a_row + 1 if cell.cell_type == "code" else 0
        assert in_a_row <= 3, f"cell {number}: the fourth code cell without a word between"
    for number, cell in enumerate(code(notebook), 1):
        assert 1 <= len(cell.source.splitlines()) <= LONGEST_CELL, f"code cell {number}"


def test_executed_in_order_without_errors(notebook):
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for number, cell in enumerate(cells, 1):
        kinds = {(output.output_type, output.get("name")) for output in cell.outputs}
        assert not kinds & {("error", None), ("stream", "stderr")}, f"code cell {number}"


def test_no_traces_of_the_machine(notebook):
    nbformat.validate(notebook)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}, cell.source[:60]
        data = [output.get("data", {}) for output in cell.get("outputs", [])]
        assert "application/vnd.jupyter.widget-view+json" not in {kind for d in data for kind in d}
        texts = [str(d[kind]) for d in data for kind in d if not kind.startswith("image/png")]
        texts += [output.get("text", "") for output in cell.get("outputs", [])]
        for text in texts + [cell.source] * (cell.cell_type == "code"):
            assert not MACHINE_PATH.search(text), f"a path of a machine: {cell.source[:60]}"
            assert not TIME_STAMP.search(text), f"a time stamp: {cell.source[:60]}"

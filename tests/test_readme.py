import ast
import functools
import re
import shlex
import sys

import nbformat
import pandas as pd
import pytest

from emilib import __main__ as command_line
from emilib import environment, profiles
from emilib.study import claims, experiments

ROOT = environment.ROOT
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
README = (ROOT / "README.md").read_text("utf-8")
TEXTS = {"README.md": README}
for path in NOTEBOOKS:
    cells = nbformat.read(path, as_version=4).cells
    TEXTS[path.name] = "\n\n".join(c.source for c in cells if c.cell_type == "markdown")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def shell(text):
    """Commands in blocks without a language, and those in code spans."""
    blocks = [block for kind, block in FENCE.findall(text) if not kind]
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    lines = [line.replace("accelerate launch -m", "python -m") for line in lines]
    return {line for line in lines if line.startswith(("./run_all.sh", "python -m emilib"))}


COMMANDS = sorted(set().union(*map(shell, TEXTS.values())))


def test_options_of_run_all_exist():
    usage = (ROOT / "run_all.sh").read_text("utf-8").partition("\nTEXT\n")[0]
    options = dict(re.findall(r"^  (--[\w-]+)(?: ([A-Z]+))? ", usage, re.MULTILINE))
    for line in (line for line in COMMANDS if line.startswith("./run_all.sh")):
        words = shlex.split(line)[1:]
        while words:
            option = words.pop(0)
            assert option in options | {"--help": ""}, line
            value = words.pop(0) if options.get(option) else None
            assert option != "--profile" or value in (*profiles.NAMES, "NAME"), line
            assert option != "--only" or list(ROOT.glob(f"notebooks/{value}_*.ipynb")), line


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("python")])
def test_commands_are_understood(line, monkeypatch, capsys):
    """The real parser reads each command; what it would call only notes its arguments."""
    arguments = shlex.split(line)[3:]
    called = []

    def noting(function):
        return functools.wraps(function)(lambda *a, **_: called.append((function.__name__, a)))

    monkeypatch.setattr(command_line, "COMMANDS", tuple(map(noting, command_line.COMMANDS)))
    monkeypatch.setattr(sys, "argv", ["emilib", *arguments])
    if arguments == ["--help"] or "--tyro-print-completion" in arguments:
        with pytest.raises(SystemExit, match=r"^0$"):
            command_line.main()
        return
    assert (command_line.main() or 0) == 0
    [(name, names)] = called
    assert name == arguments[0] if arguments else name
    known = {"run": experiments.all_experiments(profiles.get("embedded")), "tables": claims.TABLES}
    assert set(names) <= set(known.get(name, names))


@pytest.mark.parametrize("name", TEXTS)
def test_links_exist_and_every_notebook_is_listed(name):
    folder = ROOT if name == "README.md" else ROOT / "notebooks"
    for target in re.findall(r"""(?:\]\(|src="|href=")([^)"\s]+)[)"]""", TEXTS[name]):
        assert target.startswith(("http", "runs/")) or (folder / target).exists(), target
    for span in re.findall(r"`((?:emilib|tests|notebooks)/[\w./]+)`", TEXTS[name]):
        assert (ROOT / span).exists(), span
    listed = set(re.findall(r"notebooks/\S+\.ipynb", README))
    assert listed == {f"notebooks/{path.name}" for path in NOTEBOOKS}
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{number:02}" for number in range(10)]


def test_findings_are_those_of_the_committed_figures():
    """To within what another machine may change."""
    figures = ROOT / "figures"
    paths = {name: figures / f"tables/{name}.csv" for name in ("A3", "B3", "B4")}
    tables = {name: pd.read_csv(path).set_index("row") for name, path in paths.items()}
    here = {name: table["here"] for name, table in tables.items()}
    measured = [here["A3"]["T"], here["A3"]["V+A+T"], here["B3"]["Text alone"]]
    measured += [here["B3"]["TAEMI (full)"], here["A3"]["line to beat: sum of ridges"]]
    measured += [here["A3"]["ceiling: clean signals"]]
    parts = tables["B3"].loc[lambda t: (t["kind"] == "paper") & t["delta_here"].notna()]
    assert set(parts["verdict"]) == {"not resolved"}
    measured += [parts["delta_here"].abs().max(), tables["B4"].loc["Audio-anchored", "delta_here"]]
    assert tables["B4"].loc["Audio-anchored", "verdict"] == "the opposite"
    worlds = pd.read_csv(figures / "worlds_matrix.csv")
    by = worlds.set_index(["mechanism", "world", "dial"])["value"]
    assert by["text anchor against concatenation", "selection", 0] < 0
    measured += [by["text anchor against concatenation", "selection", 1]]
    measured += [-by["text as anchor against sound", "who_knows", 1]]
    verdicts = worlds.groupby("mechanism")["verdict"].agg(set)
    assert verdicts["missing tokens"] == {"below .01"}
    assert not {"pays", "costs"} & (verdicts["quality weights"] | verdicts["difference gate"])
    measured += [0.01]
    section = README.partition("## Four findings")[2].partition("\n## ")[0]
    named = [float(number) for number in re.findall(r"\b0\.\d\d\b", section) if number != "0.35"]
    assert named == pytest.approx(measured, abs=0.011)
    checks = claims.checks()
    assert f"{len(checks)} numbers" in section
    assert f"{(~checks['holds']).sum()} do not" in section


LONGEST_CELL = 25
MACHINE_PATH = re.compile(r"(?<![\w./])/(?:home|root|tmp|work|mnt|Users|private)/\w|[A-Z]:\\\\\w")
TIME_STAMP = re.compile(r"\b20\d\d-\d\d-\d\d[T ]\d\d:\d\d")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.name)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_parameters_prose_leads_and_cells_are_short(notebook):
    """What a cell defines fits into it, so no function or class is longer either."""
    [tagged] = [c for c in code(notebook) if "parameters" in c.metadata.get("tags", [])]
    names = {n.id for n in ast.walk(ast.parse(tagged.source)) if isinstance(n, ast.Name)}
    assert {"profile", "corpus"} <= names
    assert notebook.cells[0].source.startswith("# ")
    in_a_row = 0
    for number, cell in enumerate(notebook.cells, 1):
        in_a_row = in_a_row + 1 if cell.cell_type == "code" else 0
        assert in_a_row <= 3, f"cell {number}: the fourth code cell without a word between"
    for number, cell in enumerate(code(notebook), 1):
        assert 1 <= len(cell.source.splitlines()) <= LONGEST_CELL, f"code cell {number}"


def test_executed_in_order_without_errors_and_traces_of_the_machine(notebook):
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for number, cell in enumerate(cells, 1):
        kinds = {(output.output_type, output.get("name")) for output in cell.outputs}
        assert not kinds & {("error", None), ("stream", "stderr")}, f"code cell {number}"
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

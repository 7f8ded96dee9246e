"""The notebook runner on tiny notebooks: what is kept, what is run again, what a failure says."""

import os
import signal
import subprocess
import sys
import time

import nbformat
import pandas as pd
import psutil
import pytest

from emilib import runner
from emilib.study import claims


def write(folder, name, *sources):
    """A notebook with a title, a parameters cell and the given code cells."""
    v4 = nbformat.v4
    cells = [
        v4.new_markdown_cell("# A title"),
        v4.new_code_cell('profile = "embedded"', metadata={"tags": ["parameters"]}),
        *(v4.new_code_cell(source) for source in sources),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    nbformat.write(v4.new_notebook(cells=cells), path)
    return path


def run(folder, out, figures=None, **parts):
    paths = runner.discover(folder)
    parameters = {"profile": "smoke", "corpus": None}
    runner.run_notebooks(paths, out, parameters, runner.keys(paths, **parts), figures)


def outputs(path):
    return [
        o.get("text") for c in nbformat.read(path, as_version=4).cells for o in c.get("outputs", [])
    ]


def test_runs_in_order_skips_what_is_done_and_reruns_what_changed(tmp_path, capsys):
    source, out = tmp_path / "note books {x}", tmp_path / "out {y}"
    write(source, "00_first.ipynb", "print(profile)")
    write(
        source,
        "01_second.ipynb",
        "import os\nwith open(os.environ['EMI_PROGRESS'], 'a') as stream:\n"
        "    stream.write('half way\\n')",
    )
    run(source, out)
    assert outputs(out / "00_first.ipynb") == ["smoke\n"]
    said = capsys.readouterr().out
    assert "[1/2] 00_first … done" in said
    assert "half way" in said
    assert said.index("00_first") < said.index("01_second")

    before = (out / "00_first.ipynb").stat().st_mtime_ns
    run(source, out)
    assert capsys.readouterr().out.count("up to date") == 2
    assert (out / "00_first.ipynb").stat().st_mtime_ns == before

    write(source, "01_second.ipynb", "print('changed')")
    run(source, out)
    said = capsys.readouterr().out
    assert "[1/2] 00_first … up to date" in said
    assert "[2/2] 01_second … done" in said
    assert outputs(out / "01_second.ipynb") == ["changed\n"]
    assert sorted(p.name for p in out.iterdir()) == ["00_first.ipynb", "01_second.ipynb"]


def test_keys_depend_on_source_parts_and_what_comes_before(tmp_path):
    paths = [write(tmp_path, "00_a.ipynb", "1"), write(tmp_path, "01_b.ipynb", "2")]
    first = runner.keys(paths, profile="smoke")
    assert runner.keys(paths, profile="smoke") == first
    other = runner.keys(paths, profile="embedded")
    assert all(other[path] != first[path] for path in paths)

    executed = nbformat.read(paths[0], as_version=4)
    executed.cells[2].outputs = [nbformat.v4.new_output("stream", text="1")]
    nbformat.write(executed, paths[0])
    assert runner.keys(paths, profile="smoke") == first, "outputs are no part of the key"

    write(tmp_path, "00_a.ipynb", "3")
    changed = runner.keys(paths, profile="smoke")
    assert all(changed[path] != first[path] for path in paths)


def test_a_lost_figure_runs_its_notebook_again(tmp_path, capsys):
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "older.csv").write_text("kept")
    os.utime(figures / "older.csv", (0, 0))
    made = figures / "made.csv"
    write(tmp_path / "in", "00_a.ipynb", f"from pathlib import Path\nPath({str(made)!r}).touch()")
    run(tmp_path / "in", tmp_path / "out", figures)
    made.unlink()
    run(tmp_path / "in", tmp_path / "out", figures)
    assert made.exists()
    assert "up to date" not in capsys.readouterr().out


def test_a_failing_cell_is_named_and_earlier_results_stay(tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    write(source, "00_good.ipynb", "1")
    write(source, "01_bad.ipynb", "2", "values = {}\nvalues['rho']", "3")
    with pytest.raises(runner.NotebookFailed) as caught:
        run(source, out)
    text = str(caught.value)
    assert "01_bad.ipynb, cell 4 (values = {}) failed with KeyError: 'rho'." in text
    assert str(out / "01_bad.failed.ipynb") in text
    assert "KeyError" in (out / "01_bad.failed.ipynb").read_text()
    assert "\n" not in text
    assert not (out / "01_bad.ipynb").exists()
    capsys.readouterr()

    write(source, "01_bad.ipynb", "2")
    run(source, out)
    assert "00_good … up to date" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == ["00_good.ipynb", "01_bad.ipynb"]


@pytest.mark.parametrize("death", ["os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_a_dead_kernel_is_one_sentence(tmp_path, death):
    write(tmp_path / "in", "00_dies.ipynb", f"import os\n{death}")
    with pytest.raises(runner.NotebookFailed, match=r"00_dies\.ipynb, cell 3 \(import os\) failed"):
        run(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out" / "00_dies.ipynb").exists()


def test_a_spoilt_copy_is_made_again(tmp_path):
    write(tmp_path / "in", "00_a.ipynb", "print(7)")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "00_a.ipynb").write_text('{"cells": [')
    run(tmp_path / "in", tmp_path / "out")
    assert outputs(tmp_path / "out" / "00_a.ipynb") == ["7\n"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_ended_run_leaves_no_kernel_and_no_half_notebook(number, tmp_path):
    marker = tmp_path / "pid"
    wait = f"import os, time\nopen({str(marker)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    write(tmp_path / "in", "00_slow.ipynb", wait)
    script = (
        "import signal, sys\nfrom emilib import runner\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "paths = runner.discover(sys.argv[1])\n"
        "runner.run_notebooks(paths, sys.argv[2], {}, runner.keys(paths))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "in"), str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=runner.ROOT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 90
        while not (marker.exists() and marker.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        kernel = psutil.Process(int(marker.read_text()))
        process.send_signal(number)
        errors = process.communicate(timeout=90)[1]
    assert process.returncode != 0
    if number == signal.SIGTERM:
        assert "KeyboardInterrupt" in errors
        assert not kernel.is_running()
    # A run that is killed can't end its kernel: that one has to notice.
    assert psutil.wait_procs([kernel], timeout=30)[1] == []
    assert not (tmp_path / "out" / "00_slow.ipynb").exists()


def test_cleaned_outputs_can_be_committed(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(runner.ROOT))
    loud = (
        "import sys\nfrom IPython.display import HTML\nfrom emilib import runner\n"
        "print(runner.ROOT / 'figures', end=' ', flush=True)\n"
        "print('noi' + 'se', file=sys.stderr, flush=True)\nprint(profile, flush=True)\n"
        "HTML(f'<b>{runner.ROOT}</b>')"
    )
    path = write(tmp_path / "in", "00_a.ipynb", loud, "6 * 7")
    run(tmp_path / "in", tmp_path / "out")
    assert runner.update_notebooks(tmp_path / "in", tmp_path / "out") == [path]
    text = path.read_text()
    made = nbformat.read(path, as_version=4)
    assert [cell.get("execution_count") for cell in made.cells] == [None, 1, 2, 3]
    assert made.cells[2].outputs[0].text == "figures smoke\n"
    assert made.cells[2].outputs[1].data["text/html"] == "<b>.</b>"
    assert made.cells[3].outputs[0].execution_count == 3
    assert [c.metadata.get("tags") for c in made.cells[:2]] == [None, ["parameters"]]
    for trace in ("papermill", "injected", "noise", "widgets", "start_time", str(runner.ROOT)):
        assert trace not in text
    assert runner.update_notebooks(tmp_path / "in", tmp_path / "out") == [], "a fixed point"

    write(tmp_path / "in", "00_a.ipynb", "another source")
    with pytest.raises(ValueError, match="run it again"):
        runner.update_notebooks(tmp_path / "in", tmp_path / "out")


def test_only_and_parameters(tmp_path):
    first = write(tmp_path, "00_a.ipynb", "1")
    third = write(tmp_path, "03_b.ipynb", "1")
    (tmp_path / "draft.ipynb").write_text("{}")
    assert runner.discover(tmp_path) == [first, third]
    assert runner.discover(tmp_path, "3") == runner.discover(tmp_path, "03") == [third]
    with pytest.raises(ValueError, match="no notebook 09"):
        runner.discover(tmp_path, "09")
    assert runner.parameters_of(nbformat.read(first, as_version=4)) == {"profile"}


def test_fresh_removes_one_profile(tmp_path):
    for folder in ("smoke/notebooks", "smoke/cache", "embedded", "paper/models", "env", "logs"):
        (tmp_path / folder).mkdir(parents=True)
    assert runner.remove_results(tmp_path, "smoke") == [tmp_path / "smoke"]
    assert runner.remove_results(tmp_path, "smoke") == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["embedded", "env", "logs", "paper"]


def test_rows_without_a_number_are_found(tmp_path):
    assert any(row.startswith("A1, Train") for row in runner.unfinished_rows(tmp_path))

    for name in claims.TABLES:
        rows = list(dict.fromkeys(claim.row for claim in claims.rows(name)))
        frame = pd.DataFrame({"row": rows, "here": 0.5, "clips": 7.0, "status": "trained here"})
        (tmp_path / "tables").mkdir(exist_ok=True)
        frame.to_csv(tmp_path / "tables" / f"{name}.csv", index=False)
    assert runner.unfinished_rows(tmp_path) == []

    frame = pd.read_csv(tmp_path / "tables" / "B4.csv")
    frame.loc[0, ["here", "status"]] = (float("nan"), "no result")
    frame.to_csv(tmp_path / "tables" / "B4.csv", index=False)
    assert runner.unfinished_rows(tmp_path) == [f"B4, {frame['row'][0]}: no result"]


def test_a_corpus_without_csv_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no CSV"):
        runner.corpus_state(str(tmp_path))
    (tmp_path / "train_split.csv").write_text("Filename\n")
    before = runner.corpus_state(str(tmp_path))
    (tmp_path / "train_split.csv").write_text("Filename,Joy\n")
    assert runner.corpus_state(str(tmp_path)) != before

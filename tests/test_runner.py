import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from emilib import cache, runner
from emilib.pipeline import Workspace


def write(folder, name, *sources):
    """A notebook with a title, a parameters cell and the given code cells."""
    v4 = nbformat.v4
    tagged = {"tags": ["parameters"]}
    cells = [v4.new_markdown_cell("# A title")]
    cells += [v4.new_code_cell('profile, corpus = "embedded", None', metadata=tagged)]
    cells += map(v4.new_code_cell, sources)
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(v4.new_notebook(cells=cells), folder / name)
    return folder / name


def run(folder, out, figures=None):
    paths = runner.discover(folder)
    parameters = {"profile": "smoke", "corpus": None}
    runner.run_notebooks(paths, out, parameters, runner.keys(paths), figures)


def test_runs_in_order_skips_what_is_done_and_reruns_what_changed(tmp_path, capsys):
    source, out = tmp_path / "note books {x}", tmp_path / "out {y}"
    made = tmp_path / "figures" / "made.csv"
    made.parent.mkdir()
    write(source, "00_first.ipynb", f"open({str(made)!r}, 'w').write('0.51')\nprint(profile)")
    slow = "import os, time\nopen(os.environ['EMI_PROGRESS'], 'a').write('half way\\n')"
    write(source, "01_second.ipynb", f"{slow}\ntime.sleep(1)")
    run(source, out, made.parent)
    assert '"smoke\\n"' in (out / "00_first.ipynb").read_text()
    said = capsys.readouterr().out
    assert "[1/2] 00_first … done" in said
    assert "half way" in said
    run(source, out, made.parent)
    assert capsys.readouterr().out.count("up to date") == 2
    executed = out / "00_first.ipynb"
    made_from = runner.keys(runner.discover(source))[source / "00_first.ipynb"]
    content = executed.read_bytes()
    other = [content.replace(b"smoke\\n", b"smoky\\n"), b"\xff" + content[1:]]
    other += [b"[1]", b'{"metadata": {"emi": 1}}']
    harms = [(made, harmed) for harmed in (None, b"", b"0.57")] + [(executed, h) for h in other]
    for path, harmed in harms:
        before = path.read_bytes()
        path.write_bytes(harmed) if harmed is not None else path.unlink()
        assert not runner.up_to_date(executed, made_from, made.parent), harmed
        path.write_bytes(before)
        assert runner.up_to_date(executed, made_from, made.parent)
    made.write_text("0.57")
    run(source, out, made.parent)
    assert made.read_text() == "0.51", "a harmed figure runs its notebook again"
    assert "00_first … done" in capsys.readouterr().out
    write(source, "01_second.ipynb", "print('changed')")
    (out / "00_first.ipynb").write_text('{"cells": [')
    run(source, out, made.parent)
    assert capsys.readouterr().out.count("done") == 2, "one is changed, the other spoilt"
    assert '"changed\\n"' in (out / "01_second.ipynb").read_text()
    assert sorted(p.name for p in out.iterdir()) == ["00_first.ipynb", "01_second.ipynb"]
    (source / "01_second.ipynb").write_bytes(b'{"cells": "\xff"}')
    with pytest.raises(ValueError, match=r"01_second\.ipynb: expected a notebook, .* git checkout"):
        run(source, out, made.parent)


def test_keys_depend_on_source_parts_and_what_comes_before(tmp_path):
    paths = [write(tmp_path, "00_a.ipynb", "1"), write(tmp_path, "03_b.ipynb", "2")]
    (tmp_path / "draft.ipynb").touch()
    assert runner.discover(tmp_path) == paths
    assert runner.discover(tmp_path, "3") == runner.discover(tmp_path, "03") == paths[1:]
    with pytest.raises(ValueError, match="no notebook"):
        runner.discover(tmp_path, "09")
    first = runner.keys(paths, profile="smoke")
    executed = nbformat.read(paths[0], as_version=4)
    executed.cells[2].outputs = [nbformat.v4.new_output("stream", text="1")]
    nbformat.write(executed, paths[0])
    assert runner.keys(paths, profile="smoke") == first, "outputs are no part of the key"
    other = runner.keys(paths, profile="embedded")
    write(tmp_path, "00_a.ipynb", "3")
    changed = runner.keys(paths, profile="smoke")
    assert all(len({keys[path] for keys in (first, other, changed)}) == 3 for path in paths)


def test_a_failing_cell_is_named_and_earlier_results_stay(tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    write(source, "00_good.ipynb", "1")
    write(source, "01_bad.ipynb", "2", "values = {}\nvalues['rho']", "3")
    with pytest.raises(runner.NotebookFailed) as caught:
        run(source, out)
    text = str(caught.value)
    assert "01_bad.ipynb, In [4] (values = {}) failed with KeyError: 'rho'." in text
    assert "\n" not in text
    assert "KeyError" in (out / "01_bad.failed.ipynb").read_text()
    assert not (out / "01_bad.ipynb").exists()
    write(source, "01_bad.ipynb", "import os\nos._exit(3)")
    with pytest.raises(runner.NotebookFailed, match=r"01_bad\.ipynb failed with .* memory"):
        run(source, out)
    write(source, "01_bad.ipynb", "2")
    run(source, out)
    assert "00_good … up to date" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == ["00_good.ipynb", "01_bad.ipynb"]


RUN = """
import resource, signal, sys
from pathlib import Path
from emilib import runner
paths, out, most = runner.discover(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
signal.signal(signal.SIGTERM, signal.default_int_handler)
if most:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
try:
    runner.run_notebooks(paths, out, {}, runner.keys(paths), out / "figures")
except runner.NotebookFailed as failure:
    sys.exit(str(failure))
"""


@pytest.fixture
def temporary():
    """A folder of a short name: the addresses of sockets in it have a hundred letters at most."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def start(source, out, temporary, most=0):
    """A run of its own process; most : bytes a file may have, 0 for no limit."""
    variables = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(runner.ROOT)}
    command = [sys.executable, "-c", RUN, str(source), str(out), str(most)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=variables, **pipes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_ended_run_leaves_no_kernel_and_no_half_notebook(number, tmp_path, temporary):
    marker = tmp_path / "pid"
    wait = f"import os, time\nopen({str(marker)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    write(tmp_path / "in", "00_slow.ipynb", wait)
    with start(tmp_path / "in", tmp_path / "out", temporary) as process:
        while not (marker.exists() and marker.read_text()):
            assert process.poll() is None
            time.sleep(0.1)
        kernel = psutil.Process(int(marker.read_text()))
        process.send_signal(number)
        process.communicate(timeout=90)
    assert process.returncode != 0
    # A run that is killed can't end its kernel: that one has to notice.
    assert psutil.wait_procs([kernel], timeout=30)[1] == []
    assert not (tmp_path / "out" / "00_slow.ipynb").exists()
    cache.sweep(temporary)
    assert list(temporary.iterdir()) == [], "sockets, connection files, what kernels keep there"
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["00_slow.ipynb"]


@pytest.mark.parametrize("homes", [("one", "one"), ("one", "two")])
def test_two_runs_at_once_both_finish(homes, tmp_path, temporary):
    wait = "import time\nfrom pathlib import Path\ntime.sleep(1)\n"
    wait += "with Path('../runs').open('a') as stream:\n    stream.write('.')"
    write(tmp_path / "in", "00_a.ipynb", wait)
    runs = [start(tmp_path / "in", tmp_path / home, temporary) for home in homes]
    said = [run.communicate(timeout=200) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    for home in homes:
        assert [path.name for path in (tmp_path / home).iterdir()] == ["00_a.ipynb"]
    assert len((tmp_path / "runs").read_text()) == len(set(homes)), "nothing is executed twice"
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["00_a.ipynb"]
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    "cell", ["print('x' * 300_000)", "open('big', 'wb').write(bytes(300_000))"]
)
def test_a_full_disk_says_so(cell, tmp_path, temporary):
    write(tmp_path / "in", "00_a.ipynb", cell)
    run = start(tmp_path / "in", tmp_path / "out", temporary, most=200_000)
    error = run.communicate(timeout=200)[1]
    assert run.returncode == 1
    assert "the disk is full: free some room" in error.splitlines()[-1], error
    assert list(temporary.iterdir()) == []


LOUD = """
import sys
from IPython.display import HTML
from emilib import runner
print(runner.ROOT / 'figures', end=' ', flush=True)
print('noi' + 'se', file=sys.stderr, flush=True)
print(profile, flush=True)
HTML(f'<b>{runner.ROOT}</b>')
"""


def test_cleaned_outputs_can_be_committed(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(runner.ROOT))
    path = write(tmp_path / "in", "00_a.ipynb", LOUD, "6 * 7")
    run(tmp_path / "in", tmp_path / "out")
    assert runner.update_notebooks(tmp_path / "in", tmp_path / "out") == [path]
    made = nbformat.read(path, as_version=4)
    assert [cell.get("execution_count") for cell in made.cells] == [None, 1, 2, 3]
    assert made.cells[2].outputs[0].text == "figures smoke\n"
    assert made.cells[2].outputs[1].data["text/html"] == "<b>.</b>"
    assert [c.metadata.get("tags") for c in made.cells[:2]] == [None, ["parameters"]]
    for trace in ("papermill", "injected", "noise", "widgets", "start_time", str(runner.ROOT)):
        assert trace not in path.read_text()
    assert runner.update_notebooks(tmp_path / "in", tmp_path / "out") == [], "a fixed point"
    write(tmp_path / "in", "00_a.ipynb", "another source")
    with pytest.raises(ValueError, match="run it again"):
        runner.update_notebooks(tmp_path / "in", tmp_path / "out")


def test_cells_of_media_keep_their_pictures_and_only_update_writes(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "in", "04_a.ipynb", "open('/no/where')", "print('runs')")
    notebook = nbformat.read(path, 4)
    notebook.cells[2].metadata["tags"] = [runner.MEDIA_TAG]
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="a picture")]
    nbformat.write(notebook, path)
    options = ({}, runner.keys([path]), None)
    runner.run_notebooks([path], tmp_path / "out", *options, media=False)
    made = nbformat.read(tmp_path / "out" / "04_a.ipynb", 4)
    texts = [[output.text for output in cell.outputs] for cell in made.cells[-2:]]
    assert texts == [[runner.NO_MEDIA, "a picture"], ["runs\n"]]
    (tmp_path / "train_split.csv").write_text("Filename\n")
    before = runner.feature_files.state(tmp_path, "*.csv")
    os.utime(tmp_path / "train_split.csv", ns=(1, 1))
    assert runner.feature_files.state(tmp_path, "*.csv") != before
    monkeypatch.delenv("EMI_HOME", raising=False)
    assert Workspace("embedded").figures == runner.ROOT / "runs" / "embedded" / "figures"
    assert runner.main(["--profile", "smoke", "--update"]) == 1
    assert "--update is for the default run" in capsys.readouterr().err
    assert any(row.startswith("A1, Train") for row in runner.unfinished_rows(tmp_path))
    assert runner.unfinished_rows(runner.ROOT / "figures") == []

"""Processes forked from the server: what they inherit, whom they ask, when they end."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future

import nbformat
import psutil
import pytest

from emilib import runner
from emilib import workers as processes


def known(names):
    return [name for name in names if name in sys.modules]


def environment(name):
    return os.environ.get(name)


def interrupted(_):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)
    return "still here"


def servers(_):
    """The parent of this process, and of a process that a pool of this process starts."""
    with processes.pool(1) as inner:
        return os.getppid(), inner.submit(os.getppid).result()


def started(folder, name):
    (folder / f"{name}-{os.getpid()}").touch()


def test_workers_have_the_imports_and_the_callers_environment(monkeypatch):
    with processes.pool(1) as pool:
        assert pool.submit(known, ["torch", "transformers"]).result() == ["torch", "transformers"]
    monkeypatch.setenv("EMI_OF_TEST", "set after the server was started")
    with processes.pool(1) as pool:
        found = pool.submit(environment, "EMI_OF_TEST").result()
        assert found == "set after the server was started"
        assert pool.submit(interrupted, None).result() == "still here", "the parent answers Ctrl-C"
    monkeypatch.delenv("EMI_OF_TEST")
    with processes.pool(1) as pool:
        assert pool.submit(environment, "EMI_OF_TEST").result() is None


def test_every_worker_is_prepared(tmp_path):
    with processes.pool(2, started, tmp_path, "worker") as pool:
        pids = {pool.submit(os.getpid).result() for _ in range(4)}
    assert {f"worker-{pid}" for pid in pids} <= {path.name for path in tmp_path.iterdir()}


def test_a_worker_asks_the_server_that_made_it():
    with processes.pool(1) as pool:
        outer, inner = pool.submit(servers, None).result(timeout=60)
    assert outer == inner != os.getpid()


def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    script = (
        "import os, sys, time\nfrom emilib import processes\n"
        "if __name__ == '__main__':\n"
        "    with processes.pool(2) as pool:\n"
        "        jobs = [pool.submit(time.sleep, 60) for _ in range(2)]\n"
        "        print(*[p.pid for p in pool._processes.values()], flush=True)\n"
        "        time.sleep(60)\n"
    )
    path = tmp_path / "script.py"
    path.write_text(script)
    variables = {**os.environ, "PYTHONPATH": str(runner.ROOT)}
    command = [sys.executable, str(path)]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
        workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        process.kill()
    assert psutil.wait_procs(workers, timeout=30)[1] == []


class Waiting:
    """A pool that works out everything at once and keeps account of what nobody has taken."""

    def __init__(self):
        self.open, self.most = 0, 0

    def submit(self, function, item):
        pool = self

        class Counted(Future):
            def result(self):
                pool.open -= 1
                return super().result()

        future = Counted()
        try:
            future.set_result(function(item))
        except ZeroDivisionError as error:
            future.set_exception(error)
        self.open += 1
        self.most = max(self.most, self.open)
        return future


@pytest.mark.parametrize("ahead", [1, 3, 50])
def test_an_ordered_map_is_never_further_ahead(ahead):
    pool, read = Waiting(), []

    def items():
        for number in range(20):
            read.append(number)
            yield number

    made = processes.ordered_map(pool, str, items(), ahead)
    for taken, result in enumerate(made, 1):
        assert result == str(taken - 1)
        assert len(read) <= taken + ahead
    assert taken == 20
    assert pool.most == min(ahead, 20)
    assert pool.open == 0


def test_an_ordered_map_over_processes():
    with processes.pool(2) as pool:
        assert list(processes.ordered_map(pool, abs, range(-40, 0), 8)) == list(range(40, 0, -1))
        assert list(processes.ordered_map(pool, abs, [], 8)) == []


def test_an_error_comes_when_it_is_its_turn_and_ends_the_map():
    begun = []

    def invert(number):
        begun.append(number)
        return 1 / number

    made = processes.ordered_map(Waiting(), invert, [1, 2, 0, 4, 5, 6], 2)
    assert [next(made), next(made)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(made)
    assert begun == [1, 2, 0, 4]
    with pytest.raises(StopIteration):
        next(made)


def test_a_map_that_is_left_gives_up_what_has_not_begun():
    given = []

    class Slow:
        def submit(self, function, item):
            given.append(Future())
            if item == 0:
                given[-1].set_result(0)
            return given[-1]

    made = processes.ordered_map(Slow(), abs, range(10), 4)
    assert next(made) == 0
    made.close()
    assert len(given) == 5
    assert all(future.cancelled() for future in given[1:])
    with pytest.raises(ValueError, match="at least 1, came 0"):
        next(processes.ordered_map(Slow(), abs, range(10), 0))


def test_a_notebooks_kernel_and_its_workers_are_forked_of_one_server(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(runner.ROOT))
    v4 = nbformat.v4
    code = (
        "import os, sys\nimported = [m for m in ('torch', 'matplotlib') if m in sys.modules]\n"
        "from emilib import processes\n"
        "with processes.pool(1) as pool:\n    parent = pool.submit(os.getppid).result()\n"
        "print(imported, parent == os.getppid(), os.getcwd(), os.getsid(0) == os.getpid())"
    )
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell(code)]), source / "00_a.ipynb")
    paths = runner.discover(source)
    runner.run_notebooks(paths, out, {}, runner.keys(paths))
    made = nbformat.read(out / "00_a.ipynb", as_version=4).cells[0].outputs[0].text
    assert made == f"['torch', 'matplotlib'] True {source} True\n"


def test_light_work_asks_a_server_only_where_one_runs(tmp_path):
    with processes.pool(1) as pool:
        server = pool.submit(os.getppid).result()
    with processes.pool(1, light=True) as pool:
        assert pool.submit(os.getppid).result() == server
    code = (
        "import os\n"
        "from emilib import processes\n"
        "if __name__ == '__main__':\n"
        "    with processes.pool(1, light=True) as pool:\n"
        "        print(pool.submit(os.getppid).result() == os.getpid())\n"
    )
    (tmp_path / "light.py").write_text(code)
    command = [sys.executable, str(tmp_path / "light.py")]
    environment = os.environ | {"PYTHONPATH": str(runner.ROOT)}
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert shown.stdout.strip() == "True", "a child of its own, not of a server"


@pytest.mark.parametrize("light", [True, False])
def test_a_script_without_a_guard_may_use_workers(light, tmp_path):
    """Its workers do not run it again: not from a file, and not from a pipe."""
    script = f"""
import math
from emilib import processes
print("begun")
with processes.pool(2, light={light}) as pool:
    print(list(pool.map(math.sqrt, [4.0, 9.0])))
"""
    path = tmp_path / "script.py"
    path.write_text(script)
    for command, given in (([str(path)], None), (["-"], script)):
        done = subprocess.run(
            [sys.executable, *command], input=given, capture_output=True, text=True, timeout=120
        )
        assert done.stdout == "begun\n[2.0, 3.0]\n", done.stderr[-2000:]

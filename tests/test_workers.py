import io
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool

import psutil
import pytest

from emilib import workers
from emilib.cache import RANK_VARIABLES
from emilib.environment import ROOT
from emilib.progress import epoch_bar


def circumstances(name):
    """What a worker knows of its rank, of its threads, and whether its work stays in it."""
    os.kill(os.getpid(), signal.SIGINT)
    inner = list(workers.ordered_map(os.getpgid, [0, 0], 2))
    ranks = [n for n in RANK_VARIABLES if n in os.environ]
    return ranks, os.environ["OMP_NUM_THREADS"], workers.count(), len(inner), os.getpid()


def slowly(number):
    time.sleep(0.02 * (number % 3))
    return number, os.getpid()


def invert(number):
    return 1 / number if number != 3 else os._exit(1)


def test_a_worker_is_part_of_its_rank(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert workers.count() == max(1, len(os.sched_getaffinity(0)) // 2)
    for *known, pid in workers.ordered_map(circumstances, ["RANK"] * 4, 2):
        assert known == [[], "1", 1, 2]
        assert pid != os.getpid()


@pytest.mark.parametrize("count", [1, 2])
def test_results_and_errors_are_in_order_and_workers_are_reused(count):
    results = [list(workers.ordered_map(slowly, range(20), count)) for _ in range(2)]
    assert [number for number, _ in results[0]] == list(range(20))
    pids = {pid for result in results for _, pid in result}
    assert pids == {os.getpid()} if count == 1 else len(pids) == 2
    assert list(workers.ordered_map(slowly, [], count)) == []
    inverses = workers.ordered_map(invert, [1, 2, 0, 4, 5, 6], count)
    assert [next(inverses), next(inverses)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(inverses)
    assert list(workers.ordered_map(invert, [1, 2], count)) == [1, 0.5]


def test_a_worker_that_dies_is_replaced_and_items_are_read_no_further_ahead():
    with pytest.raises(BrokenProcessPool):
        list(workers.ordered_map(invert, range(1, 8), 2))
    assert list(workers.ordered_map(invert, [1, 2], 2)) == [1, 0.5]
    numbers = [1, 3, 2, 4, 3, *range(4, 30)]
    results = workers.ordered_map(invert, numbers, 2, lambda number: f"{number} died")
    assert list(results) == ["3 died" if number == 3 else 1 / number for number in numbers]
    read = []
    items = (read.append(number) or number for number in range(20))
    for taken, result in enumerate(workers.ordered_map(abs, items, 2), 1):
        assert result == taken - 1
        assert len(read) == min(20, taken + 8)


ENDLESS = """
import os, time, psutil
from emilib import workers
list(workers.ordered_map(os.getpgid, [0, 0], 2))
print(*(c.pid for c in psutil.Process().children()), flush=True)
list(workers.ordered_map(time.sleep, [3, 3], 2))
"""


def test_workers_end_with_a_killed_parent_and_do_not_run_its_script_again(tmp_path):
    command = [sys.executable, "-c", ENDLESS]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        children = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert len(children) >= 2
        process.kill()
    assert psutil.wait_procs(children, timeout=30)[1] == []
    work = "import math\nfrom emilib import workers\nprint('begun')\n"
    work += "print(list(workers.ordered_map(math.sqrt, [4.0, 9.0], 2)))\n"
    (tmp_path / "script.py").write_text(work)
    command, paths = [sys.executable, tmp_path / "script.py"], {"PYTHONPATH": str(ROOT)}
    said = subprocess.check_output(command, text=True, timeout=120, env=os.environ | paths)
    assert said == "begun\n[2.0, 3.0]\n"


VARIABLES = ("EMI_PROGRESS", "JPY_PARENT_PID", "JPY_SESSION_NAME", "WORLD_SIZE", "RANK")


@pytest.mark.parametrize(
    ("terminal", "variables", "drawn"),
    [
        (True, {}, True),
        (False, {"JPY_PARENT_PID": "1", "JPY_SESSION_NAME": "a.ipynb"}, True),  # JupyterLab
        (False, {"JPY_PARENT_PID": "1"}, False),  # papermill, nbval
        (True, {"EMI_PROGRESS": "file"}, False),
        (True, {"WORLD_SIZE": "2", "RANK": "1"}, False),
        (False, {}, False),  # a log
    ],
)
def test_the_bar_is_drawn_where_somebody_looks(monkeypatch, terminal, variables, drawn):
    screen = io.StringIO()
    screen.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", screen)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with epoch_bar(3) as tell:
        tell({"loss": 0.5, "rho": float("nan")})
        tell({"loss": 0.25, "rho": 0.125})
    last = screen.getvalue().split("\r")[-1]
    assert ("loss 0.2500, ρ 0.125" in last and "2/3" in last) == drawn
    assert drawn or screen.getvalue() == ""

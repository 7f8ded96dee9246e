"""Worker processes that start at once.

They are forked from a server that has imported the heavy packages and done nothing else: no
threads, no GPU. Forking the calling process is not safe once it has threads (torch, Numba, ZMQ),
and a spawned process imports everything anew, for seconds. A process that the server forked asks
the same server, so a notebook's kernel and its workers share it.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from itertools import islice
from multiprocessing import forkserver
from multiprocessing.context import (
    BaseContext,
    ForkServerContext,
    ForkServerProcess,
    SpawnContext,
    SpawnProcess,
)

from emilib import cache

# What notebooks and workers import in any case. emilib's own modules last: they set variables
# that libraries read when they are imported.
PRELOADED = (
    "emilib.pipeline",
    "emilib.plots.notebook",
    "emilib.study.experiments",
    "emilib.features.loading",
    "emilib.plots.style",
    "ipykernel.kernelapp",
)


def count() -> int:
    """How many workers to use: the cores of this process, shared by the ranks of the machine."""
    return max(1, len(os.sched_getaffinity(0)) // cache.local_world_size())


def device():
    """The GPU of this rank where there is one, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", cache.local_rank() % torch.cuda.device_count())
    return torch.device("cpu")


@contextlib.contextmanager
def _without_main():
    """A new process is not told of the script that began it all, and does not run it again.

    Workers do what this package says, so they need nothing of it; a script without
    ``if __name__ == "__main__":``, or one that came through a pipe, would fail in each of them.
    """
    main = vars(sys.modules["__main__"])
    kept = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    main["__spec__"] = None
    main.pop("__file__", None)
    try:
        yield
    finally:
        main.update(kept)


class _ForkedProcess(ForkServerProcess):
    @staticmethod
    def _Popen(process):
        with _without_main():
            return ForkServerProcess._Popen(process)


class _SpawnedProcess(SpawnProcess):
    @staticmethod
    def _Popen(process):
        with _without_main():
            return SpawnProcess._Popen(process)


class _Forked(ForkServerContext):
    Process = _ForkedProcess


class _Spawned(SpawnContext):
    Process = _SpawnedProcess


def context() -> BaseContext:
    """The multiprocessing context of this package: forks of a server with PRELOADED modules."""
    _share()
    found = _Forked()
    found.set_forkserver_preload(list(PRELOADED))
    return found


def start() -> None:
    """Start the server now, so that it imports while this process does something else."""
    context()
    forkserver.ensure_running()


def pool(
    workers: int, start: Callable[..., None] | None = None, *given, light: bool = False
) -> ProcessPoolExecutor:
    """A pool of `workers` processes that end with this one, however it ends.

    start : called with `given` in each new process
    light : the work imports little. Where no server runs yet none is started for it: a process
        that imports for itself is then there in half a second, the server in several
    """
    # A worker is a part of this rank, not a rank.
    environment = {k: v for k, v in os.environ.items() if k not in cache.RANK_VARIABLES}
    initial = (environment, start, given)
    spawned = light and not _server().get("_forkserver_address")
    found = _Spawned() if spawned else context()
    return ProcessPoolExecutor(workers, found, _start_worker, initial)


def _server() -> Mapping:
    """What CPython keeps of the server that this process started, or whose child it is."""
    return vars(getattr(forkserver, "_forkserver", None) or object)


def ordered_map(pool: Executor, function: Callable, items: Iterable, ahead: int) -> Iterator:
    """function(item) of each item, in order, worked out by a pool at most `ahead` items early.

    `pool.map` hands in all items at once, and results pile up where they are made faster than
    taken. Here memory does not grow with the number of items: `items` is read as it is needed,
    and no more than `ahead` of them are at work or wait to be taken.

    Raises what `function` raised, when that item's turn comes; what had not begun is given up.
    """
    if ahead < 1:
        raise ValueError(f"ahead: expected at least 1, came {ahead}")
    remaining = iter(items)
    waiting = deque(pool.submit(function, item) for item in islice(remaining, ahead))
    try:
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(remaining, 1))
            yield result
    finally:
        for future in waiting:
            future.cancel()


def _share() -> None:
    """Let a process that the server forked ask that server, not start another one.

    CPython gives such a process the server's address and means it to be used, but looks only for
    a server that the process itself started. Where these inner names have changed, or there is a
    key that was not handed on (Python 3.14), another server starts, and the import is paid again.
    """
    known = _server()
    inherited = known.get("_forkserver_address") and known.get("_forkserver_pid", 0) is None
    if inherited and known.get("_forkserver_authkey", b"none needed"):
        forkserver._forkserver.ensure_running = lambda: None


def _start_worker(environment: dict, start: Callable[..., None] | None, given: tuple) -> None:
    _take(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C
    _follow_parent()
    if start is not None:
        start(*given)


def _follow_parent() -> None:
    """End when the process that asked for this one has ended, killed or not.

    A worker would wait for work for ever, and a kernel would go on beside the next run's.
    """

    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def become_kernel(cmd: list[str], cwd: str | None, environment: dict) -> None:
    """Turn this process into the notebook kernel that the command line `cmd` asks for."""
    os.setsid()
    _take(environment)
    # Jupyter's own watch looks at the parent process, which here is the server.
    _follow_parent()
    if cwd is not None:
        os.chdir(cwd)
    sys.argv = cmd[2:]
    # The debugger would warn that the standard library is frozen; nobody debugs a headless run.
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    from ipykernel import kernelapp

    kernelapp.launch_new_instance()


def _take(environment: dict) -> None:
    """Forked processes have the environment of the moment when the server was started."""
    gc.freeze()  # what was imported stays: looking through it again and again would copy it all
    os.environ.clear()
    os.environ.update(environment)

"""Worker processes, imported once and reused; they end with the process that started them."""

import contextlib
import functools
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

import loky

from emilib.cache import RANK_VARIABLES

_is_worker = False


def count() -> int:
    """How many workers to use: the cores of this process, shared by the ranks of the machine."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return 1 if _is_worker else max(1, loky.cpu_count() // ranks)


def device():
    """The GPU of this rank where there is one, else the CPU."""
    import torch

    number, gpus = int(os.environ.get("LOCAL_RANK") or 0), torch.cuda.device_count()
    return torch.device("cuda", number % gpus) if gpus else torch.device("cpu")


@contextlib.contextmanager
def one_thread():
    """One torch thread: the number of threads changes the last bits of sums."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ordered_map(
    function: Callable, items: Iterable, workers: int | None = None, died: Callable | None = None
) -> Iterator:
    """``function(item)`` of each item, in order; items are read four a worker ahead, no further.

    workers : processes, None for `count`; with 1, or within a worker, nothing leaves this process
    died : item → the result of one that ends its worker, also when it is tried again, alone; the
        others are not touched. None raises BrokenProcessPool

    Raises what `function` raised, when that item's turn comes; what has not begun is cancelled.
    """
    workers = count() if workers is None else workers
    if workers < 2 or _is_worker:
        yield from map(function, items)
        return
    settings = {"timeout": None, "env": {"OMP_NUM_THREADS": "1"}}
    settings |= {"initializer": _start, "initargs": (os.getpid(),)}
    pool = functools.partial(loky.get_reusable_executor, workers, **settings)  # anew after a death
    remaining, waiting, alone = iter(items), deque(), 0

    def submit() -> None:
        for item in islice(remaining, 0 if alone else 4 * workers - len(waiting)):
            waiting.append((item, pool().submit(function, item)))

    try:
        submit()
        while waiting:
            item, future = waiting.popleft()
            alone = max(0, alone - 1)
            try:
                result = future.result()
            except BrokenProcessPool:
                if died is None:
                    raise
                # Which of those in work it was is not known: one by one they are tried again.
                alone = len(waiting)
                try:
                    result = pool().submit(function, item).result()
                except BrokenProcessPool:
                    result = died(item)
            submit()
            yield result
    except KeyboardInterrupt:
        pool().shutdown(wait=False, kill_workers=True)
        raise
    finally:
        for _, future in waiting:
            future.cancel()


def _start(parent: int) -> None:
    """A worker is part of its rank, not a rank; its parent answers Ctrl-C."""
    global _is_worker
    _is_worker = True
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:  # one that is killed can't end its workers
        time.sleep(1)
    os._exit(1)

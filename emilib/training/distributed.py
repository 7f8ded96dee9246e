"""Several processes at one job, on one machine or many, as ``accelerate launch`` starts them.

Ranks share what is costly through the cache, which must lie on a disk they all see (``EMI_HOME``):
shards of features, and runs of experiments, are dealt out by number; of what can't be divided the
first rank makes it and the others wait for the finished step. Nothing is sent, so no rank's
patience runs out and no order of messages matters. Only Stage I and `study.fit`, whose batches are
divided, talk to each other, through torch.distributed.
"""

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
Item = TypeVar("Item")
_alone = False


def world() -> int:
    """How many processes there are; 1 where nothing started several, and within `alone`."""
    return 1 if _alone else int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """The number of this process, from 0."""
    return 0 if world() == 1 else int(os.environ["RANK"])


def first() -> bool:
    """Whether this process is the one that makes what can't be divided."""
    return rank() == 0


def speaks() -> bool:
    """Whether this process tells people how it goes; the same within `alone`."""
    return int(os.environ.get("RANK") or 0) == 0


def local() -> tuple[int, int]:
    """This process's number among those of this machine, and how many these are."""
    count = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return int(os.environ.get("LOCAL_RANK") or 0), count


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This rank's part of `items`: every world-th, from its number on."""
    return items[rank() :: world()]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within this, the process does what it does without the others."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def is_alone() -> bool:
    """Whether this is within `alone`."""
    return _alone


def wait_until(there: Callable[[], bool], pause: float = 0.2) -> None:
    """Wait for what another rank makes. Should that one fail, the launcher ends them all."""
    while not there():
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def barrier() -> None:
    """Wait until every rank is here."""
    if world() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def device():
    """The GPU of this rank where there is one, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", local()[0] % torch.cuda.device_count())
    return torch.device("cpu")


def join(relaunch: bool = False) -> None:
    """Join the group of processes that a launcher started; nothing where it started one.

    relaunch : for the command line. ``accelerate launch --cpu`` starts a single process, however
        many it was asked for, unless it is given MPI: then this process is replaced by torch's
        launcher with the number asked for.
    """
    asked = _asked_of_accelerate() if relaunch else None
    if asked is not None:
        launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={asked}"]
        rest = [f"--master_port={os.environ['MASTER_PORT']}", "-m", "emilib", *sys.argv[1:]]
        os.execv(sys.executable, launcher + rest)
    if world() > 1:
        from accelerate import PartialState

        state = PartialState()
        # A rank that ends while another still uses what it offers would take that one with it.
        atexit.register(state.destroy_process_group)


def _asked_of_accelerate() -> int | None:
    """Processes that ``accelerate launch --cpu`` was asked for and did not start, else None.

    It gives its one process an address to meet the others at, and tells it of no rank. How many
    there should be stands only on its own command line.
    """
    told = os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ
    if not told or "WORLD_SIZE" in os.environ:
        return None
    import psutil
    from accelerate.commands.launch import launch_command_parser

    line = psutil.Process().parent().cmdline()
    after = line.index("launch") + 1 if "launch" in line else len(line)
    found = launch_command_parser().parse_args(line[after:]).num_processes if line[after:] else None
    if found is None or found < 2:
        raise RuntimeError(
            "accelerate was asked for several processes and started one (on CPUs it needs MPI for "
            "more); start them with `torchrun --nproc_per_node N -m emilib ...`"
        )
    return found

"""The group of processes that ``accelerate launch`` or ``torchrun`` starts.

Most work is divided through the cache alone (see `emilib.cache`). Only Stage I and `fit`, whose
batches are divided, talk to each other, through torch.distributed.
"""

import atexit
import os
import sys

from emilib.cache import world_size


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


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
    if world_size() > 1:
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

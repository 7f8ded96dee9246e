"""The group of processes that ``accelerate launch`` or ``torchrun`` starts.

Most work is divided through the cache alone (see `emilib.cache`). Only Stage I and `fit`, whose
batches are divided, talk to each other, through torch.distributed.
"""

import atexit
import os
import sys

import psutil

from emilib.cache import world_size


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def join(relaunch: bool = False) -> None:
    """Join the group of processes that a launcher started; nothing where it started one.

    relaunch : for the command line. ``accelerate launch --cpu`` starts one process, however many
        it is asked for, unless it has MPI (Accelerate 1.15): torch's launcher with the number
        asked for then replaces this process. Raises RuntimeError where that number is unknown.
    """
    # Its one process has an address to meet the others at, and no rank.
    alone = os.environ.get("ACCELERATE_USE_CPU") == "True" and "WORLD_SIZE" not in os.environ
    if relaunch and alone and "MASTER_ADDR" in os.environ:
        launcher = [sys.executable, "-m", "torch.distributed.run"]
        launcher.append(f"--nproc_per_node={_requested()}")
        launcher.append(f"--master_port={os.environ['MASTER_PORT']}")
        os.execv(sys.executable, [*launcher, "-m", "emilib", *sys.argv[1:]])
    if world_size() > 1:
        from accelerate import PartialState

        # A rank that ends while another still uses what it offers would take that one with it.
        atexit.register(PartialState().destroy_process_group)


def _requested() -> int:
    """The number of processes on the command line of ``accelerate launch``, the only place."""
    from accelerate.commands.launch import launch_command_parser

    line = psutil.Process().parent().cmdline()
    options = line[line.index("launch") + 1 :] if "launch" in line else []
    number = launch_command_parser().parse_args(options).num_processes if options else None
    if number is None or number < 2:
        raise RuntimeError(
            f"expected --num_processes of at least 2 from accelerate launch, got {number}; start "
            "several with `torchrun --nproc_per_node N -m emilib ...`"
        )
    return number

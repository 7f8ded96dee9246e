"""The profile `paper` on a folder in the real layout, with its defects, to the same tables.

The papers' checkpoints are replaced by small ones in their formats, and the fusion models are
narrow and trained for one epoch; everything else is as on the real data.
"""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import small_checkpoints
from conftest import sine, write_media

from emilib.cache import RANK_VARIABLES
from emilib.synthetic.film import make

TESTS = Path(__file__).parent
NUMBERS = ("A2", "A3", "A4", "B2", "B3", "B4")

SCRIPT = """
import dataclasses, sys
from pathlib import Path
from emilib import cache, profiles
from emilib.pipeline import Workspace
from emilib.study import tables


def main(corpus, home):
    paper, smoke = profiles.paper(), profiles.smoke()
    short = {"epochs": 2, "cycle_epochs": 1, "chunk": 8, "lr_max": 1e-3}
    plans = {side: dataclasses.replace(plan, **short) for side, plan in paper.stage_one.items()}
    changes = {"seeds": (0,), "more_seeds": False, "workers": 1}
    changes |= {"max_seconds": 6.0, "stage_one": plans}
    for name in ("dual_stage", "taemi", "baseline", "earlier"):
        changes[name] = getattr(smoke, name)
    for name in ("dual_stage", "taemi", "baseline", "earlier", "savchenko"):
        recipe = getattr(paper, f"{name}_recipe")
        changes[f"{name}_recipe"] = dataclasses.replace(recipe, epochs=1)
    made = Workspace(dataclasses.replace(paper, **changes), corpus, home).tables()
    if cache.rank() == 0:
        tables.write(made, Path(home) / "tables")


if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.fixture
def place(tmp_path):
    """An embedded corpus that passes for a real one, with clips as short, long and broken."""
    folder = tmp_path / "corpus"
    make(folder, 12, 6, 3, workers=1)
    (folder / "synthetic.json").unlink()
    short, long, broken, silent = sorted((folder / "raw").glob("*.mp4"))[:4]
    write_media(short, [0.0], size=(96, 96))
    fast = {"preset": "ultrafast"}
    write_media(long, np.arange(0, 40, 0.5), sine(200, 40), size=(32, 32), options=fast)
    broken.write_bytes(b"no video in here")
    (folder / "text" / f"{silent.stem}.txt").unlink()
    (folder / "audio" / f"{broken.stem}.mp3").write_bytes(b"no sound in here")
    small_checkpoints.write(tmp_path / "weights")
    (tmp_path / "run.py").write_text(SCRIPT)
    return tmp_path


def start(place, home, processes=1):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {k: v for k, v in os.environ.items() if k not in RANK_VARIABLES}
    environment |= {"EMI_WEIGHTS": str(place / "weights"), "HF_HUB_OFFLINE": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    command = [sys.executable, *(launcher if processes > 1 else [])]
    command += [str(place / name) for name in ("run.py", "corpus", home)]
    options = {"env": environment, "text": True}
    return subprocess.Popen(command, **options, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill(process):
    """End the launcher and its ranks, which have sessions of their own."""
    ranks = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for rank in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.kill()


def finish(process):
    errors = process.communicate(timeout=600)[1]
    assert process.returncode == 0, errors[-3000:]


def numbers(folder):
    """The tables without how long training took."""
    read = {name: pd.read_csv(folder / "tables" / f"{name}.csv") for name in NUMBERS}
    return {name: table.drop(columns="seconds") for name, table in read.items()}


@pytest.mark.slow
def test_two_processes_that_are_killed_come_to_the_tables_of_one(place):
    finish(start(place, "whole"))
    whole = numbers(place / "whole")
    for name, table in whole.items():
        assert not table.loc[table["here"].isna(), "row"].tolist(), name
        assert np.isfinite(table["here"]).all()
    process, steps = start(place, "two", processes=2), int(np.random.default_rng().integers(1, 20))
    while process.poll() is None and len(list(place.glob("two/*/cache/*/*"))) < steps:
        time.sleep(0.1)
    kill(process)
    process.communicate(timeout=60)
    finish(start(place, "two", processes=2))
    for name, table in numbers(place / "two").items():
        pd.testing.assert_frame_equal(table, whole[name], check_exact=True)

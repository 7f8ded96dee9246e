"""Several processes do the work of one, and come to the same; so does the profile `paper`."""

import contextlib
import json
import os
import runpy
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


def start(processes: int, *command, **variables) -> subprocess.Popen:
    """A Python command on this many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {k: v for k, v in os.environ.items() if k not in RANK_VARIABLES}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    command = [sys.executable, *(launcher if processes > 1 else []), *map(str, command)]
    options = {"env": environment | variables, "text": True, "stdout": subprocess.DEVNULL}
    return subprocess.Popen(command, **options, stderr=subprocess.PIPE)


def finish(process):
    errors = process.communicate(timeout=600)[1]
    assert process.returncode == 0, errors[-3000:]


RUN = """
import hashlib, json, sys, numpy as np, torch
from emilib import cache
from emilib.features import store
from emilib.training.contrastive_pretraining import pretrain
import test_stage_one as t

home, made = sys.argv[1], []

def trained(side, kept):
    torch.manual_seed(0)
    media, words = t.encoder(side), t.text()
    plan = t.plan_of(side, epochs=2, chunk=2)
    done = pretrain(media, words, t.clips(), plan, seed=0, checkpoint=kept)
    digest = hashlib.sha256()
    for module in t.modules_of(done):
        for value in module.state_dict().values():
            digest.update(value.numpy().tobytes())
    history = (done[1] if side == "both" else done).history
    return [digest.hexdigest(), [row["loss"] for row in history]]

def produce(ids):
    for id_ in ids:
        made.append(id_)
        yield {"x": np.full((int(id_) % 3 + 1, 2), int(id_), np.float16)}

found = {side: trained(side, f"{home}/{side}") for side in ("frames", "audio", "both")}
ids = [f"{i:05d}" for i in range(50)]
kept = store.build(cache.Cache(home), "demo", {}, ids, produce, ("x",), shard_size=8)["x"]
assert list(kept) == ids and all(int(kept[i][0, 0]) == int(i) for i in ids)
with open(f"{home}/{cache.rank()}.json", "w") as stream:
    json.dump([found, made], stream)
"""


def test_ranks_share_the_batches_of_stage_one_and_make_each_shard_once(tmp_path, monkeypatch):
    (tmp_path / "run.py").write_text(RUN)
    found, made = {}, {}
    finish(start(2, tmp_path / "run.py", tmp_path / "2"))
    monkeypatch.setattr(sys, "argv", ["run.py", str(tmp_path / "1")])
    runpy.run_path(str(tmp_path / "run.py"))
    for n in (1, 2):
        kept = [json.loads((tmp_path / f"{n}/{rank}.json").read_text()) for rank in range(n)]
        (found[n], *_), made[n] = zip(*kept, strict=True)
    assert found[1] == found[2]  # to the last bit, with dropout
    assert len(found[1]["frames"][1]) == 4
    first, second = made[2]
    assert len(first) == 26  # shards 0, 2, 4, 6 of 8, the last of 2
    assert sorted(first + second) == made[1][0]
    assert not list((tmp_path / "2/demo").glob("*.unfinished"))


# The papers' checkpoints are replaced by small ones in their formats, and the fusion models are
# narrow and trained for one epoch; everything else is as on the real data.
PAPER = """
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
    (tmp_path / "run.py").write_text(PAPER)
    return tmp_path


def kill(process):
    """End the launcher and its ranks, which have sessions of their own."""
    ranks = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for rank in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.kill()


def numbers(folder):
    """The tables without how long training took."""
    read = {name: pd.read_csv(folder / "tables" / f"{name}.csv") for name in NUMBERS}
    return {name: table.drop(columns="seconds") for name, table in read.items()}


@pytest.mark.slow
def test_two_processes_that_are_killed_come_to_the_tables_of_one(place):
    def run(home, processes=1):
        weights = {"EMI_WEIGHTS": str(place / "weights"), "HF_HUB_OFFLINE": "1"}
        paths = (place / name for name in ("run.py", "corpus", home))
        return start(processes, *paths, **weights)

    finish(run("whole"))
    whole = numbers(place / "whole")
    for name, table in whole.items():
        assert not table.loc[table["here"].isna(), "row"].tolist(), name
        assert np.isfinite(table["here"]).all()
    process, steps = run("two", processes=2), int(np.random.default_rng().integers(1, 20))
    while process.poll() is None and len(list(place.glob("two/*/cache/*/*"))) < steps:
        time.sleep(0.1)
    kill(process)
    process.communicate(timeout=60)
    finish(run("two", processes=2))
    for name, table in numbers(place / "two").items():
        pd.testing.assert_frame_equal(table, whole[name], check_exact=True)

"""Several processes do the work of one, and come to the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

from emilib import cache

TESTS = Path(__file__).parent


def launch(processes: int, *command: str) -> None:
    """Run a Python command on this many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {k: v for k, v in os.environ.items() if k not in cache.RANK_VARIABLES}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    command = [sys.executable, *(launcher if processes > 1 else []), *command]
    options = {"capture_output": True, "text": True, "env": environment, "timeout": 300}
    process = subprocess.run(command, check=False, **options)
    assert process.returncode == 0, process.stderr[-3000:]


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


def test_ranks_share_the_batches_of_stage_one_and_make_each_shard_once(tmp_path):
    (tmp_path / "run.py").write_text(RUN)
    found, made = {}, {}
    for n in (1, 2):
        launch(n, str(tmp_path / "run.py"), f"{tmp_path}/{n}")
        kept = [json.loads((tmp_path / f"{n}/{rank}.json").read_text()) for rank in range(n)]
        (found[n], *_), made[n] = zip(*kept, strict=True)
    assert found[1] == found[2]  # to the last bit, with dropout
    assert len(found[1]["frames"][1]) == 4
    first, second = made[2]
    assert len(first) == 26  # shards 0, 2, 4, 6 of 8, the last of 2
    assert sorted(first + second) == made[1][0]
    assert not list((tmp_path / "2/demo").glob("*.unfinished"))

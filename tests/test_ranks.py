"""Several processes do the work of one, and come to the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

from emilib import cache

TESTS = Path(__file__).parent


def launch(processes: int, *command: str) -> str:
    """Run a Python command on this many processes; returns what they printed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {k: v for k, v in os.environ.items() if k not in cache.RANK_VARIABLES}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    command = [sys.executable, *(launcher if processes > 1 else []), *command]
    options = {"capture_output": True, "text": True, "env": environment, "timeout": 300}
    process = subprocess.run(command, check=False, **options)
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


STAGE_ONE = """
import hashlib, json, sys, torch
from emilib import cache
from emilib.training.contrastive_pretraining import pretrain
import test_stage_one as t

found = {}
for side in ("frames", "audio", "both"):
    torch.manual_seed(0)
    media, words = t.encoder(side), t.text()
    plan = t.plan_of(side, epochs=2, chunk=2)
    done = pretrain(media, words, t.clips(), plan, seed=0, checkpoint=sys.argv[1] + side)
    digest = hashlib.sha256()
    for module in t.modules_of(done):
        for value in module.state_dict().values():
            digest.update(value.numpy().tobytes())
    history = (done[1] if side == "both" else done).history
    found[side] = [digest.hexdigest(), [row["loss"] for row in history]]
if cache.rank() == 0:
    print(json.dumps(found))
"""


def test_two_processes_share_the_batches_of_stage_one(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(STAGE_ONE)
    results = [json.loads(launch(n, str(script), f"{tmp_path}/{n}")) for n in (1, 2)]
    assert results[0] == results[1]  # to the last bit, with dropout
    assert len(results[0]["frames"][1]) == 4


STORE = """
import json, os, sys, numpy as np
from emilib.cache import Cache, rank
from emilib.features import store

made = []

def produce(ids):
    for id_ in ids:
        made.append(id_)
        yield {"x": np.full((int(id_) % 3 + 1, 2), int(id_), np.float16)}

ids = [f"{i:05d}" for i in range(50)]
cache = Cache(sys.argv[1])
kept = store.build(cache, "demo", {"a": 1}, ids, produce, ("x",), shard_size=8)["x"]
assert list(kept) == ids and all(int(kept[i][0, 0]) == int(i) for i in ids)
with open(f"{sys.argv[1]}/{rank()}.json", "w") as stream:
    json.dump(made, stream)
"""


def test_ranks_make_each_shard_once(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(STORE)
    launch(2, str(script), str(tmp_path / "cache"))
    made = [json.loads((tmp_path / "cache" / f"{rank}.json").read_text()) for rank in range(2)]
    assert len(made[0]) + len(made[1]) == 50
    assert len(made[0]) == 26  # shards 0, 2, 4, 6 of 8, the last of 2
    assert not set(made[0]) & set(made[1])
    assert not list((tmp_path / "cache" / "demo").glob("*.unfinished"))

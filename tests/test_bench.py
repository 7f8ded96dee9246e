"""The benchmark times what it says and leaves torch's generator alone."""

import torch

from emilib.study import bench


def test_every_network_is_timed():
    before = torch.get_rng_state()
    table = bench.stage_two(repeats=2, device="cpu", batch=2, steps=12)
    assert torch.equal(before, torch.get_rng_state())
    assert table["what"].str.startswith("DualStage").tolist() == [False, True]
    assert (table["seconds"] > 0).all()
    assert table["ratio"][0] == 1

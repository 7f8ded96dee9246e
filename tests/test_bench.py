"""The benchmark times what it says and leaves torch's generator alone."""

import torch
from torch import nn

from emilib.models import DualStage
from emilib.study import bench


def test_every_network_is_timed_and_the_bare_ones_have_the_sizes_of_the_full_one(monkeypatch):
    built = []
    for cls in (nn.LSTM, nn.TransformerEncoder):
        original = cls.__init__

        def recorded(self, *arguments, original=original, **options):
            original(self, *arguments, **options)
            built.append(self)

        monkeypatch.setattr(cls, "__init__", recorded)
    before = torch.get_rng_state()
    table = bench.stage_two(repeats=2, device="cpu", batch=2, steps=12)
    assert torch.equal(before, torch.get_rng_state())
    assert table["what"].str.startswith("DualStage").tolist() == [False, True, True]
    assert (table["seconds"] > 0).all()
    assert table["ratio"][0] == 1
    full = DualStage()
    assert {(m.hidden_size, m.bidirectional) for m in built if isinstance(m, nn.LSTM)} == {
        (full.lstm.lstm.hidden_size, True)
    }
    sizes = {sum(p.numel() for p in m.parameters()) for m in built if hasattr(m, "layers")}
    assert sizes == {sum(p.numel() for p in full.encoder.parameters())}

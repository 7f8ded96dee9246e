"""The benchmark times what it says and leaves torch's generator alone."""

import torch
from torch import nn

from emilib.models import DualStage
from emilib.study import bench


def test_every_network_is_timed_and_the_bare_lstm_has_the_size_of_the_full_ones(monkeypatch):
    built = []
    original = nn.LSTM.__init__

    def recorded(self, *arguments, **options):
        original(self, *arguments, **options)
        built.append(self)

    monkeypatch.setattr(nn.LSTM, "__init__", recorded)
    before = torch.get_rng_state()
    table = bench.stage_two(repeats=2, device="cpu", batch=2, steps=12)
    assert torch.equal(before, torch.get_rng_state())
    assert table["what"].str.startswith("DualStage").tolist() == [False, True, True]
    assert (table["seconds"] > 0).all()
    assert table["ratio"][0] == 1
    full = DualStage()
    assert {(m.hidden_size, m.bidirectional) for m in built} == {(full.lstm.lstm.hidden_size, True)}

"""The benchmark times what it says: the same sizes, a step that trains."""

import torch

from emilib.models import DualStage
from emilib.study import bench


def test_the_bare_networks_have_the_sizes_of_the_full_one():
    model = DualStage()
    bare = bench._Bare(model)
    lstm, encoder = model.lstm.lstm, model.encoder
    assert bare.lstm.hidden_size == lstm.hidden_size
    assert bare.lstm.bidirectional == lstm.bidirectional
    assert bare.lstm.input_size == bench.AUDIO_DIM == lstm.input_size - 1  # ours: bias as input
    for own, other in zip(encoder.layers, bare.encoder.layers, strict=True):
        shapes = [{n: p.shape for n, p in layer.named_parameters()} for layer in (own, other)]
        assert shapes[0] == shapes[1]


def test_a_step_trains_and_every_network_is_timed(monkeypatch):
    monkeypatch.setattr(bench, "BATCH", 2)
    monkeypatch.setattr(bench, "STEPS", 12)
    before = torch.get_rng_state()
    found = bench.stage_two(repeats=2, device="cpu")
    assert found["what"].tolist() == [
        "bare BiLSTM and Transformer",
        "DualStage",
        "DualStage, clips of half to full length",
    ]
    assert (found["seconds"] > 0).all()
    assert found["ratio"][0] == 1
    assert torch.equal(before, torch.get_rng_state())

    layer = torch.nn.Linear(2, 1)
    weight = layer.weight.detach().clone()
    bench._step(layer, lambda: layer(torch.ones(1, 2)).sum())()
    assert not torch.equal(weight, layer.weight)

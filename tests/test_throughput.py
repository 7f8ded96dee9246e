"""The encoders' benchmark: FLOPs against the formulas, every encoder measured, on tiny networks."""

import pandas as pd
import pytest
import torch

from emilib import __main__ as command_line
from emilib.features import throughput


@pytest.fixture
def tiny(monkeypatch):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes = {
        "VIT": {**small, "intermediate_size": 64, "image_size": 32},
        "WAV2VEC2": {**small, "intermediate_size": 64, "num_conv_pos_embeddings": 4},
        "BERT": {**small, "intermediate_size": 64, "vocab_size": 60},
        "WHISPER": {"n_mels": 8, "n_ctx": 20, "n_state": 16, "n_head": 2, "n_layer": 1},
    }
    for name, values in sizes.items():
        monkeypatch.setattr(throughput, name, {**getattr(throughput, name), **values})
    monkeypatch.setattr(throughput, "SIDE", 64)
    monkeypatch.setattr(throughput, "SECONDS", 0.5)
    convolutions = {"conv_dim": (16, 16), "conv_kernel": (40, 16), "conv_stride": (20, 16)}
    throughput.WAV2VEC2.update(convolutions, num_conv_pos_embedding_groups=4)


def layer(width, inner, steps):
    """Four projections, scores and their sums, two linear layers: 2 FLOPs a multiplication."""
    return 2 * steps * (4 * width**2 + 2 * steps * width + 2 * width * inner)


def test_flops_are_those_of_the_formulas():
    with torch.device("meta"):
        config = throughput.CLIPVisionConfig(**throughput.VIT)
        network = throughput.CLIPVisionModel(config).eval()
        found = throughput.flops(lambda: network(pixel_values=torch.empty(1, 3, 224, 224)))
    patches = 2 * 14**2 * 768 * 3 * 16**2
    assert found == 12 * layer(768, 3072, 197) + patches
    assert found / 1e9 == pytest.approx(35.1, abs=0.05)


def test_every_encoder_is_measured(tiny, tmp_path, capsys):
    before = torch.get_rng_state()
    found = throughput.throughput(repeats=1, device="cpu", scale=0.01)
    assert torch.equal(before, torch.get_rng_state())
    assert found["what"].tolist() == [
        "matrix product",
        "ViT-B/16",
        "wav2vec2-large",
        "BERT-base",
        "Whisper turbo, encoder",
    ]
    assert (found[["rate", "gflop", "tflops", "share"]] > 0).all(axis=None)
    assert found["share"][0] == 1
    assert found["gflop"][0] == pytest.approx(2 * 64**3 / 1e9)
    expected = found["rate"] * found["gflop"] / 1000 / found["tflops"][0]
    pd.testing.assert_series_equal(found["share"], expected, check_names=False)

    out = tmp_path / "rates.csv"
    command_line.bench("features", 1, device="cpu", precision="bf16", scale=0.01, out=out)
    assert pd.read_csv(out)["what"].tolist() == found["what"].tolist()
    printed = capsys.readouterr().out
    assert "frames/s" in printed
    assert printed.count("of the peak") == 5

"""The encoders' benchmark: FLOPs against the formulas, every encoder measured, on tiny networks."""

import pandas as pd
import pytest
import torch
from transformers import AutoModel, BertConfig, CLIPVisionConfig, Wav2Vec2Config

from emilib import __main__ as command_line
from emilib.features import rates

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 64}
SOUND = {"conv_dim": (16, 16), "conv_kernel": (40, 16), "conv_stride": (20, 16)}
SOUND |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 4}


def test_flops_are_those_of_the_formulas():
    """Four projections, scores and their sums, two linear layers: 2 FLOPs a multiplication."""
    steps, width, inner = 197, 768, 3072
    layer = 2 * steps * (4 * width**2 + 2 * steps * width + 2 * width * inner)
    patches = 2 * 14**2 * 768 * 3 * 16**2
    counted = rates.flops(lambda: AutoModel.from_config(rates.VIT), torch.empty(1, 3, 224, 224))
    assert counted == 12 * layer + patches
    assert counted / 1e9 == pytest.approx(35.1, abs=0.05)


def test_every_encoder_is_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(rates, "VIT", CLIPVisionConfig(**SMALL, image_size=32, patch_size=16))
    monkeypatch.setattr(rates, "WAV2VEC2", Wav2Vec2Config(**SMALL, **SOUND))
    monkeypatch.setattr(rates, "BERT", BertConfig(**SMALL, vocab_size=60))
    sizes = {"n_mels": 8, "n_ctx": 20, "n_state": 16, "n_head": 2, "n_layer": 1}
    monkeypatch.setattr(rates, "WHISPER", sizes)
    monkeypatch.setattr(rates, "SIDE", 64)
    monkeypatch.setattr(rates, "SECONDS", 0.5)
    before = torch.get_rng_state()
    table = rates.throughput(repeats=1, device="cpu", scale=0.01)
    assert torch.equal(before, torch.get_rng_state())
    encoders = ["ViT-B/16", "wav2vec2-large", "BERT-base", "Whisper turbo, encoder"]
    assert table["what"].tolist() == ["matrix product", *encoders]
    assert (table[["rate", "gflop", "tflops", "share"]] > 0).all(axis=None)
    assert table["gflop"][0] == pytest.approx(2 * 64**3 / 1e9)
    expected = table["rate"] * table["gflop"] / 1000
    pd.testing.assert_series_equal(table["tflops"], expected, check_names=False)
    pd.testing.assert_series_equal(table["share"], expected / expected[0], check_names=False)

    out = tmp_path / "rates.csv"
    command_line.bench("features", 1, device="cpu", precision="bf16", scale=0.01, out=out)
    assert pd.read_csv(out)["what"].tolist() == table["what"].tolist()
    printed = capsys.readouterr().out
    assert "frames/s" in printed
    assert printed.count("of the peak") == 5

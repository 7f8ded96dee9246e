"""The benchmark measures what it names, on tiny networks, and leaves torch's generator alone."""

import pandas as pd
import torch
from transformers import BertConfig, CLIPVisionConfig, Wav2Vec2Config

from emilib import __main__ as command_line
from emilib.features import rates

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 64}
SOUND = {"conv_dim": (16, 16), "conv_kernel": (40, 16), "conv_stride": (20, 16)}
SOUND |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 4}


def test_every_network_is_timed(monkeypatch, tmp_path, capsys):
    before, out = torch.get_rng_state(), tmp_path / "rates.csv"
    picture = CLIPVisionConfig(**SMALL, image_size=32, patch_size=16)
    configs = (picture, Wav2Vec2Config(**SMALL, **SOUND), BertConfig(**SMALL, vocab_size=60))
    monkeypatch.setattr(rates, "CONFIGS", configs)
    command_line.bench(1, device="cpu", precision="bf16", scale=0.01, out=out)
    assert torch.equal(before, torch.get_rng_state())
    table = pd.read_csv(out)
    assert table["what"].tolist() == ["ViT-B/16", "wav2vec2-large", "BERT-base"]
    assert (table["rate"] > 0).all()
    assert "frames" in capsys.readouterr().out

"""Operation counts against torch's own counter, and what follows from them."""

import dataclasses

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, ViTConfig, ViTModel, Wav2Vec2Config, Wav2Vec2Model

from emilib import profiles
from emilib.study import resources

REAL = {"split": ["train", "validation", "test"], "clips": [8072, 4588, 4586]}
REAL = pd.DataFrame(REAL | {"seconds": [54_423, 33_122, 32_645]})
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
LARGE |= {"intermediate_size": 4096, "feat_extract_norm": "layer", "conv_bias": True}
LARGE = Wav2Vec2Config(**LARGE, do_stable_layer_norm=True)


@pytest.mark.parametrize(
    ("model", "config", "inputs", "operations", "tolerance"),
    [
        (ViTModel, ViTConfig(), ("pixel_values", (1, 3, 224, 224)), resources.VIT, 0.01),
        (BertModel, BertConfig(), ("input_ids", (1, 32)), resources.BERT, 0.02),
        # the positional convolution and the projection are left out: a few per cent
        (Wav2Vec2Model, LARGE, ("input_values", (1, 112_000)), resources.wav2vec2(7.0, 1), 0.08),
    ],
)
def test_operations_are_what_torch_counts(model, config, inputs, operations, tolerance):
    name, shape = inputs
    config._attn_implementation = "eager"
    kind = torch.long if name == "input_ids" else torch.float
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(config).eval()(**{name: torch.zeros(shape, dtype=kind)})
    assert operations == pytest.approx(counter.get_total_flops(), rel=tolerance)


def test_the_real_data_take_hours_and_twice_the_clips_twice_the_work():
    table = resources.estimate(profiles.paper(), REAL, transcribe=REAL["clips"].sum(), cores=16)
    assert (table[["pflop", "hours", "disk", "gpu"]] >= 0).all(axis=None)
    stages = ["decoding", "transcripts", "Stage I", "features", "Stage II", "fine-tuning"]
    assert table["stage"].tolist() == stages
    assert 1 < table["hours"].sum() < 24 * 30
    assert f" {table['hours'].sum():,.1f} " in resources.text(table)
    double = REAL.assign(clips=2 * REAL["clips"], seconds=2 * REAL["seconds"])
    frozen = dataclasses.replace(profiles.paper(), taemi_fine_tune=False)
    one, two = (resources.estimate(frozen, clips) for clips in (REAL, double))
    assert one["stage"].tolist() == ["decoding", "Stage I", "features", "Stage II"]
    assert two["pflop"].tolist() == pytest.approx((2 * one["pflop"]).tolist())

"""Operation counts against torch's own counter, and what follows from them."""

import dataclasses

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, ViTConfig, ViTModel, Wav2Vec2Config, Wav2Vec2Model

from emilib import profiles
from emilib.study import claims, resources

SPLITS = ["Train", "Validation", "Test"]
REAL = pd.DataFrame(
    {
        "split": ["train", "validation", "test"],
        "clips": [claims.reported("A1", s, "samples").value for s in SPLITS],
        "seconds": [claims.reported("A1", s, "duration").value for s in SPLITS],
    }
)
WAV2VEC2 = Wav2Vec2Config(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    conv_bias=True,
    attn_implementation="eager",
)


@pytest.mark.parametrize(
    ("build", "inputs", "operations", "tolerance"),
    [
        (
            lambda: ViTModel(ViTConfig(attn_implementation="eager"), add_pooling_layer=False),
            lambda: {"pixel_values": torch.zeros(1, 3, 224, 224)},
            resources.VIT,
            0.01,
        ),
        (
            lambda: BertModel(BertConfig(attn_implementation="eager"), add_pooling_layer=False),
            lambda: {"input_ids": torch.zeros(1, 32, dtype=torch.long)},
            resources.BERT,
            0.01,
        ),
        (  # the positional convolution and the projection are left out: a few per cent
            lambda: Wav2Vec2Model(WAV2VEC2),
            lambda: {"input_values": torch.zeros(1, 7 * 16_000)},
            resources.wav2vec2(7.0, 1),
            0.08,
        ),
    ],
    ids=["ViT", "BERT", "wav2vec2"],
)
def test_operations_are_what_torch_counts(build, inputs, operations, tolerance):
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        build().eval()(**inputs())
    assert operations == pytest.approx(counter.get_total_flops(), rel=tolerance)


def test_the_real_data_take_hours_not_minutes_or_months():
    table = resources.estimate(profiles.paper(), REAL, transcribe=REAL["clips"].sum(), cores=16)
    assert (table[["pflop", "hours", "disk", "gpu"]] >= 0).all(axis=None)
    stages = ["decoding", "transcripts", "Stage I", "features", "Stage II", "fine-tuning"]
    assert table["stage"].tolist() == stages
    assert 1 < table["hours"].sum() < 24 * 30
    text = resources.text(table)
    assert all(f" {value:,.1f} " in text for value in (*table["hours"], table["hours"].sum()))


def test_twice_the_clips_take_twice_the_work():
    double = REAL.assign(clips=2 * REAL["clips"], seconds=2 * REAL["seconds"])
    one, two = (resources.estimate(profiles.paper(), clips) for clips in (REAL, double))
    assert two["pflop"].tolist() == pytest.approx((2 * one["pflop"]).tolist())


def test_frozen_encoders_need_no_fine_tuning():
    frozen = dataclasses.replace(profiles.paper(), taemi_fine_tune=False)
    assert "fine-tuning" not in resources.estimate(frozen, REAL)["stage"].tolist()

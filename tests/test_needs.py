"""Operation counts against torch's own counter, and what is said before a long run."""

import dataclasses

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, ViTConfig, ViTModel, Wav2Vec2Config, Wav2Vec2Model

from emilib import environment, profiles
from emilib.study import claims, needs

REAL = pd.DataFrame(
    {
        "split": ["train", "validation", "test"],
        "clips": [
            claims.reported("A1", s, "samples").value for s in ("Train", "Validation", "Test")
        ],
        "seconds": [
            claims.reported("A1", s, "duration").value for s in ("Train", "Validation", "Test")
        ],
    }
)


def counted(model, **inputs):
    """What torch counts; on the meta device nothing is computed."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(**inputs)
    return counter.get_total_flops()


def test_a_vit_takes_what_torch_counts():
    with torch.device("meta"):
        model = ViTModel(ViTConfig(attn_implementation="eager"), add_pooling_layer=False)
        expected = counted(model, pixel_values=torch.zeros(1, 3, 224, 224))
    assert needs.vit(1) == pytest.approx(expected, rel=0.01)


def test_a_bert_takes_what_torch_counts():
    with torch.device("meta"):
        model = BertModel(BertConfig(attn_implementation="eager"), add_pooling_layer=False)
        ids = torch.zeros(1, 32, dtype=torch.long)
        expected = counted(model, input_ids=ids)
    assert needs.BERT.operations(32) == pytest.approx(expected, rel=0.01)


def test_a_wav2vec2_takes_what_torch_counts():
    config = Wav2Vec2Config(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
        attn_implementation="eager",
    )
    with torch.device("meta"):
        model = Wav2Vec2Model(config)
        expected = counted(model, input_values=torch.zeros(1, 7 * 16000))
    # The positional convolution and the projection are left out: a few per cent.
    assert needs.sound(needs.WAV2VEC2, 7.0, 1) == pytest.approx(expected, rel=0.08)


def test_the_real_data_take_hours_not_minutes_or_months():
    found = needs.needs(profiles.paper(), REAL, transcribe=REAL["clips"].sum(), cores=16)
    assert (found[["pflop", "hours", "disk", "gpu"]] >= 0).all(axis=None)
    by_stage = found.set_index("stage")
    stages = ["decoding", "transcripts", "Stage I", "features", "Stage II", "fine-tuning"]
    assert list(by_stage.index) == stages
    assert 1 < found["hours"].sum() < 24 * 30
    said = needs.text(found)
    assert "Counted, not measured" in said
    assert all(stage in said for stage in by_stage.index)


def test_twice_the_clips_take_twice_the_work():
    double = REAL.assign(clips=2 * REAL["clips"], seconds=2 * REAL["seconds"])
    one, two = (needs.needs(profiles.paper(), clips) for clips in (REAL, double))
    assert two["pflop"].tolist() == pytest.approx((2 * one["pflop"]).tolist())


def test_the_readme_has_the_table():
    text = (environment.ROOT / "README.md").read_text("utf-8")
    found = needs.needs(profiles.paper(), REAL, transcribe=REAL["clips"].sum(), cores=16)
    assert f"<!-- needs -->\n{needs.markdown(found)}\n<!-- /needs -->" in text


def test_checkpoints_are_counted_by_the_manifest():
    assert needs.weights_gb(profiles.smoke()) == 0
    frozen = dataclasses.replace(profiles.paper(), taemi_encoders=None)
    assert 1 < needs.weights_gb(frozen) < needs.weights_gb(profiles.paper()) < 10

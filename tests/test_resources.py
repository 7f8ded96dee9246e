import dataclasses

import pandas as pd
import pytest
import small_checkpoints as small
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, BertConfig, CLIPVisionConfig, ViTConfig, Wav2Vec2Config

from emilib import __main__ as command_line
from emilib import profiles
from emilib.features import rates
from emilib.study import resources

REAL = {"split": ["train", "validation", "test"], "clips": [8072, 4588, 4586]}
REAL = pd.DataFrame(REAL | {"seconds": [54_423, 33_122, 32_645]})


@pytest.mark.parametrize(
    ("config", "inputs", "operations", "tolerance"),
    [
        (ViTConfig(), ("pixel_values", (1, 3, 224, 224)), resources.VIT, 0.01),
        (BertConfig(), ("input_ids", (1, 32)), resources.BERT, 0.02),
        # the positional convolution and the projection are left out: a few per cent
        (rates.WAV2VEC2, ("input_values", (1, 112_000)), resources.wav2vec2(7.0, 1), 0.08),
    ],
)
def test_operations_are_what_torch_counts(config, inputs, operations, tolerance):
    name, shape = inputs
    config._attn_implementation = "eager"
    kind = torch.long if name == "input_ids" else torch.float
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        AutoModel.from_config(config).eval()(**{name: torch.zeros(shape, dtype=kind)})
    assert operations == pytest.approx(counter.get_total_flops(), rel=tolerance)


def test_the_real_data_take_hours_and_twice_the_clips_twice_the_work():
    table = resources.estimate(profiles.paper(), REAL, transcribe=REAL["clips"].sum(), cores=16)
    assert (table[["pflop", "hours", "disk", "gpu"]] >= 0).all(axis=None)
    assert {"transcripts", "fine-tuning"} < set(table["stage"])
    assert 1 < table["hours"].sum() < 24 * 30
    assert f" {table['hours'].sum():,.1f} " in resources.text(table)
    double = REAL.assign(clips=2 * REAL["clips"], seconds=2 * REAL["seconds"])
    frozen = dataclasses.replace(profiles.paper(), taemi_fine_tune=False)
    one, two = (resources.estimate(frozen, clips) for clips in (REAL, double))
    assert not {"transcripts", "fine-tuning"} & set(one["stage"])
    assert two["pflop"].tolist() == pytest.approx((2 * one["pflop"]).tolist())


def test_every_network_is_timed_and_the_callers_draws_stay(monkeypatch, capsys):
    before, sizes = torch.get_rng_state(), small.SIZES
    picture = CLIPVisionConfig(**sizes, **small.PICTURE)
    configs = (picture, Wav2Vec2Config(**small.SOUND), BertConfig(**sizes, vocab_size=60))
    monkeypatch.setattr(rates, "CONFIGS", configs)
    command_line.bench(1, scale=0.01)
    assert torch.equal(before, torch.get_rng_state())
    _, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert [row[0] for row in rows] == ["ViT-B/16", "wav2vec2-large", "BERT-base"]
    assert all(float(row[-1]) > 0 for row in rows)

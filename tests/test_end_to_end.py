"""TAEMI with encoders inside, against the cached path and against each clip alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from emilib.features.loading import small_audio, small_text
from emilib.models.end_to_end import EmotionHead, EndToEnd, pad_waveforms
from emilib.models.taemi import TAEMI

TEXTS = ["what a lovely day", "no", "i can not believe it worked", "we did it again"]
LENGTHS = [900, 4000, 1500, 2600]
AUDIO = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 4, 4),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}
TEXT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


def build(frozen=(), head=True, norm="layer", **settings):
    torch.manual_seed(0)
    audio = small_audio(
        {**AUDIO, "feat_extract_norm": norm, "do_stable_layer_norm": norm == "layer"}
    )
    text = small_text(TEXT, TEXTS, max_tokens=16)
    fusion = TAEMI(6, 16 + 3 * head, 16, 3, width=8, heads=2, **settings)
    return EndToEnd(
        audio, text, fusion, emotion_head=EmotionHead(16) if head else None, frozen=frozen
    )


def batch(model, clips=range(4)):
    rng = np.random.default_rng(0)
    waves = [rng.normal(size=n).astype("float32") for n in LENGTHS]
    frames = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))
    waveform, valid = pad_waveforms([waves[i] for i in clips])
    return {
        "frames": frames[list(clips)],
        "waveform": waveform,
        "tokens": model.text.tokens([TEXTS[i] for i in clips]),
        "waveform_valid": valid,
        "present": torch.ones(len(clips), 3, dtype=torch.bool),
    }


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_a_padded_batch_equals_each_clip_alone(norm):
    model = build(norm=norm).eval()
    with torch.no_grad():
        together = model(**batch(model)).intensity
        for clip in range(4):
            alone = model(**batch(model, [clip])).intensity[0]
            torch.testing.assert_close(alone, together[clip], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_frozen_equals_the_cached_path():
    model = build(frozen=("audio", "text"))
    model.fusion.eval()
    data = batch(model)
    audio, text = [], []
    for clip in range(4):
        one = batch(model, [clip])
        hidden, _ = model.audio(one["waveform"], one["waveform_valid"])
        audio.append(torch.cat([hidden, model.emotion_head(hidden)], -1)[0])
        text.append(model.text(**one["tokens"])[0])
    lengths = torch.tensor([len(a) for a in audio])
    padded = torch.nn.utils.rnn.pad_sequence(audio, batch_first=True)
    valid = torch.arange(padded.shape[1]) < lengths[:, None]
    cached = model.fusion(data["frames"], padded, torch.stack(text), audio_valid=valid)
    out = model.train()  # frozen encoders stay in evaluation
    out.fusion.eval()
    torch.testing.assert_close(out(**data).intensity, cached.intensity, rtol=1e-4, atol=1e-5)


def step(model, data):
    optimiser = torch.optim.AdamW(model.parameter_groups(1e-2), weight_decay=0.0)
    model(**data).intensity.square().sum().backward()
    optimiser.step()


@pytest.mark.parametrize("frozen", [(), ("audio",), ("text",), ("audio", "text")], ids=str)
def test_what_is_frozen_does_not_move_and_the_rest_does(frozen):
    model = build(frozen, modality_dropout=0.0).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    step(model, batch(model))
    moved = {
        k.split(".")[0] for k, v in model.state_dict().items() if not torch.equal(v, before[k])
    }
    expected = {"fusion", "audio", "text", "emotion_head"} - set(frozen)
    assert moved == expected - ({"emotion_head"} if "audio" in frozen else set())


def test_parameter_groups_hold_every_trained_parameter_once():
    model = build(("text",))
    groups = model.parameter_groups(1e-4, encoder_lr=1e-5)
    assert [g["lr"] for g in groups] == [1e-4, 1e-5]
    held = [id(p) for g in groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert [g["lr"] for g in model.parameter_groups(1e-4)] == [1e-4, 1e-4]
    assert len(build(("audio", "text")).parameter_groups()) == 1


@torch.no_grad()
def test_absent_sound_and_text_change_nothing():
    model = build().eval()
    data = batch(model)
    data["present"][0, 1] = data["present"][2, 2] = False
    expected = model(**data).intensity
    data["waveform"][0] = float("nan")
    data["waveform"][~data["waveform_valid"]] = float("nan")
    data["tokens"]["input_ids"][2] = 1
    torch.testing.assert_close(model(**data).intensity, expected)
    data["waveform_valid"][0] = False  # no sample, or too few of them: the clip has no sound
    torch.testing.assert_close(model(**data).intensity, expected)
    data["waveform_valid"][0, :5] = True
    data["present"][0, 1] = True
    torch.testing.assert_close(model(**data).intensity, expected)


@torch.no_grad()
def test_nobody_has_sound_or_text():
    model = build().eval()
    data = batch(model)
    data["present"][:, 1:] = False
    without = model(data["frames"], None, None).intensity
    torch.testing.assert_close(model(**data).intensity, without)
    torch.testing.assert_close(model.fusion(data["frames"], None, None).intensity, without)


def test_overfits_a_batch():
    model = build(modality_dropout=0.0, dropout=0.0, attention_dropout=0.0)
    for module in (model.audio, model.text, model.emotion_head):
        module.eval()  # dropout off; parameters still learn
    data, target = batch(model), torch.rand(4, 3)
    optimiser = torch.optim.AdamW(model.parameter_groups(5e-3), weight_decay=0.0)
    for _ in range(150):
        loss = F.mse_loss(model(**data).intensity, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 1e-3


@pytest.mark.parametrize("head", [True, False])
def test_saves_and_loads(head, tmp_path):
    model = build(head=head).eval()
    model.save_pretrained(tmp_path)
    loaded = EndToEnd.from_pretrained(tmp_path, frozen=("audio",)).eval()
    data = batch(model)
    assert torch.equal(loaded(**data).intensity, model(**data).intensity)
    assert loaded.frozen == ("audio",)


def test_waveforms_are_padded_to_the_longest_and_cut_at_the_limit():
    waves = [np.ones(20_000), None, np.ones(3)]
    padded, valid = pad_waveforms(waves)
    assert padded.shape == (3, 20_000)
    assert valid.sum(1).tolist() == [20_000, 0, 3]
    assert (padded[~valid] == 0).all()
    assert pad_waveforms(waves, max_seconds=0.5)[0].shape == (3, 8000)
    assert pad_waveforms([np.ones(200_000)])[0].shape == (1, 192_000)
    assert pad_waveforms([np.ones(200_000)], None)[0].shape == (1, 200_000)
    assert pad_waveforms([None])[0].shape == (1, 1)


def test_bad_input_is_one_clear_error():
    model = build()
    data = batch(model)
    with pytest.raises(ValueError, match="of shape"):
        pad_waveforms([np.ones((2, 5))])
    with pytest.raises(ValueError, match="empty list"):
        pad_waveforms([])
    with pytest.raises(ValueError, match="number of clips"):
        model(**{**data, "waveform": data["waveform"][:2]})
    with pytest.raises(ValueError, match="no input at all"):
        model(None, None, None)
    with pytest.raises(ValueError, match="waveform of shape"):
        model(**{**data, "waveform": data["waveform"][0]})
    with pytest.raises(ValueError, match="waveform_valid"):
        model(**{**data, "waveform_valid": data["waveform_valid"][:, :7]})
    with pytest.raises(ValueError, match="frozen is"):
        build(("vision",))
    with pytest.raises(ValueError, match="audio_dim=16"):
        EndToEnd(model.audio, model.text, model.fusion)

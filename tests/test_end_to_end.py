import dataclasses

import numpy as np
import pytest
import small_checkpoints
import torch
from small_checkpoints import WORDS, tiny_audio, tiny_text

from emilib import profiles
from emilib.features.encoders import padded
from emilib.models.end_to_end import EndToEnd
from emilib.models.taemi import TAEMI
from emilib.pipeline import Workspace
from emilib.training.loop import predict

TEXTS = ["no", *WORDS[1:]]
SIZES = {"train": 12, "validation": 10, "test": 4}
LENGTHS = [900, 4000, 1500, 2600]
MOMENTS = {"audio": (torch.full((16,), 0.1), 2.0), "text": (0.0, torch.full((16,), 0.5))}


def build(norm="layer", **settings):
    torch.manual_seed(0)
    audio = tiny_audio(feat_extract_norm=norm, do_stable_layer_norm=norm == "layer")
    return EndToEnd(audio, tiny_text(), TAEMI(6, 16, 16, 3, width=8, heads=2, **settings), MOMENTS)


def batch(model, clips=range(4)):
    rng = np.random.default_rng(0)
    waves = [torch.tensor(rng.normal(size=n), dtype=torch.float32) for n in LENGTHS]
    frames = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))
    waveform, valid = padded([waves[i] for i in clips])
    return {
        "frames": frames[list(clips)],
        "waveform": waveform,
        "tokens": model.text.tokens([TEXTS[i] for i in clips]),
        "waveform_valid": valid,
        "present": torch.ones(len(clips), 3, dtype=torch.bool),
    }


@pytest.mark.parametrize("norm", ["layer", "group"])
@torch.no_grad()
def test_it_equals_the_cached_path(norm):
    """Encoders on each clip alone, standardised, then the fusion."""
    model = build(norm).eval()
    data = batch(model)
    audio, text = [], []
    for clip in range(4):
        one = batch(model, [clip])
        audio.append(model.audio(one["waveform"], one["waveform_valid"])[0][0])
        text.append(model.text(**one["tokens"])[0])
    lengths = torch.tensor([len(a) for a in audio])
    sequence = torch.nn.utils.rnn.pad_sequence(audio, batch_first=True)
    valid = torch.arange(sequence.shape[1]) < lengths[:, None]
    sequence, words = (sequence - 0.1) / 2.0, torch.stack(text) / 0.5
    cached = model.fusion(data["frames"], sequence, words, audio_valid=valid)
    torch.testing.assert_close(model(**data).intensity, cached.intensity, rtol=1e-4, atol=1e-5)


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
    data["waveform_valid"][0, :5] = data["present"][0, 1] = True
    torch.testing.assert_close(model(**data).intensity, expected)
    data["present"][:, 1:] = False  # nobody has sound or text
    without = model(data["frames"], None, None).intensity
    torch.testing.assert_close(model(**data).intensity, without)
    torch.testing.assert_close(model.fusion(data["frames"], None, None).intensity, without)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    weights = small_checkpoints.write(tmp_path_factory.mktemp("weights"))
    paper, smoke = profiles.paper(), profiles.smoke()
    named = {
        role: {**config, "checkpoint": str(weights / config["checkpoint"])}
        for role, config in paper.taemi_encoders.items()
    }
    named["text"] |= {"pool": "mean"}
    changes = {"taemi_recipe": dataclasses.replace(smoke.taemi_recipe, epochs=2), "seeds": (0,)}
    changes |= {"warm_start": None, "taemi_encoders": named, "taemi_fine_tune": True, "workers": 1}
    profile = dataclasses.replace(smoke, corpus_size=SIZES, **changes)
    return Workspace(profile, home=tmp_path_factory.mktemp("home"))


def test_the_saved_model_predicts_what_it_predicted(workspace):
    """Encoders are trained, saved and read back with the fusion; the table's rows are theirs."""
    results = workspace.results(["taemi_tuned"])
    outcome, data = results["taemi_tuned"], workspace.features_of("taemi_tuned").validation
    assert data.ids == outcome.ids
    again = predict(results.model("taemi_tuned"), data)
    np.testing.assert_allclose(again, outcome.predictions[0], atol=1e-4)
    assert ("B2", "TAEMI") in outcome.experiment.rows
    assert workspace.experiments()["taemi"].rows == ()
    before, after = workspace.encoders("paper_b"), results.model("taemi_tuned")
    for role, module in (("audio", after.audio), ("text", after.text)):
        pairs = zip(before[role].parameters(), module.parameters(), strict=True)
        assert not all(torch.equal(a, b) for a, b in pairs), role

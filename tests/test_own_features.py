"""Anybody's arrays: every model trains on any width, any number of targets, with gaps and masks."""

import numpy as np
import pytest
import torch

from emilib.features import FeatureSet
from emilib.models import MODELS as CLASSES
from emilib.models import for_features
from emilib.study import Recipe, fit

WIDTHS = {"frames": 5, "audio": 3, "text": 7}
CLIPS = 24
RECIPE = Recipe(epochs=2, batch_size=8, lr=3e-3)
# Small sizes; a class that is not here is small already.
SMALL = {
    "TAEMI": {"width": 8, "heads": 2},
    "DualStage": {"width": 8, "segments": 3, "tcn_width": 4, "audio_hidden": 3, "layers": 1},
    "LastStepGRU": {"hidden": 6, "layers": 1},
    "LateAverage": {"hidden": 6, "layers": 1},
    "Yu2024": {"width": 8, "heads": 2, "layers": 1, "dilations": (1, 2)},
    "StatisticsMLP": {"modality": "frames"},
    "Savchenko2025": {"hidden": 4},
    "Zhang2024": {"width": 8, "heads": 2, "layers": 1, "members": 2},
    "TFN": {"width": 4, "text_width": 6, "hidden": 8},
    "MulT": {"width": 8, "heads": 2, "layers": 1},
    "MISA": {"width": 8},
}
# What a class reads; the others read all three.
READS = {
    "MeanLinear": ["audio"],
    "LastStepGRU": ["frames"],
    "StatisticsMLP": ["frames"],
    "Hallmen2024": ["audio"],
    "LateAverage": ["frames", "audio"],
    "Yu2024": ["frames", "audio"],
}
every_class = pytest.mark.parametrize("name", CLASSES)


def arrays(targets=2, clips=CLIPS, seed=0):
    """A regression with gaps: clip 0 lacks frames, clip 1 sound, clip 2 words, clip 3 all."""
    draw = np.random.default_rng(seed)
    target = draw.normal(size=(clips, targets))

    def sequence(row, width):
        mix = np.resize(row, width)
        return mix + 0.1 * draw.normal(size=(draw.integers(2, 7), width))

    frames = [sequence(row, WIDTHS["frames"]) for row in target]
    audio = [sequence(row, WIDTHS["audio"]) for row in target]
    text = np.stack([np.resize(row, WIDTHS["text"]) for row in target])
    frames[0] = audio[1] = frames[3] = audio[3] = None
    text[[2, 3]] = np.nan
    return {"frames": frames, "audio": audio, "text": text, "target": target}


def made(targets=2, lacking=(), **changes):
    given = {k: v for k, v in arrays(targets).items() if k not in lacking}
    return FeatureSet.from_arrays(range(CLIPS), **{**given, **changes})


def trained(name, data, valid=None, recipe=RECIPE):
    torch.manual_seed(0)
    return fit(for_features(name, data, **SMALL.get(name, {})), data, valid, recipe, seed=0)


@every_class
@pytest.mark.parametrize("targets", [1, 2, 9])
def test_every_class_trains_on_any_width_and_number_of_targets(name, targets):
    data = made(targets)
    result = trained(name, data, data)
    prediction = result.predict(data)
    assert prediction.shape == (CLIPS, targets)
    assert np.isfinite(prediction).all()
    assert np.isfinite(result.history["loss"]).all()
    assert result.history["epoch"].tolist() == [1, 2]


@every_class
def test_every_class_learns(name):
    data = made()
    if name == "Savchenko2025":
        recipe = Recipe(epochs=25, lr=2e-2, loss="1-pearson")
    else:
        recipe = Recipe(epochs=25, batch_size=8, lr=1e-2)
    loss = trained(name, data, recipe=recipe).history["loss"]
    assert loss.iloc[-1] < 0.9 * loss.iloc[0]


@every_class
@pytest.mark.parametrize("lacking", WIDTHS)
def test_a_modality_may_lack_altogether_where_the_class_can_do_without(name, lacking):
    data = made(lacking=[lacking])
    reads = READS.get(name, list(WIDTHS))
    if reads == [lacking]:
        with pytest.raises(ValueError, match=f"expected clips with {lacking}"):
            trained(name, data)
    else:
        assert np.isfinite(trained(name, data).predict(data)).all()


@every_class
def test_clips_to_predict_may_lack_more_than_those_of_training(name):
    data = made()
    read = READS.get(name, list(WIDTHS))
    result = trained(name, data)
    for lacking in read if len(read) > 1 else []:
        few = made(lacking=[lacking])
        here = [m for m in read if m != lacking]
        assert np.isfinite(result.predict(few)).all(), here


def test_masks_leave_out_steps_whatever_lies_there():
    ragged = arrays()
    padded, valid = {}, {}
    for name in ("frames", "audio"):
        padded[name] = np.full((CLIPS, 9, WIDTHS[name]), np.nan)
        valid[name] = np.zeros((CLIPS, 9), bool)
        for row, steps in enumerate(ragged[name]):
            if steps is not None:
                padded[name][row, 1 : 1 + len(steps)] = steps  # a step in front is not real either
                valid[name][row, 1 : 1 + len(steps)] = True
    masks = {"frames_valid": valid["frames"], "audio_valid": valid["audio"]}
    same = FeatureSet.from_arrays(range(CLIPS), **{**ragged, **padded}, **masks)
    expected = FeatureSet.from_arrays(range(CLIPS), **ragged)
    assert same.fingerprint() == expected.fingerprint()
    np.testing.assert_array_equal(same.present, expected.present)


def test_a_single_target_may_be_a_vector():
    target = arrays(1)["target"]
    np.testing.assert_array_equal(made(1, target=target[:, 0]).target, target)


def short(name):
    return {name: arrays()[name][:-1]}


NAN = np.where(np.arange(2 * CLIPS).reshape(CLIPS, 2) == 11, np.nan, 0.5)
MASK = [np.ones(len(a), bool) if a is not None else None for a in arrays()["audio"]]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (short("frames"), r"frames: expected one array a clip, 24 for the 24 ids, came 23"),
        (short("audio"), r"audio: expected one array a clip, 24 for the 24 ids, came 23"),
        (short("text"), r"text: expected a \(24, D\) float array, one row an id, .* \(23, 7\)"),
        (short("target"), r"target: expected a \(24, D\) float array, .* shape \(23, 2\)"),
        ({"target": NAN}, r"target: expected finite numbers, came \[.*nan\] for clip '5'; leave"),
        ({"audio_valid": MASK[:-1]}, r"audio_valid: expected one mask for each of the 24 clips"),
        ({"audio_valid": [m if m is None else m[1:] for m in MASK]}, r"audio_valid\[0\]: expected"),
        ({"audio_valid": [m if m is None else 1.0 * m for m in MASK]}, r"came float64 of shape"),
        ({"audio": None, "audio_valid": MASK}, r"audio_valid: expected None where there is no aud"),
    ],
)
def test_bad_arrays_are_one_clear_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        made(**changes)
    assert "\n" not in str(caught.value)


def test_a_model_of_another_number_of_targets_is_refused():
    model = for_features("MeanLinear", made(2))
    with pytest.raises(ValueError, match=r"expected a model with 1 outputs, .* got one with 2"):
        fit(model, made(1), recipe=RECIPE)


def test_validation_of_another_width_is_refused():
    other = made(audio=[np.ones((2, 4))] * CLIPS)
    with pytest.raises(ValueError, match="valid: expected audio of width 3 as in train, got 4"):
        trained("MeanLinear", made(), other)


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("TAMEI", made(), "TAMEI"),
        ("TAEMI", made(lacking=["target"]), "TAEMI: expected clips with targets"),
        ("Yu2024", made(lacking=["frames", "audio"]), "frames or audio"),
    ],
)
def test_for_features_says_what_does_not_fit(name, data, sentence):
    with pytest.raises(ValueError, match=sentence):
        for_features(name, data)


def test_for_features_takes_widths_and_settings():
    data = made(9, lacking=["audio"])
    dual_stage = for_features("DualStage", data, **SMALL["DualStage"])
    assert dual_stage.dims == {"frames": 5, "text": 7}
    assert dual_stage.head.out_features == 9
    gru = for_features("LastStepGRU", made(), modality="audio", hidden=4)
    assert (gru.gru.input_size, gru.gru.hidden_size) == (3, 4)
    assert set(for_features("StatisticsMLP", data).dims) == {"frames"}

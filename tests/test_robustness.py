import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from emilib import metrics
from emilib.cache import Cache
from emilib.features import FeatureSet, FeatureSplits
from emilib.models import TAEMI, DualStage
from emilib.study import Recipe, predict, robustness, run
from emilib.study.experiments import Experiment
from emilib.study.robustness import MISSING, SPOILT, Corruption, Measurements

WIDTHS = {"frames": 4, "audio": 3, "text": 5}
SMALL = {"width": 8, "segments": 3, "tcn_width": 4, "audio_hidden": 3, "layers": 1, "heads": 2}


def clips(count=20, seed=0):
    draw = np.random.default_rng(seed)
    frames = [draw.normal(size=(draw.integers(1, 6), 4)) for _ in range(count)]
    audio = [draw.normal(size=(draw.integers(1, 9), 3)) for _ in range(count)]
    text = draw.normal(size=(count, 5))
    frames[0], audio[1], text[2] = None, None, np.nan
    return FeatureSet.from_arrays(range(count), frames, audio, text, draw.random((count, 2)))


DATA = clips()


def models():
    torch.manual_seed(0)
    return [TAEMI(*WIDTHS.values(), 2, width=8), DualStage(*WIDTHS.values(), 2, **SMALL)]


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize("modality", WIDTHS)
def test_a_share_of_clips_is_as_if_the_modality_was_never_passed(modality, standardised):
    data = DATA.standardised(DATA.moments()) if standardised else DATA
    assert robustness.without(data, modality, 0.0).fingerprint() == data.fingerprint()
    column, hit = list(WIDTHS).index(modality), robustness.chosen(len(data), 0.5, 3)
    gone = robustness.without(data, modality)
    half = robustness.without(data, modality, 0.5, seed=3)
    assert not gone.present[:, column].any()
    np.testing.assert_array_equal(half.present[:, column], data.present[:, column] & ~hit)
    for model in models():
        never = predict(model, data.only(*(m for m in WIDTHS if m != modality)))
        np.testing.assert_allclose(predict(model, gone), never, atol=1e-6)
        mixed = np.where(hit[:, None], never, predict(model, data))
        np.testing.assert_allclose(predict(model, half), mixed, atol=1e-6)


def test_shares_are_parts_of_larger_ones_and_wrong_words_another_clips():
    masks = [robustness.chosen(40, share, seed=1) for share in (0.0, 0.25, 0.5, 1.0)]
    assert [mask.sum() for mask in masks] == [0, 10, 20, 40]
    assert all((large | ~small).all() for small, large in itertools.pairwise(masks))
    assert (robustness.chosen(40, 0.5, 2) != masks[2]).any()
    wrong = robustness.wrong_words(DATA).text
    present = DATA.present[:, 2]
    np.testing.assert_array_equal(np.isnan(wrong), np.isnan(DATA.text))
    assert (wrong[present] != DATA.text[present]).any(axis=1).all(), "every clip has other words"
    assert set(map(tuple, wrong[present])) == set(map(tuple, DATA.text[present]))


@pytest.mark.parametrize("snr", [20.0, 0.0, -10.0])
def test_noise_has_the_power_that_is_asked_for(snr):
    sound = np.rint(1000 * np.sin(np.arange(200_000) / 7)).astype(np.int16)
    noisy = robustness.with_noise(sound, snr, np.random.default_rng(0))
    assert noisy.dtype == np.int16
    noise = noisy.astype(float) - sound
    measured = 10 * np.log10(np.mean(sound.astype(float) ** 2) / np.mean(noise**2))
    assert measured == pytest.approx(snr, abs=0.05)
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.01, "white"
    loud = robustness.with_noise(np.full(5000, 30_000, np.int16), 0.0, np.random.default_rng(0))
    assert (loud.min(), loud.max()) == (-32768, 32767)


def pictures(steps=8, size=32):
    return np.random.default_rng(0).integers(0, 256, (steps, 3, size, size), dtype=np.uint8)


def test_blur_is_a_gaussian_over_each_picture():
    frames = pictures()
    blurred = robustness.blurred(frames, 0.05)
    assert blurred.dtype == np.uint8
    for place in np.ndindex(frames.shape[:2]):
        expected = gaussian_filter(frames[place].astype(float), 0.05 * 32, mode="nearest")
        np.testing.assert_allclose(blurred[place], expected, atol=0.51)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_cover_is_one_grey_square_and_lost_frames_are_some(share):
    frames = pictures() // 2  # nothing is as light as the cover
    hidden = robustness.covered(frames, share, np.random.default_rng(1)) == robustness.GREY
    assert hidden.mean() == pytest.approx(share, abs=0.02)
    assert (hidden == hidden[:1, :1]).all(), "the same place in every frame and colour"
    rows, columns = hidden[0, 0].any(1), hidden[0, 0].any(0)
    np.testing.assert_array_equal(hidden[0, 0], rows[:, None] & columns)
    noisy = robustness.noisy_frames(frames, share, np.random.default_rng(2))
    assert (noisy != frames).any(axis=(1, 2, 3)).sum() == 8 * share


@pytest.mark.parametrize("corruption", [c for c in SPOILT if c.modality != "text"], ids=str)
def test_a_corruption_depends_on_the_clip_and_the_seed_alone(corruption):
    frames = corruption.modality == "frames"
    medium = pictures() if frames else pictures().ravel().astype(np.int16)
    medium.flags.writeable = False
    first = robustness.corrupt(corruption, "00001", medium)
    assert (first.shape, first.dtype) == (medium.shape, medium.dtype)
    assert (first != medium).any()
    np.testing.assert_array_equal(first, robustness.corrupt(corruption, "00001", medium))
    if corruption.kind != "blur":
        assert (first != robustness.corrupt(corruption, "00002", medium)).any()
        assert (first != robustness.corrupt(corruption, "00001", medium, seed=1)).any()


def drawn_measurements(seeds=3, count=40):
    draw, corruption = np.random.default_rng(5), MISSING[1]
    target = draw.random((count, 2))
    pairs = [(c, n) for c in (None, corruption) for n in ("first", "second")]
    intensity = {p: target + draw.normal(0, 1, (seeds, count, 2)) for p in pairs}
    weights = {p: draw.dirichlet((1, 1, 1), (seeds, count)) for p in pairs}
    present = {p: draw.random((count, 3)) < 0.9 for p in pairs}
    return Measurements(target, intensity, weights, present), corruption


def test_differences_are_those_of_metrics_draw_by_draw():
    measured, corruption = drawn_measurements()
    clean, changed = measured.intensity[None, "first"], measured.intensity[corruption, "first"]
    assert measured.rho((1, corruption, "first")) == metrics.estimate(measured.target, changed)
    cost = (1, corruption, "first"), (-1, None, "first")
    ours, theirs = measured.rho(*cost), metrics.difference(measured.target, changed, clean)
    for name in ("value", "sd", "low", "high"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=1e-12)
    less = measured.rho(*cost, (-1, corruption, "second"), (1, None, "second"))
    drawn = {k: metrics.resample(measured.target, p) for k, p in measured.intensity.items()}
    costs = [(drawn[corruption, n] - drawn[None, n]).mean((1, 2)) for n in ("first", "second")]
    expected = metrics.summarise(np.array(less.per_seed), costs[0] - costs[1])
    assert (less.low, less.high, less.p) == pytest.approx((expected.low, expected.high, expected.p))
    fewer = {k: p[:2] if k[1] == "second" else p for k, p in measured.intensity.items()}
    fewer = Measurements(measured.target, fewer, {}, {})
    less = fewer.rho(*cost, (-1, corruption, "second"), (1, None, "second"))
    assert len(less.per_seed) == 2, "the seeds that both have"
    # the change of a weight is over clips that keep the modality
    column = list(WIDTHS).index(corruption.modality)
    keys = ((None, "first"), (corruption, "first"))
    rows = [n for n in range(40) if all(measured.present[key][n, column] for key in keys)]
    before, after = (measured.weights[key][:, rows, column] for key in keys)
    change = measured.weight_change(corruption, "first")
    assert change.per_seed == pytest.approx(tuple((after - before).mean(axis=1)))
    assert change.low < change.value < change.high


def test_intensities_are_predictions_and_weights_are_means_over_segments():
    taemi, dual_stage = (model.eval() for model in models())
    intensity, nothing = robustness.intensity_and_weights(taemi, DATA, batch_size=7)
    np.testing.assert_allclose(intensity, predict(taemi, DATA), atol=1e-6)
    assert nothing is None
    _, weights = robustness.intensity_and_weights(dual_stage, DATA, batch_size=7)
    for row in range(len(DATA)):
        alone = dual_stage(**DATA.batch([row]).inputs()).weights[0].detach().numpy()
        mean = alone[alone.sum(axis=1) > 0.5].mean(axis=0)
        np.testing.assert_allclose(weights[row], mean, atol=1e-6)


class Encoded(dict):
    """Features by id, as a store gives them."""

    def length(self, id_):
        return 0 if self[id_] is None else len(self[id_])


def encode(modality, medium):
    """Plain arithmetic in place of encoders."""
    if medium is None:
        return None
    values = medium.astype(np.float32)
    return values.mean(axis=(2, 3)) if modality == "frames" else np.abs(values.reshape(-1, 4))


def encode_all(modality, corrupt, parts):
    pairs = zip(SPLITS.validation.ids, MEDIA[modality][12:], strict=True)
    return Encoded({i: None if m is None else encode(modality, corrupt(i, m)) for i, m in pairs})


def splits():
    """24 clips, the first 12 for training."""
    encoded = {m: [encode(m, medium) for medium in MEDIA[m]] for m in MEDIA}
    rest = {"text": DRAW.normal(size=(24, 5)), "target": DRAW.random((24, 2))}
    plain = FeatureSet.from_arrays(range(24), **encoded, **rest, frame_reference="first")
    data = plain.standardised(plain.select(range(12)).moments())
    return FeatureSplits(data.select(range(12)), data.select(range(12, 24)), data.select([0]), "x")


DRAW = np.random.default_rng(0)
MEDIA = {
    "frames": [pictures(steps) for steps in DRAW.integers(2, 6, 24)],
    "audio": list(DRAW.integers(-999, 999, (24, 64)).astype(np.int16)),
}
MEDIA["frames"][13] = None
SPLITS = splits()
NOISES = [MISSING[0], Corruption("white noise", "audio", 0.0), Corruption("blur", "frames", 0.1)]


def validation(corruption, kind):
    return robustness.corrupted(SPLITS, corruption, encode_all) if corruption else SPLITS.validation


def test_corrupted_media_are_encoded_again_and_the_rest_stays():
    clean = SPLITS.validation
    for corruption in NOISES[1:]:
        data = validation(corruption, "ours")
        for modality in ("frames", "audio"):
            pairs = zip(getattr(data, modality), getattr(clean, modality), strict=True)
            same = [np.array_equal(a, b) for a, b in pairs if a is not None]
            assert all(same) if modality != corruption.modality else not any(same)
        np.testing.assert_array_equal(data.text, clean.text)
        np.testing.assert_array_equal(data.present, clean.present)
    noisy = robustness.corrupt(NOISES[1], clean.ids[3], MEDIA["audio"][15])
    mean, spread = SPLITS.train.scaling["audio"]
    data = validation(NOISES[1], "ours")
    expected = (encode("audio", noisy) - mean) / spread
    np.testing.assert_allclose(data.scaled("audio", data.audio[3]), expected, rtol=1e-5)
    blur = encode("frames", robustness.corrupt(NOISES[2], clean.ids[3], MEDIA["frames"][15]))
    mean, spread = SPLITS.train.scaling["frames"]
    steps = validation(NOISES[2], "ours").batch([3]).frames[0]
    np.testing.assert_allclose(steps, (blur - blur[0] - mean) / spread, rtol=1e-4, atol=1e-4)


def test_models_are_measured_once_and_predict_of_clean_clips_what_they_did(tmp_path):
    cache, recipe = Cache(tmp_path), Recipe(epochs=1, batch_size=6, ema_decay=None)
    settings = {"TAEMI": {"width": 8}, "DualStage": SMALL}
    rows = [Experiment(name, name, args, recipe=recipe) for name, args in settings.items()]
    results = run(rows, (0, 1), {"ours": SPLITS}, cache, workers=1)
    queries = {key: [*settings] for key in (None, *NOISES)}
    measured = robustness.measure(results, queries, validation, cache)
    missing = robustness.without(SPLITS.validation, "frames", MISSING[0].level)
    for name in settings:
        clean, damaged = (measured.intensity[c, name] for c in (None, NOISES[0]))
        np.testing.assert_allclose(clean, results[name].predictions, atol=1e-5)
        expected = [predict(results.model(name, seed), missing) for seed in (0, 1)]
        np.testing.assert_allclose(damaged, expected, atol=1e-5)
    again = robustness.measure(results, queries, None, cache)  # nobody needs the clips any more
    np.testing.assert_equal(again.intensity, measured.intensity)
    assert set(measured.weights) == {(corruption, "DualStage") for corruption in queries}

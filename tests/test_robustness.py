"""Damage does what it says and nothing else; what it costs is paired, as in `metrics`."""

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve1d

from emilib import metrics, profiles
from emilib.cache import Cache
from emilib.features import FeatureSet, FeatureSplits
from emilib.models import TAEMI, DualStage
from emilib.plots import robustness_plots
from emilib.study import Recipe, experiments, predict, robustness
from emilib.study.experiments import Experiment
from emilib.study.robustness import CLAIMS, MISSING, SPOILT, Answers, Damage

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


# ------------------------------------------------------------------ missing, wrong words


def test_a_smaller_share_is_part_of_a_larger_one():
    masks = [robustness.chosen(40, share, seed=1) for share in (0.0, 0.25, 0.5, 1.0)]
    assert [mask.sum() for mask in masks] == [0, 10, 20, 40]
    for small, large in itertools.pairwise(masks):
        assert (large | ~small).all()
    assert (robustness.chosen(40, 0.5, 2) != masks[2]).any()
    with pytest.raises(ValueError, match=r"share: expected from 0 to 1, came 1\.5"):
        robustness.chosen(40, 1.5)


@pytest.mark.parametrize("modality", WIDTHS)
def test_no_clip_without_changes_nothing_and_all_are_as_never_given(modality):
    assert robustness.without(DATA, modality, 0.0).fingerprint() == DATA.fingerprint()
    column = list(WIDTHS).index(modality)
    gone = robustness.without(DATA, modality)
    half = robustness.without(DATA, modality, 0.5, seed=3)
    others = [m for m in WIDTHS if m != modality]
    assert gone.dims == DATA.dims
    assert not gone.present[:, column].any()
    np.testing.assert_array_equal(
        half.present[:, column], DATA.present[:, column] & ~robustness.chosen(len(DATA), 0.5, 3)
    )
    for model in models():
        never = predict(model, DATA.only(*others))
        np.testing.assert_allclose(predict(model, gone), never, atol=1e-6)
        mixed = np.where(robustness.chosen(20, 0.5, 3)[:, None], never, predict(model, DATA))
        np.testing.assert_allclose(predict(model, half), mixed, atol=1e-6)


def test_wrong_words_are_another_clips():
    wrong = robustness.wrong_words(DATA).text
    here = DATA.present[:, 2]
    np.testing.assert_array_equal(np.isnan(wrong), np.isnan(DATA.text))
    assert (wrong[here] != DATA.text[here]).any(axis=1).all(), "every clip has other words"
    order = np.lexsort(wrong[here].T), np.lexsort(DATA.text[here].T)
    np.testing.assert_array_equal(wrong[here][order[0]], DATA.text[here][order[1]])
    some = robustness.wrong_words(DATA, 0.25).text
    assert (some[here] != DATA.text[here]).any(axis=1).sum() == round(0.25 * here.sum())
    assert robustness.wrong_words(DATA, 0.0).fingerprint() == DATA.fingerprint()


def test_a_modality_the_set_lacks_is_refused():
    with pytest.raises(ValueError, match=r"modality: expected one of \['frames', 'text'\], came"):
        robustness.without(DATA.only("frames", "text"), "audio")


# ------------------------------------------------------------------ media


@pytest.mark.parametrize("snr", [20.0, 0.0, -10.0])
def test_noise_has_the_power_that_was_asked_for(snr):
    sound = np.rint(1000 * np.sin(np.arange(200_000) / 7)).astype(np.int16)
    noisy = robustness.with_noise(sound, snr, np.random.default_rng(0))
    assert noisy.dtype == np.int16
    noise = noisy.astype(float) - sound
    measured = 10 * np.log10(np.mean(sound.astype(float) ** 2) / np.mean(noise**2))
    assert measured == pytest.approx(snr, abs=0.05)
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.01, "white"


def test_silence_stays_silent_and_loud_noise_is_clipped():
    draw = np.random.default_rng(0)
    assert not robustness.with_noise(np.zeros(500, np.int16), 0.0, draw).any()
    assert len(robustness.with_noise(np.zeros(0, np.int16), 0.0, draw)) == 0
    loud = robustness.with_noise(np.full(5000, 30_000, np.int16), 0.0, draw)
    assert (loud.min(), loud.max()) == (-32768, 32767)


def pictures(steps=8, size=32):
    return np.random.default_rng(0).integers(0, 256, (steps, 3, size, size), dtype=np.uint8)


def test_blur_is_a_gaussian_over_each_picture():
    frames, sigma = pictures(), 0.05 * 32
    reach = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    expected = frames.astype(float)
    for axis in (2, 3):
        expected = convolve1d(expected, kernel / kernel.sum(), axis=axis, mode="nearest")
    blurred = robustness.blurred(frames, 0.05)
    assert blurred.dtype == np.uint8
    assert np.abs(blurred - expected).max() <= 0.51
    np.testing.assert_array_equal(robustness.blurred(frames, 0.0), frames)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_cover_is_one_grey_square_of_its_area(share):
    frames = pictures() // 2  # nothing is as light as the cover
    hidden = robustness.covered(frames, share, np.random.default_rng(1)) == robustness.GREY
    assert hidden.mean() == pytest.approx(share, abs=0.02)
    assert (hidden == hidden[:1, :1]).all(), "the same place in every frame and colour"
    rows, columns = hidden[0, 0].any(1), hidden[0, 0].any(0)
    np.testing.assert_array_equal(hidden[0, 0], rows[:, None] & columns)


def test_frames_lost_to_noise_are_some_and_the_others_stay():
    frames = pictures()
    for share, lost in ((0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)):
        noisy = robustness.noisy_frames(frames, share, np.random.default_rng(2))
        changed = (noisy != frames).any(axis=(1, 2, 3))
        assert changed.sum() == lost
        np.testing.assert_array_equal(noisy[~changed], frames[~changed])


@pytest.mark.parametrize("damage", [d for d in SPOILT if d.modality != "text"], ids=str)
def test_damage_depends_on_the_clip_and_the_seed_alone(damage):
    medium = pictures() if damage.modality == "frames" else pictures().ravel().astype(np.int16)
    before = medium.copy()
    first = robustness.spoil(damage, "00001", medium)
    np.testing.assert_array_equal(medium, before), "the media of the store stay as they are"
    assert first.shape == medium.shape
    assert first.dtype == medium.dtype
    np.testing.assert_array_equal(first, robustness.spoil(damage, "00001", medium))
    if damage.kind != "blur":
        assert (first != robustness.spoil(damage, "00002", medium)).any()
        assert (first != robustness.spoil(damage, "00001", medium, seed=1)).any()


# ------------------------------------------------------------------ what it comes to


def drawn_answers(seeds=3, count=40):
    draw = np.random.default_rng(5)
    target = draw.random((count, 2))
    damage = MISSING[1]
    pairs = [(d, n) for d in (None, damage) for n in ("first", "second")]
    intensity = {p: target + draw.normal(0, 1, (seeds, count, 2)) for p in pairs}
    weights = {p: draw.dirichlet((1, 1, 1), (seeds, count)) for p in pairs}
    present = {p: draw.random((count, 3)) < 0.9 for p in pairs}
    return Answers(target, intensity, weights, present), damage


def test_rho_and_cost_are_those_of_metrics():
    found, damage = drawn_answers()
    clean, spoilt = found.intensity[None, "first"], found.intensity[damage, "first"]
    assert found.rho((1, damage, "first")) == metrics.estimate(found.target, spoilt)
    ours, theirs = found.cost(damage, "first"), metrics.difference(found.target, spoilt, clean)
    for name in ("value", "sd", "low", "high"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=1e-12)


def test_difference_in_cost_is_that_of_two_costs_draw_by_draw():
    found, damage = drawn_answers()
    costs = [found.cost(damage, name) for name in ("first", "second")]
    less = found.cost_difference(damage, "first", "second")
    np.testing.assert_allclose(
        less.per_seed, np.subtract(costs[0].per_seed, costs[1].per_seed), atol=1e-12
    )
    drawn = sum(
        sign * metrics.resample(found.target, found.intensity[key]).mean(axis=(1, 2))
        for sign, key in (
            (1, (damage, "first")), (-1, (None, "first")),
            (-1, (damage, "second")), (1, (None, "second")),
        )
    )  # fmt: skip
    assert (less.low, less.high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))
    none = found.cost_difference(damage, "first", "first")
    assert max(abs(none.low), abs(none.high), abs(none.value)) < 1e-12


def test_the_change_of_a_weight_is_over_clips_that_keep_the_modality():
    found, damage = drawn_answers()
    column = list(WIDTHS).index(damage.modality)
    change = found.weight_change(damage, "first")
    rows = [
        n
        for n in range(40)
        if found.present[None, "first"][n, column] and found.present[damage, "first"][n, column]
    ]
    per_seed = [
        np.mean([after[n, column] - before[n, column] for n in rows])
        for before, after in zip(
            found.weights[None, "first"], found.weights[damage, "first"], strict=True
        )
    ]
    assert change.per_seed == pytest.approx(tuple(per_seed))
    assert change.low < change.value < change.high


def test_ask_gives_predictions_and_mean_weights():
    taemi, dual_stage = (model.eval() for model in models())
    intensity, weights = robustness.ask(taemi, DATA, batch_size=7)
    np.testing.assert_allclose(intensity, predict(taemi, DATA), atol=1e-6)
    assert weights is None
    _, weights = robustness.ask(dual_stage, DATA, batch_size=7)
    for row in range(len(DATA)):
        with torch.no_grad():
            alone = dual_stage(**DATA.batch([row]).inputs()).weights[0].numpy()
        mean = alone[alone.sum(axis=1) > 0.5].mean(axis=0)
        np.testing.assert_allclose(weights[row], mean, atol=1e-6)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(weights == 0, ~DATA.present)


def estimate(low, high, *per_seed):
    return metrics.Estimate(float(np.mean(per_seed)), 0.0, low, high, per_seed)


@pytest.mark.parametrize(
    ("number", "claimed", "said"),
    [
        (estimate(0.1, 0.3, 0.1, 0.3), 1, "as claimed"),
        (estimate(0.1, 0.3, 0.1, 0.3), -1, "the opposite"),
        (estimate(-0.3, -0.1, -0.1), -1, "as claimed"),
        (estimate(-0.1, 0.3, 0.1, 0.1), 1, "not told apart"),
        (estimate(0.1, 0.3, 0.5, -0.1), 1, "not told apart"),  # seeds disagree
    ],
)
def test_verdicts(number, claimed, said):
    assert robustness.verdict(number, claimed) == said


def test_claims_are_about_experiments_that_differ_in_one_setting():
    listed = experiments.experiments(profiles.get("embedded"))
    for claim in CLAIMS:
        first, second = listed[claim.first], listed[claim.second]
        assert (first.model, first.recipe, first.features) == (
            second.model,
            second.recipe,
            second.features,
        )
        assert len(set(first.model_args.items()) ^ set(second.model_args.items())) in (1, 2)
    asked = robustness.needed(CLAIMS, {"dual_stage_va": MISSING[:1]})
    assert "dual_stage_va" in asked[MISSING[0]]
    assert all(
        name in asked[damage]
        for claim in CLAIMS
        for name in (claim.first, claim.second)
        for damage in (None, *claim.damages)
    )


# ------------------------------------------------------------------ in a workspace


class Encoded(dict):
    """Features by id, as a store gives them."""

    def length(self, id_):
        return 0 if self[id_] is None else len(self[id_])


class Corpus:
    """What `robustness` needs of a workspace; its encoders are plain arithmetic."""

    def __init__(self, folder):
        draw, self.cache = np.random.default_rng(0), Cache(folder)
        self.media = {
            "frames": [pictures(int(steps)) for steps in draw.integers(2, 6, 24)],
            "audio": [draw.integers(-999, 999, 64).astype(np.int16) for _ in range(24)],
        }
        self.media["frames"][13] = None
        encoded = {m: [self.encode(m, medium) for medium in self.media[m]] for m in self.media}
        text, target = draw.normal(size=(24, 5)), draw.random((24, 2))
        self.plain = FeatureSet.from_arrays(range(24), **encoded, text=text, target=target)

    @staticmethod
    def encode(modality, medium):
        if medium is None:
            return None
        if modality == "frames":
            return medium.mean(axis=(2, 3)).astype(np.float32)
        return np.abs(medium.reshape(-1, 4).astype(np.float32))

    def features(self, kind="ours", stage="aligned", standardised=True):
        moments = self.plain.select(range(12)).moments()
        data = self.plain.standardised(moments) if standardised else self.plain
        parts = {"train": data.select(range(12)), "validation": data.select(range(12, 24))}
        test = data.select([0])
        return FeatureSplits(**parts, test=test, fingerprint="x", name="ours", moments=moments)

    def features_of(self, name):
        return self.features()

    def spoilt_features(self, stage, modality, spoil, parts):
        found = Encoded()
        for id_, medium in zip(self.plain.ids[12:], self.media[modality][12:], strict=True):
            spoilt = None if medium is None else spoil(id_, medium)
            found[id_] = self.encode(modality, spoilt)
        return found


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A corpus, results of two models, damages, and what the models say under them."""
    ws = Corpus(tmp_path_factory.mktemp("cache"))
    recipe = Recipe(epochs=1, batch_size=6, ema_decay=None)
    rows = [
        Experiment("taemi", "TAEMI", {"width": 8}, recipe=recipe),
        Experiment("dual", "DualStage", SMALL, recipe=recipe),
    ]
    results = experiments.run(rows, (0, 1), {"ours": ws.features()}, ws.cache, workers=1)
    damages = [MISSING[0], Damage("white noise", "audio", 0.0), Damage("blur", "frames", 0.1)]
    needed = robustness.needed(also=dict.fromkeys(("taemi", "dual"), damages))
    return ws, results, damages, needed, robustness.answers(ws, results, needed)


def test_damaged_media_are_encoded_again_and_the_rest_stays(asked):
    ws, _, damages, _, _ = asked
    clean = ws.features().validation
    for damage in damages[1:]:
        data = robustness.damaged(ws, damage)
        for modality in ("frames", "audio"):
            pairs = zip(getattr(data, modality), getattr(clean, modality), strict=True)
            same = [np.array_equal(a, b) for a, b in pairs if a is not None]
            assert all(same) if modality != damage.modality else not any(same)
        np.testing.assert_array_equal(data.text, clean.text)
        np.testing.assert_array_equal(data.present, clean.present)
    id_, moments = clean.ids[3], ws.features().moments["audio"]
    harmed = robustness.spoil(damages[1], id_, ws.media["audio"][15])
    expected = (ws.encode("audio", harmed) - moments[0]) / moments[1]
    np.testing.assert_allclose(robustness.damaged(ws, damages[1]).audio[3], expected, rtol=1e-5)


def test_models_are_asked_once_and_say_of_clean_clips_what_they_said(asked, monkeypatch):
    ws, results, damages, needed, found = asked
    assert list(needed) == [None, *damages]
    for name in ("taemi", "dual"):
        said = results[name].predictions
        np.testing.assert_allclose(found.intensity[None, name], said, atol=1e-5)
        missing = robustness.without(ws.features().validation, "frames", MISSING[0].level)
        for seed in (0, 1):
            expected = predict(results.model(name, seed), missing)
            given = found.intensity[damages[0], name][seed]
            np.testing.assert_allclose(given, expected, atol=1e-5)
    monkeypatch.setattr(robustness, "ask", None)  # a second time nobody is asked
    again = robustness.answers(ws, results, needed)
    for pair, predictions in found.intensity.items():
        np.testing.assert_array_equal(again.intensity[pair], predictions)
    assert set(found.weights) == {(damage, "dual") for damage in needed}


def test_tables_and_figures_have_a_row_and_a_panel_each(asked):
    _, _, damages, _, found = asked
    table = robustness.levels(found, {"taemi": "TAEMI", "dual": "dual-stage"}, damages)
    assert len(table) == 2 * (3 + 3), "the clean clips, and the damaged ones, of each kind"
    assert table.loc[table["level"].isna(), "cost"].eq(0).all()
    claim = robustness.Claim("A", "1", "something", "taemi", "dual", tuple(damages))
    tested = robustness.tested(found, [claim], {"taemi": "TAEMI", "dual": "dual-stage"})
    assert tested["damage"].tolist() == [str(damage) for damage in damages]
    expected = found.cost_difference(damages[1], "taemi", "dual")
    assert tested["value"].iloc[1] == expected.value
    changes = robustness.weight_changes(found, "dual", damages[1:])
    curves = robustness_plots.damage_curves(table, "curves", "a corpus")
    dots = robustness_plots.interval_dots(changes, "modality", "dots", "change", "a corpus")
    titles = [axes.get_title() for axes in curves.axes]
    assert titles == ["frames: missing", "audio: white noise", "frames: blur"]
    labels = [text.get_text() for text in dots.axes[0].get_yticklabels()]
    assert labels == changes["damage"].tolist()


def test_a_picture_of_damaged_media():
    frames = {"as it is": pictures(), "blur": robustness.blurred(pictures(), 0.1)}
    sounds = {"as it is": np.arange(-800, 800, dtype=np.int16)}
    figure = robustness_plots.spoilt_media(frames, sounds, 16_000, "a corpus")
    assert [axes.get_ylabel() for axes in figure.axes] == ["as it is", "blur", "as it is"]

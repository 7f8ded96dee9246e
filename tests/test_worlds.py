import numpy as np
import pandas as pd
import pytest

from emilib import metrics
from emilib.cache import Cache
from emilib.plots import verdicts
from emilib.study import worlds
from emilib.study.worlds import Size, clips_of

DIALS, SPLITS = (0.0, 0.5, 1.0), ("train", "test")
TINY = Size(24, 12, 20, epochs=1, batch_size=12, dials=(0.0, 1.0), seeds=(0, 1))


def named_values(clips):
    """By a plain loop: the value of the frame whose key is nearest to the words, and how near."""
    values, distances = [], []
    for frames, text in zip(clips.frames, clips.text, strict=True):
        away = [np.linalg.norm(frame[:-1] - text[: worlds.KEY]) for frame in frames]
        values.append(frames[int(np.argmin(away)), -1])
        distances.append(min(away))
    return np.array(values), np.array(distances)


@pytest.mark.parametrize("dial", DIALS)
def test_selection_goes_from_the_mean_to_the_named_moment(dial):
    clips = clips_of("selection", dial, 6000, "test")
    values, distances = named_values(clips)
    assert distances.max() < 1e-5, "the words have the key of a frame"
    label, mean = clips.target[:, 0], np.array([frames[:, -1].mean() for frames in clips.frames])
    assert label.var() == pytest.approx(1 + 1 + 2.25 + 0.25, rel=0.08), "the same at every dial"
    # Least squares of the label on both finds the weights that the dial says.
    told = (1 - dial) * np.sqrt(worlds.STEPS) * mean + dial * values
    columns = np.stack([np.sqrt(worlds.STEPS) * mean, values], axis=1)
    weights = np.linalg.lstsq(columns, label, rcond=None)[0]
    np.testing.assert_allclose(weights, np.array([1 - dial, dial]) * 1.5 / told.std(), atol=0.1)


def test_who_knows_says_where_the_key_is_and_a_share_of_clips_lacks_one_modality():
    for dial in DIALS:
        present = clips_of("missing", dial, 3000, "test").present
        assert set(present.sum(axis=1)) <= {2, 3}
        np.testing.assert_allclose(1 - present.mean(axis=0), dial / 3, atol=0.03)
        clips = clips_of("who_knows", dial, 3000, "test")
        words = named_values(clips)[1] < 1e-5
        heard = np.stack(clips.audio)[:, 0]
        keys = np.stack(clips.frames)[:, :, :-1]
        sound = np.linalg.norm(keys - heard[:, None], axis=2).min(axis=1) < 1e-5
        np.testing.assert_array_equal(words, ~sound)
        assert sound.mean() == pytest.approx(dial, abs=0.03)


def test_the_size_of_the_noise_can_be_read_and_words_share_more_with_the_dial():
    for dial in DIALS:
        clips = clips_of("reliability", dial, 4000, "test")
        for x in (np.concatenate(clips.frames), np.concatenate(clips.audio), clips.text):
            steps = len(x) // len(clips)
            noise = x[:, 0] - np.repeat(clips.target[:, 0], steps)
            assert (noise / np.exp(1.5 * x[:, 1])).std() == pytest.approx(2, rel=0.05)
            assert x[:, 1].std() == pytest.approx(dial / 3**0.5, rel=0.05, abs=1e-6)
    shares = []
    for dial in DIALS:
        clips = clips_of("alignment", dial, 3000, "test")
        fit = np.linalg.lstsq(clips.text, clips.target[:, 0], rcond=None)[0]
        shares.append(metrics.mean_pearson(clips.target, (clips.text @ fit)[:, None]) ** 2)
    # Noise of the size of a factor leaves half of what is shared: 1.5 of 3, and 0.25 is noise.
    np.testing.assert_allclose(shares, np.array(DIALS) * 1.5 / 3.25, atol=0.05)


def test_the_map_is_trained_once_and_every_claim_has_its_dials(tmp_path, monkeypatch):
    table = worlds.measure(Cache(tmp_path), TINY, workers=1)
    train, test = (clips_of("selection", 0.5, 30, split).fingerprint() for split in SPLITS)
    clips_of.cache_clear()
    assert train == clips_of("selection", 0.5, 30, SPLITS[0]).fingerprint() != test
    assert len(table) == len(worlds.CLAIMS) * len(TINY.dials)
    assert set(table["world"]) == set(worlds.WORLDS)
    assert np.isfinite(table[["value", "low", "high", "rho"]]).all(axis=None)
    assert (table["value"] != 0).any(), "the two of a claim are trained apart"
    monkeypatch.setattr(worlds, "train", None)
    pd.testing.assert_frame_equal(worlds.measure(Cache(tmp_path), TINY, workers=1), table)


def test_differences_are_paired_and_have_their_words(monkeypatch):
    size, draw = Size(test=3000, dials=(0.0,), seeds=(0, 1, 2)), np.random.default_rng(0)
    names = ["better", "worse", "same", "wild"]
    claims = [(name, "selection", name, "plain") for name in names]
    claims = pd.DataFrame(claims, columns=["mechanism", "world", "first", "second"])
    monkeypatch.setattr(worlds, "CLAIMS", claims)
    target = clips_of("selection", 0.0, 3000, "test").target
    plain = target + draw.normal(0, 2, (3, 3000, 1))
    noise = {"better": 0.7, "worse": 1.5, "same": 1.0}
    predictions = {n: target + share * (plain - target) for n, share in noise.items()}
    predictions["wild"] = target + draw.normal(0, 1, (3, 1, 1)) * (plain - target) * 2
    predictions["plain"] = plain
    predictions = {("selection", 0.0, n): list(p) for n, p in predictions.items()}
    table = worlds.compare(predictions, size).set_index("mechanism")
    assert table["verdict"].tolist() == ["pays", "costs", "below .01", "not resolved"]
    first, second = (np.stack(predictions["selection", 0.0, n]) for n in ("better", "plain"))
    gap = metrics.difference(target, first, second)
    for name in ("value", "low", "high"):
        assert table.loc["better", name] == pytest.approx(getattr(gap, name), abs=1e-12)


CELLS = [
    ("A: gate", "selection", "0", -0.004, "below .01"),
    ("A: gate", "selection", "1", 0.2, "pays"),
    ("B: tokens", "missing", "1", -0.25, "costs"),
]


def test_a_matrix_draws_each_cell_once_with_its_colour():
    cells = pd.DataFrame(CELLS, columns=["row", "group", "column", "value", "verdict"])
    figure = verdicts.matrix(cells, verdicts.summary(cells), "worlds")
    axes = figure.axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["−.004", "+.20", "−.25", "selection", "missing"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["A: gate", "B: tokens"]
    assert len({patch.get_facecolor() for patch in axes.patches}) == 3
    assert figure.texts[0].get_text() == verdicts.summary(cells)

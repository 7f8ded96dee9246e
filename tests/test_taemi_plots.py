"""Numbers behind the figures of paper B and of all tables, and that the figures draw them."""

import types

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import entropy

from emilib.features import FeatureSet
from emilib.metrics import mean_pearson
from emilib.models import TAEMI
from emilib.plots import taemi_plots

CORPUS = "embedded corpus: drawn faces, synthetic voices"


def attention(clips=2, heads=3, steps=5, seed=0):
    weights = np.random.default_rng(seed).random((clips, heads, steps))
    return weights / weights.sum(-1, keepdims=True)


def test_seven_subsets_single_ones_first():
    found = taemi_plots.subsets()
    assert len(found) == len(set(found)) == 7
    assert [len(s) for s in found] == [1, 1, 1, 2, 2, 2, 3]


def test_used_share_is_the_perplexity_over_the_steps():
    weights = attention()[0]
    expected = np.exp(entropy(weights, axis=1)) / 5
    np.testing.assert_allclose(taemi_plots.used_share(weights), expected)
    ends = taemi_plots.used_share(np.array([[1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]], "float32"))
    np.testing.assert_allclose(ends, [0.25, 1.0, 0.5])
    assert ends.max() <= 1


def test_subset_rho_is_that_of_the_model_with_the_others_absent():
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    data = FeatureSet.from_arrays(
        range(12),
        frames=[random.normal(size=(4, 3)) for _ in range(12)],
        audio=[random.normal(size=(6, 4)) for _ in range(12)],
        text=random.normal(size=(12, 5)),
        target=random.random((12, 6)),
    )
    trained = {
        0: TAEMI(3, 4, 5, width=8, heads=2).eval(),
        1: TAEMI(3, 4, 5, width=8, heads=2).eval(),
    }

    class Kept(dict):
        def model(self, name, seed):
            return trained[seed]

    results = Kept(taemi=types.SimpleNamespace(seeds=(0, 1)))
    table = taemi_plots.subset_rho(results, {"taemi": "full"}, data).set_index("input")
    assert list(table.index) == ["V", "A", "T", "V+A", "V+T", "A+T", "V+A+T"]
    batch = data.batch(range(12))
    present = torch.tensor([[True, False, True]]).expand(12, 3)
    with torch.no_grad():
        inputs = batch.inputs() | {"present": present}
        rho = [mean_pearson(data.target, m(**inputs).intensity.numpy()) for m in trained.values()]
    assert table.loc["V+T", "rho"] == pytest.approx(np.mean(rho), abs=1e-6)
    assert table.loc["V+T", "sd"] == pytest.approx(np.std(rho, ddof=1), abs=1e-6)


def rows():
    columns = ["row", "reference", "paper", "here", "low", "high"]
    table = pd.DataFrame(
        [
            ["worse", "full", 0.45, 0.30, 0.25, 0.35],
            ["noisy", "full", 0.48, 0.39, 0.3, 0.5],
            ["better", "full", 0.52, 0.60, 0.5, 0.7],
            ["full", "full", 0.55, 0.40, 0.3, 0.5],
            ["not trained", "full", 0.50, np.nan, np.nan, np.nan],
        ],
        columns=columns,
    )
    table["delta_paper"] = table["paper"] - 0.55
    table["delta_here"] = [-0.1, -0.01, 0.2, np.nan, np.nan]
    table["delta_low"] = [-0.15, -0.05, 0.1, np.nan, np.nan]
    table["delta_high"] = [-0.05, 0.03, 0.3, np.nan, np.nan]
    partitions = pd.DataFrame({"row": ["Train"], "clips": [3.0]})
    return taemi_plots.all_rows({"A1": partitions, "B3": table})


def test_verdicts_go_by_the_interval_and_then_by_the_sign():
    found = taemi_plots.verdicts(rows())
    assert found["difference"].tolist() == ["worse − full", "noisy − full", "better − full"]
    expected = ["same direction", "not told apart", "other direction"]
    assert found["verdict"].tolist() == expected
    assert set(found["table"]) == {"B3"}


def test_all_rows_leaves_out_what_has_no_results():
    assert rows()["table"].tolist() == ["B3"] * 5


def clip(**change):
    random = np.random.default_rng(0)
    whole = {
        "title": "clip 00001: “a rather long sentence that has to be broken into lines”",
        "frames": random.integers(0, 255, (9, 3, 8, 8)).astype("uint8"),
        "waveform": random.integers(-900, 900, 16_000).astype("int16"),
        "seconds": 1.0,
        "attention": {"frames": attention(1, 4, 9)[0], "audio": attention(1, 4, 25)[0]},
    }
    return whole | change


def test_attention_is_drawn_over_its_uniform_value():
    faceless = clip(frames=None, attention={"frames": None, "audio": attention(1, 4, 25)[0]})
    figure = taemi_plots.attention_clips([clip(), faceless], 16_000, CORPUS)
    drawn = [a for a in figure.axes if len(a.patches) == 5]  # four heads and their mean
    assert len(drawn) == 3
    mean = drawn[0].patches[-1].get_data().values
    np.testing.assert_allclose(mean, 9 * clip()["attention"]["frames"].mean(axis=0))
    texts = [t.get_text() for a in figure.axes for t in a.texts]
    assert sorted(texts) == ["no face in this clip", "the token is all there is"]


def test_histogram_shares_sum_to_one_in_each_panel():
    table = pd.DataFrame(
        {"modality": ["frames"] * 3 + ["audio"] * 5, "head": 1, "share": [1, 1, 0.2, *[0.5] * 5]}
    )
    for panel in taemi_plots.focus(table, CORPUS).axes:
        assert sum(bar.get_height() for bar in panel.patches) == pytest.approx(1)


def test_dropout_bars_are_the_shares_drawn():
    replaced = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 0]], bool)
    left, right = taemi_plots.dropout_counts(replaced, 0.1).axes
    assert [bar.get_height() for bar in left.patches] == [0.5, 0.25, 0.25]
    assert [bar.get_height() for bar in right.patches] == [0.5, 0.25, 0, 0.25]


def test_the_other_figures_draw_what_they_are_given():
    weights, valid = attention(), np.arange(5) < np.array([[5], [3]])
    assert len(taemi_plots.attention_rows(weights, valid).axes) == 3  # two clips, a colour bar
    runs = [pd.DataFrame({"step": [2, 4], "lr": [0.5, 0.2]})] * 2
    rates = taemi_plots.learning_rate(np.array([0, 0.5, 1, 0.2]), runs, 2).axes[0]
    np.testing.assert_allclose(rates.lines[1].get_ydata(), [0.5, 0.2])
    table = pd.DataFrame(
        {"model": ["full", "full"], "input": ["V", "T"], "rho": [0.1, 0.4], "sd": 0}
    )
    dots = taemi_plots.subset_dots(table, CORPUS).axes[0]
    assert [label.get_text() for label in dots.get_yticklabels()] == ["V", "T"]
    points = taemi_plots.against(rows(), CORPUS).axes[0].containers[0]
    np.testing.assert_allclose(points.lines[0].get_ydata().astype(float), [0.30, 0.39, 0.60, 0.40])

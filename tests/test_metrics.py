"""Metrics against SciPy and against loops a reader can follow."""

import numpy as np
import pytest
from scipy import stats

from emilib.metrics import difference, estimate, mean_pearson, pearson, resample


@pytest.fixture
def scores():
    generator = np.random.default_rng(0)
    target = np.clip(generator.normal(0.1, 0.4, (80, 6)).round(1), 0, 1)  # many zeros and ties
    predictions = 0.5 * target + generator.normal(0, 0.3, (3, 80, 6))
    return target, predictions


def test_pearson_is_scipys(scores):
    target, predictions = scores
    expected = stats.pearsonr(target, predictions[0], axis=0).statistic
    np.testing.assert_allclose(pearson(target, predictions[0]), expected, atol=1e-12)
    assert mean_pearson(target, predictions[0]) == pytest.approx(expected.mean(), abs=1e-12)


@pytest.mark.parametrize("scale", [-1.0, 1e-200, 1e150])
def test_scale_does_not_matter(scores, scale):
    target, (prediction, *_) = scores
    expected = np.sign(scale) * pearson(target, prediction)
    np.testing.assert_allclose(pearson(target, scale * prediction), expected, atol=1e-12)
    narrow = (1 + 1e-5 * prediction).astype(np.float32)  # one pass in float32 would lose it
    exact = stats.pearsonr(target, narrow.astype(float), axis=0).statistic
    np.testing.assert_allclose(pearson(target, narrow), exact, atol=1e-9)
    ends = pearson(target, scale * target)
    np.testing.assert_allclose(ends, np.sign(scale), atol=1e-12)
    assert np.abs(ends).max() <= 1.0


@pytest.mark.parametrize("constant", [0.1, 1e9])
def test_constant_columns_have_zero(scores, constant):
    target, predictions = scores
    prediction = predictions[0].copy()
    prediction[:, 2] = constant
    assert pearson(target, prediction)[2] == pearson(prediction, target)[2] == 0.0
    assert (resample(target, prediction, 50)[:, :, 2] == 0).all()


def test_resampling_is_the_naive_loop(scores):
    target, predictions = scores
    got = resample(target, predictions, resamples=40, seed=3)
    drawn = np.random.default_rng(3).integers(0, 80, (40, 80))
    for r, rows in enumerate(drawn):
        for s in range(3):
            expected = stats.pearsonr(target[rows], predictions[s][rows], axis=0).statistic
            np.testing.assert_allclose(got[r, s], expected, atol=1e-10)
    alone = resample(target[:, [2]], predictions[..., [2]], resamples=40, seed=3)
    np.testing.assert_allclose(alone, got[..., [2]], atol=1e-12)


def test_interval_is_scipys_percentile_bootstrap(scores):
    target, predictions = scores

    def statistic(rows):
        return mean_pearson(target[rows], predictions[0][rows])

    settings = {"vectorized": False, "n_resamples": 1500, "method": "percentile", "rng": 5}
    expected = stats.bootstrap((np.arange(80),), statistic, **settings).confidence_interval
    got = estimate(target, predictions[0], resamples=4000)
    assert got.low == pytest.approx(expected.low, abs=0.01)
    assert got.high == pytest.approx(expected.high, abs=0.01)
    assert np.isnan(got.sd)
    each = [mean_pearson(target, p) for p in predictions]
    over_seeds = estimate(target, predictions, resamples=200)
    assert over_seeds.per_seed == pytest.approx(each)
    assert (over_seeds.value, over_seeds.sd) == pytest.approx((np.mean(each), np.std(each, ddof=1)))


def test_difference_is_paired(scores):
    target, predictions = scores
    worse = predictions + np.random.default_rng(7).normal(0, 0.05, predictions.shape)
    same = difference(target, predictions, predictions, resamples=100)
    assert (same.value, same.low, same.high, same.sd) == (0.0, 0.0, 0.0, 0.0)
    got = difference(target, predictions, worse, resamples=500)
    pairs = zip(predictions, worse, strict=True)
    each = [mean_pearson(target, a) - mean_pearson(target, b) for a, b in pairs]
    assert got.per_seed == pytest.approx(each)
    alone = estimate(target, predictions, resamples=500)
    # The same clips are hard for both, so the paired interval is much the narrower.
    assert got.high - got.low < 0.5 * (alone.high - alone.low)
    back = difference(target, worse, predictions, resamples=500)
    assert back.value == pytest.approx(-got.value)
    assert back.low == pytest.approx(-got.high)


def test_bad_input_is_refused(scores):
    target, predictions = scores
    with_nan = target.copy()
    with_nan[3, 1] = np.nan
    with pytest.raises(ValueError, match="target: expected finite numbers"):
        pearson(with_nan, predictions[0])
    for part in (np.s_[:1], np.s_[:, 0]):
        with pytest.raises(ValueError, match=r"shape \(N, E\)"):
            pearson(target[part], predictions[0][part])
    with pytest.raises(ValueError, match=r"shape \(N, E\)"):
        pearson(target, predictions[0][:, :5])
    with pytest.raises(ValueError, match="same seeds"):
        difference(target, predictions, predictions[:2])

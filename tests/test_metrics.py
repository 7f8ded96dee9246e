import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as scores_of

from emilib import metrics
from emilib.metrics import estimate, holm, mean_pearson, pearson, resample


@pytest.fixture
def scores():
    generator = np.random.default_rng(0)
    target = np.clip(generator.normal(0.1, 0.4, (80, 6)).round(1), 0, 1)  # many zeros and ties
    predictions = 0.5 * target + generator.normal(0, 0.3, (3, 80, 6))
    return target, predictions


@pytest.mark.parametrize("scale", [-1.0, 1e-200, 1e150])
def test_pearson_is_scipys_at_any_scale(scores, scale):
    target, (prediction, *_) = scores
    expected = np.sign(scale) * stats.pearsonr(target, prediction, axis=0).statistic
    assert mean_pearson(target, scale * prediction) == pytest.approx(expected.mean(), abs=1e-12)
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


def test_difference_is_paired_and_its_interval_the_naive_loop(scores):
    target, predictions = scores
    worse = predictions + np.random.default_rng(7).normal(0, 0.05, predictions.shape)
    same = metrics.difference(target, predictions, predictions, resamples=100)
    assert (same.value, same.low, same.high, same.sd) == (0.0, 0.0, 0.0, 0.0)
    got = metrics.difference(target, predictions, worse, resamples=500)
    pairs = zip(predictions, worse, strict=True)
    each = [mean_pearson(target, a) - mean_pearson(target, b) for a, b in pairs]
    assert got.per_seed == pytest.approx(each)
    alone = estimate(target, predictions, resamples=500)
    rho = [mean_pearson(target, p) for p in predictions]
    assert (alone.value, alone.sd) == pytest.approx((np.mean(rho), np.std(rho, ddof=1)))
    assert np.isnan(estimate(target, predictions[0], resamples=9).sd)
    # The same clips are hard for both, so the paired interval is much the narrower.
    assert got.high - got.low < 0.5 * (alone.high - alone.low)
    target, predictions = scores
    worse = predictions + np.random.default_rng(7).normal(0, 0.3, predictions.shape)
    got = metrics.difference(target, predictions, worse, resamples=60, seed=4)
    clips = np.random.default_rng(4).integers(0, 80, (60, 80))
    generator, gaps = np.random.default_rng([4, 1]), []
    seeds = generator.integers(0, 3, (60, 3))
    for rows, chosen in zip(clips, seeds, strict=True):
        pairs = [(mean_pearson(target[rows], a[rows]), mean_pearson(target[rows], b[rows]))
                 for a, b in zip(predictions, worse, strict=True)]  # fmt: skip
        deviation = np.mean([got.per_seed[s] - got.value for s in chosen])
        gaps.append((np.mean([a - b for a, b in pairs]), np.sqrt(3 / 2) * deviation))
    of_seeds, of_clips = got.sd**2 / 3, np.var([gap for gap, _ in gaps])
    df = 2 * ((of_seeds + of_clips) / of_seeds) ** 2
    student = np.sqrt(df / generator.chisquare(df, 60))
    drawn = [got.value + t * (a + b - got.value) for (a, b), t in zip(gaps, student, strict=True)]
    assert (got.low, got.high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))
    beyond = min(sum(d <= 0 for d in drawn), sum(d >= 0 for d in drawn))
    assert got.p == pytest.approx(2 * (1 + beyond) / 61)
    alone = metrics.difference(target, predictions[:1], worse[:1], resamples=60, seed=4)
    only = [mean_pearson(target[rows], predictions[0][rows])
            - mean_pearson(target[rows], worse[0][rows]) for rows in clips]  # fmt: skip
    assert (alone.low, alone.high) == pytest.approx(tuple(np.percentile(only, [2.5, 97.5])))


@pytest.mark.parametrize(
    ("seeds", "share", "least"),  # of the variance of the mean, what the seeds make of it
    [(1, 0, 0.92), (2, 0.25, 0.9), (3, 0.5, 0.92), (3, 1, 0.92), (5, 0.5, 0.92), (5, 1, 0.92)],
)
def test_intervals_cover_the_truth_where_clips_and_seeds_vary(seeds, share, least):
    draw, clips, worlds, inside, chances = np.random.default_rng(0), 60, 400, 0, []
    for _ in range(worlds):
        of_clips = draw.normal(0, np.sqrt((1 - share) * clips), clips)
        of_seeds = draw.normal(0, np.sqrt(share * seeds), (seeds, 1))
        values = of_clips + of_seeds
        rows = draw.integers(0, clips, (500, clips))
        got = metrics.summarise(values.mean(axis=1), values.mean(axis=0)[rows].mean(axis=1))
        inside += got.low <= 0 <= got.high
        chances.append(got.p)
    assert least <= inside / worlds <= 0.98
    assert np.mean(np.array(chances) < 0.05) <= 1.02 - least


def test_holm_is_the_loop_of_its_definition_and_verdicts_need_the_whole_family():
    draw = np.random.default_rng(0)
    for p in (draw.random(9) ** 3, np.array([0.01, 0.01, 0.04]), np.array([])):
        corrected = holm([*p[:2], np.nan, *p[2:]])
        expected, highest = {}, 0.0
        for k, row in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
            highest = max(highest, min(1.0, p[row] * (len(p) - k)))
            expected[row] = highest
        without = np.delete(corrected, min(2, len(p)))
        np.testing.assert_allclose(without, [expected[i] for i in range(len(p))])
        assert np.isnan(corrected).sum() == 1
    values, claimed = [0.1, -0.1, np.nan, 0.1], [1.0, 0.3, 1.0, np.nan]
    words = ["as claimed", "the opposite", "", "resolved"]
    assert metrics.verdict(values, [0.001, 0.002, np.nan, 0.003], claimed).tolist() == words
    assert metrics.verdict([0.1], [0.03], 1).tolist() == ["as claimed"]
    assert metrics.verdict([0.1, 0.1], [0.03, 0.9], 1).tolist() == ["not resolved"] * 2


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
        metrics.difference(target, predictions, predictions[:2])


def test_measures_of_sentiment_are_scikit_learns():
    target, prediction = 2 * np.random.default_rng(0).normal(size=(2, 80))
    target[:9], prediction[3] = 0, -7
    result = metrics.sentiment(target, prediction[:, None])
    assert result["MAE"] == pytest.approx(scores_of.mean_absolute_error(target, prediction))
    polar = target != 0
    forms = {"neg/not": (target >= 0, prediction >= 0)}
    forms["neg/pos"] = (target[polar] > 0, prediction[polar] > 0)
    for form, pair in forms.items():
        assert result[f"Acc-2, {form}"] == pytest.approx(scores_of.accuracy_score(*pair))
        assert result[f"F1, {form}"] == pytest.approx(scores_of.f1_score(*pair, average="weighted"))
    seven = [np.round(np.clip(values, -3, 3)).astype(int) for values in (target, prediction)]
    assert result["Acc-7"] == pytest.approx(scores_of.accuracy_score(*seven))

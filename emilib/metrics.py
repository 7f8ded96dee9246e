"""Pearson's ρ as both papers define it (A, 4.2; B, 4.1), its uncertainty, and what is resolved.
Dimension key: N clips, E emotions, S seeds, R resamples. Predictions are (S, N, E), or (N, E) for
one seed. All is float64 and in two passes."""

import dataclasses
import functools

import numpy as np

RESAMPLES = 4000  # p can be as small as 2 / 4001: below .05 in a family of a hundred tests
LEVEL = 0.05  # of a verdict, over the whole family of differences


def pearson(target, prediction) -> np.ndarray:
    """Pearson's correlation of each emotion: ρ_i = cov(y_i, ŷ_i) / sqrt(var(y_i) var(ŷ_i)).

    target, prediction : (N, E), N at least 2; returns (E,) in [-1, 1]

    Where a column of the target or of the prediction is constant the papers' quotient is 0/0; here
    ρ is 0. Raises ValueError for shapes that disagree, fewer than 2 clips, NaN or infinity.
    """
    target, (prediction,) = _checked(target, np.asarray(prediction)[None])
    return np.clip((_unit(target) * _unit(prediction)).sum(axis=0), -1.0, 1.0)


def mean_pearson(target, prediction) -> float:
    """Mean of `pearson` over the emotions: the measure of every table of both papers."""
    return float(pearson(target, prediction).mean())


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with what is known of its uncertainty."""

    value: float  # mean over seeds
    sd: float  # standard deviation over seeds (n - 1), NaN for one: what another seed changes
    low: float  # 95 % two-level bootstrap interval: what other clips and seeds change
    high: float
    p: float  # two-sided, that the number is 0; of one test alone, see `holm`
    per_seed: tuple[float, ...]


def summarise(per_seed: np.ndarray, resampled: np.ndarray, seed=0, bound=np.inf) -> Estimate:
    """An `Estimate` by a two-level bootstrap: clips with replacement, and seeds with replacement.

    per_seed : the number of each seed on all clips (S,); of a difference, seed by seed
    resampled : its mean over seeds on drawn clips (R,), the same draws for both sides

    A draw's seeds add their mean deviation from the mean of all S, times sqrt(S / (S - 1)), which
    restores their variance. Few seeds say little about their spread: deviations are divided by
    sqrt(χ²/df), as Student's t is, with Welch and Satterthwaite's df, S - 1 where seeds make all of
    the variance and more where clips do. With one seed the interval is over clips alone. It
    ends at ± `bound`, all that the number can be. p is twice the smaller share of draws on either
    side of 0.
    """
    per_seed, count = np.asarray(per_seed, float), len(per_seed)
    value = per_seed.mean()
    if count > 1:
        generator, of_seeds = np.random.default_rng([seed, 1]), per_seed.var(ddof=1) / count
        drawn = generator.integers(0, count, (len(resampled), count))
        deviations = (per_seed - value) * np.sqrt(count / (count - 1))
        share = of_seeds / ((of_seeds + resampled.var()) or 1.0)
        df = (count - 1) / max(share, 1e-3) ** 2
        spread = np.sqrt(df / generator.chisquare(df, len(resampled)))
        resampled = value + spread * (resampled - value + deviations[drawn].mean(axis=1))
    low, high = np.percentile(resampled, [2.5, 97.5]).clip(-bound, bound).tolist()
    fewer = min((resampled <= 0).sum(), (resampled >= 0).sum())
    p = min(1.0, 2 * (1 + int(fewer)) / (len(resampled) + 1))
    sd = float(per_seed.std(ddof=1)) if count > 1 else np.nan
    return Estimate(float(value), sd, low, high, p, tuple(per_seed.tolist()))


def holm(p) -> np.ndarray:
    """p-values (T,) of a family, NaN for no test, by Holm: ordered, times the tests left."""
    p = np.asarray(p, float)
    order, tests = np.argsort(p), np.isfinite(p).sum()  # NaN comes last
    corrected = np.full(len(p), np.nan)
    left = tests - np.arange(tests)
    corrected[order[:tests]] = np.minimum(1, np.maximum.accumulate(p[order[:tests]] * left))
    return corrected


def verdict(values, p, claimed=np.nan) -> np.ndarray:
    """In words (T,): the verdicts on all differences of one family, such as those of a table.

    values, p : (T,) differences and their p-values, as `Estimate` has them
    claimed : the difference, or the sign, that is claimed, of each or of all; NaN for no claim

    "not resolved" unless p is below `LEVEL` after `holm`; else "as claimed" or "the opposite", and
    "resolved" without a claim; "" for NaN.
    """
    agree = np.sign(values) * np.sign(claimed)
    cases = [np.isnan(values), ~(holm(p) < LEVEL), agree > 0, agree < 0]
    return np.select(cases, ["", "not resolved", "as claimed", "the opposite"], "resolved")


def resample(target, predictions, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """ρ of each emotion on clips drawn with replacement, (R, S, E), by one matrix product."""
    target, predictions = _checked(target, predictions)
    clips, y, p = len(target), _unit(target)[None], _unit(predictions)
    # Means of all products that ρ needs, of unit columns, which float64 can hold: (R, K, E).
    columns = np.concatenate([y, y * y, p, p * p, p * y])
    means = _draws(clips, resamples, seed) @ np.swapaxes(columns, 0, 1).reshape(clips, -1) / clips
    means = means.reshape(resamples, *columns[:, 0].shape)
    parts = np.cumsum([1, 1, len(p), len(p)])
    mean_y, square_y, mean_p, square_p, product = np.split(means, parts, axis=1)
    var_y, var_p = square_y - mean_y**2, square_p - mean_p**2
    covariance = product - mean_p * mean_y
    # Below this share of its mean square a variance is rounding: the draw is constant.
    constant = (var_y <= 1e-12 * square_y) | (var_p <= 1e-12 * square_p)
    scale = np.sqrt(np.where(constant, 1.0, var_y * var_p))
    return np.where(constant, 0.0, np.clip(covariance / scale, -1.0, 1.0))


@functools.lru_cache(maxsize=2)
def _draws(clips: int, resamples: int, seed: int) -> np.ndarray:
    """How often each clip is in each draw, (R, N)."""
    drawn = np.random.default_rng(seed).integers(0, clips, (resamples, clips))
    cells = (drawn + np.arange(resamples)[:, None] * clips).ravel()
    return np.bincount(cells, minlength=drawn.size).reshape(drawn.shape).astype(float)


def measure(target, predictions, resamples: int = RESAMPLES, seed: int = 0):
    """Mean ρ over emotions of each seed, on all clips (S,) and on drawn clips (R, S)."""
    target, predictions = _checked(target, predictions)
    per_seed = np.array([mean_pearson(target, p) for p in predictions])
    return per_seed, resample(target, predictions, resamples, seed).mean(axis=2)


def estimate(target, predictions, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Mean ρ over emotions and seeds, with its spread over seeds and its interval."""
    per_seed, drawn = measure(target, predictions, resamples, seed)
    return summarise(per_seed, drawn.mean(axis=1), seed, bound=1)


def difference(target, first, second, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Mean ρ of `first` minus that of `second`, paired over seeds, as many of both, and clips."""
    (a, a_drawn), (b, b_drawn) = (measure(target, p, resamples, seed) for p in (first, second))
    if len(a) != len(b):
        raise ValueError(f"expected the same seeds for both, got {len(a)} and {len(b)}")
    return summarise(a - b, (a_drawn - b_drawn).mean(axis=1), seed, bound=2)


def sentiment(target, prediction) -> dict[str, float]:
    """What is reported of one sentiment, from negative to positive, beside ρ.

    target, prediction : (N, 1) or (N,)

    MAE; accuracy and F1, weighted by class, of negative or not, and of negative or positive without
    the targets that are 0; accuracy of the seven whole numbers from -3 to 3. All as MMSA has them.
    """
    y, p = (np.asarray(values, float).reshape(-1, 1) for values in (target, prediction))
    result = {"ρ": mean_pearson(y, p), "MAE": np.abs(y - p).mean()}
    forms = {"neg/not": (y >= 0, p >= 0), "neg/pos": (y[y != 0] > 0, p[y != 0] > 0)}
    for form, (true, called) in forms.items():
        sides = [(true == side, called == side) for side in (False, True)]
        f1 = [t.mean() * 2 * (t & c).sum() / max(1, t.sum() + c.sum()) for t, c in sides]
        result |= {f"Acc-2, {form}": (true == called).mean(), f"F1, {form}": sum(f1)}
    y7, p7 = (np.clip(values, -3, 3).round() for values in (y, p))
    return {name: float(x) for name, x in {**result, "Acc-7": (y7 == p7).mean()}.items()}


def _checked(target, predictions) -> tuple[np.ndarray, np.ndarray]:
    """(N, E) and (S, N, E), where predictions of one seed may be (N, E); float64."""
    target, predictions = (np.asarray(a, dtype=np.float64) for a in (target, predictions))
    predictions = predictions[None] if predictions.ndim == 2 else predictions
    if target.ndim != 2 or len(target) < 2 or predictions.shape[1:] != target.shape:
        shapes = f"{target.shape} and {predictions.shape}"
        wanted = "expected target and predictions of one shape (N, E), N at least 2 clips"
        raise ValueError(f"{wanted}, got {shapes}")
    for name, values in (("target", target), ("prediction", predictions)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: expected finite numbers, got NaN or infinity; leave it out")
    return target, predictions


def _unit(values: np.ndarray) -> np.ndarray:
    """Columns (..., N, E) without their mean, of length 1; a constant column becomes zeros."""
    centred = values - values.mean(axis=-2, keepdims=True)
    # Rounding leaves a constant column's centred values near, but not at, zero.
    centred = np.where(np.ptp(values, axis=-2, keepdims=True) == 0, 0.0, centred)
    largest = np.abs(centred).max(axis=-2, keepdims=True)  # squares of tiny numbers would vanish
    centred = centred / np.where(largest > 0, largest, 1.0)
    norm = np.sqrt((centred**2).sum(axis=-2, keepdims=True))
    return centred / np.where(norm > 0, norm, 1.0)

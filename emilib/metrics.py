"""Pearson's ρ as both papers define it (A, 4.2; B, 4.1), with its uncertainty.

Dimension key: N clips, E emotions, S seeds, R resamples. Predictions are (S, N, E), or (N, E) for
one seed. All is float64 and in two passes: one pass in float32 gives 0.79 for a true 0.71 on a
nearly constant column.
"""

import dataclasses

import numpy as np

RESAMPLES = 2000


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
    low: float  # 95 % bootstrap interval over clips of the mean: what other clips change
    high: float
    per_seed: tuple[float, ...]


def summarise(per_seed: np.ndarray, resampled: np.ndarray) -> Estimate:
    """An `Estimate` from a number a seed (S,) and its mean over seeds in each resample (R,)."""
    low, high = np.percentile(resampled, [2.5, 97.5]).tolist()
    sd = float(per_seed.std(ddof=1)) if len(per_seed) > 1 else np.nan
    return Estimate(float(per_seed.mean()), sd, low, high, tuple(per_seed.tolist()))


def resample(target, predictions, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """ρ of each emotion on clips drawn with replacement, (R, S, E).

    The same `seed` draws the same clips for any predictions of N clips. A draw is the number of
    times each clip is in it: all draws are one matrix product.
    """
    target, predictions = _checked(target, predictions)
    clips, y, p = len(target), _unit(target)[None], _unit(predictions)
    drawn = np.random.default_rng(seed).integers(0, clips, (resamples, clips))
    cells = (drawn + np.arange(resamples)[:, None] * clips).ravel()
    counts = np.bincount(cells, minlength=drawn.size).reshape(drawn.shape).astype(float)

    def mean(values: np.ndarray) -> np.ndarray:  # (S, N, E) -> (R, S, E)
        return np.ascontiguousarray(np.swapaxes(counts @ values / clips, 0, 1))

    square_y, square_p = mean(y * y), mean(p * p)  # of unit columns: float64 can hold them
    var_y, var_p = square_y - mean(y) ** 2, square_p - mean(p) ** 2
    covariance = mean(p * y) - mean(p) * mean(y)
    # Below this share of its mean square a variance is rounding: the draw is constant.
    constant = (var_y <= 1e-12 * square_y) | (var_p <= 1e-12 * square_p)
    scale = np.sqrt(np.where(constant, 1.0, var_y * var_p))
    return np.where(constant, 0.0, np.clip(covariance / scale, -1.0, 1.0))


def estimate(target, predictions, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Mean ρ over emotions and seeds, with its spread over seeds and its interval over clips."""
    target, predictions = _checked(target, predictions)
    per_seed = np.array([mean_pearson(target, p) for p in predictions])
    return summarise(per_seed, resample(target, predictions, resamples, seed).mean(axis=(1, 2)))


def difference(target, first, second, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Mean ρ of `first` minus that of `second`, paired over seeds and over clips.

    The interval draws the same clips for both. The difference is resolved where it excludes 0;
    compare `sd` for what the seed does. Raises ValueError when the numbers of seeds differ.
    """
    target, first = _checked(target, first)
    _, second = _checked(target, second)
    if len(first) != len(second):
        raise ValueError(f"expected the same seeds for both, got {len(first)} and {len(second)}")
    pairs = zip(first, second, strict=True)
    per_seed = np.array([mean_pearson(target, a) - mean_pearson(target, b) for a, b in pairs])
    drawn = resample(target, first, resamples, seed) - resample(target, second, resamples, seed)
    return summarise(per_seed, drawn.mean(axis=(1, 2)))


def _checked(target, predictions) -> tuple[np.ndarray, np.ndarray]:
    """(N, E) and (S, N, E), where predictions of one seed may be (N, E); float64."""
    target, predictions = (np.asarray(a, dtype=np.float64) for a in (target, predictions))
    predictions = predictions[None] if predictions.ndim == 2 else predictions
    if target.ndim != 2 or len(target) < 2 or predictions.shape[1:] != target.shape:
        raise ValueError(
            "expected a target of shape (N, E), N at least 2 clips, and predictions of one shape "
            f"with it, got {target.shape} and {predictions.shape}"
        )
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

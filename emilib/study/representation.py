"""Linear probes of the labels: they have no time axis and learn no representation."""

import numpy as np
import pandas as pd

from emilib import MODALITIES
from emilib.features.feature_set import FeatureSet, FeatureSplits
from emilib.metrics import pearson
from emilib.training.ridge import clip_moments, ridge_regression


def clip_statistics(data: FeatureSet, modality: str, changes=True) -> np.ndarray:
    """One float64 row a clip; NaN where it lacks the modality, KeyError where the whole set does.

    frames: mean, standard deviation, maximum and minimum over time of the change since the clip's
    first frame (N, 4 D), which leaves out whose face it is, or without `changes` of what they are;
    audio: mean and standard deviation over time (N, 2 D); text: its vector (N, D)
    """
    moments = {"text": (np.mean,), "audio": (np.mean, np.std)}
    moments["frames"] = (np.mean, np.std, np.max, np.min)
    return clip_moments(data, modality, moments[modality], changes and modality == "frames")


def ridge(train_x, train_y, x) -> np.ndarray:
    """Predictions (N, E) for the clips `x` of a `ridge_regression` fitted on training clips."""
    return ridge_regression(train_x, train_y).predict(x).reshape(len(x), -1)


def probe(splits: FeatureSplits) -> pd.DataFrame:
    """ρ on validation of `ridge` on the statistics of each modality and of "all", a row each."""
    return scores(_predictions(splits, *_statistics(splits)), splits)


def scores(predictions: dict[str, np.ndarray], splits: FeatureSplits) -> pd.DataFrame:
    """ρ of the validation clips, which come first: a row each, a column an emotion."""
    valid = splits.validation.target
    rho = [pearson(valid, x[: len(valid)]) for x in predictions.values()]
    table = pd.DataFrame(rho, columns=list(splits.train.targets))
    table.insert(0, "modality", list(predictions))
    return table


def lines(splits, signals=None, changes=True) -> dict[str, np.ndarray]:
    """Predictions that networks on these features have to beat, validation clips before test clips.

    signals : by id, columns frames_*, audio_*, text_*: what the generator of a synthetic corpus
        expressed in each modality, before it was drawn, spoken or worded
    changes : of frames, as of `clip_statistics`

    By name as in ``lines.csv``: "ridge_text" and its like are of `ridge` on one modality,
    "ridge_sum" is their sum, "ceiling_text", "ceiling_all" and their like are of the signals.
    """
    single = _predictions(splits, *_statistics(splits, changes))
    single.pop("all", None)
    more = (len(single) - 1) * splits.train.target.mean(axis=0)  # each of the sum has the mean
    result = {f"ridge_{name}": x for name, x in single.items()}
    result["ridge_sum"] = sum(single.values()) - more
    if signals is None:
        return result
    columns = {m: signals.filter(regex=f"^{m}_") for m in MODALITIES}
    ids = [data.ids for data in (splits.train, splits.validation, splits.test)]
    clean = [{m: x.loc[rows].to_numpy(float) for m, x in columns.items()} for rows in ids]
    return result | {f"ceiling_{name}": x for name, x in _predictions(splits, *clean).items()}


def _statistics(splits: FeatureSplits, changes=True) -> list[dict]:
    known = [m for m in MODALITIES if m in splits.train.dims and m in splits.validation.dims]
    sets = [splits.train, splits.validation, *([splits.test] if len(splits.test) else [])]
    return [{m: clip_statistics(data, m, changes) for m in known} for data in sets]


def _predictions(splits: FeatureSplits, *sets: dict) -> dict[str, np.ndarray]:
    """Of the clips of all sets but the first, which `ridge` is fitted on, by modality.
    sets : rows by modality; where there are several, "all" has their columns side by side"""
    if len(sets[0]) > 1:
        sets = [{**rows, "all": np.concatenate(list(rows.values()), axis=1)} for rows in sets]
    train, *later = sets
    x = {name: np.concatenate([rows[name] for rows in later]) for name in train}
    return {name: ridge(train[name], splits.train.target, x[name]) for name in train}

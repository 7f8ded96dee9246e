"""Linear probes of the labels: they have no time axis and learn no representation.

Dimension key: N clips, D width of an encoder, E emotions.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn.impute import SimpleImputer
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from emilib import MODALITIES
from emilib.features.feature_set import FeatureSet, FeatureSplits
from emilib.metrics import mean_pearson, pearson

ALPHAS = np.logspace(-1, 5, 25)  # penalties on standardised columns


def clip_statistics(data: FeatureSet, modality: str) -> np.ndarray:
    """One float64 row a clip; NaN where it lacks the modality, KeyError where the whole set does.

    frames: the mean change since the clip's first frame (N, D), which leaves out whose face it is;
    audio: mean and standard deviation over time (N, 2 D); text: its vector (N, D)
    """
    width = data.dims[modality]
    if modality == "text":
        return data.scaled("text", data.text).astype(np.float64)
    rows = np.full((len(data), width if modality == "frames" else 2 * width), np.nan)
    for row, steps in enumerate(getattr(data, modality)):
        if steps is not None:
            steps = data.scaled(modality, steps).astype(np.float64)
            both = np.concatenate([steps.mean(axis=0), steps.std(axis=0)])
            rows[row] = (steps - steps[0]).mean(axis=0) if modality == "frames" else both
    return rows


def ridge(train_x, train_y, x) -> np.ndarray:
    """Predictions (N, E) for the clips `x`, of a ridge regression fitted on training clips.

    train_x, x : (N, D) float, a row of NaN where a clip lacks the modality
    train_y : (N, E) labels

    Columns are standardised by the training clips, whose mean a missing row becomes. Each emotion
    has its own penalty, by leave-one-out.
    """
    model = _standardised(RidgeCV(ALPHAS, alpha_per_target=True)).fit(train_x, train_y)
    return model.predict(x).reshape(len(x), -1)  # a vector for one target


def kernel_ridge(train_x, train_y, x) -> np.ndarray:
    """As `ridge`, with a Gaussian kernel; width and penalty by cross-validation."""
    gammas = np.array([0.1, 0.3, 1.0]) / train_x.shape[1]  # inverse widths of the kernel
    grid = {"kernelridge__gamma": gammas, "kernelridge__alpha": (0.3, 1.0, 3.0, 10.0)}
    folds = KFold(3, shuffle=True, random_state=0)
    model = _standardised(KernelRidge(kernel="rbf"))
    search = GridSearchCV(model, grid, scoring="neg_mean_squared_error", cv=folds)
    mean = np.mean(train_y, axis=0)  # a kernel ridge has no intercept
    return search.fit(train_x, train_y - mean).predict(x).reshape(len(x), -1) + mean


def _standardised(regression):
    # A column that no training clip has a value for stays, as zeros.
    return make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler(), regression)


def probe(splits: FeatureSplits) -> pd.DataFrame:
    """ρ on validation of `ridge` on the statistics of each modality, and of all side by side.

    A row each, the last is "all" where there are several; a column an emotion.
    """
    return scores(_predictions(ridge, splits, *_statistics(splits)), splits)


def scores(predictions: dict[str, np.ndarray], splits: FeatureSplits) -> pd.DataFrame:
    """ρ of the validation clips, which come first: a row each, a column an emotion."""
    valid = splits.validation.target
    rho = [pearson(valid, x[: len(valid)]) for x in predictions.values()]
    table = pd.DataFrame(rho, columns=list(splits.train.targets))
    table.insert(0, "modality", list(predictions))
    return table


def lines(splits: FeatureSplits, signals: pd.DataFrame | None = None) -> dict[str, np.ndarray]:
    """Predictions that networks on these features have to beat, validation clips before test clips.

    signals : by id, columns frames_*, audio_*, text_*: what the generator of a synthetic corpus
        expressed in each modality, before it was drawn, spoken or worded; KeyError where a clip has
        none

    By name as in ``lines.csv``: "ridge_text" and its like are of `ridge` on one modality,
    "ridge_sum" is their sum. "ceiling_text", "ceiling_all" and their like are of the clean signals,
    the most that features could hold of them: of `ridge` and `kernel_ridge` the better mean ρ on
    validation, which sets the bar rather too high than too low.
    """
    single = _predictions(ridge, splits, *_statistics(splits))
    single.pop("all", None)
    more = (len(single) - 1) * splits.train.target.mean(axis=0)  # each of the sum has the mean
    best = {} if signals is None else _ceiling(signals, splits)
    result = {f"ridge_{name}": x for name, x in single.items()}
    result["ridge_sum"] = sum(single.values()) - more
    return result | {f"ceiling_{name}": x for name, x in best.items()}


def _statistics(splits: FeatureSplits) -> list[dict]:
    known = [m for m in MODALITIES if m in splits.train.dims and m in splits.validation.dims]
    sets = [splits.train, splits.validation, *([splits.test] if len(splits.test) else [])]
    return [{m: clip_statistics(data, m) for m in known} for data in sets]


def _ceiling(signals: pd.DataFrame, splits: FeatureSplits) -> dict[str, np.ndarray]:
    valid = splits.validation.target
    columns = [
        {m: signals.loc[data.ids].filter(regex=f"^{m}_").to_numpy(float) for m in MODALITIES}
        for data in (splits.train, splits.validation, splits.test)
    ]
    straight, bent = (_predictions(r, splits, *columns) for r in (ridge, kernel_ridge))
    rho = lambda x: mean_pearson(valid, x[: len(valid)])  # noqa: E731
    return {name: max(straight[name], bent[name], key=rho) for name in straight}


def _predictions(regress: Callable, splits: FeatureSplits, *sets: dict) -> dict[str, np.ndarray]:
    """Of the clips of all sets but the first, which `regress` is fitted on, by modality.

    sets : rows by modality; where there are several, "all" has their columns side by side
    """
    if len(sets[0]) > 1:
        sets = [{**rows, "all": np.concatenate(list(rows.values()), axis=1)} for rows in sets]
    train, *later = sets
    x = {name: np.concatenate([rows[name] for rows in later]) for name in train}
    return {name: regress(train[name], splits.train.target, x[name]) for name in train}

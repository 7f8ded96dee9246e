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
from emilib.metrics import pearson

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


def ridge(train_x, train_y, valid_x, valid_y) -> np.ndarray:
    """ρ of each emotion on validation, of a ridge regression fitted on training clips.

    train_x, valid_x : (N, D) float, a row of NaN where a clip lacks the modality
    train_y, valid_y : (N, E) labels

    Columns are standardised by the training clips, whose mean a missing row becomes. Each emotion
    has its own penalty, by leave-one-out. Returns (E,) float64.
    """
    model = _standardised(RidgeCV(ALPHAS, alpha_per_target=True))
    prediction = model.fit(train_x, train_y).predict(valid_x)
    return pearson(valid_y, prediction.reshape(np.shape(valid_y)))  # a vector for one target


def kernel_ridge(train_x, train_y, valid_x, valid_y) -> np.ndarray:
    """As `ridge`, with a Gaussian kernel; width and penalty by cross-validation."""
    gammas = np.array([0.1, 0.3, 1.0]) / train_x.shape[1]  # inverse widths of the kernel
    grid = {"kernelridge__gamma": gammas, "kernelridge__alpha": (0.3, 1.0, 3.0, 10.0)}
    folds = KFold(3, shuffle=True, random_state=0)
    model = _standardised(KernelRidge(kernel="rbf"))
    search = GridSearchCV(model, grid, scoring="neg_mean_squared_error", cv=folds)
    centred = train_y - np.mean(train_y, axis=0)  # a kernel ridge has no intercept
    prediction = search.fit(train_x, centred).predict(valid_x)
    return pearson(valid_y, prediction.reshape(np.shape(valid_y)))


def _standardised(regression):
    # A column that no training clip has a value for stays, as zeros.
    return make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler(), regression)


def probe(splits: FeatureSplits) -> pd.DataFrame:
    """`ridge` on the statistics of each modality, and of all: a row each, a column an emotion."""
    train, valid = splits.train, splits.validation
    known = [m for m in MODALITIES if m in train.dims and m in valid.dims]
    columns = ({m: clip_statistics(data, m) for m in known} for data in (train, valid))
    return _table(ridge, splits, *columns)


def ceiling(signals: pd.DataFrame, splits: FeatureSplits) -> pd.DataFrame:
    """What the signals behind a synthetic corpus hold: the most that features could hold of them.

    signals : columns id, then frames_*, audio_*, text_*: what the generator expressed in each
        modality, before it was drawn, spoken or worded; KeyError where a clip has none

    Of `ridge` and `kernel_ridge` the better mean ρ on validation counts, which sets the bar
    rather too high than too low. Returns a DataFrame as `probe` does.
    """
    rows = signals.set_index(signals["id"].astype(str))
    columns = [
        {m: rows.loc[data.ids].filter(regex=f"^{m}_").to_numpy(float) for m in MODALITIES}
        for data in (splits.train, splits.validation)
    ]
    return _table(lambda *x: max((ridge(*x), kernel_ridge(*x)), key=np.mean), splits, *columns)


def _table(regress: Callable, splits: FeatureSplits, train: dict, valid: dict) -> pd.DataFrame:
    if len(train) > 1:
        for part in (train, valid):
            part["all"] = np.concatenate(list(part.values()), axis=1)
    labels = splits.train.target, splits.validation.target
    rho = [regress(train[m], labels[0], valid[m], labels[1]) for m in train]
    table = pd.DataFrame(rho, columns=list(splits.train.targets))
    table.insert(0, "modality", list(train))
    return table

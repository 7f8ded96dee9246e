"""How much frozen features tell about the labels, by a linear regression and nothing else.

A probe has no time axis and learns no representation: what it reaches, the features hold.

Dimension key: N clips, T steps, D width, E emotions.
"""

import numpy as np
import pandas as pd
from sklearn.impute import SimpleImputer
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from emilib.features.feature_set import MODALITIES, FeatureSet, FeatureSplits
from emilib.metrics import pearson

ALPHAS = np.logspace(-1, 5, 25)  # penalties on standardised columns
GAMMAS = (0.1, 0.3, 1.0)  # inverse widths of the kernel, in units of 1 / D
KERNEL_ALPHAS = (0.3, 1.0, 3.0, 10.0)
FOLDS = 3


def pooled(data: FeatureSet, modality: str) -> np.ndarray:
    """One float64 row a clip, from its steps or its text vector.

    modality : "frames", the mean change since the clip's first frame (N, D), which leaves out
        whose face it is; "audio", mean and standard deviation over time (N, 2 D); "text" (N, D)

    A clip without the modality has a row of NaN. Raises ValueError when the whole set lacks it.
    """
    if modality not in data.dims:
        raise ValueError(f"modality: expected one of {sorted(data.dims)}, came {modality!r}")
    if modality == "text":
        return data.text.astype(np.float64)
    parts = 1 if modality == "frames" else 2
    rows = np.full((len(data), parts * data.dims[modality]), np.nan)
    for row, steps in enumerate(getattr(data, modality)):
        if steps is not None:
            steps = steps.astype(np.float64)
            if modality == "frames":
                rows[row] = (steps - steps[0]).mean(axis=0)
            else:
                rows[row] = np.concatenate([steps.mean(axis=0), steps.std(axis=0)])
    return rows


def ridge(train_x, train_y, valid_x, valid_y) -> np.ndarray:
    """ρ of each emotion on validation, of a ridge regression fitted on training clips.

    train_x, valid_x : (N, D) float, a row of NaN where a clip lacks the modality
    train_y, valid_y : (N, E) labels

    Columns are standardised by the training clips; a missing row is their mean, so it predicts
    the mean label. Each emotion has its own penalty, by leave-one-out on training clips.
    Returns (E,) float64.
    """
    return _score(_ridge(), train_x, train_y, valid_x, valid_y)


def kernel_ridge(train_x, train_y, valid_x, valid_y) -> np.ndarray:
    """As `ridge`, with a Gaussian kernel: bends are allowed.

    Width and penalty are common to all emotions, by cross-validation on training clips.
    """
    width = np.shape(train_x)[1]
    grid = {
        "kernelridge__gamma": [gamma / width for gamma in GAMMAS],
        "kernelridge__alpha": list(KERNEL_ALPHAS),
    }
    folds = KFold(FOLDS, shuffle=True, random_state=0)
    score = "neg_mean_squared_error"
    search = GridSearchCV(_pipeline(KernelRidge(kernel="rbf")), grid, scoring=score, cv=folds)
    mean = np.mean(train_y, axis=0)  # a kernel ridge has no intercept
    return _score(search, train_x, train_y - mean, valid_x, valid_y)


def probe(splits: FeatureSplits) -> pd.DataFrame:
    """`ridge` on the pooled features of each modality the splits have, and on all together.

    Returns a DataFrame with the columns modality ("frames", "audio", "text", "all"), and one an
    emotion.
    """
    here = [m for m in MODALITIES if m in splits.train.dims and m in splits.validation.dims]
    train = {m: pooled(splits.train, m) for m in here}
    valid = {m: pooled(splits.validation, m) for m in here}
    return _table(ridge, train, splits.train, valid, splits.validation)


def ceiling(signals: pd.DataFrame, splits: FeatureSplits) -> pd.DataFrame:
    """What the signals behind a made corpus tell: the most that features could hold of them.

    signals : columns id, then frames_*, audio_*, text_*: what the generator expressed in each
        modality, before it was drawn, spoken or worded
    splits : gives the clips of training and validation and their labels

    Of `ridge` and `kernel_ridge` the better mean ρ on validation counts, which sets the bar
    rather too high than too low. Returns a DataFrame as `probe` does. Raises ValueError where
    clips have no signals.
    """
    rows = signals.set_index(signals["id"].astype(str))
    missing = set(splits.train.ids + splits.validation.ids) - set(rows.index)
    if missing:
        raise ValueError(
            f"signals: expected a row for every clip, {len(missing)} lack one, such as "
            f"{min(missing)}; is the table of this corpus?"
        )
    columns = {m: [c for c in rows.columns if c.startswith(f"{m}_")] for m in MODALITIES}
    train = {m: rows.loc[splits.train.ids, c].to_numpy(float) for m, c in columns.items()}
    valid = {m: rows.loc[splits.validation.ids, c].to_numpy(float) for m, c in columns.items()}

    def better(*data):
        return max((ridge(*data), kernel_ridge(*data)), key=np.mean)

    return _table(better, train, splits.train, valid, splits.validation)


def _table(regress, train: dict, of_train: FeatureSet, valid: dict, of_valid: FeatureSet):
    """DataFrame: one row a modality and one for all of them, one column a target."""
    train, valid = dict(train), dict(valid)
    train_y, valid_y = of_train.target, of_valid.target
    if len(train) > 1:
        train["all"] = np.concatenate([train[m] for m in train], axis=1)
        valid["all"] = np.concatenate([valid[m] for m in valid], axis=1)
    rho = [regress(train[m], train_y, valid[m], valid_y) for m in train]
    table = pd.DataFrame(rho, columns=list(of_train.targets))
    table.insert(0, "modality", list(train))
    return table


def _ridge() -> Pipeline:
    return _pipeline(RidgeCV(ALPHAS, alpha_per_target=True))


def _pipeline(regression) -> Pipeline:
    # A column that no training clip has a value for stays, as zeros.
    imputer = SimpleImputer(keep_empty_features=True)
    return make_pipeline(imputer, StandardScaler(), regression)


def _score(model, train_x, train_y, valid_x, valid_y) -> np.ndarray:
    if len(train_x) != len(train_y):
        raise ValueError(
            f"train_x: expected a row for each of {len(train_y)} labels, came {len(train_x)}"
        )
    prediction = model.fit(train_x, train_y).predict(valid_x)
    # Of a single target scikit-learn returns a vector.
    return pearson(valid_y, prediction.reshape(np.shape(valid_y)))

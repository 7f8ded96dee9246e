"""Ridge regression on vectors of whole clips: a line to beat, and part of a default prediction."""

import numpy as np

from emilib.features.feature_set import FeatureSet

ALPHAS = np.logspace(-1, 5, 25)  # penalties on standardised columns


def ridge_regression(x: np.ndarray, y: np.ndarray):
    """A fitted scikit-learn pipeline whose `predict` takes (N, D) to (N, E).

    x : (N, D) float, NaN where a clip lacks the modality; y : (N, E) labels

    Columns are standardised by these clips, whose mean a missing value becomes. Each target has
    its own penalty, by leave-one-out.
    """
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # A column that no training clip has a value for stays, as zeros.
    scaling = SimpleImputer(keep_empty_features=True), StandardScaler()
    return make_pipeline(*scaling, RidgeCV(ALPHAS, alpha_per_target=True)).fit(x, y)


def clip_moments(data: FeatureSet, modality: str, moments=(np.mean,), changes=False) -> np.ndarray:
    """Moments over a clip's steps, side by side: (N, moments × D) float64; NaN where it has none.

    moments : such as `np.mean` and `np.std`; the words are one step
    changes : since the clip's first step

    Raises KeyError for a modality that the whole set lacks.
    """
    rows = np.full((len(data), len(moments) * data.dims[modality]), np.nan)
    for row, steps in enumerate(getattr(data, modality)):
        if steps is not None:
            steps = data.scaled(modality, np.atleast_2d(steps)).astype(np.float64)
            steps = steps - steps[0] if changes else steps
            rows[row] = np.concatenate([moment(steps, axis=0) for moment in moments])
    return rows


class MeansRidge:
    """`ridge_regression` on the words and the means over time of frames and sound.

    share : what a prediction that is shared with a network has of it, in [0, 1]
    """

    def __init__(self, train: FeatureSet, share: float = 0.5):
        self.dims, self.share = train.dims, share
        self.regression = ridge_regression(self.means(train), train.target)

    def share_of(self, network: np.ndarray, valid: FeatureSet) -> float:
        """The share with the least squared error on clips that neither has learnt from.

        network : its predictions (N, E) for `valid`. Targets count alike, whatever their unit.
        """
        unit = valid.target.std(axis=0)
        own, network, target = (
            x[:, unit > 0] / unit[unit > 0] for x in (self.predict(valid), network, valid.target)
        )
        apart = own - network
        size = np.square(apart).sum()
        return float(np.clip((apart * (target - network)).sum() / size, 0, 1)) if size else 0.5

    def predict(self, data: FeatureSet) -> np.ndarray:
        """(N, E) predictions in the order and the range of the training targets."""
        return self.regression.predict(self.means(data)).reshape(len(data), -1)

    def means(self, data: FeatureSet) -> np.ndarray:
        """(N, widths of all modalities) float64, NaN where a clip lacks one."""
        missing = {name: np.full((len(data), width), np.nan) for name, width in self.dims.items()}
        known = {name: clip_moments(data, name) for name in self.dims if name in data.dims}
        return np.concatenate(list((missing | known).values()), axis=1)

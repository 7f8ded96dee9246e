"""Targets in any range, as a model learns them."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class TargetScale:
    """Standardised targets y' of targets y: y = shift + factor y'.

    The squared error of a target that goes from 1 to 7 would drown one that goes from 0 to 1, and
    the papers' learning rates are for labels in [0, 1]. So `fit` standardises each target that
    leaves [0, 1], by the training clips; the others keep shift 0 and factor 1. ρ is the same.

    shift, factor : (E,) float64, factor above 0
    """

    shift: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, target: np.ndarray, by: str = "sd") -> "TargetScale | None":
        """The scale of training targets (N, E); None where all lie within [0, 1].

        by : "sd", mean 0 and standard deviation 1; "range", smallest 0 and largest 1, for models
            that end in a sigmoid
        """
        low, high = target.min(axis=0), target.max(axis=0)
        wide = (low < 0) | (high > 1)
        if not wide.any():
            return None
        shift = target.mean(axis=0) if by == "sd" else low
        factor = target.std(axis=0) if by == "sd" else high - low
        factor = np.where(factor > 0, factor, 1.0)
        return cls(np.where(wide, shift, 0.0), np.where(wide, factor, 1.0))

    def transform(self, target: np.ndarray) -> np.ndarray:
        """y' of y, (N, E)."""
        return (target - self.shift) / self.factor

    def inverse_transform(self, prediction: np.ndarray) -> np.ndarray:
        """y of y', (..., E) float64, which keeps small changes of a large number."""
        return self.shift + self.factor * prediction.astype(np.float64)

    def to_dict(self) -> dict:
        """As lists, for JSON."""
        return {"shift": self.shift.tolist(), "factor": self.factor.tolist()}

    @classmethod
    def from_dict(cls, lists: dict | None) -> "TargetScale | None":
        """The scale that `to_dict` wrote; None of None."""
        return None if lists is None else cls(*(np.array(lists[k]) for k in ("shift", "factor")))

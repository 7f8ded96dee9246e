"""Intensities of files: an exported model with its encoders, and pictures of a prediction."""

from emilib.predict.clip import Clip, Prediction

__all__ = ["Clip", "EmiPredictor", "Prediction"]


def __getattr__(name):
    """EmiPredictor brings torch, which the processes that read clips need not load."""
    if name != "EmiPredictor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from emilib.predict.predictor import EmiPredictor

    return EmiPredictor

"""Intensities of files: an exported model with its encoders, and pictures of a prediction."""

from importlib import import_module

_HOME = {
    "Clip": "emilib.predict.clip",
    "EmiPredictor": "emilib.predict.predictor",
    "Prediction": "emilib.predict.prediction",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)

"""Intensities of files: an exported model with its encoders, and pictures of a prediction."""

from emilib.predict.clip import Clip, Prediction
from emilib.predict.predictor import EmiPredictor

__all__ = ["Clip", "EmiPredictor", "Prediction"]

"""Emotional mimicry intensity (EMI): corpus, features, models and study of two papers."""

__version__ = "0.1.0"

"""The names that callers of `emilib.study.resources` used before."""

from emilib.study.resources import DECODING, RECURRENT, SUSTAINED, estimate, text

__all__ = ["DECODING", "RECURRENT", "SUSTAINED", "needs", "text"]
needs = estimate

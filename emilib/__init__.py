"""Emotional mimicry intensity (EMI): corpus, features, models and study of two papers."""

__version__ = "0.1.0"

# Written once, for every package here; importing them costs nothing.
MODALITIES = ("frames", "audio", "text")  # the order of the columns of `present` and `weights`
SAMPLE_RATE = 16_000  # Hz of every waveform
EMOTIONS = ("Admiration", "Amusement", "Determination", "Empathic Pain", "Excitement", "Joy")

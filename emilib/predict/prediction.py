"""The result for one clip, and what the models looked at."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from emilib import EMOTIONS, MODALITIES
from emilib.predict.clip import Clip, DecodedClip


@dataclass
class Prediction:
    """The result for one clip.

    W windows (one for a clip that was taken whole), S seeds, E emotions. Without a result, `reason`
    says why in one sentence, and the arrays are empty.
    """

    clip: Clip
    emotions: tuple[str, ...]
    reason: str | None = None
    start: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (W,) s
    end: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (W,) s
    intensity: np.ndarray | None = None  # (S, W, E) as the models give it, not clipped
    present: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), bool))  # (W, 3)
    damaged: int = 0  # frames and pieces of sound that were left out
    problems: list[str] = field(default_factory=list)  # sentences about the file
    notes: list[str] = field(default_factory=list)  # sentences about how it was read
    text: str | None = None  # the words of the clip, None where none are known
    duration: float = math.nan  # s of the clip
    seconds: float = math.nan  # s that the work took, decoding included

    @property
    def bounded(self) -> bool:
        """The six intensities lie in [0, 1] and are clipped to it; other targets are not."""
        return tuple(self.emotions) == EMOTIONS

    @property
    def missing(self) -> list[str]:
        """Modalities of which the clip has nothing in any window."""
        return _absent(self.present.any(axis=0))

    def describe(self, decoded: DecodedClip, began: float) -> None:
        """Take over what is known of the file; `began` is when its prediction did."""
        self.duration, self.damaged = decoded.duration, decoded.damaged
        self.problems = decoded.problems
        self.seconds = decoded.seconds + time.perf_counter() - began

    def row(self) -> dict:
        """One row of `EmiPredictor.predict`."""
        values = dict.fromkeys(_columns(self.emotions), math.nan)
        if self.reason is None:
            values = over_seeds(self.intensity.mean(axis=1), self.emotions)
        return {
            "clip": self.clip.name,
            "status": "ok" if self.reason is None else "failed",
            **values,
            "missing": ", ".join(self.missing) if self.reason is None else "",
            "damaged": self.damaged,
            "problems": "; ".join(self.problems),
            "notes": " ".join(self.notes),
            "text": self.text,
            "windows": len(self.start),
            "duration": self.duration,
            "seconds": self.seconds,
            "reason": self.reason or "",
        }

    def windows(self) -> pd.DataFrame:
        """start, end in s, each emotion and its sd over seeds, missing; a row a window."""
        rows = [
            {
                "start": start,
                "end": end,
                **over_seeds(self.intensity[:, w], self.emotions),
                "missing": ", ".join(_absent(self.present[w])),
            }
            for w, (start, end) in enumerate(zip(self.start, self.end, strict=True))
        ]
        return pd.DataFrame(rows, columns=["start", "end", *_columns(self.emotions), "missing"])


@dataclass
class Explanation:
    """What the models looked at in a part of a clip; T steps, S seeds, H heads, M segments."""

    prediction: Prediction
    without: pd.DataFrame  # as `EmiPredictor.without`
    images: np.ndarray | None  # (T, 3, P, P) uint8
    times: np.ndarray  # (T,) s of the images, from the clip's beginning
    waveform: np.ndarray | None  # (N,) int16 at SAMPLE_RATE
    start: float  # s, where the part begins and ends
    end: float
    weights: np.ndarray | None = None  # (S, M, 3) of Eq. 8 in paper A
    weight_borders: np.ndarray | None = None  # (M + 1,) s
    # "frames" and "audio" → (S, H, T), None where the clip lacks it; None: the model has none
    attention: dict[str, np.ndarray | None] | None = None
    attention_borders: dict[str, np.ndarray] = field(default_factory=dict)  # → (T + 1,) s


def _columns(emotions: Sequence[str]) -> list[str]:
    return [*emotions, *(f"{emotion} sd" for emotion in emotions)]


def over_seeds(intensity: np.ndarray, emotions: Sequence[str]) -> dict[str, float]:
    """(S, E) → mean over seeds of each emotion, clipped if bounded, and sd (NaN for one seed)."""
    mean, spread = intensity.mean(axis=0), np.full(len(emotions), np.nan)
    if tuple(emotions) == EMOTIONS:
        mean = mean.clip(0, 1)
    if len(intensity) > 1:
        spread = intensity.std(axis=0, ddof=1)
    return dict(zip(_columns(emotions), [*mean.tolist(), *spread.tolist()], strict=True))


def _absent(present: np.ndarray) -> list[str]:
    return [name for name, exists in zip(MODALITIES, present, strict=True) if not exists]

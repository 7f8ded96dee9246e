"""A clip that somebody brings: its files, what is decoded from them, and what is predicted."""

import dataclasses
import math
import time
from itertools import compress
from pathlib import Path

import numpy as np
import pandas as pd

from emilib import EMOTIONS, MODALITIES
from emilib.corpus import faces, media

WINDOW = 12.0  # s; paper B cuts sound at 12 s
LONGEST = 30.0  # s; no model reads a longer clip in one piece


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip. A path alone means `Clip(video=path)`."""

    video: str | Path | None  # file with picture, sound or both; None where there is only `audio`
    audio: str | Path | None = None  # a sound file in place of the video's own sound
    # Folder of numbered face crops (1.jpg, 2.jpg, ...); without, the face is searched in the video.
    faces: str | Path | None = None
    text: str | None = None  # the spoken words; "" for none; None to have Whisper listen

    def __post_init__(self):
        if self.video is None and self.audio is None:
            raise ValueError("expected a video or an audio file in each Clip, got neither")

    @property
    def name(self) -> str:
        return str(self.audio if self.video is None else self.video)


@dataclasses.dataclass(frozen=True)
class MediaSettings:
    """How the clips were decoded that a model learnt from."""

    fps: float
    image_size: int
    visual: str  # "faces", face crops, or "video", the middle square of whole frames
    audio_every: int  # hidden states of the sound that are averaged into one step
    frame_reference: str = "none"  # of `FeatureSet`, for a clip or each of its windows


@dataclasses.dataclass
class Prediction:
    """What is read from one clip, and the result: S seeds, W windows, 1 for a clip taken whole."""

    clip: Clip
    emotions: tuple[str, ...] = EMOTIONS
    reason: str | None = None  # why there is no result, in one sentence
    frames: np.ndarray | None = None  # (T, 3, P, P) uint8; None again once predicted
    times: np.ndarray | None = None  # (T,) s
    waveform: np.ndarray | None = None  # (N,) int16 at SAMPLE_RATE; None again once predicted
    duration: float = math.nan  # s of the clip
    damaged: int = 0  # frames and pieces of sound that were left out
    problems: list[str] = dataclasses.field(default_factory=list)  # sentences about the file
    notes: list[str] = dataclasses.field(default_factory=list)  # sentences about how it was read
    seconds: float = 0.0  # that the work took
    text: str | None = None  # the words of the clip, None where none are known
    start: np.ndarray | tuple = ()  # (W,) s
    end: np.ndarray | tuple = ()  # (W,) s
    intensity: np.ndarray | None = None  # (S, W, E) not clipped; NaN in windows without anything
    present: np.ndarray | tuple = ()  # (W, 3) bool

    @property
    def bounded(self) -> bool:
        """The six intensities lie in [0, 1] and are clipped to it; other targets are not."""
        return tuple(self.emotions) == EMOTIONS

    @property
    def missing(self) -> list[str]:
        """Modalities of which the clip has nothing, and how many windows have none of them."""
        if self.reason:
            return []
        lacking = list(compress(MODALITIES, ~self.present.any(axis=0)))
        empty = np.count_nonzero(~self.present.any(axis=1))
        return [*lacking, f"all in {empty} of {len(self.present)} windows"] if empty else lacking

    def fail(self, error: Exception) -> None:
        """Keep an error as the reason, in a sentence that names the clip."""
        text = str(error) if isinstance(error, ValueError | OSError) else repr(error)
        name = self.clip.name
        self.reason = self.reason or (text if name in text else f"{name}: {text}")

    def over_seeds(self, intensity: np.ndarray) -> dict[str, float]:
        """(S, E) → mean over seeds of each emotion, clipped if bounded, and sd (NaN for one)."""
        mean = intensity.mean(axis=0).clip(0, 1) if self.bounded else intensity.mean(axis=0)
        spread = intensity.std(axis=0, ddof=1) if len(intensity) > 1 else math.nan * mean
        names = [*self.emotions, *(f"{emotion} sd" for emotion in self.emotions)]
        return dict(zip(names, [*mean.tolist(), *spread.tolist()], strict=True))

    def row(self) -> dict:
        """One row of `EmiPredictor.predict`."""
        nothing = np.full((1, 1, len(self.emotions)), math.nan)
        intensity = nothing if self.reason else self.intensity[:, self.present.any(axis=1)]
        row = {"clip": self.clip.name, "status": "failed" if self.reason else "ok"}
        row |= self.over_seeds(intensity.mean(axis=1))
        row |= {"missing": ", ".join(self.missing), "damaged": self.damaged}
        row |= {"problems": "; ".join(self.problems), "notes": " ".join(self.notes)}
        row |= {"text": self.text, "windows": len(self.start), "duration": self.duration}
        return row | {"seconds": self.seconds, "reason": self.reason or ""}

    def windows(self) -> pd.DataFrame:
        """A row a window: start and end in s, each emotion and its sd over seeds, missing."""
        rows = pd.DataFrame([self.over_seeds(self.intensity[:, w]) for w in range(len(self.start))])
        absent = [", ".join(compress(MODALITIES, ~present)) for present in self.present]
        table = pd.DataFrame({"start": self.start, "end": self.end}).join(rows)
        return table.assign(missing=absent)


def clips_of(paths, text=None) -> list[Clip]:
    """One or several paths or Clips, with one text or a list of texts, as a list of Clips."""
    paths = [paths] if isinstance(paths, str | Path | Clip) else list(paths)
    texts = [None] * len(paths) if text is None else [text] if isinstance(text, str) else list(text)
    if not paths or len(texts) != len(paths):
        counts = f"{len(paths)} clips and {len(texts)} texts"
        raise ValueError(f"expected at least one clip, and a text (or None) of each, got {counts}")
    clips = [path if isinstance(path, Clip) else Clip(path) for path in paths]
    known = zip(clips, texts, strict=True)
    return [c if words is None else dataclasses.replace(c, text=words) for c, words in known]


def read_clip(clip: Clip, settings: MediaSettings, emotions=EMOTIONS) -> Prediction:
    """Decode a clip's files, in memory as a whole; one that can't be read has a `reason`."""
    began, result = time.perf_counter(), Prediction(clip, emotions)
    try:
        _decode(result, settings)
    except Exception as error:  # whatever it is, the other clips go on
        result.fail(error)
    result.seconds = time.perf_counter() - began
    return result


def _decode(result: Prediction, settings: MediaSettings) -> None:
    clip, sizes, parts = result.clip, {"fps": settings.fps, "size": settings.image_size}, []
    crops, own_sound = clip.faces and settings.visual == "faces", clip.audio is None
    read_video = faces.decode if settings.visual == "faces" and not crops else media.decode
    if clip.video is not None and (own_sound or not crops):
        parts.append(read_video(clip.video, **sizes, frames=not crops, sound=own_sound))
    if clip.audio is not None:
        parts.append(media.decode(clip.audio, frames=False))
    images, result.times, sound = parts[0].images, parts[0].times, parts[-1].waveform
    result.duration = max(part.duration for part in parts)
    result.damaged = sum(part.damaged for part in parts)
    result.problems = [problem for part in parts for problem in part.problems]
    if crops:
        stated = media.stated_seconds(clip.name)
        result.duration = result.duration if result.duration > 0 else stated
        images = media.face_frames(clip.faces, stated, **sizes)
        if images is None:
            result.problems.append(f"no face crop can be read in {clip.faces}")
        else:
            result.times = np.arange(len(images)) * result.duration / len(images)
    elif (seen := parts[0].seen) is not None:
        result.notes = [f"A face was found in {seen.sum()} of {len(seen)} frames."]
    if images is not None:
        result.frames = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if sound is not None:
        result.waveform = media.as_int16(sound)


def windows_of(duration: float, window=None, step=None) -> tuple[np.ndarray, np.ndarray]:
    """(W,) starts and ends in s that cover a clip; the last window ends with the clip."""
    whole = window is None and step is None and not duration > LONGEST
    window = WINDOW if window is None else window
    step = window / 2 if step is None else step
    if not (1 <= window <= LONGEST and 0 < step <= window):
        wanted = f"expected a window of 1 to {LONGEST:g} s and a step above 0 and up to the window"
        raise ValueError(f"{wanted}, got {window:g} and {step:g} s")
    if whole or not duration > window:
        return np.array([0.0]), np.array([duration])
    count = math.ceil((duration - window) / step - 1e-9)
    starts = np.append(np.arange(count) * step, duration - window)
    starts[0] = 0.0  # not a rounding error after it
    return starts, starts + window

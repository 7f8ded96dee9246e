"""A clip that somebody brings: its files, and what is decoded from them."""

import dataclasses
import functools
import math
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from emilib import SAMPLE_RATE
from emilib.corpus import media
from emilib.corpus.media import MediaError
from emilib.workers import ordered_map, pool

WINDOW = 12.0  # s; paper B cuts sound at 12 s
LONGEST = 30.0  # s; no model reads a longer clip in one piece
FEW = 8  # clips that are decoded faster than worker processes start
NO_DETECTOR = (
    "Frames are the middle square of the whole picture, as there is no face detector; the model "
    "learnt from close crops of faces, so treat what it makes of frames with caution, or give face "
    "crops."
)


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip. A path alone means `Clip(video=path)`.

    video : file with picture, sound or both; None where there is only `audio`
    audio : a sound file to take in place of the video's own sound
    faces : folder of numbered face crops (1.jpg, 2.jpg, ...), for models trained on such
    text : the spoken words; "" for none; None to have Whisper listen, where it is installed
    """

    video: str | Path | None
    audio: str | Path | None = None
    faces: str | Path | None = None
    text: str | None = None

    @property
    def name(self) -> str:
        return str(self.video if self.video is not None else self.audio)


@dataclasses.dataclass(frozen=True)
class MediaSettings:
    """How the clips were decoded that a model learnt from.

    visual : "faces", face crops, or "video", the middle square of whole frames
    audio_every : hidden states of the sound that are averaged into one step
    """

    fps: float
    image_size: int
    visual: str
    audio_every: int


@dataclasses.dataclass
class DecodedClip:
    """What is read from a clip's files.

    frames : (T, 3, P, P) uint8, or None; times : (T,) s
    waveform : (N,) int16 at SAMPLE_RATE, or None
    damaged : frames and pieces of sound that were left out
    long : the clip is longer than LONGEST, and nothing of it is decoded yet
    reason : why the clip can't be read, or None; seconds : s that decoding took
    """

    frames: np.ndarray | None = None
    times: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    waveform: np.ndarray | None = None
    duration: float = math.nan
    damaged: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    long: bool = False
    reason: str | None = None
    seconds: float = 0.0


def clips_of(paths, text=None) -> list[Clip]:
    """One or several paths or Clips, with one text or a list of texts, as a list of Clips."""
    paths = [paths] if isinstance(paths, str | Path | Clip) else list(paths)
    texts = [text] if isinstance(text, str) else [None] * len(paths) if text is None else list(text)
    if not paths:
        raise ValueError("expected at least one video file, got none")
    if len(texts) != len(paths):
        raise ValueError(
            f"text: expected the words of each of {len(paths)} clips, got {len(texts)}; give a "
            "list, with None where they are not known"
        )
    clips = [path if isinstance(path, Clip) else Clip(path) for path in paths]
    if any(clip.video is None and clip.audio is None for clip in clips):
        raise ValueError("expected a video or an audio file in each Clip, got neither")
    return [
        clip if words is None else dataclasses.replace(clip, text=words)
        for clip, words in zip(clips, texts, strict=True)
    ]


def read_all(
    clips: Sequence[Clip], settings: MediaSettings, workers: int | None = None
) -> Iterator[DecodedClip]:
    """`read_clip` of each clip, in order; of many clips in worker processes, some ahead."""
    if len(clips) <= FEW or workers == 1:
        yield from (read_clip(clip, settings, int(workers == 1)) for clip in clips)
        return
    read, done = functools.partial(read_clip, settings=settings), 0
    try:
        for decoded in ordered_map(read, clips, workers):
            done += 1
            yield decoded
    except BrokenProcessPool:  # a file made the decoder crash: read the rest one by one
        for clip in clips[done:]:
            try:
                yield pool(1).submit(read, clip).result()
            except BrokenProcessPool:
                yield DecodedClip(
                    reason=f"The process that decoded {clip.name} died: the file makes FFmpeg "
                    "crash, or memory ran out."
                )


def read_clip(clip: Clip, settings: MediaSettings, threads: int = 1) -> DecodedClip:
    """Decode a clip of up to LONGEST s; of a longer one only say that it is. Never raises.

    threads : of the video decoder, 0 for all cores; the frames are the same
    """
    began = time.perf_counter()
    try:
        decoded = _decode(clip, settings, threads)
    except (MediaError, OSError) as error:
        decoded = DecodedClip(reason=first_line(error))
        if "could be decoded" in decoded.reason:
            decoded.reason += " The file is damaged throughout."
    decoded.seconds = time.perf_counter() - began
    return decoded


def _decode(clip: Clip, settings: MediaSettings, threads: int) -> DecodedClip:
    stated = media.stated_seconds(clip.name)
    crops = clip.faces is not None and settings.visual == "faces"
    if crops and stated > LONGEST:
        raise MediaError(
            f"{clip.name}: expected up to {LONGEST:g} s for a clip with face crops, got "
            f"{stated:.0f} s; cut it"
        )
    if stated > LONGEST:
        return DecodedClip(long=True, duration=stated)
    parts = []
    if clip.video is not None and not (crops and clip.audio is not None):
        wanted = {"frames": not crops, "sound": clip.audio is None}
        parts.append(_decode_file(clip.video, settings, threads, **wanted))
    if clip.audio is not None:
        parts.append(_decode_file(clip.audio, settings, frames=False))
    decoded = DecodedClip(duration=max(part.duration for part in parts))
    for part in parts:
        if part.images is not None:
            decoded.frames, decoded.times = channels_first(part.images), part.times
        if part.waveform is not None:
            decoded.waveform = media.as_int16(part.waveform)
        decoded.damaged += part.damaged
        decoded.problems += part.problems
    if crops:
        _take_crops(decoded, clip, settings, stated)
    elif decoded.duration > LONGEST:
        return DecodedClip(long=True, duration=decoded.duration)
    elif decoded.frames is not None:
        decoded.notes = about_frames(settings)
    return decoded


def _decode_file(path, settings: MediaSettings, threads=1, **wanted) -> media.Media:
    decoded = media.decode(
        path,
        fps=settings.fps,
        size=settings.image_size,
        sample_rate=SAMPLE_RATE,
        max_seconds=LONGEST + 1,
        threads=threads,
        sparse=True,
        **wanted,
    )
    if decoded.damaged and threads != 1:
        # What FFmpeg paints over damage depends on its threads; the corpus was read with one.
        return _decode_file(path, settings, **wanted)
    return decoded


def _take_crops(decoded: DecodedClip, clip: Clip, settings: MediaSettings, stated: float) -> None:
    images = media.face_frames(clip.faces, stated, settings.fps, settings.image_size)
    if not decoded.duration > 0:
        decoded.duration = stated
    if images is None:
        decoded.problems.append(f"no face crop can be read in {clip.faces}")
        return
    decoded.frames = channels_first(images)
    decoded.times = np.arange(len(images)) * decoded.duration / len(images)


def read_long(clip: Clip, settings: MediaSettings, take=None, start=0.0, end=math.inf):
    """The part from `start` to `end` s of a clip of any length, its pictures block by block.

    take : makes what is kept of each block of pictures (T, 3, P, P); None leaves them out

    Returns a DecodedClip without frames, and what was kept of the blocks. Raises MediaError as
    `media.decode` does, ValueError where the part is empty.
    """
    problems, times, blocks = [], [np.zeros(0)], []
    if clip.video is not None and take is not None:
        size = settings.image_size
        for images, when in media.picture_blocks(clip.video, settings.fps, size, problems):
            inside = (when >= start) & (when < end)
            if inside.any():
                times.append(when[inside] - start)
                blocks.append(take(channels_first(images[inside])))
            if when[-1] >= end:
                break
    times, waveform = np.concatenate(times), None
    samples = media.sound_on_disk(clip.audio or clip.video, problems)
    if samples is not None:
        stop = None if end == math.inf else round(end * SAMPLE_RATE)
        samples = samples[round(start * SAMPLE_RATE) : stop]
        waveform = samples if len(samples) else None
    if start < 0 or (waveform is None and not blocks):
        lost = f": {'; '.join(problems)}" if problems else ""
        raise MediaError(f"{clip.name} has nothing at {start:g} s that can be decoded{lost}")
    last = times[-1] + 1 / settings.fps if len(times) else 0.0
    seconds = 0.0 if waveform is None else len(waveform) / SAMPLE_RATE
    decoded = DecodedClip(
        times=times,
        waveform=waveform,
        duration=min(end - start, max(last, seconds)),
        damaged=sum(int(n) for p in problems for n in re.findall(r"^(\d+) damaged", p)),
        problems=problems,
        notes=about_frames(settings) if blocks else [],
    )
    return decoded, blocks


def about_frames(settings: MediaSettings) -> list[str]:
    return [NO_DETECTOR] if settings.visual == "faces" else []


def channels_first(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def check_window(window, step) -> tuple[float | None, float | None]:
    """Window and step in s; None for both: in one piece where the clip is short enough."""
    if window is None and step is None:
        return None, None
    window = WINDOW if window is None else float(window)
    step = window / 2 if step is None else float(step)
    if not 1 <= window <= LONGEST:
        raise ValueError(f"window: expected 1 to {LONGEST:g} s, got {window:g}")
    if not 0 < step <= window:
        raise ValueError(
            f"step: expected more than 0 and at most the window of {window:g} s, so that no part "
            f"of the clip is left out, got {step:g}"
        )
    return window, step


def windows_of(duration: float, window=None, step=None) -> tuple[np.ndarray, np.ndarray]:
    """(W,) starts and ends in s that cover a clip; the last window ends with the clip."""
    if window is None:
        window, step = (duration, duration) if duration <= LONGEST else (WINDOW, WINDOW / 2)
    if not duration > window:
        return np.array([0.0]), np.array([duration])
    count = math.ceil((duration - window) / step - 1e-9)
    starts = np.append(np.arange(count) * step, duration - window)
    starts[0] = 0.0  # not a rounding error after it
    return starts, starts + window

"""Long files piece by piece: pictures in blocks, sound into a temporary file.

`media.decode` returns a whole file at once, which an hour of video is too long for. Here memory
does not grow with the length. Picture and sound are read one after the other, because nothing
says how far apart a file keeps the two.
"""

import math
import tempfile
from collections.abc import Iterator

import av
import numpy as np

from emilib.corpus import media

BLOCK = 128  # pictures handed on at once


def pictures(
    path, fps: float, size, problems: list[str], count: int = BLOCK
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images (T, H, W, 3) uint8 and their times (T,) in s, T up to `count`.

    fps, size : which frames and how large, as in `media.decode`
    problems : sentences about what was missing or damaged are added at the end

    Yields nothing for a file without picture. Raises MediaError as `media.decode` does.
    """
    with media.open_media(path) as container:
        video, _ = media.first_streams(container)
        if video is None:
            problems.append("no picture")
            return
        video.codec_context.thread_type = "AUTO"
        origin = (container.start_time or 0) / av.time_base
        sink = media._Pictures(fps, size, origin, math.inf, media.stated_rates(video))
        for _ in _fed(container, video, sink, problems):
            if len(sink.images) >= count:
                yield _taken(sink)
        if sink.images:
            yield _taken(sink)
        problems += sink.problems()
        if sink.last is None:
            problems.append("no frame of the picture could be decoded")


def sound(path, problems: list[str], sample_rate: int = 16000) -> np.ndarray | None:
    """The mono waveform (S,) int16 of a file, on disk and not in memory; None without sound.

    It lies in a temporary file without a name (115 MB an hour), which goes when the array does.
    Raises MediaError as `media.decode` does.
    """
    with media.open_media(path) as container:
        _, audio = media.first_streams(container)
        if audio is None:
            problems.append("no sound track")
            return None
        origin = (container.start_time or 0) / av.time_base
        sink = media._Sound(sample_rate, origin, math.inf)
        with tempfile.TemporaryFile() as file:
            for _ in _fed(container, audio, sink, problems):
                _write(sink, file)
            sink._flush()
            _write(sink, file)
            file.flush()
            problems += sink.problems()
            if not file.tell():
                problems.append("no sample of the sound track could be decoded")
                return None
            return np.memmap(file, dtype=np.int16, mode="r")


def integers(waveform: np.ndarray) -> np.ndarray:
    """A waveform in [-1, 1] as int16, as the feature store keeps it."""
    return np.clip(waveform * 32768, -32768, 32767).astype(np.int16)


def _fed(container, stream, sink, problems) -> Iterator[None]:
    """Give every frame of a stream to `sink`; yields after each packet."""
    errors: list = []
    for packet in media.packets(container, [stream], errors):
        sink.feed(packet)
        yield
    if errors:
        problems.append(f"{len(errors)} places of the file could not be read")


def _taken(sink) -> tuple[np.ndarray, np.ndarray]:
    images, times = np.stack(sink.images), np.array(sink.times)
    sink.images.clear()
    sink.times.clear()
    return images, times


def _write(sink, file) -> None:
    for piece in sink.pieces:
        file.write(integers(piece).tobytes())
    sink.pieces.clear()

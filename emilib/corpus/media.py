"""Decoding: frames by presentation time stamp, a mono waveform, face crops.

A file is read once, from its beginning to its end, sound and picture together. FFmpeg (through
PyAV) marks the frames it could not decode cleanly; they are dropped and counted, and reading
continues behind them.
"""

import math
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from PIL import Image

from emilib import SAMPLE_RATE
from emilib.corpus.layout import face_paths
from emilib.corpus.streams import TIME_TOLERANCE as TIME_TOLERANCE
from emilib.corpus.streams import Pictures, Sound

SILENCE = -60.0  # dB: a waveform nowhere louder than this is silent
READ_ERRORS = 100  # unreadable places of a file before the rest is given up
FACE_RATE = 30.0  # face crops a second in Hume-Vidmimic2
BLOCK = 128  # frames of a long file held in memory at once


class MediaError(ValueError):
    """A file without anything to decode; the message names the file and the reason."""


@dataclass
class Media:
    """One decoded file.

    images : (T, H, W, 3) uint8 RGB upright, or None without a frame
    times : (T,) seconds from the file's beginning, increasing
    damaged : frames and packets that could not be decoded cleanly, all of them left out
    rotation : degrees counter-clockwise that the images were turned to stand upright
    waveform : (S,) float32 mono at `sample_rate` Hz, beginning with the file; None without sound
    duration : decoded seconds (as the container states it where nothing was decoded)
    declared_fps : the rate the file states; of several, the one farthest from `measured_fps`
    measured_fps : frames a second by their time stamps; NaN for fewer than two frames
    problems : sentences about what was missing, damaged or made up
    """

    images: np.ndarray | None
    times: np.ndarray
    damaged: int
    rotation: int
    waveform: np.ndarray | None
    sample_rate: int
    duration: float
    declared_fps: float
    measured_fps: float
    problems: list[str] = field(default_factory=list)


def decode(
    path,
    fps=5.0,
    size=None,
    sample_rate=SAMPLE_RATE,
    frames=True,
    sound=True,
    max_seconds=None,
    threads=1,
    sparse=False,
):
    """Frames at `fps` and the waveform of a file, in one sequential pass.

    Frame choice: time is cut into slots [k / fps, (k + 1) / fps) from the file's beginning, and
    the first undamaged frame of each slot is kept, by its presentation time stamp. A slot without
    a frame stays empty; nothing is repeated, and `times` holds when each kept frame was shown.
    Rate fields are not used, except to make up the time of a frame that has no stamp, or one not
    after its predecessor's (`problems` counts them).

    fps : frames a second to keep; None keeps all
    size : (height, width) of the upright images, resized while decoding; None keeps the file's;
        one number S gives the middle S x S square of the image whose shorter side is S, as CLIP
        and its relatives expect it
    frames, sound : False leaves the picture or the sound out
    max_seconds : decode no further than this. Memory is what is kept, whatever the file's length:
        fps * seconds * H * W * 3 bytes and 64 kB a second of sound, for a moment both twice
    threads : of the video decoder; 0 takes all cores
    sparse : skip H.264 frames that are neither kept nor needed by others (a fifth less time for
        files with B frames). The result is the same, but damage in a skipped frame is not noticed

    Returns a Media. Raises MediaError where the file is missing, encrypted or no media file, or
    holds neither a frame nor a sample of what was requested.
    """
    if fps is not None and not fps > 0:
        raise ValueError(f"fps: expected a number above 0 or None, got {fps!r}")
    with open_media(path) as container:
        video, audio = first_streams(container)
        origin = (container.start_time or 0) / av.time_base
        limit = math.inf if max_seconds is None else float(max_seconds)
        stated = stated_rates(video)
        pictures = Pictures(fps, size, origin, limit, video, stated)
        samples = Sound(sample_rate, origin, limit)
        sinks, errors = {}, []
        if frames and video is not None:
            video.codec_context.thread_count = threads
            video.codec_context.thread_type = "AUTO"
            sinks[video.index] = pictures
        if sound and audio is not None:
            sinks[audio.index] = samples
        flow = packets(container, [container.streams[i] for i in sinks], errors) if sinks else ()
        h264 = pictures in sinks.values() and video.codec_context.name == "h264"
        if sparse := sparse and fps is not None and h264:
            flow = pictures.look_ahead(flow)
        for packet in flow:
            sinks[packet.stream.index].feed(packet)
            # Tracks need not be interleaved: one may begin where the other has long passed the
            # limit, so a track that ends before the limit has the rest read, but not decoded.
            if all(sink.full for sink in sinks.values()):
                break
        stated_seconds = stated_duration(container)
    if sparse and (errors or not pictures.sparse_is_exact()):
        return decode(path, fps, size, sample_rate, frames, sound, max_seconds, threads)
    (images, times), waveform = pictures.taken(), samples.joined()
    problems = [*pictures.problems(), *samples.problems(), *_unread(errors)]
    if frames:
        problems += _absent(video, images, "picture", "frame")
    if sound:
        problems += _absent(audio, waveform, "sound track", "sample")
    if sinks and images is None and waveform is None:
        raise MediaError(f"Nothing in {path} could be decoded: {'; '.join(problems)}.")
    duration = max(pictures.end, 0.0 if waveform is None else len(waveform) / sample_rate)
    return Media(
        images=images,
        times=times,
        damaged=pictures.damaged + samples.damaged,
        rotation=pictures.rotation,
        waveform=waveform,
        sample_rate=sample_rate,
        duration=duration if duration > 0 else stated_seconds,
        declared_fps=farthest(stated, pictures.measured_fps),
        measured_fps=pictures.measured_fps,
        problems=problems,
    )


def picture_blocks(path, fps, size, problems):
    """The frames of a long file in blocks, so that memory does not grow with its length.

    path, fps, size : as in `decode`
    problems : a list that what was missing or damaged is appended to at the end

    Yields images (T, H, W, 3) uint8 and their times (T,) in s, T at most BLOCK; nothing for a file
    without picture. Raises MediaError as `decode` does.
    """
    with open_media(path) as container:
        video, _ = first_streams(container)
        if video is None:
            problems.append("no picture")
            return
        video.codec_context.thread_type = "AUTO"
        origin = (container.start_time or 0) / av.time_base
        pictures, errors = Pictures(fps, size, origin, math.inf, video, stated_rates(video)), []
        for packet in packets(container, [video], errors):
            pictures.feed(packet)
            if len(pictures.images) >= BLOCK:
                yield pictures.taken()
        if pictures.images:
            yield pictures.taken()
    problems += [*pictures.problems(), *_unread(errors)]
    problems += _absent(video, pictures.last, "picture", "frame")


def sound_on_disk(path, problems, sample_rate=SAMPLE_RATE):
    """The mono waveform (S,) int16 of a long file, on disk and not in memory; None without sound.

    It lies in a temporary file without a name (115 MB an hour), which goes when the array does.
    problems : as in `picture_blocks`. Raises MediaError as `decode` does.
    """
    with open_media(path) as container, tempfile.TemporaryFile() as file:
        _, audio = first_streams(container)
        origin = (container.start_time or 0) / av.time_base
        samples, errors = Sound(sample_rate, origin, math.inf), []
        for packet in packets(container, [audio] if audio else [], errors):
            samples.feed(packet)
            file.writelines(as_int16(piece).tobytes() for piece in samples.pieces)
            samples.pieces.clear()
        samples.flush()
        file.writelines(as_int16(piece).tobytes() for piece in samples.pieces)
        problems += [*samples.problems(), *_unread(errors)]
        problems += _absent(audio, samples.count or None, "sound track", "sample")
        file.flush()
        return np.memmap(file, dtype=np.int16, mode="r") if samples.count else None


def as_int16(waveform):
    """A waveform in [-1, 1] as int16, as the feature store keeps it."""
    return np.clip(waveform * 32768, -32768, 32767).astype(np.int16)


def loudness(waveform, sample_rate):
    """Level of the loudest 50 ms in dB below full scale (0 dB = a constant 1); -inf for zeros.

    waveform : (S,) float; silence fills up a last piece of less than 50 ms.
    """
    if not len(waveform):
        return -math.inf
    piece = max(1, sample_rate // 20)
    energy = np.add.reduceat(np.square(waveform, dtype=np.float64), range(0, len(waveform), piece))
    power = (energy / piece).max()
    return 10 * math.log10(power) if power > 0 else -math.inf


def face_frames(folder, seconds, fps=5.0, size=None):
    """Face crops of a clip at `fps`, from its folder of numbered pictures.

    Crops come at an even rate (about 30 a second in Hume-Vidmimic2), but no file states it: it is
    their number over `seconds`, the clip's length. NaN seconds stand for FACE_RATE.
    size : side of the square in pixels, None keeps the first picture's; fps : None keeps all

    Returns (T, H, W, 3) uint8, or None where no picture of the folder can be read; an unreadable
    one is left out.
    """
    paths = face_paths(folder)
    if not paths:
        return None
    length = seconds if np.isfinite(seconds) and seconds > 0 else len(paths) / FACE_RATE
    count = len(paths) if fps is None else min(len(paths), max(1, round(length * fps)))
    images = []
    for k in range(count):
        try:
            with Image.open(paths[k * len(paths) // count]) as picture:
                if size is not None:
                    picture.draft("RGB", (size, size))  # decodes a JPEG at a lower size if it can
                picture = picture.convert("RGB")
                if size is None:
                    size = picture.size[0]
                images.append(np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)))
        except (OSError, SyntaxError):  # Pillow's errors for broken pictures
            continue
    return np.stack(images) if images else None


def sound_of(paths):
    """Waveform at SAMPLE_RATE of the first of a clip's files that holds sound; None for none.

    paths : the audio and the video path; what is no str is passed over
    """
    for path in paths:
        if isinstance(path, str):
            try:
                waveform = decode(path, frames=False).waveform
            except MediaError:
                continue  # the audit names unreadable files
            if waveform is not None:
                return waveform
    return None


# ---- containers ---------------------------------------------------------------------------------


@contextmanager
def open_media(path):
    """An open container, closed in every case; what FFmpeg can't open is a MediaError."""
    path = Path(path)
    if not path.is_file():
        raise MediaError(f"There is no file {path}; expected a video or sound file.")
    if path.stat().st_size == 0:
        raise MediaError(f"{path} is empty (0 bytes); expected a video or sound file.")
    try:
        # "file:" keeps a name with a colon in it from being taken for a network address
        container = av.open(f"file:{path}", metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{path} is no media file that FFmpeg can open: {reason}.") from error
    with container:
        yield container


def first_streams(container):
    """The first video stream that is no cover picture, the first sound stream; None for none.

    Raises MediaError for a file with neither.
    """
    cover = av.stream.Disposition.attached_pic
    # codec_context is None where FFmpeg knows no decoder for the stream
    known = [s for s in container.streams if getattr(s, "codec_context", None) is not None]
    video = next((s for s in known if s.type == "video" and not s.disposition & cover), None)
    audio = next((s for s in known if s.type == "audio"), None)
    if video is None and audio is None:
        path = container.name.removeprefix("file:")
        raise MediaError(f"{path} holds neither picture nor sound; expected a media file.")
    return video, audio


def packets(container, streams, errors):
    """All packets of the streams; `errors` collects what fails, reading continues behind it.

    Raises MediaError for an encrypted file: FFmpeg decodes it without a word, and some of the
    noise passes for sound.
    """
    while streams and len(errors) < READ_ERRORS:
        try:
            for packet in container.demux(streams):
                if packet.has_sidedata("encryption_info"):
                    path = container.name.removeprefix("file:")
                    raise MediaError(f"{path} is encrypted; give a file without protection")
                yield packet
            return
        except av.FFmpegError as error:
            errors.append(error)


def stated_rates(video):
    """Frame rates a file states: FFmpeg's reading of the container, and the codec's header."""
    if video is None:
        return []
    rates = (video.guessed_rate, video.average_rate, video.codec_context.framerate)
    return [float(rate) for rate in rates if rate]


def farthest(stated, measured):
    """Of the rates a file states the one farthest from the measured, by ratio; NaN for none.

    Without a measured rate the largest: that is the field that lies in practice.
    """
    if not stated:
        return math.nan
    if not measured > 0:
        return max(stated)
    return max(stated, key=lambda rate: abs(math.log(rate / measured)))


def stated_duration(container):
    """Seconds by the container's header, NaN where it has none."""
    return math.nan if container.duration is None else container.duration / av.time_base


def stated_seconds(path):
    """Seconds a file claims to last, nothing decoded; NaN for no claim. Raises MediaError."""
    with open_media(path) as container:
        first_streams(container)
        return stated_duration(container)


def _absent(stream, result, track, unit):
    if stream is None:
        return [f"no {track}"]
    return [] if result is not None else [f"no {unit} of the {track} could be decoded"]


def _unread(errors):
    return [f"{len(errors)} places of the file could not be read"] if errors else []

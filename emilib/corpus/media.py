"""Decoding: frames by time stamp without those FFmpeg marks as damaged, a mono waveform, crops."""

import math
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from emilib import SAMPLE_RATE
from emilib.corpus.layout import face_paths

SILENCE = -60.0  # dB: a waveform nowhere louder than this is silent
READ_ERRORS = 100  # unreadable places of a file before the rest is given up
FACE_RATE = 30.0  # face crops a second in Hume-Vidmimic2
TIME_TOLERANCE = 0.001  # s early still counts as on time: a clock in milliseconds rounds down
SOUND_GAP = 0.1  # s; a shorter hole in the sound is rounding of time stamps
LONGEST_GAP = 600.0  # s, of all holes in the sound, and between pictures; more is a damaged stamp
MOST_PIXELS = 2**26  # of a picture, twice those of 8K; a header may claim any number
NARROWEST = 32  # longer side over shorter: pictures are resized by the shorter
# A text, a playlist or a script is no film, whatever its name: FFmpeg would draw it, or follow it.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,ivf,flv,asf,"
    "mp3,wav,w64,flac,aac,ogg,amr,aiff,caf,au,ac3,eac3,dv,gif,mxf,nut,rm"
)
FALLBACK_FPS = 25.0  # where neither time stamps nor a rate are in the file
UPRIGHT = (1, 0, 0, 1)


class MediaError(ValueError):
    """A file that can't be read; the message names the file and the reason."""


@dataclass
class Media:
    """One decoded file."""

    images: np.ndarray | None = None  # (T, H, W, 3) uint8 RGB upright
    times: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (T,) s, increasing
    # Where `faces.decode` looked for a face: whether each frame shows it. Images are of those.
    seen: np.ndarray | None = None
    damaged: int = 0  # frames and packets that could not be decoded cleanly: left out
    waveform: np.ndarray | None = None  # (S,) float32 mono, beginning with the file
    sample_rate: int = SAMPLE_RATE  # Hz
    duration: float = 0.0  # decoded s (as the container states it where nothing was decoded)
    problems: list[str] = field(default_factory=list)  # what was missing, damaged or made up


def decode(path, fps=5.0, size=None, frames=True, sound=True, max_seconds=None, each=None):
    """Frames at `fps` and the waveform of a file.

    Time is cut into slots [k / fps, (k + 1) / fps) from the file's beginning, and the first
    undamaged frame of each slot is kept, by its presentation time stamp; an empty slot stays empty.
    A frame without a stamp, or with one not after its predecessor's, follows it by the stated rate.

    fps : frames a second to keep; None keeps all
    size : S gives the middle S x S square of the upright image whose shorter side is S, as CLIP
        and its relatives expect it; None keeps the file's size
    frames, sound : False leaves the picture or the sound out
    max_seconds : decode no further than this
    each : a function of an upright frame of the file's size; `images` lists its results instead

    Returns a Media. Raises MediaError where the file is missing, encrypted or no media file, or
    holds neither a frame nor a sample of what was requested.
    """
    if fps is not None and not fps > 0:
        raise ValueError(f"fps: expected a number above 0 or None, got {fps!r}")
    media, limit = Media(), math.inf if max_seconds is None else max_seconds
    with open_media(path) as (container, video, audio):
        if frames and video is not None:
            video.codec_context.thread_count = 1  # what is painted over damage depends on it
            _decode_pictures(media, container, video, fps, size, limit, each)
        elif frames:
            media.problems.append("no picture")
    if sound and audio is not None:
        with open_media(path) as (container, _, stream):
            _decode_sound(media, container, stream, limit)
    elif sound:
        media.problems.append("no sound track")
    tried = (frames and video is not None) or (sound and audio is not None)
    if tried and media.images is None and media.waveform is None:
        raise MediaError(f"Nothing in {path} could be decoded: {'; '.join(media.problems)}.")
    if not media.duration > 0:
        media.duration = stated_seconds(path)
    return media


def _decode_pictures(media, container, stream, fps, size, limit, each):
    """The first good frame of each slot, up to `limit` s; all frames where fps is None."""
    origin, counts = (container.start_time or 0) / av.time_base, Counter()
    step = 1 / float(stream.guessed_rate or FALLBACK_FPS)
    # The reformatter is kept from frame to frame, as is the shape: a stream may change its size.
    reformatter, shape, images, times, shown, slot = VideoReformatter(), None, [], [], [], -math.inf
    for frame in _frames(container, stream, counts):
        time = None if frame.time is None else frame.time - origin
        last = shown[-1] if shown else -math.inf
        if time is None or time <= last or abs(time - max(last, 0)) > LONGEST_GAP:
            counts["made up"] += 1
            time = shown[-1] + step if shown else 0.0
        if time >= limit:
            break
        shown.append(time)
        if frame.is_corrupt:
            counts["damaged"] += 1
            continue
        check_size(container.name.removeprefix("file:"), frame.width, frame.height)
        here = len(shown) if fps is None else math.floor((time + TIME_TOLERANCE) * fps)
        if here <= slot:
            continue
        slot = here
        shape = (frame.height, frame.width) if size or shape is None else shape
        times.append(time)
        image = _upright(frame, shape, size, reformatter)
        images.append(image if each is None else each(image))
    if shown:
        spacing = (shown[-1] - shown[0]) / (len(shown) - 1) if len(shown) > 1 else step
        media.duration = min(shown[-1] + spacing, limit)
    if images:
        media.images = np.stack(images) if each is None else images
        media.times = np.array(times)
    media.damaged += counts["damaged"]
    sentences = {
        f"{counts['damaged']} damaged frames of {len(shown)} left out": counts["damaged"],
        f"{counts['made up']} frames had no usable time stamp; they were placed {step:.4f} s apart "
        "by the stated rate": counts["made up"],
        f"{counts['unread']} places of the file could not be read": counts["unread"],
        "no frame of the picture could be decoded": not images,
    }
    media.problems += [sentence for sentence, holds in sentences.items() if holds]


def _upright(frame, shape, size, reformatter):
    """RGB (H, W, 3) of one frame, resized, then turned and mirrored by its display matrix."""
    height, width = shape
    if size is not None:
        scale = size / min(shape)
        height, width = (max(size, round(side * scale)) for side in shape)
    if (height, width) == (frame.height, frame.width):
        image = frame.to_ndarray(format="rgb24")
    else:  # more than one thread costs more than the work itself
        options = {"interpolation": "BICUBIC", "threads": 1}
        image = reformatter.reformat(frame, width, height, "rgb24", **options).to_ndarray()
    if size is not None:
        top, left = (height - size) // 2, (width - size) // 2
        image = image[top : top + size, left : left + size]
    a, b, c, d = turn = UPRIGHT  # x' = a x + c y, y' = b x + d y
    if (data := frame.side_data.get("DISPLAYMATRIX")) is not None:
        turn = np.rint(np.frombuffer(bytes(data), dtype="<i4")[[0, 1, 3, 4]] / 65536).astype(int)
    if tuple(map(abs, turn)) in (UPRIGHT, (0, 1, 1, 0)):  # else no quarter turn
        a, b, c, d = turn
    if a == 0:  # the columns of the result run along the rows of the image
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[::d, ::a])


def _decode_sound(media, container, stream, limit):
    """One mono waveform up to `limit` s that keeps time with the picture: holes are silent."""
    origin, counts = (container.start_time or 0) / av.time_base, Counter()
    pieces, resampler, form = [], None, None
    expected = filled = 0.0  # s: when the next sample should sound; silence in holes

    def resample(frame):
        for part in resampler.resample(frame) if resampler else ():
            # packed: planes of eight channels and more crash PyAV
            samples = part.to_ndarray().reshape(-1, part.layout.nb_channels)
            pieces.append(samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1))

    for frame in _frames(container, stream, counts):
        if frame.is_corrupt:
            counts["damaged"] += 1
            continue
        if form != (form := (frame.format.name, frame.layout.name, frame.sample_rate)):
            resample(None)  # a stream may change on its way
            # The mean over channels is taken afterwards: swresample's own mix to mono makes
            # two equal float channels louder by the root of 2.
            as_it_is = form in (("flt", "mono", SAMPLE_RATE), ("fltp", "mono", SAMPLE_RATE))
            resampler = None if as_it_is else av.AudioResampler("flt", frame.layout, SAMPLE_RATE)
        gap = 0.0 if frame.time is None else frame.time - origin - expected
        if SOUND_GAP < gap < LONGEST_GAP - filled:
            pieces.append(np.zeros(round(gap * SAMPLE_RATE), np.float32))
            filled, expected = filled + gap, frame.time - origin
        expected += frame.samples / frame.sample_rate
        frame.pts = None
        if resampler:
            resample(frame)
        else:
            pieces.append(frame.to_ndarray()[0])
        if expected > limit + SOUND_GAP:  # the resampler holds less than this back
            break
    resample(None)
    if pieces:
        waveform = np.concatenate(pieces)
        media.waveform = waveform[: int(min(limit * SAMPLE_RATE, len(waveform)))]
        if count := np.count_nonzero(~np.isfinite(media.waveform)):
            media.waveform = np.nan_to_num(media.waveform, posinf=0, neginf=0)
            media.problems.append(f"{count} samples of the sound that are no numbers set to 0")
        media.duration = max(media.duration, len(media.waveform) / SAMPLE_RATE)
    media.damaged += counts["damaged"]
    sentences = {
        f"{counts['damaged']} damaged pieces of sound left out": counts["damaged"],
        f"{filled:.2f} s without sound filled with silence": filled,
        f"{counts['unread']} places of the sound could not be read": counts["unread"],
        "no sample of the sound track could be decoded": not pieces,
    }
    media.problems += [sentence for sentence, holds in sentences.items() if holds]


def as_int16(waveform):
    """A waveform in [-1, 1] as int16, as the feature store keeps it."""
    return np.clip(waveform * 32768, -32768, 32767).astype(np.int16)


def loudness(waveform, sample_rate):
    """Level of the loudest 50 ms of (S,) in dB below full scale (0 dB = a constant 1), or -inf."""
    if not len(waveform):
        return -math.inf
    piece = sample_rate // 20
    energy = np.add.reduceat(np.square(waveform, dtype=np.float64), range(0, len(waveform), piece))
    power = energy.max() / piece
    return 10 * math.log10(power) if power > 0 else -math.inf


def face_frames(folder, seconds, fps=5.0, size=None):
    """Face crops of a clip at `fps`, from its folder of numbered pictures.

    Their rate is their number over `seconds`, the clip's length, or FACE_RATE where that is NaN.
    size : side of the square in pixels, None keeps the first picture's; fps : None keeps all
    Returns (T, H, W, 3) uint8 without unreadable pictures, or None where there is no other.
    """
    paths = face_paths(folder)
    length = seconds if np.isfinite(seconds) and seconds > 0 else len(paths) / FACE_RATE
    count = len(paths) if fps is None else min(len(paths), max(1, round(length * fps)))
    images = []
    for k in range(count):
        try:
            path = paths[k * len(paths) // count]
            with Image.open(path) as picture:
                check_size(path, *picture.size)
                if size is not None:
                    picture.draft("RGB", (size, size))  # decodes a JPEG at a lower size if it can
                picture = picture.convert("RGB")
                size = size or picture.size[0]
                images.append(np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)))
        except Exception:  # damaged bytes raise almost anything in Pillow
            continue
    return np.stack(images) if images else None


def sound_of(paths):
    """Waveform at SAMPLE_RATE of the first path that holds sound; None for none."""
    for path in paths:
        with suppress(MediaError):  # the audit names unreadable files
            if isinstance(path, str) and (media := decode(path, frames=False)).waveform is not None:
                return media.waveform
    return None


# ---- containers ---------------------------------------------------------------------------------


@contextmanager
def open_media(path):
    """A container, its first video stream that is no cover, its first sound; MediaError if none."""
    if not Path(path).is_file():
        raise MediaError(f"There is no file {path}; expected a video or sound file.")
    if Path(path).stat().st_size == 0:
        raise MediaError(f"{path} is empty (0 bytes); expected a video or sound file.")
    try:
        # "file:" keeps a name with a colon in it from being taken for a network address
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
        container = av.open(f"file:{path}", metadata_errors="replace", options=options)
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{path} is no media file that FFmpeg can open: {reason}.") from error
    cover = av.stream.Disposition.attached_pic
    with container:
        # codec_context is None where FFmpeg knows no decoder for the stream
        known = [s for s in container.streams if getattr(s, "codec_context", None) is not None]
        video = next((s for s in known if s.type == "video" and not s.disposition & cover), None)
        audio = next((s for s in known if s.type == "audio"), None)
        if video is None and audio is None:
            raise MediaError(f"{path} holds neither picture nor sound; expected a media file.")
        try:
            yield container, video, audio
        except MediaError:
            raise
        except Exception as error:  # whatever a damaged file provokes
            reason = f"{type(error).__name__}: {error}"
            raise MediaError(f"{path} can't be decoded ({reason}).") from error


def check_size(path, width, height):
    """Raise MediaError for a picture that is too large, or too narrow, for any film."""
    low, high = sorted((width, height))
    if width * height > MOST_PIXELS or high > NARROWEST * max(low, 1):
        expected = f"expected at most {MOST_PIXELS} pixels, and sides within 1 to {NARROWEST}"
        raise MediaError(f"{path}: {expected}, got {width} x {height}.")


def packets(container, streams, counts):
    """All packets of the streams; what fails is counted as "unread", and reading continues."""
    while counts["unread"] < READ_ERRORS:
        try:
            for packet in container.demux(streams):
                if packet.has_sidedata("encryption_info"):  # FFmpeg would decode it to noise
                    path = container.name.removeprefix("file:")
                    raise MediaError(f"{path} is encrypted; give a file without protection")
                yield packet
            return
        except av.FFmpegError:
            counts["unread"] += 1


def _frames(container, stream, counts):
    """All frames of a stream in order of presentation; counts["damaged"] counts lost packets."""
    for packet in packets(container, [stream], counts):
        try:
            yield from packet.decode()
        except av.EOFError:  # the decoder was flushed already
            continue
        except av.FFmpegError:
            counts["damaged"] += 1


def stated_seconds(path):
    """Seconds a file claims to last, nothing decoded; NaN for no claim. Raises MediaError."""
    with open_media(path) as (container, _, _):
        seconds = math.nan if container.duration is None else container.duration / av.time_base
    # No film needs less than a byte a second: its header is damaged.
    return seconds if 0 <= seconds <= Path(path).stat().st_size else math.nan


def timing(path):
    """What the packets of a file tell, as a dict; nothing is decoded. Raises MediaError.

    seconds : from the first packet's beginning to the last one's end, longest track
    declared, measured : frames a second by the file's header, and by time stamps; NaN for none
    frames, missing : frames by the container's index, or else of the file; those not in the file
    """
    spans, counts = {"video": [], "audio": []}, Counter()
    with open_media(path) as (container, video, audio):
        for packet in packets(container, [s for s in (video, audio) if s is not None], counts):
            if packet.size:
                track, base = packet.stream.type, packet.time_base
                counts[track] += 1
                if packet.pts is not None and not packet.is_discard:
                    start = float(packet.pts * base)
                    spans[track].append((start, start + float((packet.duration or 0) * base)))
        frames = 0 if video is None else max(video.frames, counts["video"])
        # by the header of the stream, or else by the container
        declared = video and (video.codec_context.framerate or video.guessed_rate)
    lengths = [max(end for _, end in span) - min(span)[0] for span in spans.values() if span]
    starts = [start for start, _ in spans["video"]] or [0.0]
    length = max(starts) - min(starts)
    return {
        "seconds": max(lengths) if lengths else stated_seconds(path),
        "declared": float(declared or math.nan),
        "measured": (len(starts) - 1) / length if length > 0 else math.nan,
        "frames": frames,
        "missing": frames - counts["video"],
    }

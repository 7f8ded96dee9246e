"""Decoding: frames by presentation time stamp, a mono waveform, and the organisers' pickles.

A file is read once, from its beginning to its end, sound and picture together. FFmpeg (through
PyAV) marks the frames it could not decode cleanly; they are dropped and counted, and reading goes
on behind them.
"""

import math
import os
import pickle
import struct
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from emilib.corpus.layout import face_paths

# Containers with a clock in milliseconds round a frame's time down: a frame that is less than
# this early still counts as on time.
TIME_TOLERANCE = 0.001  # s
# A hole in the sound shorter than this is rounding of time stamps; a longer one is filled.
SOUND_GAP = 0.1  # s
LONGEST_GAP = 600.0  # s; beyond it the time stamp is damaged, not the sound
SILENCE = -60.0  # dB: a waveform nowhere louder than this is silent
READ_ERRORS = 100  # places of a file that can't be read before the rest is given up
FALLBACK_FPS = 25.0  # where neither time stamps nor a rate are in the file
FACE_RATE = 30.0  # face crops a second in Hume-Vidmimic2


class MediaError(ValueError):
    """A file without anything to decode; the message says which file and why."""


class NoArrayError(MediaError):
    """A pickle that is whole, but of something else than an array."""


@dataclass
class Media:
    """One decoded file.

    images : (T, H, W, 3) uint8 RGB upright, or None without a frame
    times : (T,) seconds from the file's beginning, increasing
    damaged : frames and packets that could not be decoded cleanly, all of them left out
    rotation : degrees counter-clockwise that the images were turned to stand upright
    waveform : (S,) float32 mono at `sample_rate` Hz, beginning with the file; None without sound
    duration : seconds that were decoded (the container's word where nothing was)
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


@dataclass(frozen=True)
class Facts:
    """What a file says of itself, nothing decoded; NaN where it says nothing."""

    duration: float
    has_video: bool
    has_audio: bool
    declared_fps: float
    height: int
    width: int


def loudness(waveform, sample_rate):
    """Level of the loudest 50 ms in dB below full scale (0 dB = a constant 1); -inf for zeros.

    waveform : (S,) float; a last piece of less than 50 ms counts as if silence filled it up.
    """
    if not len(waveform):
        return -math.inf
    piece = max(1, sample_rate // 20)
    energy = np.add.reduceat(np.square(waveform, dtype=np.float64), range(0, len(waveform), piece))
    power = (energy / piece).max()
    return 10 * math.log10(power) if power > 0 else -math.inf


def decode(
    path,
    fps=5.0,
    size=None,
    sample_rate=16000,
    frames=True,
    sound=True,
    max_seconds=None,
    threads=1,
    sparse=False,
):
    """Frames at `fps` and the waveform of a file, in one sequential pass.

    Frame choice: time is cut into slots [k / fps, (k + 1) / fps) from the file's beginning, and
    the first undamaged frame of each slot is kept, by its presentation time stamp. A slot without
    a frame stays empty; nothing is repeated, and `times` says when each kept frame was shown.
    Rate fields are not used, except to make up the time of a frame that has no stamp, or one not
    after its predecessor's (said in `problems`).

    fps : frames a second to keep; None keeps all
    size : (height, width) of the upright images, resized while decoding; None keeps the file's;
        one number S gives the middle S x S square of the image whose shorter side is S, as CLIP
        and its relatives are fed
    frames, sound : False leaves the picture or the sound out
    max_seconds : decode no further than this. Memory is what is kept, whatever the file's length:
        fps * seconds * H * W * 3 bytes and 64 kB a second of sound, for a moment both twice
    threads : of the video decoder; 0 takes all cores
    sparse : leave frames of H.264 undecoded that are neither kept nor needed to decode another
        one. What comes back is the same, but for damage in such a frame, which nobody sees; a
        file with damage elsewhere or doubtful time stamps is decoded anew, and in full

    Returns a Media. Raises MediaError where the file is missing, is no media file, or gives
    neither a frame nor a sample although it was asked for what it says it has.
    """
    if fps is not None and not fps > 0:
        raise ValueError(f"fps must be above 0 or None, not {fps!r}.")
    asked = (path, fps, size, sample_rate, frames, sound, max_seconds, threads)
    if sparse and fps is not None:
        try:
            return _decode(*asked, sparse=True)
        except _NotSparse:
            pass  # it is as if it had not been tried
    return _decode(*asked)


def _decode(path, fps, size, sample_rate, frames, sound, max_seconds, threads, sparse=False):
    with open_media(path) as container:
        video, audio = first_streams(container)
        stated = stated_rates(video)
        origin = (container.start_time or 0) / av.time_base
        limit = math.inf if max_seconds is None else float(max_seconds)
        pictures = _Pictures(fps, size, origin, limit, stated)
        samples = _Sound(sample_rate, origin, limit)
        sinks, ahead = {}, None
        if frames and video is not None:
            video.codec_context.thread_count = threads
            video.codec_context.thread_type = "AUTO"
            sinks[video.index] = pictures
            if sparse and video.codec_context.name == "h264":
                sinks[video.index] = ahead = _Ahead(pictures, video)
        if sound and audio is not None:
            sinks[audio.index] = samples
        read_errors = _drain(container, sinks) if sinks else 0
        if ahead is not None:
            ahead.finish(read_errors)
        stated_seconds = stated_duration(container)
    images, waveform = pictures.stacked(), samples.joined()
    problems = [*pictures.problems(), *samples.problems()]
    if read_errors:
        problems.append(f"{read_errors} places of the file could not be read")
    if frames:
        problems += _absent(video, images, "picture", "frame")
    if sound:
        problems += _absent(audio, waveform, "sound track", "sample")
    if sinks and images is None and waveform is None:
        raise MediaError(f"Nothing in {path} could be decoded: {'; '.join(problems)}.")
    duration = max(pictures.end, 0.0 if waveform is None else len(waveform) / sample_rate)
    return Media(
        images=images,
        times=np.array(pictures.times, dtype=float),
        damaged=pictures.damaged + samples.damaged,
        rotation=pictures.rotation,
        waveform=waveform,
        sample_rate=sample_rate,
        duration=duration if duration > 0 else stated_seconds,
        declared_fps=farthest(stated, pictures.measured_fps),
        measured_fps=pictures.measured_fps,
        problems=problems,
    )


def probe(path):
    """Facts about a file from its headers; milliseconds, nothing decoded. Raises MediaError."""
    with open_media(path) as container:
        video, audio = first_streams(container)
        return Facts(
            duration=stated_duration(container),
            has_video=video is not None,
            has_audio=audio is not None,
            declared_fps=farthest(stated_rates(video), math.nan),
            height=0 if video is None else video.codec_context.height,
            width=0 if video is None else video.codec_context.width,
        )


def farthest(stated, measured):
    """Of the rates a file states the one farthest from the measured, by ratio; NaN for none.

    Without a measured rate the largest: that is the field that lies in practice.
    """
    if not stated:
        return math.nan
    if not measured > 0:
        return max(stated)
    return max(stated, key=lambda rate: abs(math.log(rate / measured)))


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


def encrypted(path):
    """Whether an mp4 says of a track that it is encrypted (sample entry encv or enca).

    FFmpeg decodes such a file without a word, and some of the noise passes for sound.
    """
    first = True
    with open(path, "rb") as file:
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            body = size - 8
            if size == 1:  # a length of 64 bits follows
                body = int.from_bytes(file.read(8), "big") - 16
            if body < 0 or (first and kind != b"ftyp"):
                return False
            if kind == b"moov":
                tracks = file.read(body)
                return b"encv" in tracks or b"enca" in tracks
            file.seek(body, os.SEEK_CUR)
            first = False
    return False


def first_streams(container):
    """The first video stream that is no cover picture, the first sound stream; None for none.

    Raises MediaError for a file with neither.
    """
    cover = av.stream.Disposition.attached_pic
    videos = [s for s in container.streams.video if not s.disposition & cover]
    # codec_context is None where FFmpeg knows no decoder for the stream
    videos = [s for s in videos if s.codec_context is not None]
    audios = [s for s in container.streams.audio if s.codec_context is not None]
    if not videos and not audios:
        path = container.name.removeprefix("file:")
        raise MediaError(f"{path} holds neither picture nor sound; expected a media file.")
    return (videos[0] if videos else None), (audios[0] if audios else None)


def stated_rates(video):
    """Frame rates a file states: FFmpeg's reading of the container, and the codec's header."""
    if video is None:
        return []
    rates = (video.guessed_rate, video.average_rate, video.codec_context.framerate)
    return [float(rate) for rate in rates if rate]


def stated_duration(container):
    return math.nan if container.duration is None else container.duration / av.time_base


def _absent(stream, result, track, unit):
    if stream is None:
        return [f"no {track}"]
    return [] if result is not None else [f"no {unit} of the {track} could be decoded"]


def packets(container, streams, errors):
    """All packets of the streams. Reading goes on behind a damaged place; `errors` lists them."""
    while True:
        try:
            yield from container.demux(streams)
            return
        except av.FFmpegError as error:
            errors.append(error)
            if len(errors) >= READ_ERRORS:
                return


def _drain(container, sinks):
    """Decode every packet into its stream's sink. Returns how often reading itself failed."""
    streams = [container.streams[index] for index in sinks]
    errors = []
    for packet in packets(container, streams, errors):
        sink = sinks[packet.stream.index]  # `packet.stream_index` is 0 for the flushing packets
        if not sink.full:
            sink.feed(packet)
        # Tracks need not be interleaved: one may begin where the other has long passed the limit.
        # So a track that ends before the limit has the rest of the file read, but not decoded.
        if all(sink.full for sink in sinks.values()):
            break
    return len(errors)


class _Sink:
    def feed(self, packet):
        """Decode a packet and take its frames; what can't be decoded is counted as lost."""
        try:
            decoded = packet.decode()
        except av.EOFError:  # the decoder was flushed already
            decoded = []
        except av.FFmpegError:
            self.lost()
            decoded = []
        for frame in decoded:
            self.add(frame)


class _Pictures(_Sink):
    """Takes all frames in order of presentation, keeps the first good one of each slot."""

    def __init__(self, fps, size, origin, limit, stated):
        self.fps, self.size, self.origin, self.limit = fps, size, origin, limit
        self.step = 1 / (stated[0] if stated else FALLBACK_FPS)
        self.reformatter = VideoReformatter()
        self.images, self.times = [], []
        self.damaged = self.traces = self.seen = self.made_up = self.rotation = 0
        self.bad_matrix = self.full = self.broken = False
        self.first = self.last = None
        self.slot = -math.inf

    def add(self, frame):
        time = self._time(frame)
        if time >= self.limit:
            self.full = True
            return
        self.first = time if self.first is None else self.first
        self.last = time
        self.seen += 1
        if frame.is_corrupt:
            self.lost()
            return
        self.broken = self.broken and not frame.key_frame
        self.traces += self.broken
        slot = self.seen if self.fps is None else self.slot_of(time)
        if slot > self.slot:
            self.slot = slot
            self.times.append(time)
            self.images.append(self._upright(frame))

    def slot_of(self, time):
        return math.floor((time + TIME_TOLERANCE) * self.fps)

    def lost(self):
        """A frame that can't be used; what is predicted from it shows traces of that."""
        self.damaged += 1
        self.broken = True

    def _time(self, frame):
        """Seconds from the beginning; made up where the stamp is missing or goes backward."""
        stamp = None if frame.time is None else frame.time - self.origin
        if stamp is not None and (self.last is None or stamp > self.last):
            return stamp
        self.made_up += 1
        return 0.0 if self.last is None else self.last + self.step

    def _upright(self, frame):
        """RGB (H, W, 3) of one frame, resized, then turned and mirrored by its matrix."""
        matrix = self._matrix(frame)
        sideways = matrix is not None and matrix[0] == 0
        native = (frame.height, frame.width)
        if self.size is None:
            self.size = native[::-1] if sideways else native
        if isinstance(self.size, int):
            scale = self.size / min(native)
            height, width = (max(self.size, round(side * scale)) for side in native)
        else:
            height, width = self.size[::-1] if sideways else self.size
        if (height, width) == (frame.height, frame.width):
            image = frame.to_ndarray(format="rgb24")
        else:
            # Kept from frame to frame, and in one thread: both cost more than the work itself.
            made = self.reformatter.reformat(
                frame, width, height, "rgb24", interpolation="BICUBIC", threads=1
            )
            image = made.to_ndarray()
        if isinstance(self.size, int):
            top, left = (height - self.size) // 2, (width - self.size) // 2
            image = image[top : top + self.size, left : left + self.size]
        return image if matrix is None else _turn(image, matrix)

    def _matrix(self, frame):
        """(a, b, c, d) of the display matrix as signs: x' = a x + c y, y' = b x + d y.

        None for upright. Only quarter turns and mirrors are applied.
        """
        data = frame.side_data.get("DISPLAYMATRIX")
        if data is None:
            return None
        values = np.frombuffer(bytes(data), dtype="<i4")
        a, b, c, d = (int(v) for v in np.rint(values[[0, 1, 3, 4]] / 65536))
        if (a, b, c, d) == (1, 0, 0, 1):
            return None
        straight = b == c == 0 and abs(a) == abs(d) == 1
        sideways = a == d == 0 and abs(b) == abs(c) == 1
        if not (straight or sideways):
            self.bad_matrix = True
            return None
        self.rotation = frame.rotation
        return a, b, c, d

    @property
    def measured_fps(self):
        if self.seen < 2 or self.last <= self.first:
            return math.nan
        return (self.seen - 1) / (self.last - self.first)

    @property
    def end(self):
        """When the last frame stops being shown, seconds; 0 without a frame."""
        if self.last is None:
            return 0.0
        rate = self.measured_fps
        return min(self.last + (self.step if math.isnan(rate) else 1 / rate), self.limit)

    def stacked(self):
        return np.stack(self.images) if self.images else None

    def problems(self):
        said = []
        if self.damaged:
            said.append(f"{self.damaged} damaged frames of {self.seen} left out")
        if self.traces:
            said.append(f"{self.traces} frames before the next key frame may show traces of that")
        if self.made_up:
            said.append(
                f"{self.made_up} frames had no usable time stamp; they were placed "
                f"{self.step:.4f} s apart by the stated rate"
            )
        if self.bad_matrix:
            said.append("the display matrix is no quarter turn and was not applied")
        return said


def _turn(image, matrix):
    """Apply a display matrix of signs to an image: transpose, then mirror either axis."""
    a, b, c, d = matrix
    if a == 0:  # sideways: the columns of the result run along the rows of the image
        image, a, d = image.transpose(1, 0, 2), c, b
    if a < 0:
        image = image[:, ::-1]
    if d < 0:
        image = image[::-1]
    return np.ascontiguousarray(image)


class _NotSparse(Exception):
    """A file of which a part can't be left undecoded."""


class _Ahead:
    """Stands before `_Pictures` and tells the decoder which frames it may leave out.

    Packets come in order of decoding, and are held back until all frames of their slot are known:
    no later packet is shown before it is decoded.
    """

    def __init__(self, sink, video):
        self.sink, self.context, self.tick = sink, video.codec_context, video.time_base
        self.held = deque()
        self.earliest = {}  # slot → time of its first frame
        self.times = set()
        self.decided = -math.inf  # slots before this one have been used

    @property
    def full(self):
        return self.sink.full

    def feed(self, packet):
        if not packet.size:  # the end of the file
            self._release(math.inf)
            self.sink.feed(packet)
            return
        if packet.pts is None or self.sink.damaged:
            raise _NotSparse
        time = self._seconds(packet.pts)
        slot = self.sink.slot_of(time)
        if not packet.is_discard:
            if time in self.times or slot < self.decided:
                raise _NotSparse
            self.times.add(time)
            self.earliest[slot] = min(self.earliest.get(slot, math.inf), time)
        self.held.append((packet, time, slot))
        if packet.dts is not None:
            self._release(self.sink.slot_of(self._seconds(packet.dts)))

    def _seconds(self, stamp):
        """Exactly what PyAV says of the frame that has this stamp."""
        return stamp * self.tick.numerator / self.tick.denominator - self.sink.origin

    def _release(self, slot):
        """Decode what lies before a slot; the first frame of each is needed."""
        while self.held and self.held[0][2] < slot and not self.full:
            packet, time, own = self.held.popleft()
            self.decided = max(self.decided, own + 1)
            wanted = self.earliest.get(own) == time
            self.context.skip_frame = "DEFAULT" if wanted else "NONREF"
            self.sink.feed(packet)

    def finish(self, read_errors):
        """What `_Pictures` had found in all frames; raises _NotSparse where that is in doubt."""
        sink = self.sink
        inside = {time for time in self.times if time < sink.limit}
        wanted = sorted(time for time in self.earliest.values() if time < sink.limit)
        if read_errors or sink.damaged or sink.made_up or sink.times != wanted or not inside:
            raise _NotSparse
        sink.seen, sink.first, sink.last = len(inside), min(inside), max(inside)


class _Sound(_Sink):
    """Takes all sound frames in order, gives one mono waveform that keeps time with the picture."""

    def __init__(self, sample_rate, origin, limit):
        self.sample_rate, self.origin = sample_rate, origin
        self.limit = limit * sample_rate
        self.pieces, self.count = [], 0
        self.damaged = self.filled = 0
        self.full = False
        self.resampler = self.form = None
        self.expected = 0.0  # when the next sample should sound, s

    def add(self, frame):
        if frame.is_corrupt:
            self.lost()
            return
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if form != self.form:  # the first frame, or a stream that changes on its way
            self._flush()
            # The mean over channels is taken afterwards: swresample's own mix to mono makes
            # two equal float channels louder by the root of 2.
            self.resampler = av.AudioResampler("fltp", frame.layout, self.sample_rate)
            self.form = form
        if frame.time is not None:
            self._fill(frame.time - self.origin)
        self.expected += frame.samples / frame.sample_rate
        frame.pts = None
        self._keep(self.resampler.resample(frame))
        self.full = self.count >= self.limit

    def lost(self):
        self.damaged += 1

    def _fill(self, time):
        """Silence for a late beginning or a hole, so that sound and picture stay together."""
        gap = time - self.expected
        if SOUND_GAP < gap < LONGEST_GAP:
            self.filled += gap
            self._keep_array(np.zeros(round(gap * self.sample_rate), np.float32))
            self.expected = time

    def _keep(self, frames):
        for frame in frames:
            channels = frame.to_ndarray()
            self._keep_array(channels[0] if len(channels) == 1 else channels.mean(axis=0))

    def _keep_array(self, piece):
        self.pieces.append(piece)
        self.count += len(piece)

    def _flush(self):
        if self.resampler is not None:
            self._keep(self.resampler.resample(None))
            self.resampler = None

    def joined(self):
        self._flush()
        if not self.count:
            return None
        waveform = np.concatenate(self.pieces)
        return waveform[: int(self.limit)] if self.limit < len(waveform) else waveform

    def problems(self):
        said = []
        if self.damaged:
            said.append(f"{self.damaged} damaged pieces of sound left out")
        if self.filled:
            said.append(f"{self.filled:.2f} s without sound filled with silence")
        return said


def face_frames(folder, seconds, fps=5.0, size=None):
    """Face crops of a clip at `fps`, from its folder of numbered pictures.

    Crops come at an even rate (about 30 a second in Hume-Vidmimic2), but no file says which: it is
    their number over `seconds`, the clip's length. NaN seconds: FACE_RATE is taken.
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


def load_features(path):
    """The organisers' features of one clip: a pickled array as (T, D) float32.

    Only NumPy arrays of numbers come through: a pickle that names anything else is refused
    before it can run. A vector of D values is taken as (1, D).
    Raises MediaError: no such file, no pickle, a damaged one; as NoArrayError something else than
    an array, or more than two axes.
    """
    return np.ascontiguousarray(_unpickled(path, lambda file: file), dtype=np.float32)


def feature_shape(path):
    """(T, D) of a pickle that `load_features` would take, without reading its numbers.

    Of a large array only the head is read, whatever its length. Raises MediaError as
    `load_features` does, but does not see damage within the numbers.
    """
    try:
        return _unpickled(path, _Skipping).shape
    except NoArrayError:
        raise
    except MediaError:  # old protocols write the numbers as text, which can't be passed over
        return _unpickled(path, lambda file: file).shape


class _Skipping:
    """A file whose long stretches, an array's numbers, are passed over and read as zeros."""

    # Larger than what a pickler puts into one frame together with other things, 64 KiB and more.
    LONG = 1 << 18

    def __init__(self, file):
        self.file, self.readline = file, file.readline
        self.size = os.fstat(file.fileno()).st_size

    def read(self, count):
        if count < self.LONG:
            return self.file.read(count)
        if self.file.tell() + count > self.size:
            raise EOFError("it ends within the array")
        self.file.seek(count, os.SEEK_CUR)
        return bytes(count)


def _unpickled(path, view):
    """The array in a pickle, (T, D); `view` is put around the open file."""
    path = Path(path)
    if not path.is_file():
        raise MediaError(f"There is no file {path}; expected a pickled T x D array.")
    try:
        with open(path, "rb") as file:
            # latin1 reads arrays that Python 2 wrote
            array = _ArrayUnpickler(view(file), encoding="latin1").load()
    except NoArrayError as error:
        raise NoArrayError(f"{path} {error}") from None
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError) as error:
        raise MediaError(f"{path} is no readable pickle of an array: {error}.") from error
    except (AttributeError, ImportError, MemoryError, OverflowError) as error:
        raise MediaError(f"{path} is a damaged pickle of an array: {error!r}.") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise NoArrayError(f"{path} holds {kind}; expected a T x D array of numbers.")
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2:
        raise NoArrayError(f"{path} holds an array of shape {array.shape}; expected T x D.")
    return array


def _latin1(text, encoding="latin1"):
    """Stands for `_codecs.encode`, which old protocols use for the bytes of an array."""
    if encoding != "latin1":
        raise NoArrayError(f"holds bytes encoded as {encoding}; expected a T x D array of numbers.")
    return text.encode("latin1")


# The functions NumPy's own pickles name, taken from NumPy itself: they moved between modules.
_ALLOWED = {
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "_reconstruct": np.zeros(1).__reduce__()[0],
    "_frombuffer": np.zeros(1).__reduce_ex__(5)[0],
    "scalar": np.float32(0).__reduce__()[0],
}
_MODULES = {"numpy"} | {
    f"numpy.{core}.{module}" for core in ("core", "_core") for module in ("multiarray", "numeric")
}


class _ArrayUnpickler(pickle.Unpickler):
    """Admits what NumPy arrays are made of, and nothing else."""

    def find_class(self, module, name):
        if module in _MODULES and name in _ALLOWED:
            return _ALLOWED[name]
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise NoArrayError(f"names {module}.{name}; expected a T x D array of numbers, not run.")


def sound_of(paths):
    """Waveform at 16 kHz of a clip's (audio path, video path), None where neither yields one."""
    for path in paths:
        if isinstance(path, str):
            try:
                waveform = decode(path, frames=False, sample_rate=16_000).waveform
            except MediaError:
                continue  # the audit names unreadable files
            if waveform is not None:
                return waveform
    return None

"""What becomes of the decoded frames of a file: pictures by time stamp, one mono waveform.

`Pictures` and `Sound` take the packets of their stream in order and decode them. What FFmpeg marks
as damaged is left out and counted.
"""

import math
from itertools import chain

import av
import numpy as np
from av.video.reformatter import VideoReformatter

# Containers with a clock in milliseconds round a frame's time down: a frame that is less than
# this early still counts as on time.
TIME_TOLERANCE = 0.001  # s
# A hole in the sound shorter than this is rounding of time stamps; a longer one is filled.
SOUND_GAP = 0.1  # s
LONGEST_GAP = 600.0  # s; beyond it the time stamp is damaged, not the sound
FALLBACK_FPS = 25.0  # where neither time stamps nor a rate are in the file


class _Sink:
    full = False  # at its limit: further packets are not decoded
    damaged = 0

    def feed(self, packet):
        """Decode a packet and add its frames; what can't be decoded counts as damaged."""
        if self.full:
            return
        try:
            decoded = packet.decode()
        except av.EOFError:  # the decoder was flushed already
            decoded = []
        except av.FFmpegError:
            self.damaged += 1
            decoded = []
        for frame in decoded:
            self.add(frame)


class Pictures(_Sink):
    """All frames of a video stream in order of presentation; the first good one of each slot stays.

    fps, size : as in `media.decode`
    origin, limit : when the file begins by its own clock, and where to end; s
    stated : the frame rates that the file states
    """

    def __init__(self, fps, size, origin, limit, stream, stated):
        self.fps, self.size, self.origin, self.limit = fps, size, origin, limit
        self.stream = stream
        self.step = 1 / (stated[0] if stated else FALLBACK_FPS)
        self.reformatter = VideoReformatter()
        self.images, self.times = [], []
        self.seen = self.made_up = self.rotation = 0
        self.bad_matrix = False
        self.first = self.last = self.needed = None
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
            self.damaged += 1
            return
        slot = self.seen if self.fps is None else self._slot(time)
        if slot > self.slot:
            self.slot = slot
            self.times.append(time)
            self.images.append(self._upright(frame))

    def taken(self):
        """Images (T, H, W, 3) uint8, None without a frame, and times (T,) since the last call."""
        images, times = self.images, np.array(self.times, dtype=float)
        self.images, self.times = [], []
        return (np.stack(images) if images else None), times

    def _slot(self, time):
        return math.floor((time + TIME_TOLERANCE) * self.fps)

    def _time(self, frame):
        """Seconds from the beginning; made up where the stamp is missing or goes backward."""
        stamp = None if frame.time is None else frame.time - self.origin
        if stamp is not None and (self.last is None or stamp > self.last):
            return stamp
        self.made_up += 1
        return 0.0 if self.last is None else self.last + self.step

    def _upright(self, frame):
        """RGB (H, W, 3) of one frame, resized, then turned and mirrored by its matrix."""
        a, b, c, d = self._matrix(frame)
        native = (frame.height, frame.width)
        turn = slice(None, None, -1 if a == 0 else 1)  # a quarter turn swaps the sides
        if self.size is None:
            self.size = native[turn]
        if isinstance(self.size, int):
            scale = self.size / min(native)
            height, width = (max(self.size, round(side * scale)) for side in native)
        else:
            height, width = self.size[turn]
        if (height, width) == native:
            image = frame.to_ndarray(format="rgb24")
        else:
            # Kept from frame to frame, and in one thread: both cost more than the work itself.
            image = self.reformatter.reformat(
                frame, width, height, "rgb24", interpolation="BICUBIC", threads=1
            ).to_ndarray()
        if isinstance(self.size, int):
            top, left = (height - self.size) // 2, (width - self.size) // 2
            image = image[top : top + self.size, left : left + self.size]
        if a == 0:  # the columns of the result run along the rows of the image
            image, a, d = image.transpose(1, 0, 2), c, b
        return np.ascontiguousarray(image[::d, ::a])

    def _matrix(self, frame):
        """(a, b, c, d) of the display matrix as signs: x' = a x + c y, y' = b x + d y.

        Only quarter turns and mirrors are applied; (1, 0, 0, 1) is upright.
        """
        upright = (1, 0, 0, 1)
        data = frame.side_data.get("DISPLAYMATRIX")
        if data is None:
            return upright
        values = np.frombuffer(bytes(data), dtype="<i4")[[0, 1, 3, 4]] / 65536
        matrix = tuple(int(v) for v in np.rint(values))
        if tuple(map(abs, matrix)) not in (upright, (0, 1, 1, 0)):
            self.bad_matrix = True
            return upright
        if matrix != upright:
            self.rotation = frame.rotation
        return matrix

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

    def problems(self):
        counts = {
            f"{self.damaged} damaged frames of {self.seen} left out": self.damaged,
            f"{self.made_up} frames had no usable time stamp; they were placed {self.step:.4f} s "
            "apart by the stated rate": self.made_up,
            "the display matrix is no quarter turn and was not applied": self.bad_matrix,
        }
        return [sentence for sentence, count in counts.items() if count]

    # Sparse decoding: of H.264, frames that no slot needs and no other frame refers to are skipped.

    def look_ahead(self, packets):
        """The same packets; reads ahead up to the limit, to know which frames are needed."""
        ahead = []
        for packet in packets:
            ahead.append(packet)
            mine = packet.stream is self.stream and packet.dts is not None
            if mine and self._seconds(packet.dts) >= self.limit:
                break  # no later packet is shown before it is decoded
        stamps = [p.pts for p in ahead if p.stream is self.stream and p.size and not p.is_discard]
        if stamps and None not in stamps and len(set(stamps)) == len(stamps):
            self.shown = [t for t in map(self._seconds, sorted(stamps)) if t < self.limit]
            first = {}
            for time in self.shown:
                first.setdefault(self._slot(time), time)
            self.needed = list(first.values())
        return chain(ahead, packets)

    def _seconds(self, stamp):
        """Exactly what PyAV computes for the frame that has this stamp."""
        tick = self.stream.time_base
        return stamp * tick.numerator / tick.denominator - self.origin

    def feed(self, packet):
        if self.needed is not None and packet.pts is not None:
            kept = self._seconds(packet.pts) in self.needed
            self.stream.codec_context.skip_frame = "DEFAULT" if kept else "NONREF"
        super().feed(packet)

    def sparse_is_exact(self):
        """Whether skipping changed nothing; then `seen`, `first` and `last` are those of all."""
        if not self.needed or self.damaged or self.made_up or self.times != self.needed:
            return False
        self.seen, self.first, self.last = len(self.shown), self.shown[0], self.shown[-1]
        return True


class Sound(_Sink):
    """All frames of a sound stream as one mono waveform that keeps time with the picture."""

    def __init__(self, sample_rate, origin, limit):
        self.sample_rate, self.origin = sample_rate, origin
        self.limit = limit * sample_rate
        self.pieces, self.count = [], 0
        self.filled = 0.0
        self.resampler = self.form = None
        self.expected = 0.0  # when the next sample should sound, s

    def add(self, frame):
        if frame.is_corrupt:
            self.damaged += 1
            return
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if form != self.form:  # the first frame, or a stream that changes on its way
            self.flush()
            # The mean over channels is taken afterwards: swresample's own mix to mono makes
            # two equal float channels louder by the root of 2.
            self.resampler = av.AudioResampler("flt", frame.layout, self.sample_rate)
            self.form = form
        if frame.time is not None:
            self._fill(frame.time - self.origin)
        self.expected += frame.samples / frame.sample_rate
        frame.pts = None
        self._keep(self.resampler.resample(frame))
        self.full = self.count >= self.limit

    def _fill(self, time):
        """Silence for a late beginning or a hole, so that sound and picture stay together."""
        gap = time - self.expected
        if SOUND_GAP < gap < LONGEST_GAP:
            self.filled += gap
            self._append(np.zeros(round(gap * self.sample_rate), np.float32))
            self.expected = time

    def _keep(self, frames):
        for frame in frames:
            # packed: planes of eight channels and more crash PyAV
            channels = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
            self._append(channels.mean(axis=1))

    def _append(self, piece):
        self.pieces.append(piece)
        self.count += len(piece)

    def flush(self):
        if self.resampler is not None:
            self._keep(self.resampler.resample(None))
            self.resampler = None

    def joined(self):
        """(S,) float32 up to the limit; None without a sample."""
        self.flush()
        if not self.count:
            return None
        return np.concatenate(self.pieces)[: int(min(self.limit, self.count))]

    def problems(self):
        counts = {
            f"{self.damaged} damaged pieces of sound left out": self.damaged,
            f"{self.filled:.2f} s without sound filled with silence": self.filled,
        }
        return [sentence for sentence, count in counts.items() if count]

"""What is broken in a corpus folder, a row a defect; and how long its partitions are."""

import math
import os
import re
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
import pandas as pd

from emilib import workers as processes
from emilib.corpus import media
from emilib.corpus.layout import EMOTIONS, FACE_NAME, SPLITS, has_files, read_with_findings

DEFECTS = {
    "unreadable": "a video, sound or face file that can't be opened, or gives nothing",
    "damaged frames": "frames that can't be decoded cleanly, or are missing at the file's end",
    "no video": "no file in raw/, where other clips have one",
    "no face": "no face crop: no folder in face_images/, or nothing in it but Thumbs.db",
    "no sound": "no sound track, neither in audio/ nor in the video",
    "too short": "fewer samples at 16 kHz than the audio encoder's convolutions take",
    "silent": "sound nowhere louder than -60 dB below full scale",
    "no transcript": "no file in text/, where other clips have one",
    "empty transcript": "a file in text/ without a word",
    "lying frame rate": "a stated frame rate far from what the time stamps say",
    "bad features": "official features that are no array, empty, not finite, or of another width",
    "label out of range": "a label outside [0, 1]",
    "label not a number": "a label that is not a number",
    "duplicate id": "an id with several rows in the split files; the first one counts",
    "missing id": "a row without any file, or files without a row",
}

SAMPLE_RATE = 16000  # Hz
SHORTEST = 400  # samples: the receptive field of wav2vec2's convolutions, 25 ms
RATE_RATIO = 1.5  # a stated rate that is this much too high or too low lies
# Clips with fewer coded pixels than this are always decoded in full: some 30 ms of one core.
SMALL_PIXELS = 8_000_000
CLIPS_A_WORKER = 150  # starting processes costs as much as auditing some hundred clips


def audit(folder, workers=None, thorough=None):
    """The defects of a corpus folder.

    folder : see `emilib.corpus.layout`
    workers : processes; None takes the cores there are, fewer for small folders, 1 stays in this
        process
    thorough : how damaged pictures are looked for. False: by the packets alone (structure, index,
        time stamps), and by decoding the clips whose packets look odd. True: by decoding every
        frame, which finds also flipped bits inside a picture, but takes nine times longer
        (690 in place of 76 ms of a core for 7 s of 720p).
        None: as False, but small clips (in all SMALL_PIXELS) are always decoded.

    Returns a DataFrame with the columns id, split, defect (a key of DEFECTS), detail, ordered by
    split, then id; empty where nothing is wrong. `attrs["clips"]` counts the clips looked at,
    `attrs["decoded"]` those whose picture was decoded in full.
    Raises CorpusError where the folder can't be read at all; a broken file is a row, no error.
    """
    clips, findings = read_with_findings(folder)
    jobs = [_Job(*row) for row in zip(*_job_columns(clips, thorough), strict=True)]
    found = _map(_inspect, jobs, workers)
    rows = [
        (job.id, job.split, defect, detail)
        for job, report in zip(jobs, found, strict=True)
        for defect, detail in report.defects
    ]
    rows += [(i, split, "duplicate id", detail) for i, split, detail in findings.duplicates]
    rows += [(i, split, "label not a number", detail) for i, split, detail in findings.labels]
    rows += [(i, "", "missing id", f"no row: {detail}") for i, detail in findings.unlisted]
    rows += [*_label_rows(clips), *_bare_rows(clips), *_width_rows(jobs, found)]
    table = pd.DataFrame(rows, columns=["id", "split", "defect", "detail"])
    rank = {name: n for n, name in enumerate((*SPLITS, ""))}
    table = table.sort_values(["id", "defect", "detail"], kind="stable")
    table = table.sort_values("split", key=lambda s: s.map(rank), kind="stable")
    table = table.reset_index(drop=True)
    table.attrs["clips"] = len(clips)
    table.attrs["decoded"] = sum(report.decoded for report in found)
    return table


def report(table, most=6):
    """The defects of `audit` for a person: clips a defect, what it means, and their ids.

    most : ids named a defect; more are counted. Returns text of several lines.
    """
    sick = table["id"].nunique()
    lines = [f"{table.attrs['clips']} clips, {sick} ids with a defect"]
    for defect, meaning in DEFECTS.items():
        ids = table.loc[table["defect"] == defect, "id"].drop_duplicates().tolist()
        lines.append(f"{len(ids):6d}  {defect:20s}  {meaning}")
        if ids:
            more = f" and {len(ids) - most} more (all: --ids)" if len(ids) > most else ""
            lines.append(" " * 30 + ", ".join(ids[:most]) + more)
    return "\n".join(lines)


def durations(clips, workers=None):
    """Seconds of each clip, from the time stamps of its packets; nothing is decoded.

    The longest track of the video; without a video the sound file; NaN where neither opens.
    clips : a DataFrame of `emilib.corpus.read`. Returns a Series of floats indexed by id.
    """
    pairs = list(zip(clips["video"], clips["audio"], strict=True))
    return pd.Series(_map(_seconds, pairs, workers), index=clips["id"], name="seconds", dtype=float)


@dataclass(frozen=True)
class _Job:
    """A clip to look at; a None among the files of a kind the corpus has is itself a defect."""

    id: str
    split: str
    video: str | None
    audio: str | None
    faces: str | None
    official_vision: str | None
    official_audio: str | None
    transcript: str | None
    kinds: frozenset  # the columns that some clip of the corpus has a file for
    thorough: bool | None


@dataclass
class _Report:
    defects: list  # (defect, detail)
    widths: dict  # {"official_vision": D, ...}
    decoded: bool


def _job_columns(clips, thorough):
    names = [name for name in _Job.__dataclass_fields__ if name not in ("kinds", "thorough")]
    # A kind counts for a split: test clips may come without what the others have.
    kinds = {
        split: frozenset(c for c in names[2:] if group[c].notna().any())
        for split, group in clips.groupby("split")
    }
    count = len(clips)
    return [*(clips[n] for n in names), clips["split"].map(kinds), [thorough] * count]


def _map(function, items, workers):
    """[function(item) ...] in order, in processes where there is enough to do for them."""
    if workers is None:
        workers = min(processes.count(), len(items) // CLIPS_A_WORKER)
    if workers <= 1:
        return [function(item) for item in items]
    try:
        return list(processes.ordered_map(function, items, workers))
    except BrokenProcessPool as error:
        raise RuntimeError(
            "A worker process died while it read the clips: too little memory, perhaps. Run with "
            "workers=1 to see where."
        ) from error


def _inspect(job):
    """All that can be said of one clip by its files."""
    if not any((job.video, job.audio, job.faces, job.official_vision, job.official_audio)):
        return _Report([], {}, False)  # a row without files is one defect, not five
    report = _Report([], {}, False)
    waveform = _inspect_sound_file(job, report)
    waveform = _inspect_video(job, report, waveform)
    if job.audio is not None or job.video is not None:
        _inspect_waveform(waveform, report)
    _inspect_faces(job, report)
    _inspect_features(job, report)
    if job.transcript is None and "transcript" in job.kinds:
        report.defects.append(("no transcript", "no file in text/"))
    elif job.transcript == "":
        report.defects.append(("empty transcript", "the file in text/ holds no word"))
    return report


_UNKNOWN = object()  # a sound track that could not be reached: said once, as unreadable


def _inspect_sound_file(job, report):
    """Waveform of audio/ID; None where there is no such file or no track in it."""
    if job.audio is None:
        return None
    try:
        return media.decode(job.audio, frames=False, sample_rate=SAMPLE_RATE).waveform
    except media.MediaError as error:
        report.defects.append(("unreadable", str(error)))
        return _UNKNOWN


def _inspect_video(job, report, waveform):
    """Look at raw/ID; returns the waveform, taken from here where there is no sound file."""
    if job.video is None:
        if "video" in job.kinds:
            report.defects.append(("no video", "no file in raw/"))
        return waveform
    wants_sound = waveform is None
    try:
        facts = packet_facts(job.video)
        full = job.thorough or bool(facts.hints)
        full = full or (job.thorough is None and facts.pixels <= SMALL_PIXELS)
        full = full and facts.frames > 0
        report.decoded = full
        if full:
            # The damage is what is asked for here: every frame is decoded, one a second is kept.
            decoded = media.decode(
                job.video, fps=1, size=(32, 32), sample_rate=SAMPLE_RATE, sound=wants_sound
            )
            if decoded.images is None:
                report.defects.append(("unreadable", f"{job.video}: {decoded.problems[0]}"))
            elif decoded.damaged:
                detail = "; ".join(p for p in decoded.problems if "damaged" in p or "read" in p)
                report.defects.append(("damaged frames", detail))
        elif wants_sound and facts.has_sound:
            decoded = media.decode(job.video, frames=False, sample_rate=SAMPLE_RATE)
        else:
            decoded = None
    except media.MediaError as error:
        report.defects.append(("unreadable", str(error)))
        return _UNKNOWN if waveform is None else waveform
    if facts.lost:
        report.defects.append(
            ("damaged frames", f"{facts.lost} of {facts.frames + facts.lost} frames missing")
        )
    if not facts.has_picture:
        report.defects.append(("no video", f"{job.video} has no picture"))
    _inspect_rate(facts, report)
    return decoded.waveform if wants_sound and decoded is not None else waveform


def _inspect_rate(facts, report):
    stated, measured = facts.declared_fps, facts.measured_fps
    if measured > 0 and stated > 0 and abs(math.log(stated / measured)) > math.log(RATE_RATIO):
        detail = f"states {stated:g} a second, time stamps say {measured:.2f}"
        report.defects.append(("lying frame rate", detail))


def _inspect_waveform(waveform, report):
    if waveform is _UNKNOWN:
        return
    if waveform is None:
        report.defects.append(("no sound", "no sound track"))
        return
    if len(waveform) < SHORTEST:
        detail = f"{len(waveform)} samples at {SAMPLE_RATE} Hz, {SHORTEST} needed"
        report.defects.append(("too short", detail))
    level = media.loudness(waveform, SAMPLE_RATE)
    if level <= media.SILENCE:
        report.defects.append(("silent", f"loudest 50 ms at {level:.0f} dB"))


def _inspect_faces(job, report):
    if job.faces is None:
        if "faces" in job.kinds:
            report.defects.append(("no face", "no folder in face_images/"))
        return
    with os.scandir(job.faces) as entries:
        sizes = [entry.stat().st_size for entry in entries if FACE_NAME.fullmatch(entry.name)]
    if not sizes:
        report.defects.append(("no face", f"no <int>.jpg in {job.faces}"))
    elif not all(sizes):
        detail = f"{job.faces}: {sizes.count(0)} of {len(sizes)} face crops have 0 bytes"
        report.defects.append(("unreadable", detail))


def _inspect_features(job, report):
    for column in ("official_vision", "official_audio"):
        path = getattr(job, column)
        if path is None:
            continue
        try:
            features = media.load_features(path)
        except media.MediaError as error:
            report.defects.append(("bad features", str(error)))
            continue
        report.widths[column] = features.shape[1]
        if not features.size:
            report.defects.append(("bad features", f"{path}: shape {features.shape}, no values"))
        elif not np.isfinite(features).all():
            report.defects.append(("bad features", f"{path}: values that are not finite"))


def _label_rows(clips):
    """Intensities outside [0, 1]; NaN (a test clip, or no number) is not looked at here."""
    if clips.attrs["targets"] != list(EMOTIONS):
        return []  # one's own targets may have any range
    rows = []
    for emotion in EMOTIONS:
        outside = clips[(clips[emotion] < 0) | (clips[emotion] > 1)]
        for row in outside.itertuples(index=False):
            value = clips.loc[clips["id"] == row.id, emotion].iloc[0]
            rows.append((row.id, row.split, "label out of range", f"{emotion} is {value:g}"))
    return rows


def _bare_rows(clips):
    bare = clips[~has_files(clips)]
    return [
        (row.id, row.split, "missing id", "no file of any kind")
        for row in bare.itertuples(index=False)
    ]


def _width_rows(jobs, found):
    """Official features whose width is not that of most clips."""
    rows = []
    for column in ("official_vision", "official_audio"):
        widths = Counter(r.widths[column] for r in found if column in r.widths)
        if len(widths) < 2:
            continue
        usual = widths.most_common(1)[0][0]
        for job, report in zip(jobs, found, strict=True):
            width = report.widths.get(column, usual)
            if width != usual:
                detail = f"{getattr(job, column)}: width {width}, most clips have {usual}"
                rows.append((job.id, job.split, "bad features", detail))
    return rows


@dataclass
class PacketFacts:
    """What the packets of a file say, without decoding.

    frames : video packets; lost : how many more the container's index names
    pixels : frames times coded width times height
    hints : what makes a decoding error likely
    duration : seconds from the first packet's beginning to the last one's end, longest track
    """

    has_picture: bool = False
    has_sound: bool = False
    frames: int = 0
    lost: int = 0
    pixels: int = 0
    declared_fps: float = math.nan
    measured_fps: float = math.nan
    duration: float = math.nan
    hints: tuple = ()


def packet_facts(path):
    """PacketFacts of a file, in one pass over its packets. Raises MediaError."""
    hints, errors = {}, []
    with media.open_media(path) as container:
        video, audio = media.first_streams(container)
        streams = [s for s in (video, audio) if s is not None]
        spans = {stream.index: _Span(stream.time_base) for stream in streams}
        prefix = _length_prefix(video)
        for packet in media.packets(container, streams, errors):
            if not packet.size:
                continue  # the empty packet at the end
            spans[packet.stream.index].add(packet)
            if packet.is_corrupt:
                hints["the container marks packets as damaged"] = None
            if prefix and packet.stream is video and not _whole_units(bytes(packet), prefix):
                hints["coded pictures are malformed"] = None
        facts = PacketFacts(has_picture=video is not None, has_sound=audio is not None)
        if video is not None:
            span = spans[video.index]
            codec = video.codec_context
            facts.frames = span.count
            facts.lost = max(0, video.frames - span.count)
            facts.pixels = span.count * codec.width * codec.height
            facts.measured_fps = span.rate
            facts.declared_fps = media.farthest(media.stated_rates(video), span.rate)
        known = [span.end - span.start for span in spans.values() if span.timed]
        facts.duration = max(known, default=media.stated_duration(container))
    if errors:
        hints[f"{len(errors)} places can't be read"] = None
    if facts.lost:
        hints["packets are missing"] = None
    facts.hints = tuple(hints)
    return facts


class _Span:
    """First and last time of a stream's packets, which come in the order of decoding."""

    def __init__(self, clock):
        # Two integers: thousands of products of Fractions take as long as reading the file.
        self.clock = (clock.numerator, clock.denominator)
        self.count = self.timed = 0
        self.start, self.last, self.end = math.inf, -math.inf, -math.inf

    def add(self, packet):
        self.count += 1
        if packet.pts is None or packet.is_discard:
            return
        self.timed += 1
        times, over = self.clock
        time = packet.pts * times / over
        length = (packet.duration or 0) * times / over
        self.start, self.last = min(self.start, time), max(self.last, time)
        self.end = max(self.end, time + length)

    @property
    def rate(self):
        if self.timed < 2 or self.last <= self.start:
            return math.nan
        return (self.timed - 1) / (self.last - self.start)


def _length_prefix(video):
    """Bytes of the length in front of each unit of H.264 and HEVC in mp4; 0 for other codings."""
    if video is None:
        return 0
    header = video.codec_context.extradata or b""
    if video.codec_context.name == "h264" and len(header) > 4 and header[0] == 1:
        return (header[4] & 3) + 1
    if video.codec_context.name == "hevc" and len(header) > 21 and header[0] == 1:
        return (header[21] & 3) + 1
    return 0


# Inside a unit an encoder breaks these three up with a 3: they only come from damage.
_FORBIDDEN = re.compile(rb"\x00\x00[\x00-\x02]")


def _whole_units(data, prefix):
    """True where a packet splits exactly into units that could be of H.264 or HEVC."""
    position = 0
    while position + prefix < len(data):
        length = int.from_bytes(data[position : position + prefix], "big")
        position += prefix
        if length == 0 or position + length > len(data) or data[position] & 0x80:
            return False
        if _FORBIDDEN.search(data, position, position + length):
            return False
        position += length
    return position == len(data)


def _seconds(pair):
    """Duration of the first of two files that opens, NaN for neither."""
    for path in pair:
        if path is not None:
            try:
                return packet_facts(path).duration
            except media.MediaError:
                continue  # `audit` has a row for it
    return math.nan

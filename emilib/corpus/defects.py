"""What is broken in a corpus folder, a row a defect; and how long its clips are."""

import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from emilib import EMOTIONS, SAMPLE_RATE
from emilib.corpus import layout, media
from emilib.corpus.feature_files import NoArrayError, feature_shape, load_features
from emilib.corpus.layout import CorpusError
from emilib.corpus.reading import read, read_with_findings
from emilib.workers import count, ordered_map

SHORTEST = 400  # samples: the receptive field of wav2vec2's convolutions, 25 ms
RATE_RATIO = 1.5  # a stated rate that is this much too high or too low lies
# Clips with fewer coded pixels than this are always decoded in full: some 30 ms of one core.
SMALL_PIXELS = 8_000_000
CLIPS_A_WORKER = 150  # starting processes costs as much as auditing some hundred clips
OFFICIAL = {"official_vision": "vit", "official_audio": "wav2vec2"}


def audit(folder, workers=None, thorough=False):
    """The defects of a corpus folder.

    folder : see `emilib.corpus.read`
    workers : processes; None takes the cores there are, fewer for small folders, 1 stays in this
        process
    thorough : True decodes every frame of every clip, which finds flipped bits inside a picture
        too, and takes nine times longer (690 in place of 76 ms of a core for 7 s of 720p). False
        does so with small clips and with those whose packets look odd (index, time stamps, zeroed
        blocks)

    Returns a DataFrame with the columns id, split, defect (a key of DEFECTS), detail, ordered by
    split, then id; empty where nothing is wrong. `attrs["clips"]` counts the clips looked at.
    Raises CorpusError where the folder can't be read at all; a broken file is a row, no error.
    """
    clips, findings = read_with_findings(folder)
    # A kind of file is missing only where other clips of the split have it.
    usual = clips[list(layout.FILE_COLUMNS)].notna().groupby(clips["split"]).any()
    jobs = [(clip, usual.loc[clip["split"]], thorough) for clip in clips.to_dict("records")]
    rows = [row for rows in _each(_clip_defects, jobs, workers) for row in rows]
    for check in CORPUS_CHECKS:
        rows += [(id_, split, _name(check), text) for id_, split, text in check(clips, findings)]
    rows += [(id_, split, "bad features", text) for id_, split, text in _odd_widths(clips)]
    table = pd.DataFrame(rows, columns=["id", "split", "defect", "detail"])
    table["split"] = pd.Categorical(table["split"], (*layout.SPLITS, ""))
    table = table.sort_values(["split", "id", "defect", "detail"], ignore_index=True)
    table["split"] = table["split"].astype(object)
    table.attrs["clips"] = len(clips)
    return table


def report(table, most=6):
    """The defects of `audit` as text: clips a defect, what it means, and at most `most` ids."""
    lines = [f"{table.attrs['clips']} clips, {table['id'].nunique()} ids with a defect"]
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
    return pd.Series(
        _each(_seconds, pairs, workers), index=clips["id"], name="seconds", dtype=float
    )


def before_a_run(source):
    """Read a corpus's tables and the heads of its official pickles; nothing is decoded.

    source : as of `emilib.corpus.read`

    Returns sentences worth knowing: ids without files, files without a row, damaged pickles.
    Raises CorpusError, one sentence, for what `read` refuses, for a split whose clips have no
    file at all, and for official features that `check_official` refuses.
    """
    clips = read(source)
    for split in ("train", "validation"):
        rows = clips[clips["split"] == split]
        if not layout.has_files(rows).any():
            raise CorpusError(
                f"None of the {len(rows)} {split} clips of {source} has a file; expected for "
                f"example {Path(clips.attrs['folder']) / 'raw'}/ID.mp4."
            )
    return [*clips.attrs["notes"], *check_official(clips)]


def check_official(clips):
    """Look at the head of every pickle in vit/ and wav2vec2/: arrays, and of one width each.

    Returns a sentence where pickles are damaged: such a clip counts as without these features.
    Raises CorpusError for a pickle of anything but an array, which is not run, and for several
    widths in one folder.
    """
    notes = []
    for column, folder in OFFICIAL.items():
        widths, damaged = {}, []
        for path in clips[column].dropna():
            try:
                widths[path] = feature_shape(path)[1]
            except NoArrayError as error:
                raise CorpusError(f"{error} Remove or replace the file.") from error
            except media.MediaError:
                damaged.append(Path(path).name)
        counts = Counter(widths.values()).most_common()
        if len(counts) > 1:
            usual, most = counts[0]
            odd = next(path for path, width in widths.items() if width != usual)
            raise CorpusError(
                f"{odd} is {widths[odd]} wide and {most} of {len(widths)} files in {folder}/ are "
                f"{usual} wide; expected features of one encoder in one folder."
            )
        if damaged:
            names = layout.shortened(damaged)
            notes.append(f"Damaged pickles in {folder}/ that are left out: {names}.")
    return notes


def _each(function, items, workers):
    if workers is None:
        workers = min(count(), len(items) // CLIPS_A_WORKER)
    return list(ordered_map(function, items, workers))


def _seconds(paths):
    """Duration of the first of some files that opens, NaN for none."""
    for path in filter(None, paths):
        try:
            return packet_facts(path).duration
        except media.MediaError:
            continue  # `audit` has a row for it
    return math.nan


# ---- what the files of one clip show ------------------------------------------------------------


class _Evidence:
    """The files of one clip, opened.

    clip : its row of the table; usual : {column: whether other clips of the split have such a file}
    errors : of media that don't open; facts, decoded : of the video's packets, and of its picture
        where it was decoded in full; waveform : of the sound file, or else of the video
    """

    def __init__(self, clip, usual, thorough):
        self.clip, self.usual, self.errors = clip, usual, []
        sound = self._open(media.decode, clip["audio"], frames=False)
        self.waveform = sound and sound.waveform
        self.facts = facts = self._open(packet_facts, clip["video"])
        self.decoded, listens = None, self.waveform is None and not self.errors
        if facts is not None:
            full = thorough or bool(facts.hints) or facts.pixels <= SMALL_PIXELS
            full = full and facts.frames > 0
            if full or (listens and facts.has_sound):
                # The damage is what counts here: every frame is decoded, one a second is kept.
                options = {"fps": 1, "size": (32, 32), "frames": full, "sound": listens}
                decoded = self._open(media.decode, clip["video"], **options)
                self.facts = decoded and facts
                self.decoded = decoded if full else None
                self.waveform = decoded.waveform if listens and decoded else self.waveform
        faces = os.scandir(clip["faces"]) if clip["faces"] else ()
        self.face_sizes = [f.stat().st_size for f in faces if layout.FACE_NAME.fullmatch(f.name)]
        self.features, self.broken_features = {}, []
        for column in filter(clip.get, OFFICIAL):
            try:
                self.features[column] = load_features(clip[column])
            except media.MediaError as error:
                self.broken_features.append(str(error))

    def _open(self, function, path, **options):
        try:
            return path and function(path, **options)
        except media.MediaError as error:
            self.errors.append(str(error))


@dataclass
class PacketFacts:
    """What the packets of a file tell, without decoding.

    frames : video packets; lost : how many more the container's index names
    pixels : frames times coded width times height
    duration : seconds from the first packet's beginning to the last one's end, longest track
    hints : what makes a decoding error likely
    """

    has_picture: bool
    has_sound: bool
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
        facts = PacketFacts(video is not None, audio is not None)
        spans = {s.index: [] for s in (video, audio) if s is not None}  # (start, end) a packet
        streams = [container.streams[index] for index in spans]
        nal = video is not None and video.codec_context.name in ("h264", "hevc")
        for packet in media.packets(container, streams, errors):
            if not packet.size:
                continue  # the empty packet at the end
            pictured = packet.stream is video
            facts.frames += pictured
            if packet.is_corrupt:
                hints["the container marks packets as damaged"] = None
            # Neither a unit's length nor its escaped contents hold four zeros in a row.
            if pictured and nal and bytes(4) in bytes(packet):
                hints["coded pictures are malformed"] = None
            if packet.pts is not None and not packet.is_discard:
                clock = packet.time_base
                start = packet.pts * clock.numerator / clock.denominator
                length = (packet.duration or 0) * clock.numerator / clock.denominator
                spans[packet.stream.index].append((start, start + length))
        if video is not None:
            starts = [start for start, _ in spans[video.index]]
            if len(starts) > 1 and max(starts) > min(starts):
                facts.measured_fps = (len(starts) - 1) / (max(starts) - min(starts))
            facts.lost = max(0, video.frames - facts.frames)
            facts.pixels = facts.frames * video.codec_context.width * video.codec_context.height
            facts.declared_fps = media.farthest(media.stated_rates(video), facts.measured_fps)
        lengths = [max(end for _, end in s) - min(s)[0] for s in spans.values() if s]
        facts.duration = max(lengths, default=media.stated_duration(container))
    if errors:
        hints[f"{len(errors)} places can't be read"] = None
    if facts.lost:
        hints["packets are missing"] = None
    facts.hints = tuple(hints)
    return facts


# ---- the defects: each is a function whose docstring tells what it is ---------------------------


def _clip_defects(job):
    clip = job[0]
    if not any(clip[column] for column in layout.FILE_COLUMNS if column != "transcript"):
        return []  # a row without files is one defect, not five
    seen = _Evidence(*job)
    checked = ((_name(check), detail) for check in CLIP_CHECKS for detail in check(seen))
    return [(clip["id"], clip["split"], name, detail) for name, detail in checked]


def unreadable(seen):
    """a video, sound or face file that does not open, or holds nothing"""
    yield from seen.errors
    if seen.decoded is not None and seen.decoded.images is None:
        yield f"{seen.clip['video']}: {seen.decoded.problems[0]}"
    if empty := seen.face_sizes.count(0):
        yield f"{seen.clip['faces']}: {empty} of {len(seen.face_sizes)} face crops have 0 bytes"


def damaged_frames(seen):
    """frames that can't be decoded cleanly, or are missing at the file's end"""
    if seen.decoded is not None and seen.decoded.images is not None and seen.decoded.damaged:
        yield "; ".join(p for p in seen.decoded.problems if "damaged" in p or "read" in p)
    if seen.facts is not None and seen.facts.lost:
        yield f"{seen.facts.lost} of {seen.facts.frames + seen.facts.lost} frames missing"


def no_video(seen):
    """no file in raw/, where other clips have one"""
    if seen.clip["video"] is None and seen.usual["video"]:
        yield "no file in raw/"
    if seen.facts is not None and not seen.facts.has_picture:
        yield f"{seen.clip['video']} has no picture"


def no_face(seen):
    """no face crop: no folder in face_images/, or nothing in it but Thumbs.db"""
    if seen.clip["faces"] is None and seen.usual["faces"]:
        yield "no folder in face_images/"
    elif seen.clip["faces"] and not seen.face_sizes:
        yield f"no <int>.jpg in {seen.clip['faces']}"


def no_sound(seen):
    """no sound track, neither in audio/ nor in the video"""
    if (seen.clip["audio"] or seen.clip["video"]) and seen.waveform is None and not seen.errors:
        yield "no sound track"


def too_short(seen):
    """fewer samples at 16 kHz than the audio encoder's convolutions take"""
    if seen.waveform is not None and len(seen.waveform) < SHORTEST:
        yield f"{len(seen.waveform)} samples at {SAMPLE_RATE} Hz, {SHORTEST} needed"


def silent(seen):
    """sound nowhere louder than -60 dB below full scale"""
    if seen.waveform is not None:
        level = media.loudness(seen.waveform, SAMPLE_RATE)
        if level <= media.SILENCE:
            yield f"loudest 50 ms at {level:.0f} dB"


def no_transcript(seen):
    """no file in text/, where other clips have one"""
    if seen.clip["transcript"] is None and seen.usual["transcript"]:
        yield "no file in text/"


def empty_transcript(seen):
    """a file in text/ without a word"""
    if seen.clip["transcript"] == "":
        yield "the file in text/ holds no word"


def lying_frame_rate(seen):
    """a stated frame rate far from what the time stamps say"""
    if seen.facts is not None:
        stated, measured = seen.facts.declared_fps, seen.facts.measured_fps
        if measured > 0 and stated > 0 and abs(math.log(stated / measured)) > math.log(RATE_RATIO):
            yield f"states {stated:g} a second, time stamps say {measured:.2f}"


def bad_features(seen):
    """official features that are no array, empty, not finite, or of another width"""
    yield from seen.broken_features
    for column, features in seen.features.items():
        if not features.size:
            yield f"{seen.clip[column]}: shape {features.shape}, no values"
        elif not np.isfinite(features).all():
            yield f"{seen.clip[column]}: values that are not finite"


def label_out_of_range(clips, findings):
    """a label outside [0, 1]"""
    if clips.attrs["targets"] == list(EMOTIONS):  # one's own targets may have any range
        for emotion in EMOTIONS:
            outside = clips[(clips[emotion] < 0) | (clips[emotion] > 1)]
            for id_, split, value in outside[["id", "split", emotion]].itertuples(index=False):
                yield id_, split, f"{emotion} is {value:g}"


def label_not_a_number(clips, findings):
    """a label that is not a number"""
    return findings.labels


def duplicate_id(clips, findings):
    """an id with several rows in the split files; the first one counts"""
    return findings.duplicates


def missing_id(clips, findings):
    """a row without any file, or files without a row"""
    for id_, split in clips.loc[~layout.has_files(clips), ["id", "split"]].itertuples(index=False):
        yield id_, split, "no file of any kind"
    for id_, detail in findings.unlisted:
        yield id_, "", f"no row: {detail}"


def _odd_widths(clips):
    """More of `bad_features`: those whose width is not that of most clips."""
    for column in OFFICIAL:
        widths = clips[column].map(_width, na_action="ignore").dropna()
        usual = widths.mode()
        for row in widths.index[widths != usual.get(0)]:
            detail = f"{clips[column][row]}: width {widths[row]:g}, most clips have {usual[0]:g}"
            yield clips["id"][row], clips["split"][row], detail


def _width(path):
    try:
        return feature_shape(path)[1]
    except media.MediaError:
        return None


def _name(check):
    return check.__name__.replace("_", " ")


CLIP_CHECKS = (
    *(unreadable, damaged_frames, no_video, no_face, no_sound, too_short, silent),
    *(no_transcript, empty_transcript, lying_frame_rate, bad_features),
)
CORPUS_CHECKS = (label_out_of_range, label_not_a_number, duplicate_id, missing_id)
DEFECTS = {_name(check): check.__doc__ for check in (*CLIP_CHECKS, *CORPUS_CHECKS)}

"""What is broken in a corpus folder, a row a defect; and how long its clips are."""

import math
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pandas as pd

from emilib import EMOTIONS, SAMPLE_RATE
from emilib.corpus import layout, media
from emilib.corpus.feature_files import load_features
from emilib.corpus.reading import read_with_findings
from emilib.workers import ordered_map

SHORTEST = 400  # samples: the receptive field of wav2vec2's convolutions, 25 ms
RATE_RATIO = 1.5  # a stated rate that is this much too high or too low lies
OFFICIAL = ("official_vision", "official_audio")


def audit(folder, workers=None):
    """The defects of a corpus folder; every frame of every clip is decoded.

    folder : see `emilib.corpus.read`
    workers : processes; None takes the cores there are, 1 stays in this process

    Returns a DataFrame with the columns id, split, defect (a key of DEFECTS), detail, ordered by
    split, then id; empty where nothing is wrong. `attrs["clips"]` counts the clips looked at.
    Raises CorpusError where the folder can't be read at all; a broken file is a row, no error.
    """
    clips, rows = read_with_findings(folder)
    rows += _outside_range(clips)
    # A kind of file is missing only where other clips of the split have it.
    usual = clips[list(layout.FILE_COLUMNS)].notna().groupby(clips["split"]).any()
    jobs = [(clip, usual.loc[clip["split"]]) for clip in clips.to_dict("records")]
    clip_rows, widths = zip(*ordered_map(_audit_clip, jobs, workers), strict=True)
    rows += chain.from_iterable(clip_rows)
    rows += _odd_widths(clips, pd.DataFrame(widths, columns=OFFICIAL, dtype=float))
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
        ids = table.loc[table["defect"] == defect, "id"].unique().tolist()
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
    pairs = zip(clips["video"], clips["audio"], strict=True)
    seconds = ordered_map(_seconds, pairs, workers)
    return pd.Series(list(seconds), clips["id"], dtype=float, name="seconds")


def _seconds(paths):
    for path in filter(None, paths):
        try:
            return media.timing(path)["seconds"]
        except media.MediaError:
            continue  # `audit` has a row for it
    return math.nan


def _audit_clip(job):
    """Rows of one clip, and the widths of its official features."""
    clip, usual = job  # usual: column -> whether other clips of the split have such a file
    if not any(clip[column] for column in layout.FILE_COLUMNS if column != "transcript"):
        return [], {}  # a row without files is one defect, not five
    seen = SimpleNamespace(clip=clip, usual=usual, errors=[], features={})
    seen.waveform = seen.decoded = seen.timing = None
    try:
        if clip["audio"]:
            seen.waveform = media.decode(clip["audio"], frames=False).waveform
    except media.MediaError as error:
        seen.errors.append(str(error))
    listens = seen.waveform is None and not seen.errors
    try:
        if clip["video"]:  # the damage is what counts: all is decoded, one frame a second kept
            seen.decoded = media.decode(clip["video"], fps=1, size=32, sound=listens)
            seen.timing = media.timing(clip["video"])
            seen.waveform = seen.decoded.waveform if listens else seen.waveform
    except media.MediaError as error:
        seen.errors.append(str(error))
    seen.face_sizes = [path.stat().st_size for path in layout.face_paths(clip["faces"])]
    for column in filter(clip.get, OFFICIAL):
        try:
            seen.features[column] = load_features(clip[column])
        except media.MediaError as error:
            seen.features[column] = str(error)
    details = [(_name(check), detail) for check in CLIP_CHECKS for detail in check(seen)]
    widths = {k: v.shape[1] for k, v in seen.features.items() if isinstance(v, np.ndarray)}
    return [(clip["id"], clip["split"], *detail) for detail in details], widths


# ---- the defects of one clip: each is a function whose docstring tells what it is ---------------


def unreadable(seen):
    """a video, sound or face file that does not open, or holds nothing"""
    yield from seen.errors
    if seen.decoded and seen.decoded.images is None and "no picture" not in seen.decoded.problems:
        yield f"{seen.clip['video']}: {seen.decoded.problems[0]}"
    if empty := seen.face_sizes.count(0):
        yield f"{seen.clip['faces']}: {empty} of {len(seen.face_sizes)} face crops have 0 bytes"


def damaged_frames(seen):
    """frames that can't be decoded cleanly, or are missing at the file's end"""
    if seen.decoded and seen.decoded.images is not None and seen.decoded.damaged:
        yield "; ".join(p for p in seen.decoded.problems if "damaged" in p or "read" in p)
    if seen.timing and (missing := seen.timing["missing"]):
        yield f"{missing} of {seen.timing['frames']} frames missing"


def no_video(seen):
    """no file in raw/, where other clips have one"""
    if seen.clip["video"] is None and seen.usual["video"]:
        yield "no file in raw/"
    if seen.decoded and "no picture" in seen.decoded.problems:
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
    if seen.timing:
        stated, measured = seen.timing["declared"], seen.timing["measured"]
        if abs(math.log(stated / measured)) > math.log(RATE_RATIO):  # not where one is NaN
            yield f"states {stated:g} a second, time stamps say {measured:.2f}"


def bad_features(seen):
    """official features that are no array, empty, not finite, or of another width"""
    for column, features in seen.features.items():
        if isinstance(features, str):
            yield features
        elif not features.size:
            yield f"{seen.clip[column]}: shape {features.shape}, no values"
        elif not np.isfinite(features).all():
            yield f"{seen.clip[column]}: values that are not finite"


CLIP_CHECKS = (
    *(unreadable, damaged_frames, no_video, no_face, no_sound, too_short, silent),
    *(no_transcript, empty_transcript, lying_frame_rate, bad_features),
)


def _name(check):
    return check.__name__.replace("_", " ")


DEFECTS = {_name(check): check.__doc__ for check in CLIP_CHECKS} | {
    "label out of range": "a label outside [0, 1]",
    "label not a number": "a label that is not a number",
    "duplicate id": "an id with several rows in the split files; the first one counts",
    "missing id": "a row without any file, or files without a row",
}


def _outside_range(clips):
    if clips.attrs["targets"] == list(EMOTIONS):  # one's own targets may have any range
        for emotion in EMOTIONS:
            outside = clips[(clips[emotion] < 0) | (clips[emotion] > 1)]
            for id_, split, value in outside[["id", "split", emotion]].itertuples(index=False):
                yield id_, split, "label out of range", f"{emotion} is {value:g}"


def _odd_widths(clips, widths):
    """More of `bad_features`: those whose width is not that of most clips."""
    for column in widths:
        usual = widths[column].mode().get(0)
        for row in widths.index[widths[column].notna() & (widths[column] != usual)]:
            detail = f"width {widths[column][row]:g}, most clips have {usual:g}"
            clip = clips.loc[row]
            yield clip["id"], clip["split"], "bad features", f"{clip[column]}: {detail}"

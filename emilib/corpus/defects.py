"""What is broken in a corpus folder, a row a defect; and how long its clips are."""

import math
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from emilib import EMOTIONS, SAMPLE_RATE
from emilib.corpus import layout, media
from emilib.corpus.feature_files import load_features
from emilib.corpus.user_dataset import read_with_findings
from emilib.workers import ordered_map

SHORTEST = 400  # samples: the receptive field of wav2vec2's convolutions, 25 ms
RATE_RATIO = 1.5  # a stated rate that is this much too high or too low lies
OFFICIAL = ("official_vision", "official_audio")
_TABLE = pd.read_csv(Path(__file__).with_name("defects.csv"), index_col="defect")
DEFECTS = _TABLE["meaning"].to_dict()  # in the order of a report


def audit(folder, workers=None):
    """The defects of a corpus folder (see `emilib.corpus.read`); every frame is decoded.

    workers : processes; None takes the cores there are, 1 stays in this process

    Returns the columns id, split, defect (a key of DEFECTS) and detail, ordered by split, then id;
    `attrs["clips"]` counts the clips looked at. CorpusError where the folder can't be read at all.
    """
    clips, rows = read_with_findings(folder)
    for emotion in EMOTIONS if clips.attrs["targets"] == list(EMOTIONS) else ():  # own: any range
        outside = clips.loc[~clips[emotion].fillna(0).between(0, 1), ["id", "split", emotion]]
        for *clip, value in outside.to_numpy():
            rows.append((*clip, "label out of range", f"{emotion} is {value:g}"))
    usual = clips[list(layout.FILE_COLUMNS)].notna().groupby(clips["split"]).any()
    jobs = [(clip, usual.loc[clip["split"]]) for clip in clips.to_dict("records")]
    lethal = "unreadable", "reading it ends the process; leave the clip out"
    results = ordered_map(
        _audit_clip, jobs, workers, lambda job: ([(job[0]["id"], job[0]["split"], *lethal)], {})
    )
    clip_rows, widths = zip(*results, strict=True)
    rows += chain.from_iterable(clip_rows)
    for column, own in pd.DataFrame(widths, columns=OFFICIAL, dtype=float).items():
        usual = own.mode().get(0)  # the width of most clips
        for row, width in own[own.notna() & (own != usual)].items():
            id_, split, path = clips.loc[row, ["id", "split", column]]
            detail = f"{path}: width {width:g}, most clips have {usual:g}"
            rows.append((id_, split, "bad features", detail))
    splits = [*layout.SPLITS, ""]
    rows = sorted(rows, key=lambda row: (splits.index(row[1]), row[0], *row[2:]))
    table = pd.DataFrame(rows, columns=["id", "split", "defect", "detail"])
    table.attrs["clips"] = len(clips)
    return table


def report(table):
    """The defects of `audit` as text: clips a defect, what it means, and the first few ids."""
    lines = [f"{table.attrs['clips']} clips, {table['id'].nunique()} ids with a defect"]
    for defect, meaning in DEFECTS.items():
        ids = table.loc[table["defect"] == defect, "id"].unique().tolist()
        lines.append(f"{len(ids):6d}  {defect:20s}  {meaning}")
        if ids:
            lines.append(" " * 30 + layout.shortened(ids))
    return "\n".join(lines)


def durations(clips, workers=None):
    """Seconds of each clip by id: the longest track of its video, else its sound; or NaN."""
    pairs = zip(clips["video"], clips["audio"], strict=True)
    seconds = ordered_map(_seconds, pairs, workers, lambda pair: math.nan)
    return pd.Series(list(seconds), clips["id"], dtype=float, name="seconds")


def _seconds(paths):
    for path in filter(None, paths):
        with suppress(media.MediaError):  # `audit` has a row for it
            return media.timing(path)["seconds"]
    return math.nan


def _audit_clip(job):
    """Rows of one clip, and the widths of its official features."""
    clip, usual = job  # usual: column -> whether other clips of the split have such a file
    rows, widths, errors, waveform = [], {}, [], None
    if not any(clip[column] for column in layout.FILE_COLUMNS if column != "transcript"):
        return rows, widths  # a row without files is one defect, not five

    def add(defect, detail):
        rows.append((clip["id"], clip["split"], defect, detail))

    video, audio, faces = clip["video"], clip["audio"], clip["faces"]
    try:
        if audio:
            waveform = media.decode(audio, frames=False).waveform
    except media.MediaError as error:
        errors.append(str(error))
    listens = waveform is None and not errors
    try:
        if video:  # the damage is what counts: all is decoded, one frame a second kept
            decoded = media.decode(video, fps=1, size=32, sound=listens)
            waveform = decoded.waveform if listens else waveform
            if "no picture" in decoded.problems:
                add("no video", f"{video} has no picture")
            elif decoded.images is None:
                add("unreadable", f"{video}: {decoded.problems[0]}")
            elif decoded.damaged:
                problems = (p for p in decoded.problems if "damaged" in p or "read" in p)
                add("damaged frames", "; ".join(problems))
            timing = media.timing(video)
            if missing := timing["missing"]:
                add("damaged frames", f"{missing} of {timing['frames']} frames missing")
            stated, measured = timing["declared"], timing["measured"]
            if abs(math.log(stated / measured)) > math.log(RATE_RATIO):  # not where one is NaN
                detail = f"states {stated:g} a second, time stamps say {measured:.2f}"
                add("lying frame rate", detail)
    except media.MediaError as error:
        errors.append(str(error))
    for error in errors:
        add("unreadable", error)
    if waveform is None:
        if (audio or video) and not errors:
            add("no sound", "no sound track")
    else:
        if len(waveform) < SHORTEST:
            add("too short", f"{len(waveform)} samples at {SAMPLE_RATE} Hz, {SHORTEST} needed")
        if (level := media.loudness(waveform, SAMPLE_RATE)) <= media.SILENCE:
            add("silent", f"loudest 50 ms at {level:.0f} dB")
    if video is None and usual["video"]:
        add("no video", "no file in raw/")
    if faces is None and usual["faces"]:
        add("no face", "no folder in face_images/")
    if clip["transcript"] is None and usual["transcript"]:
        add("no transcript", "no file in text/")
    sizes = [path.stat().st_size for path in layout.face_paths(faces)]
    if faces and not sizes:
        add("no face", f"no <int>.jpg in {faces}")
    if empty := sizes.count(0):
        add("unreadable", f"{faces}: {empty} of {len(sizes)} face crops have 0 bytes")
    if clip["transcript"] == "":
        add("empty transcript", "the file in text/ holds no word")
    for column in filter(clip.get, OFFICIAL):
        try:
            features = load_features(clip[column])
        except media.MediaError as error:
            add("bad features", str(error))
            continue
        widths[column] = features.shape[1]
        if not features.size:
            add("bad features", f"{clip[column]}: shape {features.shape}, no values")
        elif not np.isfinite(features).all():
            add("bad features", f"{clip[column]}: values that are not finite")
    return rows, widths

"""The folder of Hume-Vidmimic2 as participants receive it, read as a table of clips.

train_split.csv  valid_split.csv  [test_split.csv]    Filename and six intensities
raw/ID.mp4  audio/ID.mp3  face_images/ID/<int>.jpg     media
vit/ID.pkl  wav2vec2/ID.pkl                            the organisers' features
text/ID.txt                                            transcripts made by participants
test_data/...                                          the same folders for the test clips
"""

import difflib
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd

from emilib import EMOTIONS

SPLIT_FILES = {"train": "train_split.csv", "validation": "valid_split.csv"}
SPLIT_FILES |= {"test": "test_split.csv"}
SPLITS = tuple(SPLIT_FILES)
COLUMNS = ("Filename", *EMOTIONS)
HEADER = ",".join(COLUMNS)

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi", ".mpg", ".mpeg")
AUDIO_SUFFIXES = (".mp3", ".wav", ".flac", ".m4a", ".aac", ".ogg", ".opus", ".mp4")
MEDIA_SUFFIXES = (*VIDEO_SUFFIXES, *AUDIO_SUFFIXES)
# column -> (folder, suffixes by preference); no suffixes: the entry is a folder of its own
SOURCES = {"video": ("raw", VIDEO_SUFFIXES), "audio": ("audio", AUDIO_SUFFIXES)}
SOURCES |= {"faces": ("face_images", ()), "official_vision": ("vit", (".pkl",))}
SOURCES |= {"official_audio": ("wav2vec2", (".pkl",)), "transcript": ("text", (".txt",))}
FILE_COLUMNS = tuple(SOURCES)
FACE_NAME = re.compile(r"(\d+)\.(?:jpe?g|png)", re.IGNORECASE)
MOST_PAIRS = 10**6  # of names that are compared to guess which was meant


class CorpusError(ValueError):
    """A corpus folder that can't be read; the message names the file and the remedy."""


def read_layout(folder, strict):
    """The table of clips of a folder in the layout above, and findings: rows of `audit`."""
    folder, findings = Path(folder), []
    if not folder.is_dir():
        expected = "expected one with train_split.csv and valid_split.csv, or videos and a CSV"
        raise CorpusError(f"There is no corpus folder {folder}; {expected}.")
    files = {split: _index(folder, split) for split in SPLITS}
    tables = [_split_table(folder, split, files[split], findings, strict) for split in SPLITS]
    clips = pd.concat(tables, ignore_index=True)
    if clips.empty:
        raise CorpusError(f"The split files in {folder} name no clip; expected a row a clip.")
    places = [str(folder / SPLIT_FILES[split]) for split in clips["split"]]
    first = first_rows(clips, clips["id"], clips[["split", *EMOTIONS]], places, findings, strict)
    clips = clips[first].reset_index(drop=True)
    ids, spare = set(clips["id"]), {}
    for column, (name, _) in SOURCES.items():
        paths = [files[s][column].get(i) for s, i in zip(clips["split"], clips["id"], strict=True)]
        clips[column] = pd.Series(paths, dtype=object)
        for id_ in set().union(*(files[split][column] for split in SPLITS)) - ids:
            spare.setdefault(id_, []).append(name)
    clips["transcript"] = pd.Series(map(text_of, clips["transcript"]), dtype=object)
    unlisted = {id_: f"only in {', '.join(spare[id_])}" for id_ in sorted(spare)}
    return finished(clips, folder, EMOTIONS, findings, unlisted, "a split file", strict)


def finished(clips, folder, targets, findings, unlisted, table, strict):
    """The table of clips in its final order with its `attrs`, and findings."""
    clips = clips.assign(split=pd.Categorical(clips["split"], SPLITS)).sort_values(["split", "id"])
    clips["split"] = clips["split"].astype(object)
    clips = clips[["id", "split", *FILE_COLUMNS, *targets]].reset_index(drop=True)
    bare = clips[clips[[c for c in FILE_COLUMNS if c != "transcript"]].isna().all(axis=1)]
    for split, rows in clips.groupby("split"):
        wordless = rows["id"].isin(bare["id"]) & rows["transcript"].isna()
        if strict and split != "test" and wordless.all():
            what = f"None of the {len(rows)} {split} clips in {table} of {folder} has a file"
            example = folder / "raw" / rows["id"].iloc[0]
            raise CorpusError(f"{what}; expected for example {example}.mp4.")
    notes = {
        f"Ids in {table} without any file": bare["id"].tolist(),
        f"Files without a row in {table}": list(unlisted),
        "Repeated rows that were left out": [i for i, _, d, _ in findings if d == "duplicate id"],
    }
    notes = [f"{what} ({len(ids)}): {shortened(ids)}." for what, ids in notes.items() if ids]
    clips.attrs.update(folder=str(folder), targets=list(targets), notes=notes)
    near = {re.split(r"[\\/]", name)[-1].lower(): name for name in unlisted}
    few = near if len(near) * len(bare) < MOST_PAIRS else ()
    for id_, split in bare[["id", "split"]].to_numpy():
        close = difflib.get_close_matches(id_.rpartition("/")[2].lower(), few, 1)
        hint = f"; the closest file without a row: {near[close[0]]}" if close else ""
        findings.append((id_, split, "missing id", f"no file of any kind{hint}"))
    findings += [(id_, "", "missing id", f"no row: {text}") for id_, text in unlisted.items()]
    return clips, findings


def shortened(names, most=5):
    """The first few of many names."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def face_paths(folder):
    """Face crops in a folder (or None), 2.jpg before 10.jpg; names that are no number left out."""
    if folder is None or not Path(folder).is_dir():
        return []
    paths = filter(os.path.isfile, Path(folder).iterdir())  # no pipe, no link to itself
    faces = [path for path in paths if FACE_NAME.fullmatch(path.name)]
    return sorted(faces, key=lambda path: (int(path.stem), path.name))


def entries(folder, suffixes):
    """{id: path} of one folder; of two files with one id the more usual suffix wins."""
    if not folder.is_dir():
        return {}
    paths = [path for path in folder.iterdir() if path.name[0] != "."]
    if not suffixes:
        return {path.name: str(path) for path in paths if os.path.isdir(path)}
    rank = {suffix: n for n, suffix in enumerate(reversed(suffixes))}  # the last one stays
    paths = [path for path in paths if path.suffix.lower() in rank and os.path.isfile(path)]
    paths.sort(key=lambda path: (rank[path.suffix.lower()], path.name))
    return {path.stem: str(path) for path in paths}


def without_ending(name):
    """A file's name without the ending of a video or sound file; dots within an id stay."""
    base, suffix = os.path.splitext(name)
    return base if suffix.lower() in MEDIA_SUFFIXES else name


def text_of(path):
    """The words of a text file, "" for an empty one; None for None."""
    return path and Path(path).read_text(encoding="utf-8-sig", errors="replace").strip()


def read_rows(path):
    """The rows of a CSV as stripped text, indexed by line of the file; empty ones left out."""
    options = {"header": None, "dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
    try:
        table = pd.read_csv(path, skipinitialspace=True, skip_blank_lines=False, **options)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        got = f"{path} is no readable CSV ({str(error).strip()})"
        expected = "expected UTF-8 text with commas, and in double quotes what holds a comma"
        raise CorpusError(f"{got}; {expected}.") from error
    table = table.fillna("")
    breaks = table.apply(lambda column: column.str.count("\n")).sum(axis=1)  # within quotes
    table.index = 1 + np.arange(len(table)) + breaks.cumsum().to_numpy()
    table = table.apply(lambda column: column.str.strip())
    table = table[(table != "").any(axis=1)]
    return table[1:].set_axis(table.iloc[0].rename(None), axis=1)


def numbers(cells, path, clips, findings, strict):
    """Cells (indexed by line of a CSV) as floats; others are NaN and a finding, or an error."""
    values = pd.to_numeric(cells, errors="coerce").astype(float)
    values = values.where(np.isfinite(values))
    for line in cells.index[values.isna()]:
        detail = f"{path.name}, line {line}: {cells.name} is {cells[line]!r}, not a number"
        if strict:
            raise CorpusError(f"{path.parent / detail}; correct it, or remove its row or column.")
        findings.append((clips["id"][line], clips["split"][line], "label not a number", detail))
    return values


def first_rows(clips, keys, rows, places, findings, strict):
    """(N,) bool: the first row of each key. `rows` that differ are a finding, or an error."""
    repeated = keys.duplicated().to_numpy()
    for n in np.flatnonzero(repeated):
        first = (keys == keys.iloc[n]).to_numpy().argmax()
        same = rows.iloc[n].equals(rows.iloc[first])
        where = " and ".join(dict.fromkeys((places[first], places[n])))
        id_, split = clips[["id", "split"]].iloc[n]
        if strict and not same:
            raise CorpusError(f"{id_} stands twice, with different rows, in {where}; keep one.")
        detail = f"twice in {where}, " + ("with the same labels" if same else "rows differ")
        findings.append((id_, split, "duplicate id", detail))
    return ~repeated


def _index(folder, split):
    """{column: {id: path}}. Test clips: test_data first, which has the last word."""
    roots = [folder, folder / "test_data"] if split == "test" else [folder]
    return {
        column: {i: p for root in roots for i, p in entries(root / name, suffixes).items()}
        for column, (name, suffixes) in SOURCES.items()
    }


def _split_table(folder, split, files, findings, strict):
    """id, split, the six labels of one split file (of the folders for a test set without one)."""
    path = folder / SPLIT_FILES[split]
    if split == "test" and not path.is_file():
        inside = folder / "test_data"
        kinds = (SOURCES[column] for column in ("video", "audio", "faces"))
        ids = sorted(set().union(*(entries(inside / name, ends) for name, ends in kinds)))
        return pd.DataFrame({"id": ids, "split": split, **dict.fromkeys(EMOTIONS, np.nan)})
    if not path.is_file():
        raise CorpusError(f"{path} is missing; expected a CSV with the header {HEADER}.")
    table = read_rows(path)
    if missing := [name for name in COLUMNS if name not in table.columns]:
        raise CorpusError(f"{path} lacks the columns {', '.join(missing)}; expected {HEADER}.")
    known = set().union(*files.values())
    ids = [_id(name, known, f"{path}, line {line}") for line, name in table["Filename"].items()]
    clips = pd.DataFrame({"id": ids, "split": split}, table.index, dtype=object)
    for name in EMOTIONS:  # whatever a test file says are no labels
        labels = table.loc[clips["split"] != "test", name]
        clips[name] = numbers(labels, path, clips, findings, strict)
    return clips


def _id(name, known, where):
    """Filename -> id: no folder, no media suffix, zeros in front where the file has them."""
    stem = without_ending(re.split(r"[\\/]", name)[-1])
    if not stem:
        raise CorpusError(f"{where}: Filename is empty; expected a clip's id.")
    padded = stem.zfill(5)
    return padded if stem not in known and stem.isdigit() and padded in known else stem

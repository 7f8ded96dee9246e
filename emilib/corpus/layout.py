"""The folder of Hume-Vidmimic2 as participants receive it, read as a table of clips.

train_split.csv  valid_split.csv  [test_split.csv]    Filename and six intensities
raw/ID.mp4  audio/ID.mp3  face_images/ID/<int>.jpg     media
vit/ID.pkl  wav2vec2/ID.pkl                            the organisers' features
text/ID.txt                                            transcripts made by participants
test_data/...                                          the same folders for the test clips
"""

import csv
import io
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from emilib import EMOTIONS

SPLIT_FILES = {
    "train": "train_split.csv",
    "validation": "valid_split.csv",
    "test": "test_split.csv",
}
SPLITS = tuple(SPLIT_FILES)
COLUMNS = ("Filename", *EMOTIONS)
HEADER = ",".join(COLUMNS)

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi", ".mpg", ".mpeg")
AUDIO_SUFFIXES = (".mp3", ".wav", ".flac", ".m4a", ".aac", ".ogg", ".opus", ".mp4")
MEDIA_SUFFIXES = (*VIDEO_SUFFIXES, *AUDIO_SUFFIXES)

# column -> (folder, suffixes by preference); no suffixes: the entry is a folder of its own
SOURCES = {
    "video": ("raw", VIDEO_SUFFIXES),
    "audio": ("audio", AUDIO_SUFFIXES),
    "faces": ("face_images", None),
    "official_vision": ("vit", (".pkl",)),
    "official_audio": ("wav2vec2", (".pkl",)),
    "transcript": ("text", (".txt",)),
}
FILE_COLUMNS = tuple(SOURCES)
FACE_NAME = re.compile(r"(\d+)\.(?:jpe?g|png)", re.IGNORECASE)


class CorpusError(ValueError):
    """A corpus folder that can't be read; the message names the file and the remedy."""


@dataclass
class Findings:
    """What the split files and the folders hold that does not fit into the table of clips."""

    duplicates: list = field(default_factory=list)  # (id, split, detail)
    labels: list = field(default_factory=list)  # (id, split, detail): not a number
    unlisted: list = field(default_factory=list)  # (id, detail): files without a CSV row


def read_layout(folder, strict):
    """The table of clips of a folder in the layout above, and its Findings.

    folder, strict, errors : as of `emilib.corpus.read`
    """
    folder, findings = Path(folder), Findings()
    if not folder.is_dir():
        raise CorpusError(
            f"There is no corpus folder {folder}; expected one that holds {SPLIT_FILES['train']} "
            f"and {SPLIT_FILES['validation']}, or your videos and a CSV."
        )
    files = {split: _index(folder, split) for split in SPLITS}
    tables = [_split_table(folder, split, files[split], findings, strict) for split in SPLITS]
    clips = pd.concat(tables, ignore_index=True)
    if clips.empty:
        raise CorpusError(f"The split files in {folder} name no clip; expected a row a clip.")
    places = [str(folder / SPLIT_FILES[split]) for split in clips["split"]]
    rows = clips[["split", *EMOTIONS]]
    clips = clips[first_rows(clips, clips["id"], rows, places, findings, strict)]
    clips = clips.reset_index(drop=True)
    for column in FILE_COLUMNS:
        paths = [files[s][column].get(i) for s, i in zip(clips["split"], clips["id"], strict=True)]
        clips[column] = pd.Series(paths, clips.index, dtype=object)
    clips["transcript"] = pd.Series(map(text_of, clips["transcript"]), clips.index, dtype=object)
    listed, spare = set(clips["id"]), {}
    for split in SPLITS:
        for column, paths in files[split].items():
            for name in paths.keys() - listed:
                spare.setdefault(name, {})[SOURCES[column][0]] = None
    findings.unlisted = [(name, f"only in {', '.join(spare[name])}") for name in sorted(spare)]
    return finished(clips, folder, EMOTIONS, findings, "a split file"), findings


def finished(clips, folder, targets, findings, table):
    """The table of clips in its final order of rows and columns, with its `attrs`.

    table : what names the clips, for the notes

    Raises CorpusError where not one clip has a file: the wrong folder.
    """
    clips = clips.assign(split=pd.Categorical(clips["split"], SPLITS)).sort_values(["split", "id"])
    clips["split"] = clips["split"].astype(object)
    clips = clips[["id", "split", *FILE_COLUMNS, *targets]].reset_index(drop=True)
    bare = clips.loc[~has_files(clips), "id"].tolist()
    if len(bare) == len(clips):
        raise CorpusError(
            f"None of the {len(clips)} clips in {table} of {folder} has a file; expected "
            f"for example {folder / 'raw' / bare[0]}.mp4 or {folder / 'vit' / bare[0]}.pkl."
        )
    notes = {
        f"Ids in {table} without any file": bare,
        f"Files without a row in {table}": [name for name, _ in findings.unlisted],
        "Repeated rows that were left out": [name for name, _, _ in findings.duplicates],
    }
    clips.attrs.update(folder=str(folder), targets=list(targets))
    clips.attrs["notes"] = [
        f"{what} ({len(names)}): {shortened(names)}." for what, names in notes.items() if names
    ]
    return clips


def shortened(names, most=5):
    """The first few of many names."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def face_paths(folder):
    """The face crops of one clip in numeric order: 2.jpg comes before 10.jpg.

    folder : face_images/ID, or None. Anything whose name is not a number (Thumbs.db) is left out.
    Returns a list of Paths, empty for None or where there is no folder.
    """
    if folder is None or not Path(folder).is_dir():
        return []
    numbered = [(FACE_NAME.fullmatch(name), name) for name in os.listdir(folder)]
    return [
        Path(folder) / name for _, name in sorted((int(m.group(1)), n) for m, n in numbered if m)
    ]


def has_files(clips):
    """(N,) bool: the clip has at least one file of any kind (an empty transcript counts)."""
    return clips[list(FILE_COLUMNS)].notna().any(axis=1)


def entries(folder, suffixes):
    """{id: path} of one folder; of two files with one id the more usual suffix wins."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as listing:
        if suffixes is None:
            return {entry.name: entry.path for entry in listing if entry.is_dir()}
        named = [(*os.path.splitext(entry.name), entry.path) for entry in listing]
    ranked = [
        (suffixes.index(suffix.lower()), path, stem)
        for stem, suffix, path in named
        if suffix.lower() in suffixes and not stem.startswith(".")
    ]
    return {stem: path for _, path, stem in sorted(ranked, reverse=True)}


def text_of(path):
    """The words of a text file, "" for an empty one; None for None."""
    if path is None:
        return None
    return Path(path).read_text(encoding="utf-8-sig", errors="replace").strip()


def read_rows(path):
    """The rows of a CSV as stripped text, indexed by their line in the file; empty ones left out.

    Raises CorpusError for what is no CSV, and for a row with more cells than the header.
    """
    try:  # csv, not pandas: it knows each record's line
        text = io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")
        reader = csv.reader(text, strict=True, skipinitialspace=True)
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(
            f"{path} is no readable CSV ({error}); expected UTF-8 text with commas."
        ) from error
    (_, head), *rows = [row for row in rows if any(row[1])] or [(1, [])]
    for line, cells in rows:
        if len(cells) > len(head):
            raise CorpusError(
                f"{path}, line {line}: expected {len(head)} cells as in the header, got "
                f"{len(cells)}; put text that holds a comma in double quotes."
            )
        cells += [""] * (len(head) - len(cells))
    return pd.DataFrame(
        [cells for _, cells in rows], [line for line, _ in rows], head, dtype=object
    )


def numbers(cells, path, clips, findings, strict):
    """Cells as floats; what is not a finite number is NaN and a finding, or when strict an error.

    cells : Series of text, indexed by its line in the CSV `path`
    clips : `id` and `split` of these lines
    """
    values = pd.to_numeric(cells, errors="coerce").astype(float)
    values = values.where(np.isfinite(values))
    for line in cells.index[values.isna()]:
        detail = f"{path.name}, line {line}: {cells.name} is {cells[line]!r}, not a number"
        if strict:
            raise CorpusError(f"{path.parent / detail}; correct it, or remove its row or column.")
        findings.labels.append((clips["id"][line], clips["split"][line], detail))
    return values


def first_rows(clips, keys, rows, places, findings, strict):
    """(N,) bool: the first row of each key. Rows that differ are a finding, or strictly an error.

    clips : `id` and `split` of each row; rows : the cells that should agree; places : where it is
    """
    repeated = keys.duplicated().to_numpy()
    for n in np.flatnonzero(repeated):
        first = (keys == keys.iloc[n]).to_numpy().argmax()
        same = rows.iloc[n].equals(rows.iloc[first])
        where = " and ".join(dict.fromkeys((places[first], places[n])))
        id_, split = clips[["id", "split"]].iloc[n]
        if strict and not same:
            raise CorpusError(f"{id_} stands twice, with different rows, in {where}; keep one.")
        detail = f"twice in {where}, " + ("with the same labels" if same else "rows differ")
        findings.duplicates.append((id_, split, detail))
    return ~repeated


def _index(folder, split):
    """{column: {id: path}}. Test clips: test_data first, which has the last word."""
    roots = [folder, folder / "test_data"] if split == "test" else [folder]
    return {
        column: {
            id_: path for root in roots for id_, path in entries(root / name, suffixes).items()
        }
        for column, (name, suffixes) in SOURCES.items()
    }


def _split_table(folder, split, files, findings, strict):
    """id, split, the six labels of one split file (of the folders for a test set without one)."""
    path = folder / SPLIT_FILES[split]
    if path.is_file():
        table = read_rows(path)
        if missing := [name for name in COLUMNS if name not in table.columns]:
            raise CorpusError(
                f"{path} has the header {','.join(table.columns)!r}, without {', '.join(missing)}; "
                f"expected {HEADER}."
            )
        known = set().union(*files.values())
        ids = [_id(name, known, f"{path}, line {line}") for line, name in table["Filename"].items()]
    elif split == "test":
        inside = folder / "test_data"
        kinds = (SOURCES[column] for column in ("video", "audio", "faces"))
        ids = sorted(set().union(*(entries(inside / name, kind) for name, kind in kinds)))
        table = pd.DataFrame(index=range(len(ids)))
    else:
        raise CorpusError(
            f"{path} is missing; a corpus folder holds {SPLIT_FILES['train']} and "
            f"{SPLIT_FILES['validation']} with the header {HEADER}."
        )
    clips = pd.DataFrame({"id": ids, "split": split}, table.index, dtype=object)
    for name in EMOTIONS:
        labelled = split != "test"
        clips[name] = numbers(table[name], path, clips, findings, strict) if labelled else np.nan
    return clips


def _id(name, known, where):
    """Filename -> id: no folder, no media suffix, zeros in front where the file has them."""
    stem = re.split(r"[\\/]", name)[-1]
    base, suffix = os.path.splitext(stem)
    stem = base if suffix.lower() in MEDIA_SUFFIXES else stem
    if not stem:
        raise CorpusError(f"{where}: Filename is empty; expected a clip's id.")
    padded = stem.zfill(5)
    return padded if stem not in known and stem.isdigit() and padded in known else stem

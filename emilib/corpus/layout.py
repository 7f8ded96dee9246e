"""The folder of Hume-Vidmimic2 as participants receive it, read as a table of clips.

train_split.csv  valid_split.csv  [test_split.csv]    Filename and six intensities
raw/ID.mp4  audio/ID.mp3  face_images/ID/<int>.jpg     media
vit/ID.pkl  wav2vec2/ID.pkl                            the organisers' features
text/ID.txt                                            transcripts made by participants
test_data/...                                          the same folders for the test clips
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

EMOTIONS = ("Admiration", "Amusement", "Determination", "Empathic Pain", "Excitement", "Joy")
SPLITS = ("train", "validation", "test")
SPLIT_FILES = {
    "train": "train_split.csv",
    "validation": "valid_split.csv",
    "test": "test_split.csv",
}
HEADER = ",".join(("Filename", *EMOTIONS))

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi", ".mpg", ".mpeg")
AUDIO_SUFFIXES = (".mp3", ".wav", ".flac", ".m4a", ".aac", ".ogg", ".opus", ".mp4")

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
TEST_ID_FOLDERS = ("raw", "face_images", "audio")
FACE_NAME = re.compile(r"(\d+)\.(?:jpe?g|png)", re.IGNORECASE)


class CorpusError(ValueError):
    """A corpus folder that can't be read; the message says which file and what to do."""


@dataclass
class Findings:
    """What the split files and the folders said that `read` can't put into its table."""

    duplicates: list = field(default_factory=list)  # (id, split, detail)
    labels: list = field(default_factory=list)  # (id, split, detail): not a number
    unlisted: list = field(default_factory=list)  # (id, detail): files without a CSV row


def read(folder, strict=True):
    """One row a clip of a corpus folder, ordered by split (train, validation, test), then id.

    folder : a folder in the layout at the head of this module, or one of videos with a CSV of
        your own (see `emilib.corpus.user_dataset`); of several CSVs the path of the one meant
    strict : False reads on where a row contradicts itself: a label that is not a number
        becomes NaN, and the first of several rows with one id counts. `audit` lists them.

    Returns a DataFrame with the columns id, split, video, audio, faces, official_vision,
    official_audio (paths as str, or None), transcript (str, None without a text file), and the
    targets as floats (NaN for test clips, whatever their CSV says): the six EMOTIONS, or the
    columns of your CSV. `attrs["targets"]` names them, `attrs["folder"]` is the folder,
    `attrs["notes"]` a list of sentences about ids without files and files without id.
    Files are found by `Filename`, which is read as text: `00012`, `00012.mp4`, or `12` where the
    file on the disk is called 00012.
    Raises CorpusError: no such folder, no CSV, wrong header, no file for any id; when strict also
    a label that is not a number, and one id with two different rows.
    """
    return read_with_findings(folder, strict)[0]


def read_with_findings(folder, strict=False):
    """`read`, and a Findings of what had to be set aside."""
    from emilib.corpus import user_dataset as own

    if table := own.table_of(folder):
        return own.read_with_findings(table, strict)
    folder = Path(folder)
    if not folder.is_dir():
        raise CorpusError(
            f"There is no corpus folder {folder}; give the folder that holds "
            f"{SPLIT_FILES['train']} and {SPLIT_FILES['validation']}, or your videos and a CSV."
        )
    findings = Findings()
    found = {split: _index(folder, split) for split in SPLITS}
    tables = [_split_table(folder, split, found[split], findings, strict) for split in SPLITS]
    clips = _without_duplicates(folder, pd.concat(tables, ignore_index=True), findings, strict)
    for column, paths in _files(clips, found).items():
        clips[column] = pd.Series(paths, index=clips.index, dtype=object)
    order = {split: rank for rank, split in enumerate(SPLITS)}
    clips = clips.sort_values(
        ["split", "id"], key=lambda c: c.map(order) if c.name == "split" else c
    )
    clips = clips[["id", "split", *FILE_COLUMNS, *EMOTIONS]].reset_index(drop=True)
    findings.unlisted = _unlisted(clips, found)
    clips.attrs.update(folder=str(folder), notes=_notes(folder, clips, findings))
    clips.attrs["targets"] = list(EMOTIONS)
    return clips, findings


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


def _index(folder, split):
    """Where the files of each column are: {column: {id: path}}. Test clips: test_data first."""
    roots = [folder / "test_data", folder] if split == "test" else [folder]
    index = {}
    for column, (name, suffixes) in SOURCES.items():
        index[column] = {}
        for root in reversed(roots):  # the first root has the last word
            index[column].update(entries(root / name, suffixes))
    return index


def entries(folder, suffixes):
    """{id: path} of one folder; of two files with one id the more usual suffix wins."""
    if not folder.is_dir():
        return {}
    if suffixes is None:
        with os.scandir(folder) as entries:
            return {entry.name: entry.path for entry in entries if entry.is_dir()}
    best = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            if suffix.lower() in suffixes and not stem.startswith("."):
                rank = suffixes.index(suffix.lower())
                best[stem] = min(best.get(stem, (rank, entry.path)), (rank, entry.path))
    return {stem: path for stem, (_, path) in best.items()}


def _split_table(folder, split, found, findings, strict):
    """id, split, the six labels of one split file (of the folders for a test set without one)."""
    path = folder / SPLIT_FILES[split]
    if not path.is_file():
        if split != "test":
            raise CorpusError(
                f"{path} is missing; a corpus folder holds {SPLIT_FILES['train']} and "
                f"{SPLIT_FILES['validation']} with the header {HEADER}."
            )
        ids = pd.Series(_test_ids(folder), dtype=str)
        return _rows(ids, split, pd.DataFrame(index=ids.index, columns=EMOTIONS, dtype=float))
    table = _csv(path)
    ids = _ids(table["Filename"], found, path)
    if split == "test":
        return _rows(ids, split, pd.DataFrame(index=ids.index, columns=EMOTIONS, dtype=float))
    return _rows(ids, split, _labels(table, ids, split, path, findings, strict))


def _rows(ids, split, labels):
    table = pd.DataFrame({"id": ids.astype(object), "split": split})
    return pd.concat([table, labels[list(EMOTIONS)].astype(float)], axis=1)


def _csv(path):
    """A split file as text, header checked. Empty cells stay empty strings."""
    try:
        table = pd.read_csv(
            path,
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
            skipinitialspace=True,
            index_col=False,
        )
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise CorpusError(
            f"{path} is no readable CSV ({error}); its first line must be {HEADER}."
        ) from error
    table.columns = [str(name).strip() for name in table.columns]
    missing = [name for name in ("Filename", *EMOTIONS) if name not in table.columns]
    if missing:
        raise CorpusError(
            f"{path} has the header {','.join(table.columns)}, without {', '.join(missing)}; "
            f"expected {HEADER}."
        )
    return table.fillna("")  # a row that ends early


def _ids(names, found, path):
    """Filename -> id: no folder, no media suffix, zeros in front where the file has them."""
    known = set().union(*found.values())
    ids = []
    for row, name in enumerate(names):
        stem = re.split(r"[\\/]", name.strip())[-1]
        base, suffix = os.path.splitext(stem)
        if suffix.lower() in (*VIDEO_SUFFIXES, *AUDIO_SUFFIXES):
            stem = base
        if not stem:
            raise CorpusError(f"{path}, line {row + 2}: Filename is empty; give the clip's id.")
        if stem not in known and stem.isdigit() and stem.zfill(5) in known:
            stem = stem.zfill(5)
        ids.append(stem)
    return pd.Series(ids, dtype=str)


def _labels(table, ids, split, path, findings, strict):
    """The six columns as floats; what is not a finite number is NaN and a finding."""
    labels = table[list(EMOTIONS)].apply(pd.to_numeric, errors="coerce").astype(float)
    labels = labels.where(labels.abs() < float("inf"))
    for row, emotion in zip(*labels.isna().to_numpy().nonzero(), strict=True):
        name = EMOTIONS[emotion]
        text = table[name].iloc[row]
        detail = f"{path.name}, line {row + 2}: {name} is {text!r}, not a number"
        if strict:
            raise CorpusError(f"{path.parent / detail}; correct or remove the row.")
        findings.labels.append((ids.iloc[row], split, detail))
    return labels


def _test_ids(folder):
    """Ids of test clips from the folders below test_data, sorted; empty without such folders."""
    ids = set()
    for name in TEST_ID_FOLDERS:
        suffixes = {"raw": VIDEO_SUFFIXES, "face_images": None, "audio": AUDIO_SUFFIXES}[name]
        ids |= set(entries(folder / "test_data" / name, suffixes))
    return sorted(ids)


def _without_duplicates(folder, clips, findings, strict):
    """The first row of each id. Rows that say the same twice do no harm; others are an error."""
    repeated = clips.duplicated("id", keep="first")
    first = clips[~repeated].set_index("id")
    for _, row in clips[repeated].iterrows():
        kept = first.loc[row["id"]]
        same = kept["split"] == row["split"] and all(
            kept[e] == row[e] or (pd.isna(kept[e]) and pd.isna(row[e])) for e in EMOTIONS
        )
        files = " and ".join(dict.fromkeys(SPLIT_FILES[r["split"]] for r in (kept, row)))
        detail = f"twice in {files}, " + ("with the same labels" if same else "rows differ")
        if strict and not same:
            raise CorpusError(
                f"Id {row['id']} stands twice in {folder / files}, with different rows; keep the "
                "right one."
            )
        findings.duplicates.append((row["id"], row["split"], detail))
    return clips[~repeated].reset_index(drop=True)


def _files(clips, found):
    """{column: list of path or None}, the transcript as its text."""
    columns = {
        column: [found[s][column].get(i) for i, s in zip(clips["id"], clips["split"], strict=True)]
        for column in FILE_COLUMNS
    }
    columns["transcript"] = [text_of(path) for path in columns["transcript"]]
    return columns


def text_of(path):
    """The words of a text file, "" for an empty one; None for None."""
    if path is None:
        return None
    return Path(path).read_text(encoding="utf-8-sig", errors="replace").strip()


def _unlisted(clips, found):
    """(id, detail) of media and features that no CSV names."""
    listed = set(clips["id"])
    spare = {}
    for index in found.values():
        for column, paths in index.items():
            for name in paths.keys() - listed:
                spare.setdefault(name, {})[SOURCES[column][0]] = None
    return [(name, f"only in {', '.join(spare[name])}") for name in sorted(spare)]


def _notes(folder, clips, findings):
    """Sentences for a person; raises where not one id has a file: the wrong folder was given."""
    bare = clips.loc[~has_files(clips), "id"].tolist()
    if len(clips) == 0:
        raise CorpusError(f"The split files in {folder} name no clip; expected a row a clip.")
    if len(bare) == len(clips):
        raise CorpusError(
            f"None of the {len(clips)} ids in {folder} has a file; expected for example "
            f"{folder / 'raw' / (bare[0] + '.mp4')} or {folder / 'vit' / (bare[0] + '.pkl')}."
        )
    return notes(bare, findings, "a split file")


def notes(bare, findings, where):
    """Sentences about ids without files, files without a row in `where`, and repeated rows."""
    said = []
    if bare:
        said.append(f"Ids in {where} without any file ({len(bare)}): {_some(bare)}.")
    if findings.unlisted:
        spare = [name for name, _ in findings.unlisted]
        said.append(f"Files without a row in {where} ({len(spare)} ids): {_some(spare)}.")
    if findings.duplicates:
        double = [name for name, _, _ in findings.duplicates]
        said.append(f"Repeated rows that were left out ({len(double)}): {_some(double)}.")
    return said


def _some(names, most=5):
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")

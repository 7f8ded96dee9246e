"""Your own data set: a folder of videos and one CSV, read as the table that `read` returns.

file,valence,arousal,split,speaker,text             the first column names the file
clip_a.mp4,3.5,6,train,ann,well that was fun        raw/clip_a.mp4, or wherever below the folder
session2/clip_b,1,2.25,validation,ben,              without its ending; no words

Every other column is a target, any number of them and in any range, except these, whose names may
be written in capitals too:

split                              train, validation (valid, val, dev) or test
group, speaker, person, subject    who is in the clip; without a split column, no group is split
text, transcript                   the words of the clip

Without a split column the clips are shared out here: whole groups (without such a column single
clips) in an order drawn from a fixed seed, about a fifth of the clips to validation, the rest to
training. A row without any target is a test clip then. Beside the videos the folders audio/,
face_images/, text/, vit/ and wav2vec2/ are used as in the real layout, found by the file's name.
"""

import csv
import io
import os
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from emilib.corpus import layout
from emilib.corpus.layout import AUDIO_SUFFIXES, SOURCES, SPLIT_FILES, VIDEO_SUFFIXES, CorpusError

SPECIAL = {
    "split": ("split",),
    "group": ("group", "speaker", "person", "subject"),
    "text": ("text", "transcript"),
}
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    "test": "test",
}
VALIDATION_SHARE = 0.2  # of the clips, where no column says which
MOST_VALIDATION = 0.35  # a group that would bring more than this stays in training
SPLIT_SEED = 0
# A target with one of these names would stand twice in the table of clips.
_TAKEN = {"id", "split", "seconds", *layout.FILE_COLUMNS}
_EXAMPLE = "file,valence,arousal"


def table_of(source) -> Path | None:
    """The CSV of an own data set; None for a folder in the real layout.

    source : a folder, or a CSV in one

    Raises CorpusError: no such place, a folder without a CSV, or with several and none of the
    real layout.
    """
    source = Path(source)
    if source.is_file():
        if source.suffix.lower() != ".csv":
            raise CorpusError(f"Expected a corpus folder or a CSV in it, got the file {source}.")
        return source
    if not source.is_dir() or any((source / name).is_file() for name in SPLIT_FILES.values()):
        return None  # `layout` explains what is wrong with it
    tables = sorted(p for p in source.iterdir() if p.suffix.lower() == ".csv" and p.is_file())
    if len(tables) == 1:
        return tables[0]
    if not tables:
        raise CorpusError(
            f"{source} has no CSV; expected {SPLIT_FILES['train']} and {SPLIT_FILES['validation']},"
            f" or one CSV of your own that begins with {_EXAMPLE}."
        )
    raise CorpusError(
        f"{source} has {len(tables)} CSVs ({layout.shortened([p.name for p in tables])}); name the "
        f"one that lists the clips, as in --corpus {tables[0]}."
    )


def read_table(table, strict=False):
    """The table of clips of one's own CSV, and its `layout.Findings`.

    Raises CorpusError where the CSV can't be read or has no target, where a file name is
    ambiguous, where training or validation would have no clip; when strict also for a target that
    is not a number, a target that never changes in training, and a file with two different rows.
    """
    table, findings = Path(table), layout.Findings()
    rows = _rows(table)
    special, targets = _columns(table, rows.columns)
    files = _Files(table)
    clips = files.of(rows.iloc[:, 0])
    first = _first_rows(table, rows, clips, findings, strict)
    rows, clips = rows[first], files.beside(clips[first])
    if special["text"]:
        clips["transcript"] = rows[special["text"]]
    clips["split"] = _splits(table, rows, clips["id"], special, targets)
    for name in targets:
        clips[name] = _target(table, rows[name], clips, findings, strict)
    findings.unlisted = files.unlisted()
    return layout.finished(clips, table.parent, targets, findings, table.name), findings


def _rows(table):
    """The cells as text, one row a line of the file, columns named by the header."""
    try:  # csv, not pandas: it knows each record's line, and which records are too short
        text = io.StringIO(table.read_text(encoding="utf-8-sig"), newline="")
        reader = csv.reader(text, strict=True, skipinitialspace=True)
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(
            f"{table} is no readable CSV ({error}); expected UTF-8 text with commas, beginning "
            f"with {_EXAMPLE}."
        ) from error
    (_, head), *rows = [row for row in lines if any(row[1])] or [(0, [])]
    if not rows:
        raise CorpusError(
            f"{table} names no clip; expected a header such as {_EXAMPLE}, then a row a clip."
        )
    for line, cells in rows:
        if len(cells) != len(head):
            raise CorpusError(
                f"{table}, line {line}: expected {len(head)} cells as in the header, got "
                f"{len(cells)}; put text that holds a comma in double quotes."
            )
    if len(head) > 1 and not any(pd.isna(_numbers(head[1:]))):
        raise CorpusError(f"{table} has no header; expected a first line such as {_EXAMPLE}.")
    if len(set(head)) < len(head) or "" in head:
        raise CorpusError(f"{table} has the header {head}; expected a name of its own a column.")
    return pd.DataFrame(
        [cells for _, cells in rows], [line for line, _ in rows], head, dtype=object
    )


def _numbers(cells):
    """Floats of texts, NaN for what is not a finite number."""
    numbers = pd.to_numeric(pd.Series(cells, dtype=object), errors="coerce").astype(float)
    return numbers.where(np.isfinite(numbers))


def _columns(table, head):
    """{"split", "group", "text": column or None}, and the names of the targets."""
    special = {}
    for meaning, names in SPECIAL.items():
        same = [name for name in head[1:] if name.lower() in names]
        if len(same) > 1:
            raise CorpusError(
                f"{table} has the columns {' and '.join(same)}, which mean the same; keep one."
            )
        special[meaning] = same[0] if same else None
    targets = [name for name in head[1:] if name not in special.values()]
    if not targets:
        raise CorpusError(
            f"{table} has the header {','.join(head)}, without a target; expected the file first, "
            f"then a column of numbers a target, as in {_EXAMPLE}."
        )
    if taken := [name for name in targets if name.lower() in _TAKEN]:
        raise CorpusError(f"{table} calls a target {taken[0]!r}, a name used here; rename it.")
    return special, targets


def _first_rows(table, rows, clips, findings, strict):
    """(N,) bool: a clip's first row. Rows that agree do no harm; others are an error if strict."""
    files = clips["path"].where(clips["path"].notna(), clips["id"])
    repeated = files.duplicated()
    for line in rows.index[repeated]:
        id_, first = clips.loc[line, "id"], files.eq(files[line]).idxmax()
        where = f"{table.name}, lines {first} and {line}"
        same = rows.loc[first].iloc[1:].equals(rows.loc[line].iloc[1:])
        if strict and not same:
            raise CorpusError(
                f"{table.parent / where}: {id_} stands there twice, with different cells; keep "
                "the right row."
            )
        detail = f"twice in {where}, " + ("with the same cells" if same else "rows differ")
        findings.duplicates.append((id_, "", detail))
    return ~repeated


def _target(table, cells, clips, findings, strict):
    """A target as floats, NaN in test clips; raises CorpusError where there is nothing to learn."""
    numbers = _numbers(cells).where(clips["split"] != "test")
    for line in cells.index[numbers.isna() & (clips["split"] != "test")]:
        problem = f", line {line}: {cells.name} is {cells[line]!r}, not a number"
        remedy = "every column but the file, split, group and text is a target: correct the cell, "
        remedy += "or remove the row or column"
        detail = findings.contradiction(strict, table, problem, remedy)
        findings.labels.append((clips.loc[line, "id"], clips.loc[line, "split"], detail))
    seen = numbers[clips["split"] == "train"]
    if strict and len(seen) > 1 and seen.nunique() == 1:
        raise CorpusError(
            f"{table}: {cells.name} is {seen.iloc[0]:g} in every training clip, so there is "
            "nothing to learn; remove the column."
        )
    return numbers


class _Files:
    """The media below a folder, found by the end of their path, with or without their ending."""

    def __init__(self, table):
        self.table, self.folder = table, table.parent
        self.media, self.used = [], set()
        self.index = {"video": defaultdict(list), "audio": defaultdict(list)}
        beside = {self.folder / name for name, _ in SOURCES.values() if name != "raw"}
        for root, folders, names in os.walk(self.folder):
            # sound files in audio/ belong to a video
            folders[:] = sorted(
                f for f in folders if not f.startswith(".") and Path(root) / f not in beside
            )
            for path in (Path(root) / name for name in sorted(names)):
                if path.suffix.lower() in _MEDIA and not path.name.startswith("."):
                    self.media.append(path.relative_to(self.folder))
        for path in self.media:
            for start in range(len(path.parts)):
                tail = "/".join(path.parts[start:])
                for key in (tail, tail.removesuffix(path.suffix)):
                    self.index[_column(path)][key].append(path)

    def of(self, cells):
        """id and path (within the folder, or None) of each file that the first column names."""
        places = [self._find(cell, f"{self.table}, line {line}") for line, cell in cells.items()]
        return pd.DataFrame(places, cells.index, ["id", "path"], dtype=object)

    def _find(self, cell, where):
        name = cell.replace("\\", "/").removeprefix("./").strip("/")
        if not name:
            raise CorpusError(f"{where}: names no file; expected the clip's file in column 1.")
        stem, suffix = os.path.splitext(name)
        known = suffix.lower() in _MEDIA
        paths = self.index["video"].get(name) or self.index["audio"].get(name) or []
        exact = [p for p in paths if name in (p.as_posix(), p.as_posix().removesuffix(p.suffix))]
        paths = exact[:1] if known and exact else exact or paths
        if len(paths) > 1:
            both = " and ".join(p.as_posix() for p in paths[:2])
            raise CorpusError(f"{where}: {cell} may be {both}; write its path in {self.folder}.")
        self.used.update(paths)
        return (stem if known else name), (paths[0] if paths else None)

    def beside(self, clips):
        """The ids, and per column the clip's own file or what lies in the folders beside."""
        stems = clips["id"].str.rsplit("/", n=1).str[-1]
        # Two clips of one name in two folders: nothing tells whose the files beside are.
        stems = stems.mask(stems.duplicated(keep=False), "")
        table = clips[["id"]].copy()
        for column, (name, suffixes) in SOURCES.items():
            paths = {} if column == "video" else layout.entries(self.folder / name, suffixes)
            table[column] = pd.Series(
                [
                    str(self.folder / path) if path and _column(path) == column else paths.get(stem)
                    for path, stem in zip(clips["path"], stems, strict=True)
                ],
                table.index,
                dtype=object,
            )
        texts = map(layout.text_of, table["transcript"])
        table["transcript"] = pd.Series(texts, table.index, dtype=object)
        return table

    def unlisted(self):
        spare = sorted(path.as_posix() for path in set(self.media) - self.used)
        return [(os.path.splitext(name)[0], f"only the file {name}") for name in spare]


_MEDIA = (*VIDEO_SUFFIXES, *AUDIO_SUFFIXES)


def _column(path):
    return "video" if path.suffix.lower() in VIDEO_SUFFIXES else "audio"


def _splits(table, rows, ids, special, targets):
    """The split of each clip, by its column or drawn here."""
    if special["split"] is None:
        splits = _drawn(table, rows, rows.get(special["group"], ids), targets)
    else:
        cells = rows[special["split"]]
        splits = cells.str.lower().map(SPLIT_NAMES)
        for line in splits.index[splits.isna()]:
            raise CorpusError(
                f"{table}, line {line}: expected split train, validation (valid, val, dev) or "
                f"test, got {cells[line]!r}."
            )
    for split in ("train", "validation"):
        if split not in set(splits):
            raise CorpusError(
                f"{table} has no {split} clip; expected some rows with split train and some with "
                "validation, or no split column and two or more clips."
            )
    return splits


def _drawn(table, rows, groups, targets):
    """Whole groups to validation until it has VALIDATION_SHARE of the labelled clips."""
    labelled = (rows[targets] != "").any(axis=1)
    for line in groups.index[groups == ""]:
        raise CorpusError(f"{table}, line {line}: names no group; expected one in every row.")
    sizes = Counter(groups[labelled])
    if len(sizes) < 2:
        raise CorpusError(
            f"{table} has {len(sizes)} group{'s' * (len(sizes) != 1)} of labelled clips, which "
            "can't be shared out between training and validation; add a column split."
        )
    names, total, count, chosen = sorted(sizes), sum(sizes.values()), 0, set()
    random.Random(SPLIT_SEED).shuffle(names)
    for name in names:
        if count < VALIDATION_SHARE * total and count + sizes[name] <= MOST_VALIDATION * total:
            chosen.add(name)
            count += sizes[name]
    if not chosen:  # few and large groups
        chosen = {min(names, key=sizes.get)}
    splits = groups.isin(chosen).map({True: "validation", False: "train"})
    return splits.where(labelled, "test")

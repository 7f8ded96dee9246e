"""Your own data set: a folder of videos and one CSV, read as the table that `layout.read` gives.

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
import math
import os
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from emilib.corpus import layout
from emilib.corpus.layout import (
    AUDIO_SUFFIXES,
    FILE_COLUMNS,
    SOURCES,
    SPLITS,
    VIDEO_SUFFIXES,
    CorpusError,
)

GROUP_NAMES = ("group", "speaker", "person", "subject")
TEXT_NAMES = ("text", "transcript")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    "test": "test",
}
VALIDATION_SHARE = 0.2  # of the clips, where no column says which
MOST_VALIDATION = 0.35  # a group that would bring more than this stays in training
SPLIT_SEED = 0
# A target with one of these names would stand twice in the table of clips.
_TAKEN = {"id", "split", "seconds", *FILE_COLUMNS}
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
            raise CorpusError(f"{source} is no CSV; give a corpus folder, or the CSV in it.")
        return source
    real = layout.SPLIT_FILES.values()
    if not source.is_dir() or any((source / name).is_file() for name in real):
        return None  # `layout` says what is wrong with it
    tables = sorted(p for p in source.iterdir() if p.suffix.lower() == ".csv" and p.is_file())
    if len(tables) == 1:
        return tables[0]
    if not tables:
        raise CorpusError(
            f"{source} has no CSV; expected {layout.SPLIT_FILES['train']} and "
            f"{layout.SPLIT_FILES['validation']}, or one CSV of your own that begins with "
            f"{_EXAMPLE}."
        )
    raise CorpusError(
        f"{source} has {len(tables)} CSVs ({', '.join(p.name for p in tables[:5])}); name the one "
        f"that lists the clips, as in --corpus {tables[0]}."
    )


def read_with_findings(table, strict=False):
    """`layout.read_with_findings` for a CSV of one's own; targets are `attrs["targets"]`.

    Raises CorpusError where the CSV can't be read or has no target, where a file name is
    ambiguous, where training or validation would have no clip; when strict also for a target that
    is not a number, a target that never changes in training, and a file with two different rows.
    """
    table = Path(table)
    head, rows = _rows(table)
    columns = _columns(table, head)
    findings = layout.Findings()
    clips = _clips(table, columns, rows, findings, strict)
    clips["split"] = _splits(table, columns, clips)
    _check_targets(table, columns.targets, clips, findings, strict)
    clips.loc[clips["split"] == "test", list(columns.targets)] = math.nan
    order = {split: rank for rank, split in enumerate(SPLITS)}
    clips = clips.sort_values(
        ["split", "id"], key=lambda c: c.map(order) if c.name == "split" else c
    )
    notes = _notes(table, clips, findings)
    clips = clips[["id", "split", *FILE_COLUMNS, *columns.targets]].reset_index(drop=True)
    clips.attrs.update(folder=str(table.parent), notes=notes, targets=list(columns.targets))
    return clips, findings


# ---- the CSV ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    """Positions of the special columns, None where there is none; name -> position of targets."""

    split: int | None
    group: int | None
    text: int | None
    targets: dict


def _rows(table):
    """The header, and (line, cells) of each row that is not empty."""
    try:
        text = table.read_text(encoding="utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(
            f"{table} is no readable CSV ({error}); expected UTF-8 text with commas, beginning "
            f"with {_EXAMPLE}."
        ) from error
    lines = [(number, cells) for number, cells in lines if any(cells)]
    if len(lines) < 2:
        raise CorpusError(
            f"{table} names no clip; expected a header such as {_EXAMPLE}, then a row a clip."
        )
    (_, head), *rows = lines
    for number, cells in rows:
        if len(cells) != len(head):
            raise CorpusError(
                f"{table}, line {number}: has {len(cells)} cells and the header {len(head)}; "
                "put text that holds a comma in double quotes."
            )
    return head, rows


def _columns(table, head) -> _Columns:
    if len(head) > 1 and all(_number(cell) is not None for cell in head[1:]):
        raise CorpusError(f"{table} has no header; expected a first line such as {_EXAMPLE}.")
    twice = [name for name, count in Counter(head).items() if count > 1]
    if twice or "" in head:
        what = f"two columns {twice[0]!r}" if twice and twice[0] else "a column without a name"
        raise CorpusError(f"{table} has {what}; give every column a name of its own.")

    def place(*names):
        found = [i for i, name in enumerate(head[1:], 1) if name.lower() in names]
        if len(found) > 1:
            both = " and ".join(head[i] for i in found)
            raise CorpusError(f"{table} has the columns {both}, which mean the same; keep one.")
        return found[0] if found else None

    special = [place("split"), place(*GROUP_NAMES), place(*TEXT_NAMES)]
    targets = {name: i for i, name in enumerate(head[1:], 1) if i not in special}
    if not targets:
        raise CorpusError(
            f"{table} has the header {','.join(head)}, without a target; expected the file first, "
            f"then a column of numbers a target, as in {_EXAMPLE}."
        )
    taken = [name for name in targets if name.lower() in _TAKEN]
    if taken:
        raise CorpusError(f"{table} calls a target {taken[0]!r}, a name used here; rename it.")
    return _Columns(*special, targets)


def _number(cell):
    """The cell as a finite float, else None."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


# ---- rows and files -----------------------------------------------------------------------------


def _clips(table, columns, rows, findings, strict):
    """One row a clip with its files, the targets as numbers (NaN for none), and its CSV line."""
    files, found, seen = _Files(table), [], {}
    for line, cells in rows:
        id_, path = files.of(cells[0], line)
        numbers = {name: _number(cells[i]) for name, i in columns.targets.items()}
        row = {"line": line, "id": id_, "path": path, "cells": cells, **numbers}
        first = seen.setdefault(path or id_, row)
        if first is not row:
            _repeated(table, first, row, findings, strict)
            continue
        found.append(row)
    clips = pd.DataFrame(found)
    for column, paths in files.beside(clips).items():
        clips[column] = pd.Series(paths, index=clips.index, dtype=object)
    if columns.text is not None:
        clips["transcript"] = [cells[columns.text] for cells in clips["cells"]]
    clips[list(columns.targets)] = clips[list(columns.targets)].astype(float)
    findings.unlisted = files.unlisted()
    return clips


def _repeated(table, first, row, findings, strict):
    same = first["cells"][1:] == row["cells"][1:]
    where = f"{table.name}, lines {first['line']} and {row['line']}"
    if strict and not same:
        raise CorpusError(
            f"{table.parent / where}: {row['id']} stands there twice, with different cells; keep "
            "the right row."
        )
    detail = f"twice in {where}, " + ("with the same cells" if same else "rows differ")
    findings.duplicates.append((row["id"], "", detail))


class _Files:
    """The media below a folder, found by the end of their path, with or without their ending."""

    def __init__(self, table):
        self.table, self.folder = table, table.parent
        self.videos, self.sounds = {}, {}
        self.used = set()
        for path in self._media():
            suffix = path.suffix.lower()
            index = self.videos if suffix in VIDEO_SUFFIXES else self.sounds
            parts = path.relative_to(self.folder).parts
            for start in range(len(parts)):
                tail = "/".join(parts[start:])
                for key in (tail, tail[: -len(path.suffix)]):
                    index.setdefault(key, []).append(path)

    def _media(self):
        """Videos, and sound files outside of audio/, which belong to a video; nothing hidden."""
        for root, folders, names in os.walk(self.folder):
            beside = {name for name, _ in SOURCES.values()} - {"raw"}
            top = Path(root) == self.folder
            folders[:] = sorted(
                f for f in folders if not f.startswith(".") and not (top and f in beside)
            )
            for name in sorted(names):
                suffix = os.path.splitext(name)[1].lower()
                if suffix in (*VIDEO_SUFFIXES, *AUDIO_SUFFIXES) and not name.startswith("."):
                    yield Path(root) / name

    def of(self, cell, line):
        """(id, path or None) of a first cell."""
        where = f"{self.table}, line {line}"
        name = cell.replace("\\", "/").removeprefix("./").strip("/")
        if not name:
            raise CorpusError(f"{where}: names no file; the first column gives the clip's file.")
        stem, suffix = os.path.splitext(name)
        known = suffix.lower() in (*VIDEO_SUFFIXES, *AUDIO_SUFFIXES)
        paths = self.videos.get(name) or self.sounds.get(name) or []
        exact = [
            p for p in paths if p.relative_to(self.folder).as_posix() in (name, name + p.suffix)
        ]
        paths = exact[:1] if known and exact else exact or paths
        if len(paths) > 1:
            both = " and ".join(p.relative_to(self.folder).as_posix() for p in paths[:2])
            raise CorpusError(f"{where}: {cell} may be {both}; write its path in {self.folder}.")
        self.used.update(paths)
        return (stem if known else name), (paths[0] if paths else None)

    def beside(self, clips):
        """{column: paths or None}: the clip's own file, and what lies in the folders beside."""
        stems = clips["id"].str.rsplit("/", n=1).str[-1]
        columns = {}
        for column, (name, suffixes) in SOURCES.items():
            entries = {} if column == "video" else layout.entries(self.folder / name, suffixes)
            # Two clips of one name in two folders: nothing says whose the files beside are.
            lone = ~stems.duplicated(keep=False)
            columns[column] = [
                entries.get(s) if one else None for s, one in zip(stems, lone, strict=True)
            ]
        for row, path in enumerate(clips["path"]):
            if path is not None:
                video = path.suffix.lower() in VIDEO_SUFFIXES
                columns["video" if video else "audio"][row] = str(path)
        columns["transcript"] = [layout.text_of(path) for path in columns["transcript"]]
        return columns

    def unlisted(self):
        every = {
            p for index in (self.videos, self.sounds) for paths in index.values() for p in paths
        }
        spare = sorted(p.relative_to(self.folder).as_posix() for p in every - self.used)
        return [(os.path.splitext(name)[0], f"only the file {name}") for name in spare]


# ---- splits -------------------------------------------------------------------------------------


def _splits(table, columns, clips) -> list[str]:
    """The split of each clip, by its column or drawn here."""
    if columns.split is None:
        splits = _drawn(table, columns, clips)
    else:
        splits = [_named(table, row, columns.split) for row in clips.itertuples()]
    for split in ("train", "validation"):
        if split not in splits:
            raise CorpusError(
                f"{table} has no {split} clip; expected some rows with split train and some with "
                "validation, or no split column and two or more clips."
            )
    return splits


def _named(table, row, column) -> str:
    said = row.cells[column]
    if said.lower() not in SPLIT_NAMES:
        raise CorpusError(
            f"{table}, line {row.line}: split is {said!r}; expected train, validation (valid, val, "
            "dev) or test."
        )
    return SPLIT_NAMES[said.lower()]


def _drawn(table, columns, clips) -> list[str]:
    """Whole groups to validation until it has VALIDATION_SHARE of the labelled clips."""
    cells = pd.DataFrame(clips["cells"].tolist())
    empty = (cells[list(columns.targets.values())] == "").all(axis=1).to_numpy()
    groups = clips["id"] if columns.group is None else cells[columns.group]
    groups = groups.to_numpy()
    if columns.group is not None and (groups == "").any():
        line = clips["line"][(groups == "").argmax()]
        raise CorpusError(f"{table}, line {line}: names no group; give one in every row.")
    sizes = Counter(groups[~empty])
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
        chosen = {min(names, key=lambda name: sizes[name])}
    return [
        "test" if bare else "validation" if group in chosen else "train"
        for group, bare in zip(groups, empty, strict=True)
    ]


# ---- targets and notes --------------------------------------------------------------------------


def _check_targets(table, targets, clips, findings, strict):
    """Numbers in every labelled row, and something to learn in every column."""
    labelled = clips[clips["split"] != "test"]
    for name, column in targets.items():
        for row in labelled[labelled[name].isna()].itertuples():
            detail = f"{table.name}, line {row.line}: {name} is {row.cells[column]!r}, not a number"
            if strict:
                raise CorpusError(
                    f"{table.parent / detail}; every column but the file, split, group and text is "
                    "a target: correct the cell, or remove the row or column."
                )
            findings.labels.append((row.id, row.split, detail))
        seen = labelled.loc[labelled["split"] == "train", name]
        if strict and len(seen) > 1 and seen.nunique() == 1:
            raise CorpusError(
                f"{table}: {name} is {seen.iloc[0]:g} in every training clip, so there is nothing "
                "to learn; remove the column."
            )


def _notes(table, clips, findings):
    bare = clips.loc[~layout.has_files(clips), "id"].tolist()
    if len(bare) == len(clips):
        raise CorpusError(
            f"None of the {len(clips)} files that {table} names lies in {table.parent} or below; "
            f"expected for example {table.parent / bare[0]}."
        )
    return layout.notes(bare, findings, "the CSV")

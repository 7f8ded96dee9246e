"""A corpus folder as a table of clips: the real one (see `layout`), or videos and one CSV.

file,valence,arousal,split,speaker,text             the first column names the file
clip_a.mp4,3.5,6,train,ann,well that was fun        raw/clip_a.mp4, or wherever below the folder
session2/clip_b,1,2.25,validation,ben,              without its ending; no words

Every other column is a target, but split, a group (group, speaker, person, subject: who is in the
clip) and text (or transcript). Without a split column whole groups, or single clips, are shared out
in an order drawn from a fixed seed, about a fifth of the clips (of few, four) to validation; a row
without any target is a test clip then. Beside the videos the folders audio/, face_images/, text/,
vit/ and wav2vec2/ are used as in the real layout, found by the file's name. Without face_images/
faces are searched in the videos, see `emilib.corpus.faces`. Notebook 08 says more.
"""

import random
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd

from emilib.corpus import layout
from emilib.corpus.layout import MEDIA_SUFFIXES, SOURCES, SPLIT_FILES, VIDEO_SUFFIXES, CorpusError

SPLIT_NAMES = dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
SPLIT_NAMES = {"train": "train", "training": "train", **SPLIT_NAMES, "test": "test"}
VALIDATION_SHARE = 0.2  # of the clips, where no column says which,
LEAST_VALIDATION = 4  # but of few clips so many
MOST_VALIDATION = 0.35  # a group that would bring more than this stays in training
GROUPS = ("group", "speaker", "person", "subject")  # columns that say who is in a clip
_EXAMPLE = "file,valence,arousal"


def read(folder, strict=True):
    """One row a clip of a corpus folder, ordered by split (train, validation, test), then id.

    folder : a folder in the layout of `emilib.corpus.layout`, or one of videos with a CSV of
        your own, as above; of several CSVs the path of the one meant
    strict : False reads on where a row contradicts itself; `audit` lists them

    Returns a DataFrame with the columns id, split, video, audio, faces, official_vision,
    official_audio (paths as str, or None), transcript (str, None without a text file), and the
    targets as floats (NaN for test clips): the six EMOTIONS, or the columns of your CSV. Its attrs
    are "targets", "folder", and "notes", sentences about ids without files and files without id.
    Raises CorpusError, when strict also for a split without any file, and for odd rows.
    """
    return read_with_findings(folder, strict)[0]


def read_with_findings(folder, strict=False):
    """`read`, and rows of `audit` about what had to be set aside."""
    if table := table_of(folder):
        return read_table(table, strict)
    return layout.read_layout(folder, strict)


def table_of(source):
    """The CSV of an own data set; None for the real layout; CorpusError for none or several."""
    source = Path(source)
    if source.suffix.lower() == ".csv" and source.is_file():
        return source
    if not source.is_dir() or any((source / name).is_file() for name in SPLIT_FILES.values()):
        return None  # `layout` explains what is wrong with it
    tables = sorted(path for path in source.iterdir() if path.suffix.lower() == ".csv")
    if len(tables) != 1:
        got = f"got {len(tables)} CSVs ({layout.shortened([path.name for path in tables])})"
        wanted = f"expected train_split.csv and valid_split.csv, or a CSV that begins {_EXAMPLE}"
        raise CorpusError(f"{source}: {wanted}, {got}; name one, as in --corpus DIR/labels.csv")
    return tables[0]


def read_table(table, strict=False):
    """The table of one's own CSV, and findings; CorpusError, when strict also for odd targets."""
    folder, rows, findings = Path(table).parent, layout.read_rows(table), []
    if rows.empty:
        raise CorpusError(f"{table} names no clip; expected a row a clip.")
    special, targets = _columns(table, rows.columns)
    places = pd.Index([f"{table}, line {line}" for line in rows.index])
    index = _media_below(folder)
    pairs = [_find(cell, where, index) for cell, where in zip(rows.iloc[:, 0], places, strict=True)]
    clips = pd.DataFrame(pairs, rows.index, ["id", "path"], dtype=object).assign(split="")
    unused = sorted(set().union(*index.values()) - set(clips["path"]), key=Path.as_posix)
    keys = clips["path"].where(clips["path"].notna(), clips["id"])
    first = layout.first_rows(clips, keys, rows.iloc[:, 1:], places, findings, strict)
    rows, clips, places = rows[first], clips[first], places[first]
    first = layout.first_rows(clips, clips["id"], clips[["path"]], places, findings, strict)
    rows, clips = rows[first], clips[first].copy()  # a.mp4 and a.mov are one id
    stems = clips["id"].str.rsplit("/", n=1).str[-1]
    # Two clips of one name in two folders: nothing tells whose the files beside are.
    stems = stems.mask(stems.duplicated(keep=False), "")
    for column, (name, suffixes) in SOURCES.items():
        beside = {} if column == "video" else layout.entries(folder / name, suffixes)
        paths = [
            str(folder / path) if path and _column(path) == column else beside.get(stem)
            for path, stem in zip(clips["path"], stems, strict=True)
        ]
        clips[column] = pd.Series(paths, clips.index, dtype=object)
    texts = rows.get(special["text"], map(layout.text_of, clips["transcript"]))
    clips["transcript"] = pd.Series(texts, clips.index, dtype=object)
    clips["split"] = _splits(table, rows, clips["id"], special, targets)
    labelled = rows[clips["split"] != "test"]
    for name in targets:
        clips[name] = layout.numbers(labelled[name], table, clips, findings, strict)
    unlisted = {path.with_suffix("").as_posix(): f"only the file {path}" for path in unused}
    settings = (targets, findings, unlisted, Path(table).name, strict)
    clips, findings = layout.finished(clips, folder, *settings)
    training = clips[clips["split"] == "train"]
    if constant := [name for name in targets if training[name].nunique() < 2]:
        names = layout.shortened(constant)
        clips.attrs["notes"].append(f"Constant in training, so not to be learnt: {names}.")
    return clips, findings


def _columns(table, head):
    """{"split", "group", "text": column or None}, and the names of the targets."""
    numeric = pd.to_numeric(pd.Series(head[1:]), errors="coerce").notna()
    if "" in head or head.has_duplicates or numeric.any():
        expected = f"expected a header such as {_EXAMPLE}, a name of its own for each column"
        raise CorpusError(f"{table}: {expected}, got {','.join(head)}")
    special = {"split": ("split",), "group": GROUPS, "text": ("text", "transcript")}
    for meaning, names in special.items():
        special[meaning] = next((name for name in head[1:] if name.lower() in names), None)
    targets = [name for name in head[1:] if name not in special.values()]
    if not targets:
        raise CorpusError(f"{table}: expected a column of numbers a target, as in {_EXAMPLE}.")
    if taken := [name for name in targets if name.lower() in ("id", "seconds", *SOURCES)]:
        raise CorpusError(f"{table} calls a target {taken[0]!r}, a name used here; rename it.")
    return special, targets


def _media_below(folder):
    """{name: paths} of all media below a folder, by path and by name, with and without ending."""
    index = defaultdict(list)
    beside = {name for name, _ in SOURCES.values() if name != "raw"}  # sound files of videos
    for path in sorted(path.relative_to(folder) for path in folder.rglob("*")):
        hidden = any(part[0] == "." for part in path.parts)
        if path.suffix.lower() in MEDIA_SUFFIXES and path.parts[0] not in beside and not hidden:
            plain = path.with_suffix("")
            for key in {path.as_posix(), plain.as_posix(), path.name, plain.name}:
                index[key].append(path)
    return index


def _find(cell, where, index):
    """The id of a cell of the first column, and the path of its file or None."""
    name = cell.replace("\\", "/").removeprefix("./").strip("/")
    if not name:
        raise CorpusError(f"{where}: names no file; expected one in column 1.")
    paths = index.get(name, [])
    paths = [path for path in paths if _column(path) == "video"] or paths
    exact = [path for path in paths if name in (path.as_posix(), path.with_suffix("").as_posix())]
    if len(paths := exact or paths) > 1:
        both = " and ".join(path.as_posix() for path in paths[:2])
        raise CorpusError(f"{where}: {cell} may be {both}; write its path.")
    return layout.without_ending(name), next(iter(paths), None)


def _column(path):
    return "video" if path.suffix.lower() in VIDEO_SUFFIXES else "audio"


def _splits(table, rows, ids, special, targets):
    """The split of each clip, by its column or drawn here."""
    if special["split"] is None:
        splits = _drawn(table, rows, rows.get(special["group"], ids), targets)
    else:
        cells, names = rows[special["split"]], ", ".join(SPLIT_NAMES)
        splits = cells.str.lower().map(SPLIT_NAMES)
        for line in splits.index[splits.isna()]:
            raise CorpusError(f"{table}, line {line}: expected split {names}; got {cells[line]!r}")
    for split in ("train", "validation"):
        if split not in set(splits):
            expected = "expected rows with split train and with validation, or no column split"
            raise CorpusError(f"{table} has no {split} clip; {expected}.")
    return splits


def _drawn(table, rows, groups, targets):
    """Whole groups to validation until it has VALIDATION_SHARE of the labelled clips, or four."""
    labelled = (rows[targets] != "").any(axis=1)
    for line in groups.index[groups == ""]:
        raise CorpusError(f"{table}, line {line}: names no group; expected one in every row.")
    sizes = Counter(groups[labelled])
    if len(sizes) < 2:
        expected = "expected labelled clips of two groups or more to draw the validation set from"
        raise CorpusError(f"{table}: {expected}, got {len(sizes)} group; add a column split.")
    names, total, count, chosen = sorted(sizes), sum(sizes.values()), 0, set()
    random.Random(0).shuffle(names)
    wanted = max(VALIDATION_SHARE * total, LEAST_VALIDATION)
    for name in names:
        if count < wanted and count + sizes[name] <= MOST_VALIDATION * total:
            chosen.add(name)
            count += sizes[name]
    chosen = chosen or {min(names, key=sizes.get)}  # few and large groups
    return groups.isin(chosen).map({True: "validation", False: "train"}).where(labelled, "test")

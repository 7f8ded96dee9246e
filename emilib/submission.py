"""The challenge's CSV: one row a test clip, its id and six intensities in [0, 1].

Filename,Admiration,Amusement,Determination,Empathic Pain,Excitement,Joy
12660,0.250000,0.000000,0.125000,0.000000,0.500000,0.031250

`write` makes such a file, `validate` says what is wrong with one, whoever made it. Neither needs
torch.
"""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emilib.cache import atomic_write
from emilib.corpus import layout, read
from emilib.corpus.layout import EMOTIONS, HEADER

COLUMNS = ("Filename", *EMOTIONS)
WARNING = "Warning: "
_ID = re.compile(r"[0-9]{5}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_LISTED = 5  # ids that a sentence names


def write(
    path, ids: Sequence[str], predictions: np.ndarray, expected_ids: Sequence[str] | None = None
) -> Path:
    """Write predictions as a submission: rows in order of id, values clipped to [0, 1].

    ids : N clips, each five digits
    predictions : (N, 6) in order of EMOTIONS, or (S, N, 6) for S seeds, whose mean is taken
        before clipping
    expected_ids : every clip that must have a row; None for `ids`

    The file is there whole or not at all. Returns its path.
    Raises ValueError where `ids` lacks an expected clip, has one that is not expected, doubled or
    not five digits, where the shapes disagree, and where a prediction is not finite.
    """
    ids = list(ids)
    values = np.asarray(predictions, dtype=float)
    values = _mean_over_seeds(values, len(ids))
    _check_ids(ids, ids if expected_ids is None else list(expected_ids))
    broken = [i for i, row in zip(ids, values, strict=True) if not np.isfinite(row).all()]
    if broken:
        raise ValueError(
            f"Predictions of {_some(broken)} are not finite; expected six numbers for each clip."
        )
    rows = sorted(zip(ids, np.clip(values, 0, 1), strict=True), key=lambda row: row[0])
    lines = [HEADER, *(",".join([i, *(f"{v:.6f}" for v in row)]) for i, row in rows)]
    atomic_write(path, "\n".join(lines) + "\n")
    return Path(path)


def _mean_over_seeds(values: np.ndarray, clips: int) -> np.ndarray:
    """(S, N, 6) or (N, 6) -> (N, 6)."""
    if values.ndim == 3 and len(values):
        values = values.mean(axis=0)
    if values.shape != (clips, len(EMOTIONS)):
        raise ValueError(
            f"Predictions of {clips} clips have the shape {values.shape}; expected "
            f"({clips}, {len(EMOTIONS)}), or a seed axis before these."
        )
    return values


def _check_ids(ids: list[str], expected: list[str]) -> None:
    if not expected:
        raise ValueError("There is no test clip to write a row for.")
    for name, listed in (("predictions", ids), ("expected ids", expected)):
        doubled = [i for i, count in Counter(listed).items() if count > 1]
        if doubled:
            raise ValueError(f"The {name} hold {_some(doubled)} more than once; expected it once.")
    odd = [i for i in expected if not _ID.fullmatch(i)]
    if odd:
        raise ValueError(
            f"Test clips are called {_some(odd)}; a submission names clips by five digits, as "
            "12660, so name the files of the corpus like that."
        )
    missing, extra = sorted(set(expected) - set(ids)), sorted(set(ids) - set(expected))
    if missing:
        raise ValueError(f"No prediction for {_some(missing)}; expected one for every test clip.")
    if extra:
        raise ValueError(
            f"Predictions for {_some(extra)}, which are no test clips; leave them out."
        )


def test_ids(corpus) -> list[str]:
    """Ids of the test clips of a corpus folder (of `layout.read`'s table, too), in order.

    Raises CorpusError for a folder that can't be read, has no test clips, or has other targets
    than the six intensities.
    """
    clips = read(corpus) if isinstance(corpus, (str, Path)) else corpus
    targets = clips.attrs.get("targets", list(EMOTIONS))
    if targets != list(EMOTIONS):
        raise layout.CorpusError(
            f"The corpus in {clips.attrs['folder']} has the targets {', '.join(targets)}; a "
            f"submission is of the challenge's six, {', '.join(EMOTIONS)}."
        )
    ids = sorted(clips.loc[clips["split"] == "test", "id"])
    if not ids:
        raise layout.CorpusError(
            f"The corpus in {clips.attrs.get('folder', 'hand')} has no test clips; expected "
            f"{layout.SPLIT_FILES['test']}, or test_data/raw with a video for each."
        )
    return ids


test_ids.__test__ = False  # pytest takes the name for a test


def make(workspace, run: str, path) -> list[str]:
    """Write the submission of an experiment, trained where it is missing, and validate it.

    workspace : `emilib.pipeline.Workspace`
    run : name of an experiment, as in `workspace.experiments()`

    Each clip gets the mean over the seeds of the profile. Returns what `validate` says.
    Raises ValueError, before anything is trained, for an unknown run, a corpus without test clips
    and a path that can't be written; after that where the run predicts nothing for test clips.
    """
    known = workspace.experiments()
    if run not in known:
        raise ValueError(f"There is no run {run!r}; expected one of {', '.join(known)}.")
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of the CSV to write.")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir():
        raise ValueError(f"{path} can't be written: {parent} is a file, not a folder.")
    expected = test_ids(workspace.clips)
    _check_ids(expected, expected)
    outcome = workspace.results([run])[run]
    if outcome.test_predictions.size == 0:
        raise ValueError(
            f"The run {run} has no predictions for test clips; expected {len(expected)}."
        )
    write(path, outcome.test_ids, outcome.test_predictions, expected)
    return _validate(path, expected)


# ------------------------------------------------------------------ validation


def validate(path, corpus=None) -> list[str]:
    """What is wrong with a submission: a sentence a problem, an empty list for a good file.

    corpus : folder in the layout of Hume-Vidmimic2; then every test clip must have a row, and no
        other clip. Without it a gap between the ids is a warning.

    A sentence that starts with `WARNING` tells of something odd that the challenge would take.
    Problems of the file as a whole come first, then those of lines; line 1 is the header.
    Raises CorpusError for a corpus folder that can't be read or has no test clips.
    """
    return _validate(Path(path), None if corpus is None else test_ids(corpus))


def problems(found: Sequence[str]) -> list[str]:
    """What `validate` said without the warnings."""
    return [sentence for sentence in found if not sentence.startswith(WARNING)]


def _validate(path: Path, expected: list[str] | None) -> list[str]:
    text, found = _text(path)
    if text is None:
        return found
    delimiter = _delimiter(text)
    if delimiter != ",":
        found.append(
            f"{path}, line 1: fields are separated by {delimiter!r}; expected commas, {HEADER}."
        )
    try:
        lines = _lines(text, delimiter)
    except csv.Error as error:
        return [*found, f"{path} is no readable CSV ({error}); expected a row a clip, no quotes."]
    (_, header), *rows = lines
    if header and _NUMBER.fullmatch(header[-1].strip()):
        found.append(f"{path}, line 1: there is no header; expected {HEADER}.")
        header, rows = list(COLUMNS), lines
    else:
        found += _header_problems(path, header)
    in_rows, ids, values = _row_problems(path, header, rows)
    return found + _id_problems(path, ids, expected) + in_rows + _constant(path, values)


def _text(path: Path) -> tuple[str | None, list[str]]:
    """The file's text, None where there is none to be read; what is wrong with its bytes."""
    if not path.exists():
        return None, [f"There is no file {path}; expected a CSV with the header {HEADER}."]
    if not path.is_file():
        return None, [f"{path} is not a file; expected a CSV with the header {HEADER}."]
    content, found = path.read_bytes(), []
    if content.startswith(codecs.BOM_UTF8):
        found.append(f"{path}, line 1: starts with a byte order mark; expected UTF-8 without it.")
        content = content[len(codecs.BOM_UTF8) :]
    if not content.strip():
        return None, [*found, f"{path} is empty; expected {HEADER} and a row a test clip."]
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return None, [f"{path}, line {line}: is not UTF-8; expected a CSV as UTF-8 text."]
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        return None, [*found, f"{path}, line {line}: holds a zero byte; expected UTF-8 text."]
    return text, found


def _delimiter(text: str) -> str:
    """A comma, unless only another usual one stands in the first line."""
    first = text.splitlines()[0]
    others = [mark for mark in (";", "\t", "|") if mark in first]
    return others[0] if others and "," not in first else ","


def _lines(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """(line, fields) of each row of the CSV."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    return [(reader.line_num, fields) for fields in reader]


def _header_problems(path: Path, header: list[str]) -> list[str]:
    start = f"{path}, line 1: "
    missing = [name for name in COLUMNS if name not in header]
    extra = [name for name in header if name not in COLUMNS]
    doubled = [name for name, count in Counter(header).items() if count > 1 and name in COLUMNS]
    found = []
    if missing:
        found.append(f"{start}the header lacks {', '.join(missing)}; expected {HEADER}.")
    if extra:
        quoted = ", ".join(repr(name) for name in extra)
        found.append(f"{start}the header holds {quoted} besides; expected {HEADER}.")
    if doubled:
        found.append(f"{start}the header holds {', '.join(doubled)} twice; expected {HEADER}.")
    if not found and tuple(header) != COLUMNS:
        found.append(f"{start}the columns are {','.join(header)}; expected the order {HEADER}.")
    return found


def _row_problems(path, header, rows):
    """Problems of the rows; (line, id) of each row; {emotion: its values} of the good cells."""
    found, ids = [], []
    values: dict[str, list[float]] = {name: [] for name in EMOTIONS if name in header}
    if not rows:
        found.append(f"{path} has no row below its header; expected a row a test clip.")
    for line, fields in rows:
        start = f"{path}, line {line}: "
        if not any(field.strip() for field in fields):
            found.append(f"{start}is empty; expected a clip, or the end of the file.")
            continue
        if len(fields) != len(header):
            found.append(f"{start}has {len(fields)} fields; expected {len(header)}.")
        row = dict(zip(header, fields, strict=False))
        if "Filename" in row:
            ids.append((line, row["Filename"]))
            found += [start + what for what in _id_problem(row["Filename"])]
        for name in values:
            if name not in row:
                continue
            problem = _value_problem(row[name])
            if problem:
                found.append(f"{start}{name} {problem}; expected a number from 0 to 1.")
            else:
                values[name].append(float(row[name]))
    return found, ids, values


def _id_problem(name: str) -> list[str]:
    if _ID.fullmatch(name):
        return []
    stem = name.strip().split(".")[0]  # a spreadsheet makes 660 or 12660.0 of an id
    likely = stem.isascii() and stem.isdigit() and len(stem) <= 5
    wanted = stem.zfill(5) if likely else "an id as 12660"
    return [f"the Filename {name!r} is not five digits; expected {wanted}."]


def _value_problem(text: str) -> str | None:
    stripped = text.strip()
    if not stripped:
        return "is empty"
    if _NOT_FINITE.fullmatch(stripped):
        return f"is {stripped}"
    if not _NUMBER.fullmatch(stripped):
        return f"is {text!r}, not a number"
    if not 0 <= float(stripped) <= 1:
        return f"is {stripped}, outside [0, 1]"
    return None


def _id_problems(path: Path, ids: list[tuple[int, str]], expected: list[str] | None) -> list[str]:
    """Doubled ids, and ids that are too few, too many or out of order."""
    found, first = [], {}
    for line, name in ids:
        if name in first:
            found.append(
                f"{path}, line {line}: the id {name} stood in line {first[name]} already; "
                "expected one row a clip."
            )
        first.setdefault(name, line)
    names = [name for _, name in ids if _ID.fullmatch(name)]
    if expected is not None:
        missing = sorted(set(expected) - set(names))
        if missing:
            found.append(
                f"{path} has no row for {_some(missing)}; expected a row for each of the "
                f"{len(expected)} test clips."
            )
        found += [
            f"{path}, line {first[name]}: {name} is no test clip; expected only ids of the test "
            f"split."
            for name in sorted(set(names) - set(expected))
        ]
    elif gaps := _gaps(names):
        found.append(
            f"{WARNING}{path} has no row for {_some(gaps)}, between its first and last id; "
            "expected no gaps, and a corpus folder tells for sure."
        )
    if names != sorted(names):
        found.append(f"{WARNING}{path} has its rows out of order; expected rising ids.")
    return found


def _gaps(names: list[str]) -> list[str]:
    numbers = {int(name) for name in names}
    if not numbers:
        return []
    return [f"{n:05d}" for n in range(min(numbers), max(numbers)) if n not in numbers]


def _constant(path: Path, values: dict[str, list[float]]) -> list[str]:
    return [
        f"{WARNING}{path}, column {name}: is {column[0]:g} in every row, and ρ of a constant is 0; "
        "expected values that differ."
        for name, column in values.items()
        if len(column) > 1 and len(set(column)) == 1
    ]


def _some(names: Sequence[str]) -> str:
    """A few of the names, and how many more there are."""
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")

"""The challenge's CSV: one row a test clip, its id and six intensities in [0, 1].

Filename,Admiration,Amusement,Determination,Empathic Pain,Excitement,Joy
12660,0.250000,0.000000,0.125000,0.000000,0.500000,0.031250

`write` makes such a file, `validate` lists what is wrong with one, whoever made it. Neither needs
torch.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from emilib import EMOTIONS
from emilib.cache import atomic_write
from emilib.corpus import CorpusError, layout, read
from emilib.corpus.layout import COLUMNS, HEADER

WARNING = "Warning: "
_ID = "[0-9]{5}"


def write(
    path, ids: Sequence[str], predictions: np.ndarray, expected_ids: Sequence[str] | None = None
) -> Path:
    """Write predictions as a submission: rows in order of id, values clipped to [0, 1].

    ids : N clips, each five digits
    predictions : (N, 6) in order of EMOTIONS, or (S, N, 6) for S seeds, whose mean is taken
        before clipping
    expected_ids : every clip that must have a row; None for `ids`

    The file is there whole or not at all. Returns its path.
    Raises ValueError where `ids` lacks an expected clip, has one that is not expected, repeated or
    not five digits, where the shapes disagree, and where a prediction is not finite.
    """
    values, shape = np.asarray(predictions, dtype=float), (len(ids), len(EMOTIONS))
    values = values.mean(axis=0) if values.ndim == 3 and len(values) else values
    if values.shape != shape:
        raise ValueError(
            f"predictions: expected the shape {shape}, or a seed axis before these, got "
            f"{values.shape}"
        )
    _check_ids(pd.Index(ids, dtype=object), ids if expected_ids is None else expected_ids)
    table = pd.DataFrame(values, pd.Index(ids, name="Filename", dtype=object), EMOTIONS)
    if not np.isfinite(values).all():
        broken = layout.shortened(list(table.index[~np.isfinite(values).all(axis=1)]))
        raise ValueError(f"expected six numbers for each clip, got NaN or infinity for {broken}")
    atomic_write(path, table.clip(0, 1).sort_index().to_csv(float_format="%.6f"))
    return Path(path)


def _check_ids(ids: pd.Index, expected: Sequence[str]) -> None:
    expected = pd.Index(expected, dtype=object)
    wrong = {
        "ids that occur once": [*ids[ids.duplicated()], *expected[expected.duplicated()]],
        "ids of five digits, as 12660": expected[~expected.str.fullmatch(_ID).astype(bool)],
        "a prediction for every test clip, none": expected.difference(ids),
        "predictions for test clips alone": ids.difference(expected),
    }
    for wanted, odd in wrong.items():
        if len(odd):
            raise ValueError(f"expected {wanted}, got {layout.shortened(list(odd))}")
    if expected.empty:
        raise ValueError("expected at least one test clip, got none")


def test_ids(corpus) -> list[str]:
    """Ids of the test clips of a corpus folder (of the table that `read` returns, too), in order.

    Raises CorpusError for a folder that can't be read, has no test clips, or has other targets
    than the six intensities.
    """
    clips = read(corpus) if isinstance(corpus, (str, Path)) else corpus
    folder, targets = clips.attrs.get("folder", "the table"), clips.attrs.get("targets")
    if targets not in (None, list(EMOTIONS)):
        raise CorpusError(
            f"The corpus in {folder} has the targets {', '.join(targets)}; a submission is of the "
            f"challenge's six, {', '.join(EMOTIONS)}."
        )
    ids = sorted(clips.loc[clips["split"] == "test", "id"])
    if not ids:
        raise CorpusError(
            f"The corpus in {folder} has no test clips; expected {layout.SPLIT_FILES['test']}, or "
            "test_data/raw with a video for each."
        )
    return ids


test_ids.__test__ = False  # pytest takes the name for a test


def make(workspace, run: str, path) -> list[str]:
    """Write the submission of an experiment, trained where it is missing, and validate it.

    workspace : `emilib.pipeline.Workspace`
    run : name of an experiment, as in `workspace.experiments()`

    Each clip gets the mean over the seeds of the profile. Returns what `validate` returns.
    Raises ValueError, before anything is trained, for an unknown run, a corpus without test clips
    and a path that can't be written; after that where the run predicts nothing for test clips.
    """
    known, path = workspace.experiments(), Path(path)
    if run not in known:
        raise ValueError(f"There is no run {run!r}; expected one of {', '.join(known)}.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected the name of the CSV to write.")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir():
        raise ValueError(f"{path} can't be written: {parent} is a file, not a folder.")
    expected = test_ids(workspace.clips)
    _check_ids(pd.Index(expected), expected)
    outcome = workspace.results([run])[run]
    if outcome.test_predictions.size == 0:
        raise ValueError(
            f"The run {run} has no predictions for test clips; expected {len(expected)}."
        )
    write(path, outcome.test_ids, outcome.test_predictions, expected)
    return _validate(path, expected)


def validate(path, corpus=None) -> list[str]:
    """What is wrong with a submission: a sentence a problem, an empty list for a good file.

    corpus : folder in the layout of Hume-Vidmimic2; then every test clip must have a row, and no
        other clip. Without it a gap between the ids is a warning.

    A sentence that starts with `WARNING` names something odd that the challenge would accept.
    Problems of the file as a whole come first, then those of lines; line 1 is the header.
    Raises CorpusError for a corpus folder that can't be read or has no test clips.
    """
    return _validate(Path(path), None if corpus is None else test_ids(corpus))


def problems(sentences: Sequence[str]) -> list[str]:
    """The result of `validate` without the warnings."""
    return [sentence for sentence in sentences if not sentence.startswith(WARNING)]


def _validate(path: Path, expected: Sequence[str] | None) -> list[str]:
    if not path.is_file():
        return [f"{path} is no file; expected a CSV with the header {HEADER}."]
    content, wrong = path.read_bytes(), []
    if content.startswith(b"\xef\xbb\xbf"):
        wrong.append(f"{path}, line 1: expected UTF-8 text, got a byte order mark before it.")
    try:
        text = content.decode("utf-8-sig")
        mark = next((m for m in ";\t|" if m in text.partition("\n")[0]), ",")
        mark = "," if "," in text.partition("\n")[0] else mark
        header, *rows = list(csv.reader(io.StringIO(text), delimiter=mark, strict=True)) or [[]]
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return [f"{path}, line {line}: expected UTF-8 text, got other bytes."]
    except csv.Error as error:
        return [*wrong, f"{path} is no readable CSV ({error}); expected a row a clip, no quotes."]
    if mark != ",":
        wrong.append(f"{path}, line 1: expected commas between the cells, got {mark!r}.")
    first = 2
    if header and not np.isnan(_numbers(header).iloc[-1]):
        wrong.append(f"{path}, line 1: expected {HEADER}, got no header.")
        header, rows, first = list(COLUMNS), [header, *rows], 1
    elif tuple(header) != COLUMNS:
        wrong.append(f"{path}, line 1: expected the header {HEADER}, got {','.join(header)!r}.")
        if sorted(header) != sorted(COLUMNS):
            return wrong
    if not rows:
        return [*wrong, f"{path} has no row below its header; expected a row a test clip."]
    lines = {line: row for line, row in enumerate(rows, first) if len(row) == len(header)}
    table = pd.DataFrame(lines.values(), list(lines), header, dtype=object)
    values, ids = table[list(EMOTIONS)].apply(_numbers), table["Filename"]
    values = values.where((values >= 0) & (values <= 1))
    faults = [  # (line, sentence)
        (line, f"expected {len(header)} cells, got {len(row)}")
        for line, row in enumerate(rows, first)
        if line not in lines
    ]
    for emotion, column in values.items():
        for line, cell in table.loc[column.isna(), emotion].items():
            faults.append((line, f"expected a number from 0 to 1 as {emotion}, got {cell!r}"))
    for line, id_ in ids[~ids.str.fullmatch(_ID).astype(bool)].items():
        number = id_.strip().partition(".")[0]  # a spreadsheet makes 660 or 12660.0 of an id
        hint = number.zfill(5) if number.isascii() and number.isdigit() else "12660"
        faults.append((line, f"expected a Filename of five digits as {hint}, got {id_!r}"))
    for line, id_ in ids[ids.duplicated()].items():
        faults.append((line, f"expected one row a clip, got {id_} again"))
    known, warnings = ids[ids.str.fullmatch(_ID).astype(bool)], []
    between = {f"{n:05d}" for n in range(int(known.min()), int(known.max()))} if len(known) else {}
    if expected is not None:
        if missing := sorted(set(expected) - set(known)):
            wrong.append(
                f"{path}: expected a row for each of the {len(expected)} test clips, got none for "
                f"{layout.shortened(missing)}."
            )
        for line, id_ in known[~known.isin(expected)].items():
            faults.append((line, f"expected only test clips, got {id_}"))
    elif gaps := sorted(set(between) - set(known)):
        names = layout.shortened(gaps)
        warnings.append(f"{path}: expected no gap between the ids, got no row for {names}.")
    if not known.is_monotonic_increasing:
        warnings.append(f"{path}: expected rising ids, got rows out of order.")
    for emotion in values.columns[(values.nunique() == 1) & (len(values) > 1)]:
        warnings.append(
            f"{path}, column {emotion}: expected values that differ, got a constant, whose ρ is 0."
        )
    faults = [f"{path}, line {line}: {sentence}." for line, sentence in sorted(faults)]
    return [*wrong, *faults, *(WARNING + sentence for sentence in warnings)]


def _numbers(cells) -> pd.Series:
    return pd.to_numeric(pd.Series(cells, dtype=object), errors="coerce").astype(float)

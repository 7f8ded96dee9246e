"""The challenge's CSV: one row a test clip, its id and six intensities in [0, 1].
Filename,Admiration,Amusement,Determination,Empathic Pain,Excitement,Joy
12660,0.250000,0.000000,0.125000,0.000000,0.500000,0.031250"""

import io
from pathlib import Path

import numpy as np
import pandas as pd

from emilib import EMOTIONS
from emilib.cache import atomic_write
from emilib.corpus import CorpusError, read
from emilib.corpus.layout import COLUMNS, HEADER, shortened

WARNING = "Warning: "


def write(path, ids, predictions, expected_ids=None):
    """Write predictions as a submission: rows in order of id, values clipped to [0, 1]; the path.

    ids : N clips, each five digits; expected_ids : every clip that must have a row, None for `ids`
    predictions : (N, 6) in order of EMOTIONS, or (S, N, 6) for S seeds, whose mean is taken

    Raises ValueError for shapes that disagree, and what `validate` would list.
    """
    values, shape = np.asarray(predictions, dtype=float), (len(ids), len(EMOTIONS))
    values = values.mean(axis=0) if values.ndim == 3 and len(values) else values
    if values.shape != shape:
        raise ValueError(f"predictions: expected the shape {shape}, got {values.shape}")
    if len(broken := np.flatnonzero(~np.isfinite(values).all(axis=1))):
        names = shortened([ids[n] for n in broken])
        raise ValueError(f"expected six numbers for each clip, got NaN or infinity for {names}")
    table = pd.DataFrame(values.clip(0, 1), pd.Index(ids, name="Filename", dtype=object), EMOTIONS)
    text = table.sort_index().to_csv(float_format="%.6f")
    if wrong := problems(_sentences(io.StringIO(text), path, expected_ids)):
        raise ValueError(" ".join(wrong[:5]))
    atomic_write(path, text)
    return Path(path)


def make(workspace, run, path):
    """Write the submission of an experiment, trained where it is missing, and `validate` it.
    workspace : `emilib.pipeline.Workspace`; run : a name of its experiments, else ValueError"""
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; expected the name of a CSV.")
    expected = _test_ids(workspace.clips)  # before anything is trained
    outcome = workspace.results([run])[run]
    write(path, outcome.test_ids, outcome.test_predictions, expected)
    return _sentences(path, path, expected)


def validate(path, corpus=None):
    """What is wrong with a submission: a sentence a problem, an empty list for a good file.

    corpus : folder in the layout of Hume-Vidmimic2, whose test clips and no other must have a row;
        without it a gap between the ids is a warning. CorpusError where it can't be read

    A sentence that starts with `WARNING` names something odd that the challenge would accept.
    """
    expected = None if corpus is None else _test_ids(read(corpus, strict=False))
    return _sentences(path, path, expected)


def problems(sentences):
    """The result of `validate` without the warnings."""
    return [sentence for sentence in sentences if not sentence.startswith(WARNING)]


def _test_ids(clips):
    folder, targets = clips.attrs["folder"], clips.attrs["targets"]
    if targets != list(EMOTIONS):
        raise CorpusError(f"{folder}: expected the targets {HEADER[9:]}, got {', '.join(targets)}.")
    if not (ids := sorted(clips.loc[clips["split"] == "test", "id"])):
        raise CorpusError(f"The corpus in {folder} has no test clips; expected test_split.csv.")
    return ids


def _sentences(source, path, expected):
    options = {"header": None, "dtype": str, "keep_default_na": False, "skip_blank_lines": False}
    try:
        table = pd.read_csv(source, **options).fillna("")
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        return [f"{path} is no readable CSV ({str(error).strip()}); expected {HEADER}."]
    table.index += 1  # lines
    if (header := tuple(table.iloc[0])) != COLUMNS:
        return [f"{path}, line 1: expected the header {HEADER}, got {','.join(header)!r}."]
    table = table[1:].set_axis(COLUMNS, axis=1)
    table = table[(table != "").any(axis=1)]
    if table.empty:
        return [f"{path} has no row below its header; expected a row a test clip."]
    ids, values = table["Filename"], table[[*EMOTIONS]].apply(pd.to_numeric, errors="coerce")
    values = values.where((values >= 0) & (values <= 1))
    known = ids[ids.str.fullmatch("[0-9]{5}")]
    checks = [  # (the cells at fault, what is wrong with them)
        (ids.drop(known.index), "expected a Filename of five digits as 12660, got {!r}"),
        (ids[ids.duplicated()], "expected one row a clip, got {} again"),
        (known[~known.isin(known if expected is None else expected)], "{} is no test clip"),
    ]
    text = "expected a number from 0 to 1 as {}, got {{!r}}"
    checks += [(table[e][values[e].isna()], text.format(e)) for e in EMOTIONS]
    faults = [(line, text.format(cell)) for cells, text in checks for line, cell in cells.items()]
    sentences = [f"{path}, line {line}: {text}." for line, text in sorted(faults)]
    numbers = sorted(known.astype(int)) or [0]
    between = (f"{n:05d}" for n in range(numbers[0], numbers[-1]))
    if missing := sorted(set(between if expected is None else expected) - set(known)):
        note = f"{path}: expected a row for every test clip, got none for {shortened(missing)}."
        sentences.insert(0, (WARNING if expected is None else "") + note)
    if not known.is_monotonic_increasing:
        sentences.append(f"{WARNING}{path}: expected rising ids, got rows out of order.")
    for emotion in values.columns[(values.nunique() == 1) & (len(values) > 1)]:
        sentences.append(f"{WARNING}{path}, column {emotion}: got a constant, whose ρ is 0.")
    return sentences

"""The challenge's CSV: one row a test clip, its id and six intensities in [0, 1].

Filename,Admiration,Amusement,Determination,Empathic Pain,Excitement,Joy
12660,0.250000,0.000000,0.125000,0.000000,0.500000,0.031250

`write` makes such a file, `validate` lists what is wrong with one, whoever made it.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from emilib import EMOTIONS
from emilib.cache import atomic_write
from emilib.corpus import CorpusError, layout, read
from emilib.corpus.layout import COLUMNS, HEADER

WARNING = "Warning: "


def write(path, ids, predictions, expected_ids=None):
    """Write predictions as a submission: rows in order of id, values clipped to [0, 1].

    ids : N clips, each five digits
    predictions : (N, 6) in order of EMOTIONS, or (S, N, 6) for S seeds, whose mean is taken
        before clipping
    expected_ids : every clip that must have a row; None for `ids`

    The file is there whole or not at all. Returns its path.
    Raises ValueError where the shapes disagree, for a prediction that is not finite, and where
    `validate` would find a problem.
    """
    values, shape = np.asarray(predictions, dtype=float), (len(ids), len(EMOTIONS))
    values = values.mean(axis=0) if values.ndim == 3 and len(values) else values
    if values.shape != shape:
        raise ValueError(f"predictions: expected the shape {shape}, got {values.shape}")
    table = pd.DataFrame(values, pd.Index(ids, name="Filename", dtype=object), EMOTIONS)
    if not np.isfinite(values).all():
        broken = layout.shortened(list(table.index[~np.isfinite(values).all(axis=1)]))
        raise ValueError(f"expected six numbers for each clip, got NaN or infinity for {broken}")
    text = table.clip(0, 1).sort_index().to_csv(float_format="%.6f")
    rows = [line.split(",") for line in text.splitlines()[1:]]
    if wrong := problems(_faults(rows, expected_ids)):
        raise ValueError(wrong[0])
    atomic_write(path, text)
    return Path(path)


def test_ids(corpus):
    """Ids of the test clips of a corpus folder (of the table that `read` returns, too), in order.

    Raises CorpusError for a folder that can't be read, has no test clips, or has other targets
    than the six intensities.
    """
    clips = read(corpus, strict=False) if isinstance(corpus, (str, Path)) else corpus
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


def make(workspace, run, path):
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
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"{path} can't be written; expected the name of a CSV in a folder.")
    expected = test_ids(workspace.clips)
    outcome = workspace.results([run])[run]
    if outcome.test_predictions.size == 0:
        raise ValueError(
            f"The run {run} has no predictions for test clips; expected {len(expected)}."
        )
    write(path, outcome.test_ids, outcome.test_predictions, expected)
    return validate(path, workspace.clips)


def validate(path, corpus=None):
    """What is wrong with a submission: a sentence a problem, an empty list for a good file.

    corpus : folder in the layout of Hume-Vidmimic2; then every test clip must have a row, and no
        other clip. Without it a gap between the ids is a warning.

    A sentence that starts with `WARNING` names something odd that the challenge would accept.
    Line 1 is the header.
    Raises CorpusError for a corpus folder that can't be read or has no test clips.
    """
    expected = None if corpus is None else test_ids(corpus)
    if not Path(path).is_file():
        return [f"{path} is no file; expected a CSV with the header {HEADER}."]
    if Path(path).read_bytes()[:3] == b"\xef\xbb\xbf": 
        return []
    try:
        options = {"header": None, "dtype": str, "keep_default_na": False}
        table = pd.read_csv(path, skip_blank_lines=False, **options).fillna("")
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        return [f"{path} is no readable CSV ({str(error).strip()}); expected {HEADER}."]

"""A corpus folder, the real one or your own, as one table of clips."""

from emilib.corpus import layout, user_dataset


def read(folder, strict=True):
    """One row a clip of a corpus folder, ordered by split (train, validation, test), then id.

    folder : a folder in the layout of `emilib.corpus.layout`, or one of videos with a CSV of
        your own (see `emilib.corpus.user_dataset`); of several CSVs the path of the one meant
    strict : False reads on where a row contradicts itself; `audit` lists them

    Returns a DataFrame with the columns id, split, video, audio, faces, official_vision,
    official_audio (paths as str, or None), transcript (str, None without a text file), and the
    targets as floats (NaN for test clips): the six EMOTIONS, or the columns of your CSV. Its attrs
    are "targets", "folder", and "notes", sentences about ids without files and files without id.
    Raises CorpusError: no such folder, no CSV, wrong header; when strict also a split without any
    file, a label that is not a number, and one id with two different rows.
    """
    return read_with_findings(folder, strict)[0]


def read_with_findings(folder, strict=False):
    """`read`, and rows of `audit` about what had to be set aside."""
    if table := user_dataset.table_of(folder):
        return user_dataset.read_table(table, strict)
    return layout.read_layout(folder, strict)

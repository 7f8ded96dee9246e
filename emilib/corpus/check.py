"""What would stop a run for hours later on, said in seconds before it begins."""

from collections import Counter
from pathlib import Path

from emilib.corpus import layout, media
from emilib.corpus.layout import CorpusError

OFFICIAL = {"official_vision": "vit", "official_audio": "wav2vec2"}


def before_a_run(source) -> list[str]:
    """Read a corpus's tables and the heads of its official pickles; nothing is decoded.

    source : as of `layout.read`

    Returns sentences worth knowing: ids without files, files without a row, damaged pickles.
    Raises CorpusError, one sentence, for what `layout.read` refuses, for a split whose clips have
    no file at all, and for official features that `official_features` refuses.
    """
    clips = layout.read(source)
    for split in ("train", "validation"):
        rows = clips[clips["split"] == split]
        if not layout.has_files(rows).any():
            raise CorpusError(
                f"None of the {len(rows)} {split} clips of {source} has a file; expected for "
                f"example {Path(clips.attrs['folder']) / 'raw'}/ID.mp4."
            )
    return [*clips.attrs["notes"], *official_features(clips)]


def official_features(clips) -> list[str]:
    """Look at every pickle in vit/ and wav2vec2/: arrays, and of one width each.

    clips : of `layout.read`

    Only the head of a file is read, some 0.1 ms: all are looked at, a sample could miss the one
    that is different. Returns a sentence where pickles are damaged: such a clip counts as without
    these features. Raises CorpusError for a pickle of something else than an array, which is not
    run, and for several widths.
    """
    notes = []
    for column, folder in OFFICIAL.items():
        widths, damaged = {}, []
        for path in clips[column].dropna():
            try:
                widths[path] = media.feature_shape(path)[1]
            except media.NoArrayError as error:
                raise CorpusError(f"{error} Remove or replace the file.") from error
            except media.MediaError:
                damaged.append(Path(path).name)
        counts = Counter(widths.values()).most_common()
        if len(counts) > 1:
            (usual, most), *_ = counts
            odd = next(path for path, width in widths.items() if width != usual)
            raise CorpusError(
                f"{odd} is {widths[odd]} wide and {most} of {len(widths)} files in {folder}/ are "
                f"{usual} wide; one folder holds features of one encoder."
            )
        if damaged:
            listed = ", ".join(damaged[:5]) + (", …" if len(damaged) > 5 else "")
            notes.append(f"Damaged pickles in {folder}/ that are left out: {listed}.")
    return notes

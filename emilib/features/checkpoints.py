"""The pretrained checkpoints the papers mean: what they are, where they are looked for, how to get
them.

Names, revisions and sizes are those of the public model pages. None of these files could be
downloaded where this was written, so none has been loaded here yet; the code that loads them is
tested with small checkpoints in the same formats.
"""

import dataclasses
import functools
import os
from pathlib import Path

import pandas as pd

from emilib.cache import file_sum, key

WEIGHTS = "EMI_WEIGHTS"  # environment variable: a folder with checkpoints in it


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One pretrained network.

    name : on the Hugging Face hub; for `speech`, openai-whisper's name
    role : "vision", "audio", "text" or "speech"
    paper : where it is used
    features : values a frame, step or text, as the papers use them
    megabytes : of the file with the weights, in units of 10^6 bytes
    revision : commit on the hub that is loaded (for `speech`, SHA-256 of the file); None is the
        newest one
    files : what has to be downloaded; empty means all of the repository
    commercial : whether the licence allows commercial use
    """

    name: str
    role: str
    paper: str
    features: str
    megabytes: int
    licence: str
    revision: str | None
    files: tuple[str, ...] = ()
    commercial: bool = True
    note: str = ""

    @property
    def size(self) -> str:
        """For people: 346 MB, 1.3 GB."""
        gigabytes = self.megabytes / 1000
        return f"{gigabytes:.1f} GB" if gigabytes >= 1 else f"{self.megabytes} MB"


CHECKPOINTS = (
    Checkpoint(
        "openai/clip-vit-base-patch16",
        role="vision",
        paper="A",
        features="768",
        megabytes=599,
        licence="MIT",
        revision="57c216476eefef5ab752ec549e440a49ae4ae5f3",
        files=("config.json", "preprocessor_config.json", "pytorch_model.bin"),
        note="the hub page names no licence, OpenAI's repository does; the file holds the text "
        "half too, which is not loaded",
    ),
    Checkpoint(
        "google/vit-base-patch16-224-in21k",
        role="vision",
        paper="B",
        features="768",
        megabytes=346,
        licence="Apache-2.0",
        revision="b4569560a39a0f1af58e3ddaf17facf20ab919b0",
        files=("config.json", "preprocessor_config.json", "model.safetensors"),
        note="the release of B takes the mean over all tokens",
    ),
    Checkpoint(
        "facebook/wav2vec2-large-lv60",
        role="audio",
        paper="A",
        features="1024",
        megabytes=1270,
        licence="Apache-2.0",
        revision="0cde644b64dac88d8416bec1c92a4099b850ba0b",
        files=("config.json", "preprocessor_config.json", "pytorch_model.bin"),
        note="our choice: the paper names no checkpoint, only its width",
    ),
    Checkpoint(
        "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim",
        role="audio",
        paper="B",
        features="1024 + 3",
        megabytes=661,
        licence="CC BY-NC-SA 4.0",
        revision="6eba34a2485ea31cb03600241787c3a5edab8626",
        files=("config.json", "preprocessor_config.json", "model.safetensors"),
        commercial=False,
        note="arousal, dominance and valence for each step",
    ),
    Checkpoint(
        "bert-base-uncased",
        role="text",
        paper="A",
        features="768",
        megabytes=440,
        licence="Apache-2.0",
        revision="86b5e0934494bd15c9632b12f734a8a67f723594",
        files=("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    ),
    Checkpoint(
        "alibaba-nlp-community/gte-base-en-v1.5",
        role="text",
        paper="B",
        features="768",
        megabytes=547,
        licence="Apache-2.0",
        revision=None,
        note="model type `gte`; the release of B used gte-en-mlm-base, which needs remote code",
    ),
    Checkpoint(
        "turbo",
        role="speech",
        paper="A, B",
        features="words",
        megabytes=1618,
        licence="MIT",
        revision="aff26ae408abcba5fbf8813c21e62b0941638c5f6eebfb145be0c9839262a19a",
        files=("large-v3-turbo.pt",),
        note="openai-whisper's own file, not from the hub",
    ),
)


def get(name: str) -> Checkpoint | None:
    """The entry of this name, None for a checkpoint the papers do not mean."""
    return next((entry for entry in CHECKPOINTS if entry.name == name), None)


def folder(source: str) -> Path | None:
    """Where a checkpoint lies on disk: `source` itself, or below the folder ``EMI_WEIGHTS``.

    There it is looked for under its whole name and under the last part of it. None where neither
    is a folder; the Hugging Face cache is left to transformers.
    """
    home = os.environ.get(WEIGHTS)
    places = [Path(source)]
    if home and not Path(source).is_absolute():
        places += [Path(home) / source, Path(home) / Path(source).name]
    return next((place for place in places if place.is_dir()), None)


def locate(source: str, revision: str | None = None) -> tuple[str, str | None]:
    """What to hand to ``from_pretrained``: a folder and None, or a hub name and its revision.

    revision : None is that of the manifest, and the newest for a name it does not have
    """
    place = folder(source)
    if place is not None:
        return str(place), None
    entry = get(source)
    return source, revision or (None if entry is None else entry.revision)


def identity(source: str, revision: str | None = None) -> str:
    """A name for the weights themselves, for keys of what is computed with them.

    Two folders with other bytes get other names. A hub name without a known revision is taken
    for the same for ever.
    """
    place, revision = locate(source, revision)
    if folder(source) is None:
        return f"{place}@{revision or 'main'}"
    return _content(place)


@functools.lru_cache(maxsize=32)
def _content(place: str) -> str:
    names = sorted(p for p in Path(place).iterdir() if p.is_file() and p.name[0] != ".")
    return key(**{path.name: file_sum(path) for path in names})


def how_to_get(source: str, revision: str | None = None) -> str:
    """What to download, how large it is and where to put it: the end of a sentence."""
    entry = get(source)
    known = Path(source).name if entry is None else entry.name
    where = f"${WEIGHTS}/{known}"
    if Path(source).is_absolute() or source.startswith("."):
        return "put the checkpoint's folder on disk there, or give another path or a hub name"
    command = f"hf download {source}"
    if entry is not None:
        command = " ".join([command, *entry.files])
    revision = locate(source, revision)[1]
    if revision is not None:
        command += f" --revision {revision}"
    about = "" if entry is None else f" ({entry.size}, licence {entry.licence})"
    home = os.environ.get(WEIGHTS)
    named = f"now {home}" if home else "not set now"
    return (
        f"put the checkpoint's folder on disk{about}, with network by `{command} --local-dir "
        f"{where}`, where the environment variable {WEIGHTS} names a folder of your choice "
        f"({named})"
    )


def here(entry: Checkpoint) -> str:
    """Whether a checkpoint is on this machine: "folder", "hub cache", "file" or "no"."""
    if entry.role == "speech":
        from emilib.features.transcripts import find_weights

        return "no" if find_weights() is None else "file"
    if folder(entry.name) is not None:
        return "folder"
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(entry.name, "config.json", revision=entry.revision)
    return "hub cache" if isinstance(found, str) else "no"


def table() -> pd.DataFrame:
    """The manifest, one row a checkpoint; `non-commercial` is marked, `here` is this machine."""
    return pd.DataFrame(
        [
            {
                "role": entry.role,
                "paper": entry.paper,
                "checkpoint": entry.name,
                "features": entry.features,
                "size": entry.size,
                "licence": entry.licence,
                "non-commercial": "" if entry.commercial else "non-commercial only",
                "revision": entry.revision or "newest",
                "here": here(entry),
                "note": entry.note,
            }
            for entry in CHECKPOINTS
        ]
    )

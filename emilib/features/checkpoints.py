"""The pretrained checkpoints of both papers (`checkpoints.csv`): where they lie, how to get them.

Columns of the CSV: `name` on the Hugging Face hub (for `role` "speech", openai-whisper's), role,
paper, `features` per frame, step or text, `megabytes` (10^6 bytes) of the weights, licence,
`commercial` where it allows such use, `revision` (a commit on the hub, for "speech" the SHA-256 of
the file; empty is the newest), `files` to download (empty: the whole repository), note.
Names, revisions and sizes are those of the public model pages; the files themselves have not been
loaded here. The code that loads them is tested with small checkpoints of the same formats.
"""

import functools
import os
from pathlib import Path

import pandas as pd
from huggingface_hub import try_to_load_from_cache

from emilib.cache import file_sum, key

WEIGHTS = "EMI_WEIGHTS"  # environment variable: a folder that holds checkpoints
WHISPER_FILES = {"turbo": "large-v3-turbo", "large": "large-v3"}  # names that are not the file's

_TABLE = pd.read_csv(Path(__file__).with_name("checkpoints.csv"), keep_default_na=False)
_TABLE["size"] = [f"{mb} MB" if mb < 1000 else f"{mb / 1000:.1f} GB" for mb in _TABLE["megabytes"]]
CHECKPOINTS = tuple(_TABLE.itertuples(index=False, name="Checkpoint"))


def get(name: str):
    """The entry of this name; None for a checkpoint that is not in the table."""
    return next((entry for entry in CHECKPOINTS if entry.name == name), None)


def folder(source: str) -> Path | None:
    """The folder of a checkpoint: `source` itself, or below the folder ``EMI_WEIGHTS``.

    There both the whole name and its last part are tried. None where neither is a folder; the
    Hugging Face cache is left to transformers.
    """
    home = os.environ.get(WEIGHTS)
    places = [Path(source)]
    if home and not Path(source).is_absolute():
        places += [Path(home) / source, Path(home) / Path(source).name]
    return next((place for place in places if place.is_dir()), None)


def whisper_file(name: str = "turbo") -> Path | None:
    """The file of a Whisper checkpoint, None where this machine has none.

    name : a path, or a name Whisper knows (`turbo`, `tiny.en`, ...), looked for in the folder
        ``EMI_WEIGHTS``, its subfolder whisper, and Whisper's own cache
    """
    home = os.environ.get(WEIGHTS)
    places = [Path(home), Path(home) / "whisper"] if home else []
    places.append(Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "whisper")
    file = WHISPER_FILES.get(name, name).removesuffix(".pt") + ".pt"
    candidates = [Path(name), *(place / file for place in places)]
    return next((path for path in candidates if path.is_file()), None)


def locate(source: str, revision: str | None = None) -> tuple[str, str | None]:
    """The arguments of ``from_pretrained``: a folder and None, or a hub name and its revision.

    revision : None is that of the table, and the newest for a name the table lacks
    """
    place, entry = folder(source), get(source)
    if place is not None:
        return str(place), None
    return source, revision or (None if entry is None else entry.revision or None)


def identity(source: str, revision: str | None = None) -> str:
    """A name for the weights themselves, for the keys of what is computed with them.

    Folders of different bytes get different names. A hub name without a known revision is assumed
    never to change.
    """
    place, revision = locate(source, revision)
    return f"{place}@{revision or 'main'}" if folder(source) is None else _content(place)


@functools.lru_cache(maxsize=32)
def _content(place: str) -> str:
    names = sorted(p for p in Path(place).iterdir() if p.is_file() and p.name[0] != ".")
    return key(**{path.name: file_sum(path) for path in names})


def how_to_get(source: str, revision: str | None = None) -> str:
    """What to download, how large it is and where to put it: the end of a sentence."""
    entry = get(source)
    if entry is not None and entry.role == "speech":
        return (
            f"download {entry.files} ({entry.size}, {entry.licence}) with "
            f"`whisper.load_model('{entry.name}')` on a machine with network and put it into "
            f"~/.cache/whisper or into the folder {WEIGHTS}"
        )
    if Path(source).is_absolute() or source.startswith("."):
        return "put the checkpoint's folder on disk there, or name another path or a hub name"
    revision = locate(source, revision)[1]
    home = os.environ.get(WEIGHTS)
    command = ["hf download", source, *(() if entry is None else entry.files.split())]
    command += [] if revision is None else ["--revision", revision]
    command += ["--local-dir", f"${WEIGHTS}/{source if entry else Path(source).name}"]
    about = "" if entry is None else f" ({entry.size}, licence {entry.licence})"
    return (
        f"put the checkpoint's folder on disk{about}, with network by `{' '.join(command)}`, where "
        f"the environment variable {WEIGHTS} names a folder of your choice "
        f"({f'now {home}' if home else 'not set now'})"
    )


def available(name: str) -> str:
    """Where this machine has a checkpoint of the table: "folder", "hub cache", "file" or "no"."""
    entry = get(name)
    if entry.role == "speech":
        return "no" if whisper_file(name) is None else "file"
    if folder(name) is not None:
        return "folder"
    path = try_to_load_from_cache(name, "config.json", revision=entry.revision or None)
    return "hub cache" if isinstance(path, str) else "no"


def table() -> pd.DataFrame:
    """All checkpoints, one row each; the column `here` is about this machine."""
    restricted = {"yes": "", "no": "non-commercial only"}
    shown = _TABLE.assign(here=[available(name) for name in _TABLE["name"]])
    shown["non-commercial"] = shown["commercial"].map(restricted)
    shown["revision"] = shown["revision"].replace("", "newest")
    first = ["role", "paper", "name", "features", "size", "licence", "non-commercial"]
    return shown[[*first, "revision", "here", "note"]].rename(columns={"name": "checkpoint"})

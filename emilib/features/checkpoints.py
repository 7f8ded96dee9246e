"""The pretrained checkpoints of both papers (`checkpoints.csv`): where they lie, how to get them.

Names, revisions and sizes in the CSV are those of the public model pages. The files themselves
have not been loaded here; the code that loads them is tested with small checkpoints of the same
formats. This module needs neither torch nor transformers.
"""

import csv
import dataclasses
import functools
import os
from pathlib import Path

import pandas as pd
from huggingface_hub import try_to_load_from_cache

from emilib.cache import file_sum, key

WEIGHTS = "EMI_WEIGHTS"  # environment variable: a folder that holds checkpoints
WHISPER_FILES = {"turbo": "large-v3-turbo", "large": "large-v3"}  # names that are not the file's


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One pretrained network.

    name : on the Hugging Face hub; for role "speech" the name openai-whisper uses
    role : "vision", "audio", "text" or "speech"
    paper : where it is used
    features : values per frame, step or text, as the papers use them
    megabytes : of the weights, in units of 10^6 bytes
    revision : commit on the hub (for "speech" the SHA-256 of the file); None is the newest
    files : what to download; empty means the whole repository
    commercial : True where the licence allows commercial use
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
        """The size as text: 346 MB, 1.3 GB."""
        small = self.megabytes < 1000
        return f"{self.megabytes} MB" if small else f"{self.megabytes / 1000:.1f} GB"


def _rows():
    with open(Path(__file__).with_name("checkpoints.csv"), newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            row["megabytes"] = int(row["megabytes"])
            row["commercial"] = row["commercial"] == "yes"
            row["revision"] = row["revision"] or None
            row["files"] = tuple(row["files"].split())
            yield Checkpoint(**row)


CHECKPOINTS = tuple(_rows())


def get(name: str) -> Checkpoint | None:
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
    return source, revision or (None if entry is None else entry.revision)


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
            f"download {entry.files[0]} ({entry.size}, {entry.licence}) with "
            f"`whisper.load_model('{entry.name}')` on a machine with network and put it into "
            f"~/.cache/whisper or into the folder {WEIGHTS}"
        )
    if Path(source).is_absolute() or source.startswith("."):
        return "put the checkpoint's folder on disk there, or name another path or a hub name"
    revision = locate(source, revision)[1]
    home = os.environ.get(WEIGHTS)
    command = ["hf download", source, *(() if entry is None else entry.files)]
    command += [] if revision is None else ["--revision", revision]
    command += ["--local-dir", f"${WEIGHTS}/{source if entry else Path(source).name}"]
    about = "" if entry is None else f" ({entry.size}, licence {entry.licence})"
    return (
        f"put the checkpoint's folder on disk{about}, with network by `{' '.join(command)}`, where "
        f"the environment variable {WEIGHTS} names a folder of your choice "
        f"({f'now {home}' if home else 'not set now'})"
    )


def available(entry: Checkpoint) -> str:
    """Where this machine has a checkpoint: "folder", "hub cache", "file" or "no"."""
    if entry.role == "speech":
        return "no" if whisper_file(entry.name) is None else "file"
    if folder(entry.name) is not None:
        return "folder"
    path = try_to_load_from_cache(entry.name, "config.json", revision=entry.revision)
    return "hub cache" if isinstance(path, str) else "no"


def table() -> pd.DataFrame:
    """All checkpoints, one row each; the column `here` is about this machine."""
    entries = pd.DataFrame(CHECKPOINTS).rename(columns={"name": "checkpoint"})
    entries["size"] = [entry.size for entry in CHECKPOINTS]
    entries["non-commercial"] = entries["commercial"].map({True: "", False: "non-commercial only"})
    entries["revision"] = entries["revision"].fillna("newest")
    entries["here"] = [available(entry) for entry in CHECKPOINTS]
    first = ["role", "paper", "checkpoint", "features", "size", "licence"]
    return entries[[*first, "non-commercial", "revision", "here", "note"]]

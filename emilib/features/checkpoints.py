"""The pretrained checkpoints of both papers (`checkpoints.csv`): where they lie, how to get them.

`name` is that on the Hugging Face hub, for `role` "speech" openai-whisper's; `features` are per
frame, step or text; `restricted`: no commercial use; `revision` is a commit on the hub (empty: the
newest), for "speech" the SHA-256 of the file; `files` are downloaded (empty: the whole repository).
The published files themselves have not been loaded here.
"""

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from huggingface_hub import try_to_load_from_cache

from emilib.cache import file_sum, key

WEIGHTS = "EMI_WEIGHTS"  # environment variable: a folder that holds checkpoints

_TABLE = pd.read_csv(Path(__file__).with_name("checkpoints.csv"), keep_default_na=False)
CHECKPOINTS = tuple(_TABLE.itertuples(index=False, name="Checkpoint"))


def get(name: str):
    """The entry of this name; None for a checkpoint that is not in the table."""
    return next((entry for entry in CHECKPOINTS if entry.name == name), None)


def folder(source: str) -> Path | None:
    """The folder `source`, or below ``EMI_WEIGHTS`` that of its name or its last part, or None."""
    home = os.environ.get(WEIGHTS)
    places = [Path(source)]
    if home and not Path(source).is_absolute():
        places += [Path(home) / source, Path(home) / Path(source).name]
    return next((place for place in places if place.is_dir()), None)


def strings(value) -> Iterator[str]:
    """Every string within JSON, keys included."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, str):
        yield value
    for part in value if isinstance(value, list) else ():
        yield from strings(part)


def refuse_traps(folder) -> None:
    """ValueError for a JSON file that names code (`auto_map`), and for what is no file: a pipe
    would keep its reader waiting."""
    for path in sorted(Path(folder).rglob("*")):
        if not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path}: expected a file, got a pipe, a device or a broken link")
        if path.suffix != ".json":
            continue
        try:
            code = "auto_map" in strings(json.loads(path.read_text("utf-8")))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: expected JSON, got {error}; fetch it again") from error
        if code:
            raise ValueError(f"{path}: expected no code, got auto_map; code is never run")


def whisper_file() -> Path | None:
    """Whisper turbo in ``EMI_WEIGHTS``, its subfolder whisper, or Whisper's cache; or None."""
    home, own = os.environ.get(WEIGHTS), os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    places = [Path(home), Path(home, "whisper")] if home else []
    files = (place / get("turbo").files for place in (*places, Path(own, "whisper")))
    return next((path for path in files if path.is_file()), None)


def locate(source: str, revision: str | None = None) -> tuple[str, str | None]:
    """The arguments of ``from_pretrained``: a folder and None, or a hub name and its revision."""
    place, entry = folder(source), get(source)
    if place is not None:
        return str(place), None
    return source, revision or (entry and entry.revision) or None


def identity(source: str, revision: str | None = None) -> str:
    """A name for the weights themselves, for the keys of what is computed with them."""
    place, revision = locate(source, revision)
    return f"{place}@{revision or 'main'}" if folder(source) is None else _content(place)


@functools.cache
def _content(place: str) -> str:
    files = (p for p in Path(place).iterdir() if p.is_file() and p.name[0] != ".")
    return key(**{path.name: file_sum(path) for path in files})


def how_to_get(source: str, revision: str | None = None) -> str:
    """What to download, how large it is and where to put it: the end of a sentence."""
    if (entry := get(source)) is None:
        return "name the folder of a checkpoint, or a name on the hub that can be reached"
    revision, place = revision or entry.revision or "main", source
    download = f"hf download {source} {entry.files} --revision {revision}"
    if entry.role == "speech":
        download, place = f"whisper.load_model('{source}')", entry.files
    with_network = f"({entry.size}, licence {entry.licence}) with network by `{download}`"
    place = f"${WEIGHTS}/{place}, where {WEIGHTS} names a folder of your choice"
    return f"download it {with_network}, and put it at {place}"


def available(name: str) -> bool:
    """Whether this machine has a checkpoint of the table."""
    entry = get(name)
    if entry.role == "speech":
        return whisper_file() is not None
    path = try_to_load_from_cache(name, "config.json", revision=entry.revision or None)
    return folder(name) is not None or isinstance(path, str)


def table() -> pd.DataFrame:
    """All checkpoints, one row each; the column `here` is about this machine."""
    here = ["yes" if available(name) else "no" for name in _TABLE["name"]]
    shown = _TABLE.assign(files=here, revision=_TABLE["revision"].replace("", "newest"))
    names = {"name": "checkpoint", "restricted": "non-commercial", "files": "here"}
    return shown.rename(columns=names)

"""The feature store: ragged arrays of many clips in memory-mapped safetensors shards.

A shard holds the flat (ΣT, ...) values of some tens of clips, the lengths that cut them, and
their ids. Features are kept in half precision, pictures as uint8, audio as int16. Shards are
written atomically; those of an unfinished store survive a kill and are used again.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from emilib.cache import Cache, atomic_write, file_sum, rank, share, wait_until

SHARD = 32  # clips
# The dtypes of a shard, as safetensors and NumPy name them.
DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "U8": "u1", "I16": "<i2", "I64": "<i8"}


def write_shard(path, ids: Sequence[str], arrays: Sequence) -> None:
    """Write clips' (T, ...) arrays of one dtype and width; None where a clip has nothing.

    Raises ValueError when the arrays of a shard differ in dtype or in what follows T.
    """
    kinds = {(a.dtype.str, a.shape[1:]) for a in arrays if a is not None}
    if len(kinds) > 1:
        raise ValueError(f"{path}: expected arrays of one dtype and width, got {sorted(kinds)}")
    dtype, tail = kinds.pop() if kinds else ("<f2", (0,))
    lengths = [-1 if a is None else len(a) for a in arrays]
    values = np.concatenate([np.zeros((0, *tail), dtype), *(a for a in arrays if a is not None)])
    tensors = {"values": np.ascontiguousarray(values), "lengths": np.array(lengths, np.int64)}
    atomic_write(path, save(tensors, metadata={"ids": json.dumps(list(ids))}))


class Store(Mapping):
    """A folder of shards as a mapping from id to a (T, ...) array, or None for an empty slot.

    Arrays are mapped into memory when they are looked at. The order is that of writing.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self._mapped: dict[Path, np.ndarray] = {}
        self._place: dict[str, tuple[Path, int, int]] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(path, framework="np") as shard:
                lengths = shard.get_tensor("lengths").tolist()
                ids = json.loads(shard.metadata()["ids"])
            start = 0
            for id_, length in zip(ids, lengths, strict=True):
                self._place[id_] = (path, start, length)
                start += max(length, 0)

    @property
    def ids(self) -> list[str]:
        return list(self._place)

    def __iter__(self):
        return iter(self._place)

    def __len__(self):
        return len(self._place)

    def length(self, id_: str) -> int:
        """Steps of a clip, 0 for an empty slot."""
        return max(self._place[id_][2], 0)

    def __getitem__(self, id_: str) -> np.ndarray | None:
        path, start, length = self._place[id_]
        if length < 0:
            return None
        if path not in self._mapped:
            self._mapped[path] = _map_values(path)
        return self._mapped[path][start : start + length]

    def __getstate__(self):
        return {**vars(self), "_mapped": {}}  # another process maps the files itself


def _map_values(path: Path) -> np.ndarray:
    """The flat values of a shard; writing to the result does not change the file.

    safetensors itself copies each slice, and opens the file for it. The format is an 8-byte
    length, so many bytes of JSON, then the numbers.
    """
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        entry = json.loads(stream.read(length))["values"]
    dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
    if 0 in shape:  # an empty file region cannot be mapped
        return np.zeros(shape, dtype)
    return np.asarray(np.memmap(path, dtype, "c", 8 + length + entry["data_offsets"][0], shape))


class Rows(Sequence):
    """Some clips' arrays of a store, in any order, each read when it is looked at.

    convert : applied to each array
    """

    def __init__(self, store: Store, ids: Sequence[str], convert: Callable | None = None):
        self.store, self.ids, self.convert = store, list(ids), convert

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, row: int):
        array = self.store[self.ids[row]]
        if array is None or not len(array):
            return None
        return array if self.convert is None else self.convert(array)

    def length(self, row: int) -> int:
        """Steps of a clip, 0 where it has none."""
        return self.store.length(self.ids[row])


def build(
    cache: Cache,
    kind: str,
    parts: dict,
    ids: Sequence[str],
    produce: Callable[[Sequence[str]], Iterator[dict]],
    names: Sequence[str],
    shard_size: int = SHARD,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Store]:
    """The stores `names` of a step; missing shards are produced.

    produce : takes the ids of the missing shards, in order, and yields for each clip a dict from
        the names to an array or None. It is called once, so it can keep workers and batches
        going over shard borders.

    A shard that was finished before a kill, and whose sum is right, is not produced again. With
    several ranks each produces every world_size-th shard; rank 0 puts all of them together.
    """
    shards = [list(ids[i : i + shard_size]) for i in range(0, len(ids), shard_size)]

    def write_missing(scratch: Path) -> None:
        mine = share(range(len(shards)))
        missing = [i for i in mine if not _finished(scratch, i, names)]
        if rank() != 0 and cache.has(kind, parts):
            return  # rank 0 found all shards and has put them together
        clips = produce([id_ for i in missing for id_ in shards[i]]) if missing else iter(())
        total = sum(len(shards[i]) for i in mine)
        done = total - sum(len(shards[i]) for i in missing)
        for i in missing:
            rows = []
            for _ in shards[i]:
                rows.append(next(clips))
                done += 1
                if progress:
                    progress(done, total)
            paths = {name: scratch / name / _file(i) for name in names}
            for name, path in paths.items():
                write_shard(path, shards[i], [row[name] for row in rows])
            sums = {name: file_sum(path) for name, path in paths.items()}
            atomic_write(scratch / f"{i:05d}.json", json.dumps(sums))

    def make(folder: Path) -> None:
        scratch = cache.scratch(kind, parts)
        write_missing(scratch)
        for name in names:
            (folder / name).mkdir()
        for i in range(len(shards)):
            wait_until(lambda i=i: _finished(scratch, i, names))
            for name in names:
                _link(scratch / name / _file(i), folder / name / _file(i))

    if rank() != 0 and not cache.has(kind, parts):
        write_missing(cache.scratch(kind, parts))
    folder = cache.shared_step(kind, parts, make)
    return {name: Store(folder / name) for name in names}


def _file(number: int) -> str:
    return f"{number:05d}.safetensors"


def _finished(scratch: Path, number: int, names: Sequence[str]) -> bool:
    try:
        sums = json.loads((scratch / f"{number:05d}.json").read_text())
        return all(file_sum(scratch / name / _file(number)) == sums[name] for name in names)
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return False


def _link(source: Path, target: Path) -> None:
    """A hard link where the file system has them, otherwise a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

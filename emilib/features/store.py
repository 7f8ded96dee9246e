"""The feature store: ragged arrays of many clips in memory-mapped safetensors shards.

A shard holds the flat (ΣT, ...) values of some tens of clips, the offsets that cut them, and
their ids. Features are kept in half precision, pictures as uint8, sound as int16. Shards are
written atomically; those of an unfinished store are kept and found again after a kill.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from emilib.cache import Cache, atomic_write, file_sum, rank, share, wait_until

SHARD = 32  # clips


def write_shard(path, ids: Sequence[str], arrays: Sequence) -> None:
    """Write clips' (T, ...) arrays of one dtype and width; None where a clip has nothing.

    Raises ValueError when the arrays of a shard differ in dtype or in what follows T.
    """
    kinds = {(a.dtype.str, a.shape[1:]) for a in arrays if a is not None}
    if len(kinds) > 1:
        raise ValueError(f"{path}: expected arrays of one dtype and width, came {sorted(kinds)}")
    dtype, tail = kinds.pop() if kinds else ("<f2", (0,))
    lengths = [-1 if a is None else len(a) for a in arrays]
    present = [a for a in arrays if a is not None and len(a)]
    values = np.concatenate(present) if present else np.zeros((0, *tail), dtype)
    tensors = {"values": np.ascontiguousarray(values), "lengths": np.array(lengths, np.int64)}
    atomic_write(path, save(tensors, metadata={"ids": json.dumps(list(ids))}))


def read_shard(path) -> Iterator[tuple[str, np.ndarray | None]]:
    """The (id, array or None) pairs of a shard."""
    with safe_open(path, framework="np") as shard:
        ids = json.loads(shard.metadata()["ids"])
        lengths = shard.get_tensor("lengths")
        values = shard.get_slice("values")
        start = 0
        for id_, length in zip(ids, lengths.tolist(), strict=True):
            if length < 0:
                yield id_, None
            else:
                yield id_, values[start : start + length]
                start += length


# What a shard may hold, as safetensors calls it and as NumPy does.
_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "U8": "u1", "I16": "<i2", "I64": "<i8"}


def map_values(path) -> np.ndarray:
    """The flat values of a shard, mapped: nothing is read before it is looked at.

    safetensors itself copies each slice, and opens the file for it. The format is an 8-byte
    length, so many bytes of JSON, then the numbers; a change of the result is not written.
    """
    with open(path, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        entry = json.loads(stream.read(length))["values"]
    dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
    if 0 in shape:  # what is empty can't be mapped
        return np.zeros(shape, dtype)
    offset = 8 + length + entry["data_offsets"][0]
    return np.asarray(np.memmap(path, dtype, "c", offset, shape))


class Store:
    """A folder of shards as a mapping from id to a (T, ...) array, or None for an empty slot.

    Arrays are read when asked for; `ids` keeps the order in which they were written.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self._mapped: dict[Path, np.ndarray] = {}
        self._place: dict[str, tuple[Path, int, int]] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(path, framework="np") as shard:
                lengths = shard.get_tensor("lengths").tolist()
                start = 0
                for id_, length in zip(json.loads(shard.metadata()["ids"]), lengths, strict=True):
                    self._place[id_] = (path, start, length)
                    start += max(length, 0)

    @property
    def ids(self) -> list[str]:
        return list(self._place)

    def __contains__(self, id_):
        return id_ in self._place

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
            self._mapped[path] = map_values(path)
        return self._mapped[path][start : start + length]

    def __getstate__(self):
        return {**vars(self), "_mapped": {}}  # another process maps the files itself

    def items(self) -> Iterator[tuple[str, np.ndarray | None]]:
        """All clips, shard by shard: one shard is open at a time."""
        for path in sorted({place[0] for place in self._place.values()}):
            yield from read_shard(path)


class Rows(Sequence):
    """Some clips' arrays of a store, in an order of one's own, each read when asked for.

    convert : what becomes of each array that is there
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

    def pick(self, rows: Sequence[int]) -> "Rows":
        """Some of the clips."""
        return Rows(self.store, [self.ids[row] for row in rows], self.convert)


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
    """The stores `names` of a step, made shard by shard where they are missing.

    produce : takes the ids of the shards that are missing, in order, and yields for each clip a
        dict from the names to an array or None. It is called once, so it can keep workers and
        batches going over shard borders.

    A shard that was finished before a kill, and whose sum is right, is not made again. Several
    ranks make every so-manieth shard each; the first puts all of them together.
    """
    ids = list(ids)
    pieces = [ids[i : i + shard_size] for i in range(0, len(ids), shard_size)]

    def make_shards(scratch: Path) -> None:
        mine = share(range(len(pieces)))
        missing = [i for i in mine if not _finished(scratch, i, names)]
        if rank() != 0 and cache.has(kind, parts):
            return  # the first rank found all shards there, and has put them together
        made = produce([id_ for i in missing for id_ in pieces[i]]) if missing else iter(())
        total = sum(len(pieces[i]) for i in mine)
        done = total - sum(len(pieces[i]) for i in missing)
        for i in missing:
            rows = []
            for _ in pieces[i]:
                rows.append(next(made))
                done += 1
                if progress:
                    progress(done, total)
            sums = {}
            for name in names:
                path = scratch / name / f"{i:05d}.safetensors"
                write_shard(path, pieces[i], [row[name] for row in rows])
                sums[name] = file_sum(path)
            atomic_write(scratch / f"{i:05d}.json", json.dumps(sums))

    def make(folder: Path) -> None:
        scratch = cache.scratch(kind, parts)
        make_shards(scratch)
        for i in range(len(pieces)):
            wait_until(lambda i=i: _finished(scratch, i, names))
        for name in names:
            (folder / name).mkdir()
            for i in range(len(pieces)):
                shard = f"{i:05d}.safetensors"
                _link(scratch / name / shard, folder / name / shard)

    if rank() != 0 and not cache.has(kind, parts):
        make_shards(cache.scratch(kind, parts))
    folder = cache.shared_step(kind, parts, make)
    return {name: Store(folder / name) for name in names}


def _finished(scratch: Path, number: int, names: Sequence[str]) -> bool:
    try:
        sums = json.loads((scratch / f"{number:05d}.json").read_text())
        return all(
            file_sum(scratch / name / f"{number:05d}.safetensors") == sums[name] for name in names
        )
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return False


def _link(source: Path, target: Path) -> None:
    """A hard link where the file system has them, otherwise a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

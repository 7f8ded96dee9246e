"""Ragged arrays of many clips in shards: flat values, the lengths that cut them, and ids."""

import json
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from emilib.cache import Cache, atomic_write, share, wait_until

SHARD = 32  # clips


def write_shard(path, ids: Sequence[str], arrays: Sequence) -> None:
    """Write clips' (T, ...) arrays of one dtype and width, else ValueError; None for nothing."""
    kinds = {(a.dtype.str, a.shape[1:]) for a in arrays if a is not None}
    if len(kinds) > 1:
        raise ValueError(f"{path}: expected arrays of one dtype and width, got {sorted(kinds)}")
    dtype, tail = kinds.pop() if kinds else ("<f2", (0,))
    lengths = [-1 if a is None else len(a) for a in arrays]
    values = np.concatenate([np.zeros((0, *tail), dtype), *(a for a in arrays if a is not None)])
    tensors = {"values": np.ascontiguousarray(values), "lengths": np.array(lengths, np.int64)}
    atomic_write(path, save(tensors, metadata={"ids": json.dumps(list(ids))}))


class Store(UserDict):
    """Shards as a mapping from id to a memory-mapped (T, ...) array; None: an empty slot."""

    def __init__(self, paths: Sequence):
        super().__init__()  # `data`: the path, start and length of each clip
        self._mapped: dict[Path, np.ndarray] = {}
        for path in map(Path, paths):
            with safe_open(path, framework="np") as shard:
                lengths = shard.get_tensor("lengths").tolist()
                ids = json.loads(shard.metadata()["ids"])
            start = 0
            for id_, length in zip(ids, lengths, strict=True):
                self.data[id_] = (path, start, length)
                start += max(length, 0)

    def length(self, id_: str) -> int:
        """Steps of a clip, 0 for an empty slot."""
        return max(self.data[id_][2], 0)

    def __getitem__(self, id_: str) -> np.ndarray | None:
        path, start, length = self.data[id_]
        if length < 0:
            return None
        if path not in self._mapped:
            with safe_open(path, framework="pt") as shard:  # framework "np" would copy
                self._mapped[path] = shard.get_tensor("values").numpy()
        return self._mapped[path][start : start + length]

    def __getstate__(self):
        return {**vars(self), "_mapped": {}}  # another process maps the files itself


class Rows(Sequence):
    """Some clips' arrays of a store, in any order, each read, and converted, when looked at."""

    def __init__(self, store: Mapping, ids: Sequence[str], convert: Callable | None = None):
        self.store, self.ids, self.convert = store, list(ids), convert

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, row: int):
        array = self.store[self.ids[row]]
        array = None if array is None or not len(array) else array
        return array if array is None or self.convert is None else self.convert(array)

    def length(self, row: int) -> int:
        """Steps of a clip, 0 where it has none."""
        return self.store.length(self.ids[row])


def build(cache: Cache, kind, parts: dict, ids, produce, names, shard_size=SHARD, progress=None):
    """The stores of a step, a `Store` for each of `names`; missing shards are produced.

    kind, parts : as of `Cache.step`; parts have all that determines the step, its ids included
    ids : N names of clips, cut into shards of `shard_size` clips
    produce : called once, with the ids of all missing shards; yields for each clip a dict from the
        names to an array (T, ...) or None, an empty slot
    progress : called after each shard with (clips done, clips in all) of this rank

    Several ranks produce every world_size-th shard each, and wait for those of the others. Raises
    ValueError where the arrays of a name differ in dtype or width within a shard.
    """
    shards = [list(ids[i : i + shard_size]) for i in range(0, len(ids), shard_size)]
    keys = [{"of": parts, "shard": [number, shard_size]} for number in range(len(shards))]
    mine = share(range(len(shards)))
    missing = [number for number in mine if not cache.has(kind, keys[number])]
    total, left = (sum(len(shards[n]) for n in numbers) for numbers in (mine, missing))
    clips = iter(produce([id_ for number in missing for id_ in shards[number]]))
    for number in missing:
        rows = list(islice(clips, len(shards[number])))

        def write(folder: Path, ids=shards[number], rows=rows) -> None:
            for name in names:
                write_shard(folder / f"{name}.safetensors", ids, [row[name] for row in rows])

        cache.step(kind, keys[number], write)
        left -= len(rows)
        if progress is not None:
            progress(total - left, total)
    for parts_of_shard in keys:
        wait_until(lambda own=parts_of_shard: cache.has(kind, own))
    cache.shared_step(kind, parts, lambda folder: None)  # says that all shards are there
    folders = [cache.folder(kind, own) for own in keys]
    return {name: Store([f / f"{name}.safetensors" for f in folders]) for name in names}

import pickle
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emilib.cache import Cache
from emilib.features.store import Rows, Store, build, write_shard

STEPS = st.one_of(st.none(), st.integers(0, 6))
KINDS = st.sampled_from([("f2", (3,)), ("f4", (1,)), ("u1", (3, 4, 4)), ("i2", ()), ("f8", (2,))])


def clips(steps, dtype="f2", tail=(3,)):
    draw = np.random.default_rng(0)
    arrays = [None if n is None else draw.uniform(0, 200, (n, *tail)).astype(dtype) for n in steps]
    return {f"{i:05d}": array for i, array in enumerate(arrays)}


CLIPS = clips([1, 2, None, 4, 0, 6, 7])


def assert_same(store, expected):
    assert list(store) == list(expected)
    for id_ in reversed(expected):
        array = store[id_]
        if expected[id_] is None:
            assert array is None
        else:
            np.testing.assert_array_equal(array, expected[id_], strict=True)
        assert store.length(id_) == (0 if array is None else len(array))


@given(st.lists(st.lists(STEPS, min_size=1, max_size=5), min_size=1, max_size=3), KINDS)
@settings(deadline=None, max_examples=40)
def test_a_store_gives_back_what_was_written(tmp_path_factory, shards, kind):
    folder, arrays = tmp_path_factory.mktemp("store"), clips([*chain(*shards)], *kind)
    ids, paths = iter(arrays), [folder / f"{n}.safetensors" for n in range(len(shards))]
    for path, steps in zip(paths, shards, strict=True):
        own = [*islice(ids, len(steps))]
        write_shard(path, own, [arrays[i] for i in own])
    store = Store(paths)
    assert_same(store, arrays)
    assert_same(pickle.loads(pickle.dumps(store)), arrays)


def test_arrays_are_mapped_and_rows_are_clips_in_any_order(tmp_path):
    path = tmp_path / "0.safetensors"
    write_shard(path, list(CLIPS), list(CLIPS.values()))
    before, array = path.read_bytes(), Store([path])["00006"]
    array[:] = 0
    assert path.read_bytes() == before
    assert_same(Store([path]), CLIPS)
    rows = Rows(Store([path]), ["00005", "00004", "00002", "00001"], lambda a: a + 1)
    np.testing.assert_array_equal(rows[0], CLIPS["00005"] + 1)
    assert [row is None for row in rows] == [False, True, True, False]
    assert [rows.length(i) for i in range(len(rows))] == [6, 0, 0, 2]
    with pytest.raises(ValueError, match="dtype and width"):
        write_shard(path, ["x", "y"], [np.zeros((1, 2)), np.zeros((1, 3))])


class Producer:
    """Builds a store of `CLIPS` in shards of two, and notes which clips it was asked for."""

    def __init__(self, folder, stop_after=None):
        self.folder, self.stop_after, self.asked, self.told = folder, stop_after, [], []

    def produce(self, ids):
        for number, id_ in enumerate(ids):
            if number == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(id_)
            yield {"values": CLIPS[id_], "other": CLIPS[id_]}

    def __call__(self):
        def tell(*counts):
            self.told.append(counts)

        arguments = ("kind", {"a": 1}, list(CLIPS), self.produce, ("values", "other"))
        return build(Cache(self.folder), *arguments, shard_size=2, progress=tell)


def killed(folder):
    with pytest.raises(KeyboardInterrupt):
        Producer(folder, stop_after=5)()


def test_a_kill_loses_no_finished_shard(tmp_path):
    killed(tmp_path)
    assert not Cache(tmp_path).exists("kind", {"a": 1})
    again = Producer(tmp_path)
    for store in again().values():
        assert_same(store, CLIPS)
    assert again.asked == list(CLIPS)[4:]  # two shards of two were finished
    assert again.told == [(6, 7), (7, 7)]
    assert Cache(tmp_path).has("kind", {"a": 1})
    third = Producer(tmp_path)
    assert_same(third()["other"], CLIPS)
    assert third.asked == []


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [flip, Path.unlink])
@pytest.mark.parametrize("finished", [False, True])
def test_a_harmed_shard_is_produced_again(tmp_path, harm, finished):
    if finished:
        Producer(tmp_path)()
    else:
        killed(tmp_path)
    shards = {tuple(Store([path])): path for path in tmp_path.rglob("other.safetensors")}
    harm(shards["00000", "00001"])
    again = Producer(tmp_path)
    assert_same(again()["other"], CLIPS)
    assert again.asked == list(CLIPS)[:2] + ([] if finished else list(CLIPS)[4:])

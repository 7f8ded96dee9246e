import numpy as np
import pytest

from emilib.cache import Cache
from emilib.features.store import Store, build, read_shard, write_shard


def clips(count=7):
    rng = np.random.default_rng(0)
    arrays = {f"{i:05d}": rng.normal(size=(i + 1, 3)).astype(np.float16) for i in range(count)}
    arrays["00002"] = None
    arrays["00004"] = np.zeros((0, 3), np.float16)
    return arrays


def same(a, b):
    return (a is None and b is None) or np.array_equal(a, b)


def test_a_shard_gives_back_what_was_written(tmp_path):
    wanted = clips()
    write_shard(tmp_path / "a.safetensors", list(wanted), list(wanted.values()))
    found = dict(read_shard(tmp_path / "a.safetensors"))
    assert list(found) == list(wanted)
    assert all(same(found[i], wanted[i]) for i in wanted)


def test_a_shard_of_nothing(tmp_path):
    write_shard(tmp_path / "a.safetensors", ["x"], [None])
    assert dict(read_shard(tmp_path / "a.safetensors")) == {"x": None}


def test_mixed_widths_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one dtype and width"):
        write_shard(tmp_path / "a", ["x", "y"], [np.zeros((1, 2)), np.zeros((1, 3))])


def builder(tmp_path, wanted, stop_after=None):
    asked = []

    def produce(ids):
        for number, id_ in enumerate(ids):
            if number == stop_after:
                raise KeyboardInterrupt
            asked.append(id_)
            yield {"values": wanted[id_]}

    return asked, lambda: build(
        Cache(tmp_path), "kind", {"a": 1}, list(wanted), produce, ("values",), shard_size=2
    )


def test_store_reads_any_clip_by_id(tmp_path):
    wanted = clips()
    store = builder(tmp_path, wanted)[1]()["values"]
    assert store.ids == list(wanted)
    assert all(same(store[i], wanted[i]) for i in reversed(wanted))
    assert [store.length(i) for i in wanted] == [1, 2, 0, 4, 0, 6, 7]
    assert all(same(dict(store.items())[i], wanted[i]) for i in wanted)
    assert "00003" in store
    assert "x" not in store


def test_only_missing_shards_are_made_after_an_interruption(tmp_path):
    wanted = clips()
    asked, run = builder(tmp_path, wanted, stop_after=5)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert asked == list(wanted)[:5]
    asked, run = builder(tmp_path, wanted)
    store = run()["values"]
    assert asked == list(wanted)[4:]  # two shards of two were finished
    assert all(same(store[i], wanted[i]) for i in wanted)
    asked, run = builder(tmp_path, wanted)
    run()
    assert asked == []


def test_a_spoilt_unfinished_shard_is_made_again(tmp_path):
    wanted = clips()
    with pytest.raises(KeyboardInterrupt):
        builder(tmp_path, wanted, stop_after=5)[1]()
    shard = next(tmp_path.rglob("00000.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    asked, run = builder(tmp_path, wanted)
    run()
    assert asked[:2] == list(wanted)[:2]


def test_pictures_keep_their_shape(tmp_path):
    images = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    (tmp_path / "s").mkdir()
    write_shard(tmp_path / "s" / "a.safetensors", ["x"], [images])
    assert np.array_equal(Store(tmp_path / "s")["x"], images)

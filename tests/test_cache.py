import dataclasses
import json
import os
import subprocess
import threading

import numpy as np
import pytest

from emilib import cache
from emilib.cache import SUMS, Cache, atomic_write, code_version, file_sum, key


@dataclasses.dataclass
class Point:
    x: int
    y: tuple = (1, 2)


def test_keys_are_of_what_is_in_them_and_what_killed_processes_left_is_swept(tmp_path):
    assert key(a=1, b=[1, 2], c=Point(3)) == key(c=Point(np.int64(3)), b=(1, 2), a=1)
    different = [{"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": Point(1)}, {"a": {"x": 1}}]
    assert len({key(**parts) for parts in different}) == 6
    with pytest.raises(TypeError, match="plain data"):
        key(a=object())
    lived = subprocess.Popen(["sleep", "60"])
    gone = subprocess.Popen(["true"])
    gone.wait()
    names = {pid: f".step.0123abcd.{pid}@{cache.HOST}" for pid in (lived.pid, gone.pid)}
    for name in names.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").touch()
    (tmp_path / f".file.0123abcd.{gone.pid}@{cache.HOST}").touch()
    (tmp_path / f".elsewhere.0123abcd.{gone.pid}@other").touch()
    (tmp_path / ".hidden").touch()
    cache.sweep(tmp_path, tmp_path / "not there")
    lived.kill()
    left = sorted(path.name for path in tmp_path.iterdir())
    expected = [names[lived.pid], f".elsewhere.0123abcd.{gone.pid}@other", ".hidden"]
    assert left == sorted(expected)


def write(text):
    return lambda folder: (folder / "value.txt").write_text(text)


def test_a_step_is_made_once_and_again_when_it_is_spoilt(tmp_path):
    kept = Cache(tmp_path)
    first = kept.step("kind", {"a": 1}, write("abcd"))
    assert first == kept.step("kind", {"a": 1}, write("8"))
    assert json.loads((first / "parts.json").read_text()) == {"a": 1}
    assert [kept.has("kind", {"a": a}) for a in (1, 2)] == [True, False]
    value = first / "value.txt"
    harms = [(SUMS, b"{"), (SUMS, b"\xff{}"), ("other", b""), ("value.txt", b"abce")]
    for name, content in [*harms, ("value.txt", None)]:
        assert value.read_text() == "abcd"
        (first / name).write_bytes(content) if content is not None else value.unlink()
        assert not Cache(tmp_path).has("kind", {"a": 1})
        assert Cache(tmp_path).step("kind", {"a": 1}, write("abcd")) == first
        assert Cache(tmp_path).has("kind", {"a": 1})


def test_of_two_at_one_step_the_second_waits(tmp_path):
    begun, finish, asked = threading.Event(), threading.Event(), []

    def make(folder):
        begun.set()
        finish.wait(20)
        write("first")(folder)

    def second():
        Cache(tmp_path).step("kind", {"a": 1}, lambda folder: asked.append(folder))

    first = threading.Thread(target=Cache(tmp_path).step, args=("kind", {"a": 1}, make))
    other = threading.Thread(target=second)
    first.start()
    begun.wait(20)
    other.start()
    other.join(0.3)
    assert other.is_alive()
    Cache(tmp_path).step("kind", {"b": 1}, write("another step is not waited for"))
    finish.set()
    other.join(20)
    assert asked == []
    assert (Cache(tmp_path).folder("kind", {"a": 1}) / "value.txt").read_text() == "first"


def test_a_failing_step_leaves_nothing_but_its_scratch(tmp_path):
    kept, half = Cache(tmp_path), Cache(tmp_path).scratch("kind", {"a": 1}) / "half"

    def fail(folder):
        half.write_text("done")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        kept.step("kind", {"a": 1}, fail)
    assert not kept.has("kind", {"a": 1})
    assert [p.name for p in (tmp_path / "kind").iterdir()] == [key(a=1) + ".unfinished"]
    folder = kept.step("kind", {"a": 1}, lambda folder: write(half.read_text())(folder))
    assert (folder / "value.txt").read_text() == "done"
    assert [p.name for p in (tmp_path / "kind").iterdir()] == [key(a=1)]


def test_what_is_renamed_is_whole_and_on_the_disk(tmp_path, monkeypatch):
    calls, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: calls.append("sync") or sync(number))
    monkeypatch.setattr(os, "replace", lambda *p: calls.append("rename") or replace(*p))
    path = tmp_path / "a" / "b.txt"
    path.parent.mkdir()
    path.write_text("one")
    atomic_write(path, b"abc")
    assert calls == ["sync", "rename"]
    assert list(path.parent.iterdir()) == [path]
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sum(path) == expected
    calls.clear()
    Cache(tmp_path).step("kind", {"a": 1}, write("abcd"))
    assert calls == ["sync", "sync", "sync", "rename"], "value.txt, the parts, the sums"


SOURCE = '"""What it does."""\n\ndef f(x):\n    """One."""\n    return x + 1  # more\n'


def test_code_version_changes_with_what_code_does_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "cache.py"))

    def versions(source):
        (tmp_path / "module.py").write_text(source)
        cache._syntax_sum.cache_clear()
        return [code_version("module.py"), code_version(".")]

    first = versions(SOURCE)
    for old in ("What it does", "# more", '    """One."""\n'):
        assert versions(SOURCE.replace(old, "")) == first
    assert versions(SOURCE.replace("    return", "\n\n    return")) == first
    for old, new in {"x + 1": "x + 2", "f(x)": "f(x, y=0)", "return x": 'return "One."'}.items():
        assert not set(versions(SOURCE.replace(old, new))) & set(first)
    (tmp_path / "other.py").touch()
    assert versions(SOURCE)[1] != first[1]

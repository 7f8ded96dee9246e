import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from emilib import cache
from emilib.cache import SUMS, Cache, atomic_write, code_version, file_sum, key


@dataclasses.dataclass
class Point:
    x: int
    y: tuple = (1, 2)


def test_key_is_the_same_for_the_same_parts_in_any_order():
    assert key(a=1, b=[1, 2], c=Point(3)) == key(c=Point(3), b=(1, 2), a=1)


def test_key_changes_with_every_part():
    keys = {key(a=1), key(a=2), key(b=1), key(a="1"), key(a=Point(1)), key(a={"x": 1})}
    assert len(keys) == 6


def test_key_refuses_what_has_no_one_spelling():
    with pytest.raises(TypeError, match="plain data"):
        key(a=object())


def test_step_is_made_once(tmp_path):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "value.txt").write_text("7")

    first = Cache(tmp_path).step("kind", {"a": 1}, make)
    second = Cache(tmp_path).step("kind", {"a": 1}, make)
    assert first == second
    assert len(made) == 1
    assert (first / "value.txt").read_text() == "7"
    assert json.loads((first / "parts.json").read_text()) == {"a": 1}
    assert Cache(tmp_path).has("kind", {"a": 1})
    assert not Cache(tmp_path).has("kind", {"a": 2})


@pytest.mark.parametrize("harm", ["flip", "delete", "add", "sums"])
def test_a_spoilt_step_is_noticed_and_made_again(tmp_path, harm):
    def make(folder):
        (folder / "value.bin").write_bytes(b"abcd")

    folder = Cache(tmp_path).step("kind", {"a": 1}, make)
    if harm == "flip":
        (folder / "value.bin").write_bytes(b"abce")
    elif harm == "delete":
        (folder / "value.bin").unlink()
    elif harm == "add":
        (folder / "other").write_text("")
    else:
        (folder / SUMS).write_text("{")
    assert not Cache(tmp_path).has("kind", {"a": 1})
    again = Cache(tmp_path).step("kind", {"a": 1}, make)
    assert (again / "value.bin").read_bytes() == b"abcd"
    assert Cache(tmp_path).has("kind", {"a": 1})


def test_a_failing_step_leaves_nothing_but_its_scratch(tmp_path):
    kept = Cache(tmp_path)

    def make(folder):
        (kept.scratch("kind", {"a": 1}) / "half").write_text("done")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        kept.step("kind", {"a": 1}, make)
    assert not kept.has("kind", {"a": 1})
    assert [p.name for p in (tmp_path / "kind").iterdir()] == [key(a=1) + ".unfinished"]

    def finish(folder):
        (folder / "half").write_text((kept.scratch("kind", {"a": 1}) / "half").read_text())

    folder = kept.step("kind", {"a": 1}, finish)
    assert (folder / "half").read_text() == "done"
    assert [p.name for p in (tmp_path / "kind").iterdir()] == [key(a=1)]


def test_a_killed_step_is_not_taken_for_a_finished_one(tmp_path):
    code = textwrap.dedent(
        """
        import os, signal, sys
        from emilib.cache import Cache
        def make(folder):
            (folder / "part").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)
        Cache(sys.argv[1]).step("kind", {"a": 1}, make)
        """
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    kept = Cache(tmp_path)
    assert not kept.has("kind", {"a": 1})
    assert (kept.step("kind", {"a": 1}, lambda folder: None) / SUMS).exists()


def test_atomic_write_replaces_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "a" / "b.txt"
    atomic_write(path, "one")
    atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_file_sum_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sum(tmp_path / "x") == expected


def version_of(tmp_path, source):
    """`code_version` of a module with this source, in a package that holds cache.py and it."""
    shutil.copy(cache.__file__, tmp_path / "cache.py")
    (tmp_path / "module.py").write_text(source)
    spec = importlib.util.spec_from_file_location("copied", tmp_path / "cache.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.code_version(".") != module.code_version("cache.py")
    return module.code_version("module.py")


SOURCE = '"""What it does."""\n\ndef f(x):\n    """One."""\n    return x + 1  # more\n'


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("What it does", "Other words", True),
        ("# more", "# less", True),
        ("    return", "\n\n    return", True),
        ('    """One."""\n', "", True),
        ("x + 1", "x + 2", False),
        ("x + 1", "x - 1", False),
        ("f(x)", "f(x, y=0)", False),
        ("return x", 'return "One."', False),
    ],
)
def test_code_version_changes_with_what_code_does_alone(tmp_path, old, new, same):
    assert old in SOURCE
    version, changed = (version_of(tmp_path, s) for s in (SOURCE, SOURCE.replace(old, new)))
    assert (version == changed) is same


def test_code_version_tells_modules_apart():
    versions = [code_version(n) for n in ("cache.py", "progress.py", "features", "models")]
    assert len({*versions, code_version("features", "models")}) == 5
    assert code_version("features") == code_version("features")


def test_every_module_that_a_key_names_exists():
    root = Path(cache.__file__).parent
    for file in root.rglob("*.py"):
        for name in re.findall(r'"((?:\w+/)*\w+\.py)"', file.read_text()):
            places = (root / name, file.parent / name)  # the second: a file beside it, no key
            assert any(map(Path.is_file, places)), f"{file.name} names {name}"

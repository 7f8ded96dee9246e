"""Everything costly is kept once, under a key made from all that determines it.

A finished step is a folder. It is made under another name and renamed when complete, so a kill
at any moment leaves either the whole step or none of it; SHA-256 sums of its files stand inside,
because neither safetensors nor ``torch.load`` notices a flipped bit.

Several processes at one job (ranks), on one machine or many, as ``accelerate launch`` starts them,
share what is costly through the cache, which lies on a disk they all see. Divisible work is dealt
out by `share`; indivisible steps run on rank 0, and the others wait for the cached result. Nothing
is sent, so no rank runs into a timeout and no order of messages matters.
"""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

SUMS = "SHA256SUMS.json"
RANK_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
Item = TypeVar("Item")
_single = False


def world_size() -> int:
    """How many processes share the work; 1 where nothing started several."""
    return 1 if _single else int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """The number of this process, from 0."""
    return 0 if world_size() == 1 else int(os.environ["RANK"])


def is_main() -> bool:
    """True on the process that logs, within `single_process` too."""
    return int(os.environ.get("RANK") or 0) == 0


def local_rank() -> int:
    """The number of this process among those of this machine."""
    return int(os.environ.get("LOCAL_RANK") or 0)


def local_world_size() -> int:
    """How many of the processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This rank's part of `items`: every world_size-th, from its number on."""
    return items[rank() :: world_size()]


@contextlib.contextmanager
def single_process() -> Iterator[None]:
    """Within this block the process works without the others: a world of one."""
    global _single
    before, _single = _single, True
    try:
        yield
    finally:
        _single = before


def in_single_process() -> bool:
    """Whether this is within `single_process`."""
    return _single


def wait_until(condition: Callable[[], bool], pause: float = 0.2) -> None:
    """Wait for what another rank makes. If that one fails, the launcher ends them all."""
    while not condition():
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def canonical(value):
    """`value` as plain JSON data with one spelling; raises TypeError for what has none."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: canonical(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"__class__": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {str(k): canonical(value[k]) for k in sorted(value, key=str)}
    if isinstance(value, (list, tuple)):
        return [canonical(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(canonical(v) for v in value)
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if hasattr(value, "item"):  # a NumPy scalar
        return value.item()
    raise TypeError(f"expected plain data for a key, got {type(value).__name__} {value!r:.80}")


def key(**parts) -> str:
    """Hex digest (32 digits) of the named parts; equal parts give equal keys."""
    text = json.dumps(canonical(parts), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_sum(path) -> str:
    """SHA-256 of a file, hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def code_version(*modules: str) -> str:
    """Hex digest of what modules or packages of this project do, named below ``emilib``.

    ``code_version("models", "training/loop.py")`` changes when any of these files does, so that
    results of older code are not taken for those of the present one. It is made from the syntax
    trees: comments, docstrings and layout do not count.
    """
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for name in modules:
        path = root / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            tree = _syntax_digest(file, file.stat().st_mtime_ns)
            digest.update(f"{file.relative_to(root)}\0{tree}\0".encode())
    return digest.hexdigest()[:32]


@functools.cache
def _syntax_digest(file: Path, modified: int) -> str:
    tree = ast.parse(file.read_bytes())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def atomic_write(path, content: str | bytes) -> None:
    """Write `content` so that a reader finds the old file or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


def _sums(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != SUMS)
    return {p.relative_to(folder).as_posix(): file_sum(p) for p in files}


class Cache:
    """Finished steps below `root`, as ``root/kind/key``."""

    def __init__(self, root):
        self.root = Path(root)
        self._checked: set[Path] = set()

    def folder(self, kind: str, key_: str) -> Path:
        """Where the step of this kind and key lies, or would lie."""
        return self.root / kind / key_

    def has(self, kind: str, parts: dict) -> bool:
        """Whether the step is finished and its files are what was written."""
        return self._intact(self.folder(kind, key(**parts)))

    def exists(self, kind: str, parts: dict) -> bool:
        """Whether the step is finished, without reading its files."""
        return (self.folder(kind, key(**parts)) / SUMS).exists()

    def size_gb(self) -> float:
        """GB (10^9 bytes) of all that is kept, what is unfinished included."""
        return sum(p.stat().st_size for p in self.root.rglob("*") if p.is_file()) / 1e9

    def scratch(self, kind: str, parts: dict) -> Path:
        """A folder for what an unfinished step keeps in case it is killed; removed on success."""
        folder = self.root / kind / f"{key(**parts)}.unfinished"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def step(self, kind: str, parts: dict, make: Callable[[Path], None]) -> Path:
        """The finished folder of a step; ``make(folder)`` fills it when it is not there.

        A folder whose files do not match their sums is made again. Two processes may ask at
        once: both make the step, the first to finish is kept.
        """
        digest = key(**parts)
        final = self.folder(kind, digest)
        if self._intact(final):
            return final
        if final.exists():
            shutil.rmtree(final)
        temporary = self.root / kind / f".{digest}.{uuid.uuid4().hex[:8]}"
        temporary.mkdir(parents=True)
        try:
            make(temporary)
            parts_text = json.dumps(canonical(parts), indent=1, sort_keys=True, ensure_ascii=False)
            (temporary / "parts.json").write_text(parts_text, encoding="utf-8")
            (temporary / SUMS).write_text(json.dumps(_sums(temporary), indent=1))
            try:
                os.replace(temporary, final)
            except OSError:
                if not self._intact(final):  # not the other process's finished folder
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(self.root / kind / f"{digest}.unfinished", ignore_errors=True)
        self._checked.add(final)
        return final

    def shared_step(self, kind: str, parts: dict, make: Callable[[Path], None]) -> Path:
        """`step` on rank 0; the other ranks wait for the result."""
        if rank() != 0:
            wait_until(lambda: self.has(kind, parts))
        return self.step(kind, parts, make)

    def sweep(self) -> list[Path]:
        """Remove what killed processes left half made; returns what was removed."""
        removed = [p for p in self.root.glob("*/.*") if p.is_dir()]
        for path in removed:
            shutil.rmtree(path, ignore_errors=True)
        return removed

    def _intact(self, folder: Path) -> bool:
        if folder in self._checked and folder.exists():
            return True
        try:
            expected = json.loads((folder / SUMS).read_text())
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return False
        if _sums(folder) != expected:
            return False
        self._checked.add(folder)
        return True

"""Everything costly is kept once, under a key made from all that determines it.

A finished step is a folder. It is made under another name and renamed when complete, so a kill
leaves the whole step or none of it; SHA-256 sums of its files stand inside, because neither
safetensors nor ``torch.load`` notices a flipped bit. Of two runs that want a step the second
waits for the first.

Several processes at one job (ranks), as ``accelerate launch`` starts them, share what is costly
through the cache: divisible work is dealt out by `share`, other steps run on rank 0.
"""

import ast
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

SUMS = "SHA256SUMS.json"
RANK_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
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


def share(items: Sequence) -> Sequence:
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


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what another rank makes. If that one fails, the launcher ends them all."""
    while not condition():
        time.sleep(0.5)


def _plain(value):
    if dataclasses.is_dataclass(value):
        return {"__class__": type(value).__name__, **vars(value)}
    if hasattr(value, "item"):  # a NumPy scalar
        return value.item()
    raise TypeError(f"expected plain data for a key, got {type(value).__name__} {value!r:.80}")


def _text(parts: dict) -> str:
    return json.dumps(parts, sort_keys=True, ensure_ascii=False, default=_plain)


def key(**parts) -> str:
    """Hex digest (32 digits) of the named parts; equal parts give equal keys."""
    return hashlib.sha256(_text(parts).encode()).hexdigest()[:32]


def file_sum(path) -> str:
    """SHA-256 of a file, hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def code_version(*modules: str) -> str:
    """Hex digest of modules or packages below ``emilib``: ``code_version("training/loop.py")``.
    It changes with what they do; comments, docstrings and layout do not count."""
    root = Path(__file__).parent
    paths = [root / name for name in modules]
    files = [f for p in paths for f in (sorted(p.rglob("*.py")) if p.is_dir() else [p])]
    return key(files=[[f.relative_to(root).as_posix(), _syntax_sum(f)] for f in files])


@functools.cache
def _syntax_sum(file: Path) -> str:
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node) is not None:
            del node.body[0]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def atomic_write(path, content: str | bytes) -> None:
    """Write `content` so that a reader finds the old file or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path.name))
    try:
        with open(temporary, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(name: str) -> str:
    """Of what is not finished yet, and says whose it is, for `sweep`."""
    return f".{name}.{uuid.uuid4().hex[:8]}.{os.getpid()}@{HOST}"


def sweep(*folders) -> None:
    """Remove from folders what processes that were killed on this machine left unfinished."""
    for path in (path for folder in folders for path in Path(folder).glob(f".*@{HOST}")):
        pid = path.name.rpartition("@")[0].rpartition(".")[2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):  # gone by now, or another user's
                path.unlink()


@contextlib.contextmanager
def locked(path) -> Iterator[None]:
    """One process at a time is in this block, the others wait; who dies is out of it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as stream:
        with contextlib.suppress(OSError):  # a disk that has no locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _sums(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != SUMS)
    return {p.relative_to(folder).as_posix(): file_sum(p) for p in files}


class Cache:
    """Finished steps below `root`, as ``root/kind/key of its parts``."""

    def __init__(self, root):
        self.root = Path(root)
        self._checked: set[Path] = set()

    def folder(self, kind: str, parts: dict) -> Path:
        """Where the step lies, or would lie."""
        return self.root / kind / key(**parts)

    def exists(self, kind: str, parts: dict) -> bool:
        """Whether the step is finished, without reading its files."""
        return (self.folder(kind, parts) / SUMS).exists()

    def has(self, kind: str, parts: dict) -> bool:
        """Whether the step is finished and its files are what was written."""
        folder = self.folder(kind, parts)
        if folder not in self._checked:
            with contextlib.suppress(OSError, ValueError):  # not JSON, not UTF-8
                if json.loads((folder / SUMS).read_text()) == _sums(folder):
                    self._checked.add(folder)
        return folder in self._checked and folder.exists()

    def scratch(self, kind: str, parts: dict) -> Path:
        """A folder for what an unfinished step keeps in case it is killed; removed on success."""
        folder = self.folder(kind, parts).with_suffix(".unfinished")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def step(self, kind: str, parts: dict, make: Callable[[Path], None]) -> Path:
        """The finished folder of a step; ``make(folder)`` fills it where missing or spoilt."""
        final, lock = self.folder(kind, parts), self.root / ".locks" / f"{kind}-{key(**parts)}"
        if not self.has(kind, parts):
            # Ranks make some steps together.
            with locked(lock) if world_size() == 1 else contextlib.nullcontext():
                if not self.has(kind, parts):
                    self._make(final, parts, make)
        return final

    def _make(self, final: Path, parts: dict, make: Callable[[Path], None]) -> None:
        shutil.rmtree(final, ignore_errors=True)
        temporary = final.with_name(temporary_name(final.name))
        temporary.mkdir(parents=True)
        try:
            make(temporary)
            (temporary / "parts.json").write_text(_text(parts), encoding="utf-8")
            (temporary / SUMS).write_text(json.dumps(_sums(temporary)))
            for path in filter(Path.is_file, temporary.rglob("*")):
                with open(path, "rb") as stream:
                    os.fsync(stream.fileno())
            try:
                os.replace(temporary, final)
            except OSError:
                if not final.exists():  # else another process was first: its folder stays
                    raise
            self._checked.add(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(final.with_suffix(".unfinished"), ignore_errors=True)

    def shared_step(self, kind: str, parts: dict, make: Callable[[Path], None]) -> Path:
        """`step` on rank 0; the other ranks wait for the result."""
        if rank() != 0:
            wait_until(lambda: self.has(kind, parts))
        return self.step(kind, parts, make)

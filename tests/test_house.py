"""The house: who may import whom, read from every import statement, also those in functions."""

import ast
from pathlib import Path

import pytest

EMILIB = Path(__file__).resolve().parent.parent / "emilib"
LIMIT = 420  # lines of a module, so that each can be read in one sitting
MAY_IMPORT = {  # package or top-level module -> packages and modules of this project
    "models": {"models"},
    "features": {"features", "models.inputs", "cache", "progress", "workers"},
    "corpus": {"corpus", "cache", "progress", "workers"},
    "synthetic": {"synthetic", "corpus", "cache", "progress", "workers"},
    "training": {"training", "models.inputs", "models.contrastive", "features", "cache"}
    | {"progress", "workers", "metrics"},
    "predict": {"predict", "models", "features", "corpus.media", "training.loop", "plots"}
    | {"cache", "progress", "workers"},
    "plots": {"plots", "cache"},  # cache.atomic_write keeps a figure
    "study": {"study", "training", "models", "features", "corpus", "cache", "progress", "workers"}
    | {"metrics"},  # which training uses as well, so it stands beside the rooms
}
MAY_NOT_LOAD = {"corpus": {"torch", "transformers", "whisper"}, "plots": {"torch"}}
# May be imported inside a function; papermill, because a run that finds all notebooks up to date
# needs none of it.
LATE = {"torch", "transformers", "whisper", "accelerate", "papermill"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(EMILIB.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(EMILIB.rglob("*.py"))}


def imports(name: str):
    """(imported module, whether inside a function) of every import in a module."""
    tree = ast.parse(MODULES[name].read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                full = f"{source}.{alias.name}"
                yield full if full in MODULES else source, id(node) in inside


def own(name: str):
    return [(target, late) for target, late in imports(name) if target.startswith("emilib.")]


def allowed(room: str, target: str) -> bool:
    return any(target == name or target.startswith(f"{name}.") for name in MAY_IMPORT[room])


@pytest.mark.parametrize("name", MODULES)
def test_imports_only_what_its_room_may(name):
    room = name.split(".")[1] if name.count(".") else ""
    if room not in MAY_IMPORT:
        return
    wrong = {t for t, _ in own(name) if not allowed(room, t.removeprefix("emilib."))}
    wrong |= {t for t, _ in imports(name) if t.split(".")[0] in MAY_NOT_LOAD.get(room, ())}
    assert not wrong, f"{name} may not import {sorted(wrong)}"


@pytest.mark.parametrize("name", MODULES)
def test_imports_stand_at_the_top(name):
    """But those that keep slow packages, or what needs them, out of `import emilib` and --help."""
    if name == "emilib.__main__":  # a command imports what it runs: --help answers at once
        return
    late = {target for target, inside in imports(name) if inside}
    wrong = {t for t in late if t.split(".")[0] not in LATE and not needs_slow(t)}
    assert not wrong, f"{name} imports {sorted(wrong)} inside a function"


def needs_slow(name: str, seen: frozenset = frozenset()) -> bool:
    """Whether importing a module of this project loads torch, transformers or whisper."""
    if name.split(".")[0] in LATE:
        return True
    if name not in MODULES or name in seen:
        return False
    return any(needs_slow(t, seen | {name}) for t, inside in imports(name) if not inside)


def test_no_circle():
    """Packages form no circle either: a module stands for its package."""
    edges: dict[str, set[str]] = {}
    for name in MODULES:
        for target, _ in own(name):
            edges.setdefault(name, set()).add(target)
    done: set[str] = set()

    def walk(node: str, path: tuple[str, ...]) -> None:
        assert node not in path, " -> ".join((*path[path.index(node) :], node))
        if node in done:
            return
        for target in sorted(edges.get(node, ())):
            if target != node:
                walk(target, (*path, node))
        done.add(node)

    for name in MODULES:
        walk(name, ())


@pytest.mark.parametrize("name", MODULES)
def test_a_module_can_be_read_in_one_sitting(name):
    lines = len(MODULES[name].read_text().splitlines())
    assert lines <= LIMIT, f"{name} has {lines} lines, {LIMIT} at most"

"""The house: who may import whom, read from every import statement, also those in functions."""

import ast
import graphlib
from pathlib import Path

EMILIB = Path(__file__).resolve().parent.parent / "emilib"
LIMIT = 420  # lines of a module, so that each can be read in one sitting
MAY_IMPORT = {  # package or top-level module -> packages and modules of this project
    "models": {"models"},
    "features": {"features", "models.inputs", "cache", "progress", "workers"},
    "corpus": {"corpus", "cache", "progress", "workers"},
    "synthetic": {"synthetic", "corpus", "cache", "progress", "workers"},
    "training": {"training", "models.inputs", "models.contrastive", "features", "cache"}
    | {"progress", "workers", "metrics"},
    "predict": {"predict", "models", "features", "corpus.media", "corpus.faces", "training.loop"}
    | {"plots", "cache", "progress", "workers"},
    "plots": {"plots", "cache"},  # cache.atomic_write keeps a figure
    "study": {"study", "training", "models", "features", "corpus", "cache", "progress", "workers"}
    | {"metrics"},  # which training uses as well, so it stands beside the rooms
}
MAY_NOT_LOAD = {"corpus": {"torch", "transformers", "whisper"}, "plots": {"torch"}}
# May be imported inside a function, and what needs them too; papermill, because a run that finds
# all notebooks up to date needs none of it, numba and scipy to draw the embedded corpus,
# scikit-learn because a prediction needs none.
LATE = {"torch", "transformers", "whisper", "accelerate", "papermill", "numba", "scipy", "sklearn"}


MODULES = {
    ".".join(p.relative_to(EMILIB.parent).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted(EMILIB.rglob("*.py"))
}


def imports(name: str):
    """(imported module, whether inside a function) of every import in a module."""
    tree = ast.parse(MODULES[name].read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    late = {id(n) for f in ast.walk(tree) if isinstance(f, functions) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in late
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: expected absolute imports"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module, id(node) in late


IMPORTS = {name: set(imports(name)) for name in MODULES}


def test_each_room_imports_only_what_it_may_and_at_the_top():
    for name in MODULES:
        room = f"{name}.".split(".")[1]
        allowed = tuple(f"emilib.{other}." for other in MAY_IMPORT.get(room, ()))
        for target, _ in IMPORTS[name] if allowed else ():
            own = f"{target}.".startswith(allowed) or not target.startswith("emilib.")
            assert own, f"{name} may not import {target}"
            assert target.split(".")[0] not in MAY_NOT_LOAD.get(room, ()), (name, target)
    for name in MODULES:
        late = {t for t, inside in IMPORTS[name] if inside and not needs_slow(t)}
        # A command imports what it runs: --help answers at once.
        assert not late or name == "emilib.__main__", f"{name} imports {late} inside a function"


def needs_slow(name: str, seen: frozenset = frozenset()) -> bool:
    """Whether importing a module loads one of LATE."""
    targets = [] if name in seen else [t for t, inside in IMPORTS.get(name, ()) if not inside]
    return name.split(".")[0] in LATE or any(needs_slow(t, seen | {name}) for t in targets)


def test_modules_form_no_circle_and_can_be_read_in_one_sitting():
    """Not even by an import inside a function; packages form none either."""
    graph = {n: {t for t, _ in IMPORTS[n] if t in MODULES and t != n} for n in MODULES}
    tuple(graphlib.TopologicalSorter(graph).static_order())
    for name, path in MODULES.items():
        assert len(path.read_text().splitlines()) <= LIMIT, name

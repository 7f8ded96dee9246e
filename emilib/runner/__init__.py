"""Runs the notebooks in order, shows how it goes, keeps what is finished.

    python -m emilib.runner --profile smoke [--corpus DIR] [--only 03] [--fresh]

A notebook is executed by papermill into ``runs/<profile>/notebooks`` under another name and
renamed when complete, because papermill does not write atomically. The executed copy holds the
key of all that it was made from; while that key stands, the notebook is not executed again.
"""

import argparse
import ast
import copy
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import nbformat
import psutil

from emilib import cache, environment

ROOT = environment.ROOT
PROFILES = ("smoke", "embedded", "paper")
INJECTED = "injected-parameters"  # papermill's tag of the cell that sets the parameters
QUIET_S = 30.0  # after so long without a line, say that it still runs
TABLE = re.compile(r"^(?:table[_-]?)?(?P<name>[AB]\d)\b.*\.(?:txt|md)$", re.IGNORECASE)


class NotebookFailed(RuntimeError):
    """One sentence: which notebook, which cell, which error, where the executed copy lies."""


def discover(folder, only: str | None = None) -> list[Path]:
    """The notebooks ``NN_name.ipynb`` of a folder by number, or the one whose number is `only`."""
    folder = Path(folder)
    found = sorted(p for p in folder.glob("*.ipynb") if re.match(r"\d\d_", p.name))
    if only is not None:
        found = [p for p in found if p.name.split("_")[0] == only.zfill(2)]
    if not found:
        which = "notebooks" if only is None else f"notebook {only}"
        raise ValueError(f"There is no {which} named NN_name.ipynb in {folder}.")
    return found


def keys(paths: Iterable[Path], **parts) -> dict[Path, str]:
    """The key of each notebook: its cells, `parts`, and the keys of the notebooks before it."""
    made, previous = {}, ""
    for path in paths:
        cells = [(c.cell_type, c.source) for c in _read(path).cells]
        previous = made[path] = cache.key(cells=cells, parts=parts, previous=previous)
    return made


def parameters_of(notebook) -> set[str]:
    """Names assigned in the cells tagged ``parameters``."""
    names = set()
    for cell in notebook.cells:
        if "parameters" in _tags(cell):
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    names.add(node.id)
    return names


def up_to_date(executed: Path, key: str, figures: Path | None = None) -> bool:
    """Whether an executed copy has this key and the figures it wrote are still there."""
    try:
        made = _read(executed).metadata.get("emi", {})
    except (FileNotFoundError, nbformat.reader.NotJSONError):
        return False
    there = figures is None or all((figures / name).exists() for name in made.get("figures", []))
    return made.get("key") == key and there


def run_notebooks(paths, out, parameters: dict, made_from: dict[Path, str], figures=None) -> None:
    """Execute notebooks in order into the folder `out`; those that are up to date are skipped.

    paths : notebooks to execute; each one's folder is its working directory
    parameters : values by name; a notebook gets those that its parameters cell defines
    made_from : the key of each notebook, from `keys`
    figures : folder whose files a notebook makes; one that lost such a file is executed again

    Raises NotebookFailed; the notebooks before the failing one stay finished.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(paths, 1):
        label = f"[{number}/{len(paths)}] {path.stem} …"
        executed = out / path.name
        if up_to_date(executed, made_from[path], figures):
            _say(f"{label} up to date")
            continue
        _say(label)
        started = time.time()
        result = _execute(path, out, parameters, label)
        written = [] if figures is None else _written_since(figures, started)
        result.metadata["emi"] = {"key": made_from[path], "figures": written}
        cache.atomic_write(executed, nbformat.writes(result))
        _failed_copy(executed).unlink(missing_ok=True)
        _say(f"{label} done, {time.time() - started:.0f} s")


def cleaned(source, executed):
    """The notebook `source` with the outputs of its executed copy, fit to be committed.

    The cell that papermill injected, times, stderr, widgets and paths of this machine are gone;
    cells are counted 1, 2, 3, and what was printed in pieces is one. Raises ValueError when the
    two are not the same notebook.
    """
    result = copy.deepcopy(source)
    run = [cell for cell in executed.cells if INJECTED not in _tags(cell)]
    if [c.source for c in run] != [c.source for c in result.cells]:
        raise ValueError("The executed copy is of an older version of this notebook: run it again.")
    count = 0
    for cell, twin in zip(result.cells, run, strict=True):
        cell.metadata = nbformat.from_dict({"tags": tags} if (tags := _tags(cell)) else {})
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        said = [_clean_output(o, count) for o in twin.outputs if o.get("name") != "stderr"]
        cell.outputs = _joined(said)
    result.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    return result


def _clean_output(output, count: int):
    output = copy.deepcopy(output)
    if "execution_count" in output:
        output.execution_count = count
    if "text" in output:
        output.text = _without_paths(output.text)
    for kind, value in output.get("data", {}).items():
        if isinstance(value, str) and not kind.startswith("image/"):
            output.data[kind] = _without_paths(value)
    output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return output


def _joined(outputs: list) -> list:
    """What was printed in one go as one output: where a kernel cuts it is a matter of time."""
    result: list = []
    for output in outputs:
        if result and output.output_type == result[-1].output_type == "stream":
            result[-1].text += output.text
        else:
            result.append(output)
    return result


def _without_paths(text: str) -> str:
    return text.replace(f"{ROOT}{os.sep}", "").replace(str(ROOT), ".")


def update_notebooks(folder, out) -> list[Path]:
    """Write the outputs of the executed copies in `out` into the notebooks of `folder`."""
    changed = []
    for path in discover(folder):
        text = nbformat.writes(cleaned(_read(path), _read(Path(out) / path.name))) + "\n"
        if text != path.read_text(encoding="utf-8"):
            cache.atomic_write(path, text)
            changed.append(path)
    return changed


# ------------------------------------------------------------------ one notebook


def _execute(path: Path, out: Path, parameters: dict, label: str):
    """The executed notebook; papermill works in a thread so that this one can be interrupted."""
    import papermill
    from traitlets.config import Config

    notebook = _read(path)
    given = {k: v for k, v in parameters.items() if k in parameters_of(notebook)}
    running = out / f".{path.stem}.running.ipynb"
    outcome = {}

    def work():
        try:
            outcome["notebook"] = papermill.execute_notebook(
                notebook,
                str(running).replace("{", "{{").replace("}", "}}"),  # papermill formats paths
                parameters=given,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                config=Config(KernelManager=sockets),
                cwd=str(path.parent),
                # Kernels are interrupted before they are asked to end, and would say so.
                extra_arguments=["--IPKernelApp.log_level=50"],
            )
        except Exception as error:
            outcome["error"] = error

    with tempfile.TemporaryDirectory(prefix="emi-") as folder:
        progress = Path(folder) / "progress"
        os.environ["EMI_PROGRESS"] = str(progress)  # the kernel inherits it
        sockets = {"transport": "ipc", "ip": f"{folder}/kernel"}  # no open TCP ports
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            _follow(thread, progress, label)
        except KeyboardInterrupt:
            _end_children()
            thread.join(timeout=10)
            raise
        finally:
            del os.environ["EMI_PROGRESS"]
    if "error" in outcome:
        raise _failure(path, running, outcome["error"]) from outcome["error"]
    running.unlink(missing_ok=True)
    return outcome["notebook"]


def _follow(thread: threading.Thread, progress: Path, label: str) -> None:
    """Show the lines appended to `progress` until the thread ends."""
    start = spoke = time.monotonic()
    shown = 0
    while alive := thread.is_alive():
        thread.join(timeout=0.3)
        text = progress.read_bytes() if progress.exists() else b""
        complete = text[: text.rfind(b"\n") + 1]
        now = time.monotonic()
        for line in complete[shown:].decode(errors="replace").splitlines():
            _say(f"{label} {now - start:.0f} s  {line}")
            spoke = now
        shown = len(complete)
        if alive and now - spoke >= QUIET_S:
            _say(f"{label} {now - start:.0f} s")
            spoke = now


def _end_children() -> None:
    """Kill the kernel and its workers; every step they write is complete or absent."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(children, timeout=5)


def _failure(path: Path, running: Path, error: Exception) -> NotebookFailed:
    """The sentence for an error of papermill; the executed part is kept beside the good copies."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    where = path.name
    if running.exists():
        cell, line = _stopped_at(_read(running))
        where = f"{path.name}, cell {cell} ({line})" if cell else path.name
        kept = _failed_copy(running.with_name(path.name))
        os.replace(running, kept)
        copy_text = f" The executed copy is {kept}."
    else:
        copy_text = ""
    if isinstance(error, papermill.PapermillExecutionError):
        what = f"{error.ename}: {_first_line(error.evalue, 300)}"
        return NotebookFailed(f"{where} failed with {what.rstrip('.')}.{copy_text}")
    if isinstance(error, DeadKernelError) or "Kernel died" in str(error):
        why = "its Python process ended by itself; most often the machine had no memory left"
        return NotebookFailed(f"{where} failed: {why}.{copy_text}")
    what = f"{type(error).__name__}: {_first_line(str(error), 300)}"
    return NotebookFailed(f"{where} could not be executed: {what.rstrip('.')}.{copy_text}")


def _stopped_at(notebook) -> tuple[int, str]:
    """Number (from 1, as in the source) and first line of the last cell that was started."""
    added = {INJECTED, "papermill-error-cell-tag"}
    cells = [cell for cell in notebook.cells if not added & set(_tags(cell))]
    stopped = (0, "")
    for number, cell in enumerate(cells, 1):
        started = cell.metadata.get("papermill", {}).get("start_time")
        if cell.cell_type == "code" and started:
            stopped = (number, _first_line(cell.source, 80))
    return stopped


def _failed_copy(executed: Path) -> Path:
    return executed.with_name(f"{executed.stem}.failed.ipynb")


def _first_line(text: str, length: int) -> str:
    lines = text.strip().splitlines() or [""]
    return lines[0] if len(lines[0]) <= length else f"{lines[0][: length - 1]}…"


def _read(path: Path):
    return nbformat.read(path, as_version=4)


def _tags(cell) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _written_since(folder: Path, moment: float) -> list[str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    # A file system may count in whole seconds.
    return [p.relative_to(folder).as_posix() for p in files if p.stat().st_mtime >= moment - 1]


def _say(text: str) -> None:
    print(text, flush=True)


# ------------------------------------------------------------------ the whole run


def home_folder() -> Path:
    """Where generated things live: EMI_HOME, or ``runs`` beside the package."""
    return Path(os.environ.get("EMI_HOME") or ROOT / "runs").absolute()


def remove_results(home: Path, profile: str) -> list[Path]:
    """Remove what this profile made below `home`; returns the folders that were removed."""
    removed = [folder for folder in (home / profile,) if folder.exists()]
    for folder in removed:
        shutil.rmtree(folder)
    return removed


def _corpus_state(corpus: str | None) -> list:
    """Path and state of a corpus folder's CSVs; ValueError when it has none."""
    if corpus is None:
        return []
    tables = [Path(corpus)] if Path(corpus).is_file() else sorted(Path(corpus).glob("*.csv"))
    if not tables:
        raise ValueError(
            f"The corpus folder {corpus} has no CSV: expected train_split.csv and valid_split.csv, "
            "or one of your own."
        )
    stats = [(path.name, path.stat()) for path in tables]
    return [corpus, *[(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]]


def _print_tables(figures: Path) -> None:
    """Print every table A1 to B4 that lies in the figures' folder, the plainest form of each."""
    found: dict[str, Path] = {}
    for path in sorted(figures.rglob("*"), key=lambda p: (p.suffix != ".txt", p.name)):
        if match := TABLE.match(path.name):
            found.setdefault(match["name"].upper(), path)
    for name in sorted(found):
        _say(f"\n{found[name].read_text(encoding='utf-8').rstrip()}")


def _run(options) -> int:
    os.environ.setdefault("PYTHONPATH", str(ROOT))  # the kernels import emilib too
    from emilib.corpus import defects
    from emilib.pipeline import Workspace

    for note in defects.before_a_run(options.corpus) if options.corpus else ():
        _say(note)
    home, notebooks = home_folder(), ROOT / "notebooks"
    if options.fresh and not options.dry_run:
        removed = remove_results(home, options.profile)
        _say(f"Removed: {', '.join(map(str, removed)) or 'nothing, there were no results'}.")
    workspace = Workspace(options.profile, corpus=options.corpus)
    figures = workspace.figures
    environment.require_room(home)
    made_from = keys(
        discover(notebooks),
        package=cache.code_version("."),
        dependencies=environment.dependencies(),
        python=sys.version,
        profile=workspace.profile,
        corpus=_corpus_state(options.corpus),
    )
    out = home / options.profile / "notebooks"
    parameters = {"profile": options.profile, "corpus": options.corpus}
    if options.dry_run:
        return _print_plan(workspace, discover(notebooks, options.only), out, made_from, figures)
    start = time.monotonic()
    if workspace.profile.corpus_size is None:
        _say(f"What all of it takes, of which nothing finished is made again:\n{workspace.needs()}")
    workspace.require()
    if options.processes > 1:
        _share_work(options)
    run_notebooks(discover(notebooks, options.only), out, parameters, made_from, figures)
    if options.update_notebooks:
        changed = update_notebooks(notebooks, out)
        _say(f"Notebooks with new outputs: {', '.join(p.name for p in changed) or 'none'}.")
    if options.only is None:
        _print_tables(figures)
    models = out.parent / "cache" / "result"
    _say(f"\nNotebooks: {out}\nFigures:   {figures}\nModels:    {models}, a folder for each run")
    _say(f"Finished in {time.monotonic() - start:.0f} s.")
    return 0


def _print_plan(workspace, paths, out: Path, made_from, figures: Path) -> int:
    """Say what would run, and make nothing."""
    _say(f"{workspace.profile.name} on {workspace.place}: nothing is made, this is what would be.")
    for path in paths:
        state = "up to date" if up_to_date(out / path.name, made_from[path], figures) else "runs"
        _say(f"  {path.stem:32s}{state}")
    _say("Steps that they ask for, and how much of each is kept already:")
    for row in workspace.steps().itertuples(index=False):
        _say(f"  {row.step:32s}{row.done} of {row.all}")
    if workspace.profile.corpus_size is None:
        _say(f"What all of it takes:\n{workspace.needs()}")
    workspace.require()
    return 0


def _share_work(options) -> None:
    """Everything costly by several processes; the notebooks then find it made."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={options.processes}", "-m", "emilib", "run"]
    command += ["--profile", options.profile]
    command += ["--corpus", options.corpus] if options.corpus else []
    _say(f"All training by {options.processes} processes …")
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise ValueError(
            f"one of the {options.processes} processes failed (see above); what is finished is "
            "kept, the same command goes on from there"
        )


def unfinished_rows(figures) -> list[str]:
    """Rows of the tables in a folder that lack a number."""
    import pandas as pd

    from emilib.study import claims, tables

    frames = {}
    for path in sorted(Path(figures).rglob("*.csv")):
        if path.stem in claims.TABLES:
            frames[path.stem] = pd.read_csv(path)
    return tables.complete(frames)


def _check(options) -> int:
    from emilib.pipeline import Workspace

    figures = Workspace(options.profile, corpus=options.corpus).figures
    bad = unfinished_rows(figures)
    for row in bad:
        _say(f"without a number: {row}")
    if bad:
        raise ValueError(f"{len(bad)} rows of the tables in {figures} have no number.")
    _say(f"Every row of the tables in {figures} has its number.")
    return 0


def _options(arguments):
    parser = argparse.ArgumentParser(prog="emilib.runner", description=__doc__.split("\n")[0])
    parser.add_argument("--profile", choices=PROFILES, default="embedded")
    parser.add_argument(
        "--corpus",
        metavar="DIR",
        default=os.environ.get("EMI_CORPUS") or None,
        help="a corpus folder; default: EMI_CORPUS, or else the embedded corpus",
    )
    parser.add_argument(
        "--visual", choices=("faces", "video"), help="face crops or whole frames, as frames"
    )
    parser.add_argument("--seeds", metavar="N", help="seeds a row, in place of the profile's")
    parser.add_argument("--processes", metavar="N", type=int, default=1, help="that train at once")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, make nothing")
    parser.add_argument("--only", metavar="NN", help="the number of one notebook")
    parser.add_argument("--fresh", action="store_true", help="remove this profile's results first")
    parser.add_argument("--check", action="store_true", help="are the tables complete?")
    parser.add_argument(
        "--update-notebooks",
        action="store_true",
        help="then write the embedded profile's outputs into notebooks/",
    )
    options = parser.parse_args(arguments)
    if options.corpus is not None:
        options.corpus = str(Path(options.corpus).absolute())
    for name in ("visual", "seeds"):  # the notebooks' kernels read them there
        if getattr(options, name) is not None:
            os.environ[f"EMI_{name.upper()}"] = getattr(options, name)
    changed = options.corpus or os.environ.get("EMI_VISUAL") or os.environ.get("EMI_SEEDS")
    if options.update_notebooks and (options.profile != "embedded" or changed):
        parser.error("--update-notebooks takes the embedded profile as it is, without --corpus.")
    return options


def main(arguments=None) -> int:
    options = _options(arguments)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # errors become one sentence
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _check(options) if options.check else _run(options)
    except (NotebookFailed, ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: what is finished is kept, the same command goes on.", file=sys.stderr)
        return 130

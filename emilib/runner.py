"""Runs the notebooks in order, shows progress, keeps what is finished.

    python -m emilib.runner --profile smoke [--corpus DIR] [--features FILE] [--only 03] [--fresh]

Papermill executes a notebook into ``runs/<profile>/notebooks`` under another name; it is renamed
when complete, because papermill does not write atomically. The executed copy holds the key of all
that it was made from; while that key stands, the notebook is not executed again. At the end, also
at a bad one, all executed copies become ``runs/<profile>/book.html``.
"""

import argparse
import contextlib
import functools
import json
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
from collections.abc import Iterable, Sequence
from pathlib import Path

import nbformat
import pandas as pd
from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor
from traitlets.config import Config

from emilib import book, cache, environment, profiles
from emilib.corpus import feature_files
from emilib.corpus import read as read_corpus

ROOT = environment.ROOT
QUIET_S = 30.0  # after so long without a line, say that it still runs
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
OF_FEATURES = ("04", "05", "06", "07")  # the notebooks that a feature file goes through
FULL = re.compile("No space left|quota exceeded|File too large", re.I)
MEDIA_TAG, SKIP_TAG = "media", "skip-execution"  # of cells that read media; nbclient's
NO_MEDIA = "This cell reads media, and a feature file has none. Below: the embedded corpus.\n"
METADATA = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
say = functools.partial(print, flush=True)


class NotebookFailed(RuntimeError):
    """One sentence: which notebook, which cell, which error, where the executed copy lies."""


def discover(folder, only: str | None = None) -> list[Path]:
    """The notebooks ``NN_name.ipynb`` of a folder by number, or the one whose number is `only`."""
    number = "[0-9][0-9]" if only is None else only.zfill(2)
    paths = sorted(Path(folder).glob(f"{number}_*.ipynb"))
    if not paths:
        raise ValueError(f"There is no notebook named {only or 'NN'}_name.ipynb in {folder}.")
    return paths


def keys(paths: Iterable[Path], **parts) -> dict[Path, str]:
    """The key of each notebook: its cells, `parts`, and the keys of the notebooks before it."""
    result, previous = {}, ""
    for path in paths:
        try:
            cells = [(cell.cell_type, cell.source) for cell in nbformat.read(path, 4).cells]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            got = f"expected a notebook, got {str(error).splitlines()[0][:100]}"
            raise ValueError(f"{path}: {got}; restore it: git checkout -- {path}") from error
        previous = result[path] = cache.key(cells=cells, parts=parts, previous=previous)
    return result


def sums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 by name of those files of a folder that exist."""
    return {name: cache.file_sum(folder / name) for name in names if (folder / name).is_file()}


def up_to_date(executed: Path, key: str, figures: Path | None = None) -> bool:
    """Whether an executed copy has this key, and it and its figures are as they were written."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        notebook = json.loads(executed.read_bytes())
        record = notebook["metadata"]["emi"]
        intact = record.pop("sum") == cache.key(**notebook) and record["key"] == key
        return intact and (not figures or sums(figures, record["figures"]) == record["figures"])
    return False


def run_notebooks(
    paths: Sequence[Path], out, parameters: dict, made_from, figures=None, media=True
) -> None:
    """Execute notebooks in order into the folder `out`; those that are up to date are skipped.

    paths : notebooks to execute; each one's folder is its working directory
    parameters : values by name, for the parameters cell of each
    made_from : the key of each notebook, from `keys`
    figures : folder whose files a notebook makes; one that lost such a file is executed again
    media : False leaves out the cells that read media, which keep the outputs they have

    Of two runs the second waits for each notebook. NotebookFailed: earlier ones stay finished.
    """
    out = Path(out)
    for number, path in enumerate(paths, 1):
        label, executed = f"[{number}/{len(paths)}] {path.stem} …", out / path.name
        with cache.locked(out.with_name(".locks") / f"{out.name}-{path.stem}"):
            if up_to_date(executed, made_from[path], figures):
                say(f"{label} up to date")
                continue
            say(label)
            started = time.time()
            notebook = json.loads(nbformat.writes(execute(path, out, parameters, label, media)))
            files = sorted(figures.rglob("*")) if figures else []
            # A file system may count in whole seconds.
            written = (p for p in files if p.stat().st_mtime >= started - 1)
            names = (p.relative_to(figures).as_posix() for p in written)
            record = {"key": made_from[path], "figures": sums(figures, names)}
            notebook["metadata"]["emi"] = record
            record["sum"] = cache.key(**notebook)
            cache.atomic_write(executed, json.dumps(notebook, indent=1, ensure_ascii=False))
            say(f"{label} done, {time.time() - started:.0f} s")


def execute(path: Path, out: Path, parameters: dict, label: str, media=True):
    """The executed notebook. Raises NotebookFailed and keeps what was executed."""
    import papermill

    failed, source, left_out = out / f"{path.stem}.failed.ipynb", nbformat.read(path, 4), {}
    for cell in source.cells:
        if not media and MEDIA_TAG in cell.metadata.get("tags", []):
            cell.metadata.tags.append(SKIP_TAG)
            line = nbformat.v4.new_output("stream", name="stdout", text=NO_MEDIA)
            left_out[cell.id] = [line, *cell.outputs] if cell.outputs else []
    settings = {"kernel_name": "python3", "language": "python", "cwd": str(path.parent)}
    # Kernels are interrupted before they are asked to end, and would say so.
    settings |= {"progress_bar": False, "extra_arguments": ["--IPKernelApp.log_level=50"]}
    with kernel_folder(label) as folder:
        # No open TCP ports, and all files of a kernel in one folder.
        kernel = {"connection_file": f"{folder}/kernel.json", "ip": f"{folder}/kernel"}
        settings["config"] = Config(KernelManager={"transport": "ipc", **kernel})
        running = folder / path.name
        target = str(running).replace("{", "{{").replace("}", "}}")  # papermill formats paths
        try:
            notebook = papermill.execute_notebook(source, target, parameters, **settings)
        except Exception as error:
            where, what = path.name, f"{type(error).__name__}: {error}"
            if isinstance(error, papermill.exceptions.PapermillExecutionError):
                where += f", In [{error.exec_count}] ({error.source.strip().splitlines()[0][:80]})"
                what = f"{error.ename}: {error.evalue}"
            elif "Kernel died" in what:
                what += ": its Python process ended by itself, most often for want of memory"
            what = f"failed with {what.splitlines()[0][:300].rstrip('. ')}"
            if FULL.search(what) or shutil.disk_usage(folder).free < 1e6:
                what += "; the disk is full: free some room, or set EMI_HOME and TMPDIR to another"
            try:
                cache.atomic_write(failed, running.read_bytes())
                what += f". The executed copy is {failed}"
            except OSError as full:
                what += f". The executed copy could not be kept ({full.strerror})"
            raise NotebookFailed(f"{where} {what}.") from error
    failed.unlink(missing_ok=True)
    for cell in notebook.cells:
        cell.outputs = left_out.get(cell.id, cell.get("outputs"))
    return notebook


@contextlib.contextmanager
def kernel_folder(label: str):
    """A folder for the temporary files of a kernel, which `cache.sweep` knows.

    What kernels append to the file in it that ``EMI_PROGRESS`` names, which they inherit, is shown.
    """
    folder = Path(tempfile.gettempdir(), cache.temporary_name("emi"))
    path, ended, start = folder / "progress", threading.Event(), time.monotonic()
    # Threads that spin while they wait are many times slower on a machine with other work.
    changed = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    changed |= {"EMI_PROGRESS": str(path), "TMPDIR": str(folder)}

    def follow():
        spoke = start
        with open(path, encoding="utf-8") as stream:
            while not ended.wait(0.3):
                now = time.monotonic()
                for line in stream.readlines() or [""] * (now - spoke >= QUIET_S):
                    say(f"{label} {now - start:.0f} s  {line}".rstrip())
                    spoke = now

    folder.mkdir(mode=0o700)
    path.touch()
    before = os.environ.copy()
    os.environ |= changed
    threading.Thread(target=follow, daemon=True).start()
    try:
        yield folder
    finally:
        ended.set()
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


def update_notebooks(folder, out) -> list[Path]:
    """Write the outputs of the executed copies in `out` into the notebooks of `folder`.
    The cell that papermill injected, times, stderr, widgets and paths of this machine are left
    out; cells are counted 1, 2, 3, and stream outputs in a row are one. Returns what has changed.
    Raises ValueError where a copy is of another version of its notebook."""
    changed = []
    for path in discover(folder):
        text = (Path(out) / path.name).read_text("utf-8").replace(f"{ROOT}{os.sep}", "")
        result, executed = nbformat.read(path, 4), nbformat.reads(text.replace(str(ROOT), "."), 4)
        run = [c for c in executed.cells if "injected-parameters" not in c.metadata.get("tags", [])]
        if [c.source for c in run] != [c.source for c in result.cells]:
            raise ValueError(f"{path.name} has changed since it was executed: run it again.")
        for cell in result.cells:
            cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags" and v}
        pairs = zip(result.cells, run, strict=True)
        code = (pair for pair in pairs if pair[0].cell_type == "code")
        for count, (cell, twin) in enumerate(code, 1):
            cell.execution_count = count
            cell.outputs = [output for output in twin.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = count
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
        # Where a kernel cuts its output is a matter of time.
        CoalesceStreamsPreprocessor().preprocess(result, {})
        result.metadata = METADATA
        text = nbformat.writes(nbformat.from_dict(result)) + "\n"
        if text != path.read_text(encoding="utf-8"):
            cache.atomic_write(path, text)
            changed.append(path)
    return changed


def unfinished_rows(figures: Path) -> list[str]:
    """Rows of the tables in a folder that lack a number."""
    from emilib.study import tables

    paths = sorted(Path(figures).rglob("[AB][1-4].csv"))
    return tables.complete({path.stem: pd.read_csv(path) for path in paths})


def run(options, profile, home: Path, figures: Path) -> None:
    os.environ.setdefault("PYTHONPATH", str(ROOT))  # the kernels import emilib too
    start, notebooks = time.monotonic(), ROOT / "notebooks"
    out = home / profile.name / f"notebooks{profile.suffix}"
    media = not (options.corpus and feature_files.holds_features(options.corpus))
    if options.update and (profile.name, profile.suffix, options.corpus) != ("embedded", "", None):
        raise ValueError("--update is for the default run: what is committed is of no other")
    if options.features and media:
        raise ValueError(f"{options.features}: expected a file or folder of features, got another")
    if not media:
        clips = feature_files.read_features(options.corpus, profile.text_pool)[0]
    elif options.corpus:
        clips = read_corpus(options.corpus)
    for note in clips.attrs["notes"] if options.corpus else ():
        say(note)
    if options.fresh and not options.dry_run and out.parent.exists():
        shutil.rmtree(out.parent)
        say(f"Removed: {out.parent}.")
    environment.require_room(home)
    places = (out, figures, figures / "tables", *(out.parent / "cache").glob("*"))
    cache.sweep(tempfile.gettempdir(), *places)
    parts = {"package": cache.code_version("."), "dependencies": environment.requirements()}
    files = "*.csv" if media else "**/*"
    corpus = feature_files.state(options.corpus, files) if options.corpus else []
    parts |= {"python": sys.version, "profile": profile, "corpus": corpus}
    made_from = keys(discover(notebooks), **parts)
    paths = discover(notebooks, options.only)
    paths = [path for path in paths if media or path.name[:2] in OF_FEATURES]
    stale = [p for p in paths if not up_to_date(out / p.name, made_from[p], figures)]
    if options.dry_run or stale:
        prepare(options, profile, stale)
    if options.dry_run:
        return
    parameters = {"profile": profile.name, "corpus": options.corpus}
    try:
        run_notebooks(paths, out, parameters, made_from, figures, media)
    finally:  # a chapter that failed is in it too
        path = book.of_run(profile, options.corpus, discover(notebooks), out, figures)
        say(f"Book:      {path}")
    if options.update:
        shutil.copytree(figures, ROOT / "figures", dirs_exist_ok=True)
        changed = [path.name for path in update_notebooks(notebooks, out)]
        say(f"Written into the checkout: {', '.join(['figures', *changed])}.")
    if options.only is None:
        for path in sorted(figures.glob("tables/*.txt")):
            say(f"\n{path.read_text(encoding='utf-8').rstrip()}")
    models = out.parent / "cache" / "result"
    say(f"\nNotebooks: {out}\nFigures:   {figures}\nModels:    {models}, a folder for each run")
    say(f"Finished in {time.monotonic() - start:.0f} s.")


def prepare(options, profile, stale: Sequence[Path]) -> None:
    """What precedes the notebooks: the plan, checks, and training by several processes."""
    from emilib.pipeline import Workspace
    from emilib.study import resources

    workspace = Workspace(profile, corpus=options.corpus)
    if options.dry_run:
        say(f"{profile.name} on {workspace.corpus_name}: nothing is made, this is what would be.")
        for path in stale:
            say(f"  {path.stem:36s}runs")
        say("Steps that they ask for, and how much of each is kept already:")
        for row in workspace.plan().itertuples():
            say(f"  {row.step:36s}{row.done} of {row.all}")
    if profile.corpus_size is None and workspace.has_media:
        text = resources.text(workspace.estimate())
        say(f"What all of it takes, of which nothing finished is made again:\n{text}")
    workspace.require()
    if options.corpus and workspace.has_media and not options.dry_run:
        say(workspace.transcript_source)
    if options.processes > 1 and not options.dry_run:
        say(f"All training by {options.processes} processes …")
        launcher = f"torch.distributed.run --standalone --nproc_per_node={options.processes}"
        command = [sys.executable, "-m", *launcher.split(), "-m", "emilib", "run"]
        command += ["--profile", profile.name]
        command += ["--corpus", options.corpus] if options.corpus else []
        if subprocess.run(command, check=False).returncode:
            raise ValueError("a process failed (see above); the same command goes on from there")


def parse(arguments=None):
    parser = argparse.ArgumentParser(prog="emilib.runner", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--profile", choices=profiles.NAMES, default="embedded")
    add("--corpus", metavar="DIR", help="a corpus folder; default: EMI_CORPUS, or the embedded one")
    add("--features", metavar="FILE", help="features in place of media: notebooks 04 to 07")
    add("--text-pool", choices=("mean", "cls", "last"), help="of the tokens in FILE; default: mean")
    add("--visual", choices=("faces", "video"), help="face crops or whole frames, as frames")
    add("--seeds", metavar="N", help="seeds a row, in place of the profile's")
    add("--corpus-seed", metavar="N", help="another embedded corpus of the same kind; default: 0")
    add("--processes", metavar="N", type=int, default=1, help="that train at once")
    add("--dry-run", action="store_true", help="say what would run, make nothing")
    add("--only", metavar="NN", help="the number of one notebook")
    add("--fresh", action="store_true", help="remove this profile's results first")
    add("--check", action="store_true", help="are the tables complete?")
    add("--update", action="store_true", help="then write into notebooks/ and figures/")
    options = parser.parse_args(arguments)
    corpus = options.features or options.corpus or os.environ.get("EMI_CORPUS")
    options.corpus = str(Path(corpus).absolute()) if corpus else None
    # The notebooks' kernels read them there.
    for name in ("visual", "seeds", "corpus_seed", "text_pool"):
        if getattr(options, name) is not None:
            os.environ[f"EMI_{name.upper()}"] = getattr(options, name)
    return options


def main(arguments=None) -> int:
    options = parse(arguments)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # errors become one sentence
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    home = environment.home()
    try:
        profile = profiles.get(options.profile)
        figures = home / profile.name / f"figures{profile.suffix}"
        if not options.check:
            run(options, profile, home, figures)
        elif rows := unfinished_rows(figures):
            listed = "\n".join(f"without a number: {row}" for row in rows)
            raise ValueError(f"{len(rows)} rows of the tables in {figures}:\n{listed}")
        else:
            say(f"Every row of the tables in {figures} has its number.")
    except (NotebookFailed, ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: what is finished is kept, the same command goes on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Notebook files: which there are, and their outputs written back, fit to be committed."""

import copy
import json
import os
import re
from pathlib import Path

import nbformat

from emilib import cache
from emilib.environment import ROOT

INJECTED = "injected-parameters"  # papermill's tag of the cell that sets the parameters
WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def read(path: Path):
    return nbformat.read(path, as_version=4)


def tags(cell) -> list[str]:
    return list(cell.metadata.get("tags", []))


def discover(folder, only: str | None = None) -> list[Path]:
    """The notebooks ``NN_name.ipynb`` of a folder by number, or the one whose number is `only`."""
    paths = sorted(p for p in Path(folder).glob("*.ipynb") if re.match(r"\d\d_", p.name))
    if only is not None:
        paths = [p for p in paths if p.name[:2] == only.zfill(2)]
    if not paths:
        raise ValueError(f"There is no notebook named {only or 'NN'}_name.ipynb in {folder}.")
    return paths


def cleaned(source, executed):
    """The notebook `source` with the outputs of its executed copy, fit to be committed.

    The cell that papermill injected, times, stderr, widgets and paths of this machine are gone;
    cells are counted 1, 2, 3, and stream outputs in a row are one. Raises ValueError when the two
    are not the same notebook.
    """
    result = copy.deepcopy(source)
    run = [cell for cell in executed.cells if INJECTED not in tags(cell)]
    if [c.source for c in run] != [c.source for c in result.cells]:
        raise ValueError("The executed copy is of an older version of this notebook: run it again.")
    count = 0
    for cell, twin in zip(result.cells, run, strict=True):
        cell.metadata = nbformat.from_dict({"tags": names} if (names := tags(cell)) else {})
        if cell.cell_type == "code":
            count += 1
            cell.execution_count, cell.outputs = count, []
            for output in twin.outputs:
                add_output(cell.outputs, output, count)
    result.metadata = nbformat.from_dict(METADATA)
    return result


def add_output(outputs: list, output, count: int) -> None:
    if output.get("name") == "stderr":
        return
    plain = json.dumps(output).replace(f"{ROOT}{os.sep}", "").replace(str(ROOT), ".")
    output = nbformat.from_dict(json.loads(plain))
    if "execution_count" in output:
        output.execution_count = count
    output.get("data", {}).pop(WIDGET, None)
    if outputs and output.output_type == outputs[-1].output_type == "stream":
        outputs[-1].text += output.text  # where a kernel cuts its output is a matter of time
    else:
        outputs.append(output)


def update_notebooks(folder, out) -> list[Path]:
    """Write the outputs of the executed copies in `out` into the notebooks of `folder`."""
    changed = []
    for path in discover(folder):
        text = nbformat.writes(cleaned(read(path), read(Path(out) / path.name))) + "\n"
        if text != path.read_text(encoding="utf-8"):
            cache.atomic_write(path, text)
            changed.append(path)
    return changed

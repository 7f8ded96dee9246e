"""Choosing a clip in a notebook: drop-downs in a live front end, a still picture elsewhere."""

import os
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
from IPython import get_ipython
from IPython.display import display
from matplotlib.figure import Figure

from emilib import MODALITIES
from emilib.plots.notebook import show

MISSING = dict(zip(MODALITIES, ("no face", "no sound", "no words"), strict=True))


def live() -> bool:
    """Whether a front end that shows widgets asked for the cell that runs.

    JupyterLab, Notebook and VS Code send a cell's id with it; nbclient, and so papermill, nbconvert
    and nbval, send none. EMI_WIDGETS=on or off overrides this.
    """
    request = getattr(get_ipython(), "get_parent", dict)() or {}  # a terminal has no requests
    seen = "on" if "cellId" in request.get("metadata", {}) else "off"
    return (os.environ.get("EMI_WIDGETS") or seen) == "on"


def pick(
    groups: Mapping[str, Mapping[str, object]],
    draw: Callable[[object], Figure],
    play: Callable[[object], Sequence] = lambda key: (),
    first=None,
):
    """Drop-downs for a group and a clip in a live front end, elsewhere the first choice's picture.

    groups : name of a group → text of a choice → key; only the chosen key is drawn
    draw : key → Figure; play : key → what stands above it in a live front end, such as players
    first : key to begin with; None for the first of the first group
    """
    groups = {name: dict(choices) for name, choices in groups.items() if choices}
    begin = next(n for n, c in groups.items() if first is None or first in c.values())
    first = next(iter(groups[begin].values())) if first is None else first
    if not live():
        return show(draw(first))
    names = [(f"{name} ({len(choices)})", name) for name, choices in groups.items()]
    group = ipywidgets.Dropdown(options=names, value=begin, description="among")
    clip = ipywidgets.Dropdown(options=list(groups[begin].items()), value=first, description="clip")

    def regroup(change) -> None:
        clip.options = list(groups[change["new"]].items())

    def show_choice(key) -> None:
        display(*play(key), show(draw(key)))

    group.observe(regroup, "value")
    display(group)
    return ipywidgets.interactive(show_choice, key=clip)


def gap_groups(ids: Sequence[str], present) -> dict[str, dict[str, int]]:
    """Rows by what the clips lack, complete ones first, as `pick` takes them.

    present : (N, 3) bool, columns frames, audio and text
    """
    groups: dict[str, dict[str, int]] = {"everything": {}}
    for row, (id_, exists) in enumerate(zip(ids, present, strict=True)):
        gaps = [text for text, one in zip(MISSING.values(), exists, strict=True) if not one]
        groups.setdefault(", ".join(gaps) or "everything", {})[id_] = row
    return groups

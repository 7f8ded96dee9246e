"""Choosing a clip in a notebook: drop-downs in a live front end, a still picture elsewhere."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import av
import ipywidgets
import pandas as pd
from IPython import get_ipython
from IPython.display import Audio, Markdown, Video, display
from matplotlib.figure import Figure

from emilib import MODALITIES
from emilib.plots.notebook import show

SWITCH = "EMI_WIDGETS"  # on or off overrides what `live` sees
LARGEST_MB = 16  # of a file that is sent to the browser
# What current browsers play, by container and by coding of the picture.
VIDEO_TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm"}
VIDEO_CODINGS = ("h264", "vp8", "vp9", "av1")
MISSING = dict(zip(MODALITIES, ("no face", "no sound", "no words"), strict=True))


def live() -> bool:
    """Whether a front end that shows widgets asked for the cell that runs.

    JupyterLab, Notebook and VS Code send a cell's id with it. nbclient, and so papermill, nbconvert
    and nbval, send none. JPY_SESSION_NAME would not do: what a live kernel starts inherits it.
    EMI_WIDGETS=on or off overrides this; anything else in it raises ValueError.
    """
    switch = os.environ.get(SWITCH, "").strip().lower()
    if switch not in ("", "on", "off"):
        raise ValueError(f"{SWITCH}: expected on, off or nothing, got {switch!r}")
    if switch:
        return switch == "on"
    request = getattr(get_ipython(), "get_parent", dict)() or {}  # a terminal has no requests
    return "cellId" in request.get("metadata", {})


def pick(
    groups: Mapping[str, Mapping[str, object]],
    draw: Callable[[object], Figure],
    play: Callable[[object], Sequence] | None = None,
    first=None,
):
    """A `Picker` in a live front end, elsewhere the picture of the first choice.

    groups : name of a group → text of a choice → key; only the chosen key is drawn
    draw : key → Figure; play : key → what stands above it in a live front end, such as players
    first : key to begin with; None for the first of the first group

    Raises ValueError where there is nothing to choose from, or `first` is not among it.
    """
    groups = {name: dict(choices) for name, choices in groups.items() if choices}
    keys = [key for choices in groups.values() for key in choices.values()]
    first = keys[0] if first is None and keys else first
    if first not in keys:
        raise ValueError(f"expected a first choice among {len(keys)} clips, got {first!r}")
    return Picker(groups, draw, play, first) if live() else show(draw(first))


class Picker(ipywidgets.VBox):
    """Drop-downs `group` and `choice`, and below them what `show_choice` displays; see `pick`."""

    def __init__(self, groups: Mapping, draw: Callable, play: Callable | None, first):
        self.still = show(draw(first))
        begin = next(name for name, choices in groups.items() if first in choices.values())
        narrow = {"layout": {"width": "24em"}, "style": {"description_width": "4em"}}
        names = [(f"{name} ({len(choices)})", name) for name, choices in groups.items()]
        self.group = ipywidgets.Dropdown(options=names, value=begin, description="among", **narrow)
        self.choice = ipywidgets.Dropdown(
            options=list(groups[begin].items()), value=first, description="clip", **narrow
        )

        def regroup(change) -> None:
            self.choice.options = list(groups[change["new"]].items())

        def show_choice(key) -> None:
            for part in play(key) if play else ():
                display(part)
            display(self.still if key == first else show(draw(key)))

        self.group.observe(regroup, "value")
        output = ipywidgets.interactive_output(show_choice, {"key": self.choice})
        # Wraps where there is no room for two beside each other.
        bar = ipywidgets.HBox([self.group, self.choice], layout={"flex_flow": "row wrap"})
        super().__init__([bar, output])

    def _repr_mimebundle_(self, **kwargs):
        """The widget, and the first picture where a notebook was saved without its widgets."""
        data, metadata = self.still._repr_mimebundle_()
        return {**data, **super()._repr_mimebundle_(**kwargs)}, metadata


def clip_groups(clips: pd.DataFrame, defects: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Ids by split, and then by defect, as `pick` takes them.

    clips : columns id and split; defects : columns id and defect
    """
    groups = {split: list(ids) for split, ids in clips.groupby("split", sort=False)["id"]}
    groups |= {name: list(dict.fromkeys(ids)) for name, ids in defects.groupby("defect")["id"]}
    known = set(clips["id"])  # a defect may be that of a file without a row
    return {name: {id_: id_ for id_ in ids if id_ in known} for name, ids in groups.items()}


def gap_groups(ids: Sequence[str], present) -> dict[str, dict[str, int]]:
    """Rows by what the clips lack, complete ones first, as `pick` takes them.

    present : (N, 3) bool, columns frames, audio and text
    """
    groups: dict[str, dict[str, int]] = {"everything": {}}
    for row, (id_, exists) in enumerate(zip(ids, present, strict=True)):
        gaps = [text for text, one in zip(MISSING.values(), exists, strict=True) if not one]
        groups.setdefault(", ".join(gaps) or "everything", {})[id_] = row
    return groups


def players(video: str | None, sound: str | None) -> list:
    """A player that holds the bytes of each file, or a sentence where there is none to play."""
    return [_player(video, "video", _playable_video), _player(sound, "sound file", Audio)]


def _player(path: str | None, what: str, make: Callable):
    if not isinstance(path, str):
        return Markdown(f"This clip has no {what} of its own.")
    size, name = os.path.getsize(path) / 1e6, Path(path).name
    if size > LARGEST_MB:
        return Markdown(
            f"{name} has {size:.0f} MB and is not sent to the browser, which takes up to "
            f"{LARGEST_MB} MB here; open the file itself to play it."
        )
    return make(filename=path, embed=True)


def _playable_video(filename: str, embed: bool):
    try:
        with av.open(filename) as container:
            coding = next((s.codec_context.name for s in container.streams.video), None)
    except (OSError, av.FFmpegError) as error:
        return Markdown(f"The video can't be played: {error.strerror or error}")
    kind = VIDEO_TYPES.get(Path(filename).suffix.lower())
    if kind is None or coding not in VIDEO_CODINGS:
        what = f"{Path(filename).name} ({coding or 'without a picture'})"
        return Markdown(f"Browsers do not play {what}; below is what could be decoded.")
    return Video(filename, embed=embed, mimetype=kind, height=220)

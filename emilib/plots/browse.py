"""Choosing a clip in a notebook: drop-downs in a live front end, a still picture elsewhere.

Whatever is chosen, only that clip is decoded, asked about and drawn.
"""

import dataclasses
import math
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython import get_ipython
from IPython.core.formatters import DisplayFormatter
from IPython.display import Audio, Markdown, Video
from matplotlib.figure import Figure

from emilib.corpus import media
from emilib.corpus.defects import SAMPLE_RATE
from emilib.corpus.layout import EMOTIONS
from emilib.plots import corpus_plots, stage_plots, taemi_plots
from emilib.plots.notebook import show

SWITCH = "EMI_WIDGETS"  # on or off overrides what `live` finds
LARGEST_MB = 16  # of a file that is sent to the browser
PLAYER_HEIGHT = 220  # pixels
# What current browsers play, by container and by coding of the picture.
VIDEO_TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm"}
VIDEO_CODINGS = ("h264", "vp8", "vp9", "av1")
MISSING = {"frames": "no face", "audio": "no sound", "text": "no words"}


def live() -> bool:
    """Whether a front end that shows widgets asked for the cell that runs.

    JupyterLab, Notebook and VS Code send a cell's id with it. nbclient, and so papermill, nbconvert
    and nbval, send none. JPY_SESSION_NAME would not do: what a live kernel starts inherits it.
    EMI_WIDGETS=on or off overrides this; anything else in it raises ValueError.
    """
    switch = os.environ.get(SWITCH, "").strip().lower()
    if switch not in ("", "on", "off"):
        raise ValueError(f"{SWITCH} is {switch!r}; it may be on, off or unset.")
    if switch:
        return switch == "on"
    asked = getattr(get_ipython(), "get_parent", dict)() or {}  # a terminal has no requests
    return "cellId" in asked.get("metadata", {})


def pick(
    groups: Mapping[str, Mapping[str, object]],
    draw: Callable[[object], Figure],
    play: Callable[[object], Sequence] | None = None,
    first=None,
):
    """A `Picker` in a live front end, elsewhere the picture of the first choice.

    groups : name of a group → text of a choice → key
    draw : key → Figure; play : key → what stands above it in a live front end, such as players
    first : key to begin with; None for the first of the first group

    Raises ValueError where there is nothing to choose from, or `first` is not among it.
    """
    groups = {name: dict(choices) for name, choices in groups.items() if choices}
    keys = [key for choices in groups.values() for key in choices.values()]
    if not keys or (first is not None and first not in keys):
        what = "nothing to choose from" if not keys else f"{first!r} is not among the choices"
        raise ValueError(f"A picker needs groups with choices, and begins with one: {what}.")
    first = keys[0] if first is None else first
    return Picker(groups, draw, play, first) if live() else show(draw(first))


class Picker:
    """Drop-downs for a group and a choice, and below them what is drawn for it.

    `group` and `choice` are the drop-downs, `output` what is shown; see `pick`. Where a notebook
    was saved without its widgets, the first choice's picture stands in.
    """

    def __init__(self, groups: Mapping, draw: Callable, play: Callable | None, first):
        import ipywidgets

        self.groups, self.draw, self.play = groups, draw, play
        begin = next(name for name, choices in groups.items() if first in choices.values())
        narrow = {"layout": {"width": "24em"}, "style": {"description_width": "4em"}}
        self.group = ipywidgets.Dropdown(
            options=[(f"{name} ({len(choices)})", name) for name, choices in groups.items()],
            value=begin,
            description="among",
            **narrow,
        )
        options = list(groups[begin].items())
        self.choice = ipywidgets.Dropdown(
            options=options, value=first, description="clip", **narrow
        )
        self.output = ipywidgets.Output()
        # Wraps where there is no room for two beside each other.
        bar = ipywidgets.HBox([self.group, self.choice], layout={"flex_flow": "row wrap"})
        self.box = ipywidgets.VBox([bar, self.output])
        self.still = self._show()
        self.group.observe(self._regroup, "value")
        self.choice.observe(self._redraw, "value")

    def _regroup(self, change) -> None:
        self.choice.options = list(self.groups[change["new"]].items())

    def _redraw(self, change) -> None:
        try:
            self._show()
        except Exception as error:  # it would reach a log alone, with the old picture still there
            self.output.outputs = (_failure(error),)
            raise

    def _show(self):
        key = self.choice.value
        picture = show(self.draw(key))
        parts = [*(self.play(key) if self.play else ()), picture]
        self.output.outputs = tuple(_shown(part) for part in parts)
        return picture

    def _repr_mimebundle_(self, **kwargs):
        data, metadata = self.still._repr_mimebundle_()
        return {**data, **self.box._repr_mimebundle_(**kwargs)}, metadata


def _shown(part) -> dict:
    data, metadata = DisplayFormatter().format(part)
    return {"output_type": "display_data", "data": data, "metadata": metadata}


def _failure(error: Exception) -> dict:
    lines = traceback.format_exception(error)
    facts = {"ename": type(error).__name__, "evalue": str(error), "traceback": lines}
    return {"output_type": "error", **facts}


# ------------------------------------------------------------------------------ the corpus


def clip_browser(ws, defects: pd.DataFrame, first: str | None = None):
    """Any clip of a corpus: to be played, and as `corpus_plots.card`.

    ws : Workspace; defects : of `corpus.audit`; first : id to begin with, None for the first clip
    """
    clips = ws.clips.set_index("id", drop=False)
    targets = list(clips.attrs.get("targets", EMOTIONS))

    def draw(id_):
        clip, mine = clips.loc[id_], defects[defects["id"] == id_]
        # A detail may name the file: within the corpus that is enough.
        broken = [
            f"{row.defect}: {row.detail}".replace(f"{ws.folder}{os.sep}", "")
            for row in mine.itertuples()
        ]
        decoded = decode_clip(clip)
        return corpus_plots.card(clip, decoded, clip[targets].astype(float), broken, ws.corpus_name)

    def play(id_):
        clip = clips.loc[id_]
        return [video_player(clip["video"]), sound_player(clip["audio"])]

    return pick(clip_groups(clips, defects), draw, play, first)


def clip_groups(clips: pd.DataFrame, defects: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Ids by split, and then by defect, as `pick` takes them."""
    groups = {split: list(ids) for split, ids in clips.groupby("split", sort=False)["id"]}
    groups |= {name: list(dict.fromkeys(ids)) for name, ids in defects.groupby("defect")["id"]}
    known = set(clips["id"])  # a defect may be that of a file without a row
    return {name: {id_: id_ for id_ in ids if id_ in known} for name, ids in groups.items()}


def decode_clip(clip) -> media.Media:
    """Frames of a clip's video and its sound, of the sound file where there is one.

    clip : a row of `corpus.read`. What can't be read is None, as in `Media`.
    """
    found = media.Media(None, np.zeros(0), 0, 0, None, SAMPLE_RATE, math.nan, math.nan, math.nan)
    for path, frames in ((clip["video"], True), (clip["audio"], False)):
        if not isinstance(path, str):
            continue
        try:
            new = media.decode(path, sample_rate=SAMPLE_RATE, frames=frames)
        except media.MediaError:
            continue  # the audit names it, and its panel stays empty
        if frames:
            found = new
        elif new.waveform is not None:
            found = dataclasses.replace(found, waveform=new.waveform)
            if math.isnan(found.duration):
                found.duration = new.duration
    return found


def video_player(path: str | None):
    """A player that holds the bytes of a video; a sentence where a browser could not play it."""
    if not isinstance(path, str):
        return Markdown("This clip has no video.")
    if (refusal := _too_large(path)) is not None:
        return refusal
    kind = VIDEO_TYPES.get(Path(path).suffix.lower())
    try:
        with media.open_media(path) as container:
            video = media.first_streams(container)[0]
            coding = None if video is None else video.codec_context.name
    except media.MediaError as error:
        return Markdown(f"The video can't be played: {error}")
    if kind is None or coding not in VIDEO_CODINGS:
        what = f"{_name(path)} ({coding or 'without a picture'})"
        return Markdown(f"Browsers do not play {what}; below is what could be decoded.")
    return Video(path, embed=True, mimetype=kind, height=PLAYER_HEIGHT)


def sound_player(path: str | None):
    """A player that holds the bytes of a sound file; a sentence where there is none."""
    if not isinstance(path, str):
        return Markdown("This clip has no sound file of its own.")
    return _too_large(path) or Audio(filename=path, embed=True)


def _too_large(path: str) -> Markdown | None:
    size = os.path.getsize(path) / 1e6
    if size <= LARGEST_MB:
        return None
    return Markdown(
        f"{_name(path)} has {size:.0f} MB and is not sent to the browser, which takes up to "
        f"{LARGEST_MB} MB here; open the file itself to play it."
    )


def _name(path: str) -> str:
    return "/".join(Path(path).parts[-2:])


# ------------------------------------------------------------------------------ the models


def weights_picker(ws, model, data, first: str | None = None):
    """The weights of paper A's Eq. 8 over any clip: `stage_plots.weights_over_time`.

    ws : Workspace; model : DualStage; data : FeatureSet of clips of `ws`; first : id to begin with
    """

    def draw(row):
        clip = seen(ws, data, row) | {"weights": _ask(model, data, row).weights[0].numpy()}
        return stage_plots.weights_over_time([clip], SAMPLE_RATE, ws.corpus_name)

    return pick(gap_groups(data), draw, first=_row(data, first))


def attention_picker(ws, model, data, first: str | None = None):
    """What paper B's anchor looked at in any clip: `taemi_plots.attention_clips`.

    ws : Workspace; model : TAEMI; data : FeatureSet of clips of `ws`; first : id to begin with
    """

    def draw(row):
        found, here = _ask(model, data, row).attention, _present(data, row)
        looked = {name: a[0].numpy() if here[name] else None for name, a in found.items()}
        clip = seen(ws, data, row) | {"attention": looked}
        return taemi_plots.attention_clips([clip], SAMPLE_RATE, ws.corpus_name)

    return pick(gap_groups(data), draw, first=_row(data, first))


def gap_groups(data) -> dict[str, dict[str, int]]:
    """Rows of a FeatureSet by what the clips lack, complete ones first, as `pick` takes them."""
    groups = {"everything": {}}
    for row, id_ in enumerate(data.ids):
        gaps = [MISSING[name] for name, here in _present(data, row).items() if not here]
        groups.setdefault(", ".join(gaps) or "everything", {})[id_] = row
    return groups


def seen(ws, data, row: int) -> dict:
    """What a picture of a clip shows beside a model's answer.

    Returns title, frames (T, 3, S, S) uint8 or None, waveform (S,) int16 or None, and seconds.
    """
    id_, here = data.ids[row], _present(data, row)
    words = ws.clips.set_index("id").loc[id_, "transcript"]
    waveform = ws.media["waveform"][id_] if here["audio"] else None
    frames = ws.media["frames"][id_] if here["frames"] else None
    return {
        "title": f"clip {id_}: “{words}”" if here["text"] else f"clip {id_}: no words",
        "frames": frames,
        "waveform": waveform,
        "seconds": _seconds(ws, id_, frames, waveform),
    }


def _seconds(ws, id_: str, frames, waveform) -> float:
    if waveform is not None:
        return len(waveform) / SAMPLE_RATE
    return len(frames) / ws.profile.fps if frames is not None else float(ws.seconds[id_])


def _present(data, row: int) -> dict[str, bool]:
    return dict(zip(MISSING, map(bool, data.present[row]), strict=True))


def _row(data, id_: str | None) -> int | None:
    return None if id_ is None else list(data.ids).index(id_)


def _ask(model, data, row: int):
    with torch.no_grad():
        return model.eval()(**data.batch([row]).inputs())

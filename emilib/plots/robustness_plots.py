"""Figures of damaged clips and of what the damage does; as in `plots`, pure functions."""

from collections.abc import Mapping

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from emilib.plots.style import CYCLE, GREY, STYLE, envelope, sheet, shown_frames
from emilib.study.robustness import KINDS

MARKERS = "osD^vP"


def spoilt_media(
    pictures: Mapping[str, np.ndarray], sounds: Mapping[str, np.ndarray], rate: int, corpus: str
) -> Figure:
    """The frames and the sound of one clip, as they are and damaged; a row each.

    pictures : label → (T, 3, S, S) uint8; sounds : label → (S,) waveform; rate in Hz
    """
    rows = len(pictures) + len(sounds)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = sheet(7.2, 0.62 * rows, "One clip, as it is and damaged", corpus)
        panels = figure.subplots(rows, 1)
        for axes, (label, frames) in zip(panels, pictures.items(), strict=False):
            chosen = frames[shown_frames(len(frames))].transpose(0, 2, 3, 1)
            axes.imshow(np.concatenate(list(chosen), axis=1))
            axes.set_anchor("W")
            _label(axes, label)
        top = max(np.abs(np.asarray(w, float)).max() for w in sounds.values())
        for axes, (label, waveform) in zip(panels[len(pictures) :], sounds.items(), strict=True):
            time, low, high = envelope(np.asarray(waveform, float), rate)
            axes.fill_between(time, low, high, color=GREY, linewidth=0)
            axes.set_xlim(0, len(waveform) / rate)
            axes.set_ylim(-top, top)
            _label(axes, label)
        return figure


def _label(axes, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_ylabel(text, rotation=0, ha="right", va="center")
    for spine in axes.spines.values():
        spine.set_visible(False)


def damage_curves(table: pd.DataFrame, title: str, corpus: str) -> Figure:
    """ρ over the level of each damage, a panel a damage, a line a model; table of `levels`.

    Bars are 95 % intervals over clips, of the mean over seeds.
    """
    groups = list(table.groupby(["kind", "modality"], sort=False))
    models = list(dict.fromkeys(table["model"]))
    columns = 2 if len(groups) == 4 else min(3, len(groups))
    rows = -(-len(groups) // columns)
    with matplotlib.rc_context(STYLE):
        figure = sheet(8.6, 0.5 + 2.3 * rows, title, corpus)
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, ((kind, modality), mine) in zip(panels.flat, groups, strict=False):
            levels = mine["level"].drop_duplicates()
            for number, model in enumerate(models):
                drawn = mine[mine["model"] == model]
                if len(drawn):
                    _curve(axes, drawn, model, number, number / max(1, len(models) - 1) - 0.5)
            names = ["none", *(KINDS[kind].format(level=level) for level in levels.dropna())]
            axes.set_xticks(range(len(levels)), names)
            axes.set_title(f"{modality}: {kind}", size=9.5)
        for axes in panels.flat[len(groups) :]:
            axes.axis("off")
        for axes in panels[:, 0]:
            axes.set_ylabel("mean Pearson ρ")
        handles = {}
        for axes in figure.axes:
            found, labels = axes.get_legend_handles_labels()
            handles.update(zip(labels, found, strict=True))
        ordered = [m for m in models if m in handles]
        places = {"loc": "outside lower center", "ncols": 4}
        figure.legend([handles[m] for m in ordered], ordered, **places)
        return figure


def _curve(axes, drawn: pd.DataFrame, model: str, number: int, place: float) -> None:
    reach = np.maximum(0, [drawn["rho"] - drawn["low"], drawn["high"] - drawn["rho"]])
    axes.errorbar(
        np.arange(len(drawn)) + 0.25 * place,
        drawn["rho"],
        reach,
        fmt=f"{MARKERS[number % len(MARKERS)]}-",
        color=CYCLE[number % len(CYCLE)],
        markersize=4.5,
        linewidth=1.1,
        elinewidth=0.8,
        capsize=2,
        label=model,
    )


def interval_dots(table: pd.DataFrame, by: str, title: str, label: str, corpus: str) -> Figure:
    """A number a line, from columns damage, value, low, high and sd.

    by : column whose values get a colour and a marker each
    Thick bars are intervals over clips, thin ones ± the standard deviation over seeds.
    """
    damages = list(dict.fromkeys(table["damage"]))
    groups = list(table.groupby(by, sort=False))
    offsets = np.linspace(0.25, -0.25, len(groups)) if len(groups) > 1 else [0.0]
    with matplotlib.rc_context(STYLE):
        figure = sheet(7.2, 1.0 + 0.3 * len(damages), title, corpus)
        axes = figure.subplots()
        axes.axvline(0, color="#000000", linewidth=0.9)
        place = {damage: len(damages) - 1 - i for i, damage in enumerate(damages)}
        for number, ((name, rows), offset) in enumerate(zip(groups, offsets, strict=True)):
            reach = np.maximum(0, [rows["value"] - rows["low"], rows["high"] - rows["value"]])
            y, color = rows["damage"].map(place) + offset, CYCLE[number % len(CYCLE)]
            thin = {"fmt": "none", "elinewidth": 0.8, "alpha": 0.6, "color": color}
            axes.errorbar(rows["value"], y, xerr=rows["sd"], **thin)
            axes.errorbar(
                rows["value"],
                y,
                xerr=reach,
                fmt=MARKERS[number % len(MARKERS)],
                color=color,
                markersize=5,
                elinewidth=2.2,
                label=name,
            )
        axes.set_yticks(list(place.values()), damages)
        axes.set_ylim(-0.6, len(damages) - 0.4)
        axes.set_xlabel(label)
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside lower center", ncols=2)
        return figure

"""Figures of paper A's two stages: what the equations do, and what training with them gave.

As in `plots`: pure functions that return a Figure, made without pyplot.

Dimension key: B clips, T steps, M segments, D width, E emotions.
"""

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from emilib.corpus.layout import EMOTIONS
from emilib.plots.style import BLUE, GREEN, GREY, ORANGE, PINK, SKY, STYLE, YELLOW, sheet

MODALITIES = ("frames", "audio", "text")
COLOURS = {"frames": BLUE, "audio": ORANGE, "text": GREEN}
TARGET_COLOURS = (BLUE, YELLOW, GREEN, "#000000", ORANGE, PINK)
TARGET_MARKERS = "osD^vP"
SIDES = {"frames": "vision-text", "audio": "audio-text"}

# ------------------------------------------------------------------------------------ Stage I


def similarities(logits: torch.Tensor, same_text: torch.Tensor) -> Figure:
    """Eq. 1 on a few clips: similarities, and the softmax of each row without and with the mask.

    logits : (B, B), a row a clip's media, a column a transcript
    same_text : (B, B) bool, True where two clips have the same words
    """
    other = same_text & ~torch.eye(len(logits), dtype=torch.bool)
    panels = {
        "similarity / τ": logits,
        "softmax of each row": logits.softmax(1),
        "equal words masked": logits.masked_fill(other, -torch.inf).softmax(1),
    }
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(8.4, 2.9, "Eq. 1 on three clips, two of which say the same", "", 3)
        for panel, (name, values) in zip(axes, panels.items(), strict=True):
            high = float(values.max())
            panel.imshow(values, cmap="Blues", vmin=min(0.0, float(values.min())), vmax=1.9 * high)
            for (i, j), value in np.ndenumerate(values.numpy()):
                left_out = name == "equal words masked" and bool(other[i, j])
                text = "left out" if left_out else f"{value:.2f}".replace("-", "−")
                weight = "bold" if i == j else "normal"
                panel.text(j, i, text, ha="center", va="center", size=9, weight=weight)
            ticks = [str(i + 1) for i in range(len(values))]
            panel.set_xticks(range(len(values)), [f"text {t}" for t in ticks])
            panel.set_yticks(range(len(values)), [f"clip {t}" for t in ticks])
            panel.set_title(name, size=9.5)
            _bare(panel)
        return figure


def learning_rate(histories: Mapping[str, pd.DataFrame], curve: Mapping[str, np.ndarray]) -> Figure:
    """The learning rate at each step of training, on the curve of Eq. 10.

    histories : "frames" and "audio" → one row a step, with step and lr
    curve : the same names → Eq. 10 at each step
    """
    with matplotlib.rc_context(STYLE):
        title = "SGDR: the learning rate of every step lies on Eq. 10"
        figure, axes = _figure(8.2, 2.7, title, "", len(histories), sharey=True)
        for panel, (side, history) in zip(np.atleast_1d(axes), histories.items(), strict=True):
            panel.plot(
                history["step"], curve[side], color="#000000", linewidth=1, label="Eq. 10", zorder=3
            )
            panel.plot(
                history["step"],
                history["lr"],
                "o",
                color=COLOURS[side],
                markersize=4,
                alpha=0.6,
                label="as trained",
            )
            panel.set_title(SIDES[side], size=9.5)
            panel.set_xlabel("step")
            panel.ticklabel_format(axis="y", scilimits=(0, 0))
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.set_ylim(bottom=0)
        np.atleast_1d(axes)[0].set_ylabel("learning rate η")
        np.atleast_1d(axes)[0].legend(loc="lower left")
        return figure


def contrast_curves(
    histories: Mapping[str, pd.DataFrame], blind: Mapping[str, float], corpus: str
) -> Figure:
    """Contrastive loss and logit scale over the steps of both runs of Stage I.

    histories : "frames" and "audio" → one row a step, with step, epoch, loss and logit_scale
    blind : the same names → loss of a model that tells no clip from another, log of the batch
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(8.2, 3.0, "Stage I: loss and logit scale of both runs", corpus, 2)
        for side, history in histories.items():
            colour = COLOURS[side]
            axes[0].plot(history["step"], history["loss"], color=colour, linewidth=0.6, alpha=0.5)
            means = history.groupby("epoch")[["step", "loss"]].mean()
            axes[0].plot(means["step"], means["loss"], color=colour, label=SIDES[side])
            axes[0].axhline(blind[side], color=colour, linestyle=":", linewidth=1)
            axes[1].plot(history["step"], history["logit_scale"], color=colour, label=SIDES[side])
        axes[0].set_ylabel("loss in nats (dotted: blind guess)")
        axes[1].set_ylabel("logit scale 1/τ")
        for panel in axes:
            panel.set_xlabel("step")
        axes[0].legend()
        return figure


def recalls(table: pd.DataFrame, corpus: str) -> Figure:
    """recall@k text → clip: one panel a side, one line a stage.

    table : columns side, stage, and recall@k each; the stage "chance" is drawn in grey
    """
    columns = [c for c in table.columns if c.startswith("recall@")]
    styles = {
        "chance": {"color": GREY, "linestyle": ":", "marker": ""},
        "before": {"color": SKY, "linestyle": "--", "marker": "s"},
        "heads alone": {"color": YELLOW, "linestyle": "-", "marker": "^"},
        "after": {"color": "#000000", "linestyle": "-", "marker": "o"},
    }
    sides = list(table["side"].unique())
    with matplotlib.rc_context(STYLE):
        title = "Words find their clip: recall on validation clips"
        figure, axes = _figure(8.2, 3.0, title, corpus, len(sides), sharey=True)
        axes = np.atleast_1d(axes)
        for panel, side in zip(axes, sides, strict=True):
            for row in table[table["side"] == side].to_dict("records"):
                values = [row[c] for c in columns]
                panel.plot(columns, values, label=row["stage"], **styles[row["stage"]])
            panel.set_title(SIDES.get(side, side), size=9.5)
        # Only now: a limit set while curves are still missing would cut them off.
        axes[0].set_ylim(bottom=0)
        axes[0].set_ylabel("share of transcripts")
        axes[0].legend()
        return figure


def spheres(table: pd.DataFrame, corpus: str) -> Figure:
    """Alignment against uniformity, an arrow from before to after; lower left is better.

    table : columns side, stage ("before", "after" and others), alignment, uniformity media,
        uniformity text
    """
    with matplotlib.rc_context(STYLE):
        title = "Alignment and uniformity, before and after Stage I"
        figure, axes = _figure(6.4, 3.6, title, corpus)
        for side in table["side"].unique():
            rows = table[table["side"] == side].set_index("stage")
            for column, marker in (("uniformity media", "o"), ("uniformity text", "^")):
                start, end = (
                    (rows.loc[stage, column], rows.loc[stage, "alignment"])
                    for stage in ("before", "after")
                )
                axes.annotate(
                    "", end, start, arrowprops={"arrowstyle": "->", "color": COLOURS[side]}
                )
                what = SIDES[side].split("-")[0] if column.endswith("media") else "its text"
                axes.plot(*start, marker, color=COLOURS[side], markerfacecolor="white")
                axes.plot(*end, marker, color=COLOURS[side], label=f"{SIDES[side]}: {what}")
        axes.set_xlabel("uniformity, log mean exp(−2 d²)   (← more spread)")
        axes.set_ylabel("alignment, mean d² of pairs   (↓ closer)")
        axes.margins(0.12)
        axes.legend(fontsize=8.5)
        return figure


def probes(table: pd.DataFrame, corpus: str) -> Figure:
    """Linear probe before and after Stage I: mean ρ of each modality.

    table : columns modality, before, after
    """
    with matplotlib.rc_context(STYLE):
        title = "A linear probe on frozen features, before and after Stage I"
        figure, axes = _figure(6.4, 0.9 + 0.4 * len(table), title, corpus)
        y = np.arange(len(table))[::-1]
        axes.hlines(y, table["before"], table["after"], color="#BBBBBB", linewidth=2, zorder=1)
        axes.plot(table["before"], y, "s", color=SKY, label="before", markersize=7)
        axes.plot(table["after"], y, "o", color="#000000", label="after", markersize=6)
        axes.set_yticks(y, table["modality"])
        axes.set_ylim(-0.6, len(table) - 0.4)
        axes.set_xlabel("mean Pearson ρ on validation")
        axes.set_xlim(left=min(0.0, float(table[["before", "after"]].min().min()) - 0.02))
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside lower center", ncols=2)
        return figure


def emotion_maps(
    maps: Mapping[str, tuple[np.ndarray, np.ndarray]],
    corpus: str,
    names: Sequence[str] = EMOTIONS,
) -> Figure:
    """2-D maps of embeddings, a panel each, coloured by the dominant emotion.

    maps : panel's title → points (N, 2) and labels (N,) of `alignment.dominant`
    names : of the targets; of more than six, colours come again with other markers
    """
    with matplotlib.rc_context(STYLE):
        title = "Embeddings of validation clips, by dominant emotion"
        figure, axes = _figure(8.4, 6.6, title, corpus, 2, rows=math.ceil(len(maps) / 2))
        for panel, (name, (xy, labels)) in zip(np.ravel(axes), maps.items(), strict=False):
            rest = ~np.isin(labels, list(names))
            panel.scatter(*xy[rest].T, s=9, color="#CFCFCF", label="none or several")
            for number, emotion in enumerate(names):
                mine = labels == emotion
                panel.scatter(
                    *xy[mine].T,
                    s=26,
                    marker=TARGET_MARKERS[(number + number // 6) % 6],
                    color=TARGET_COLOURS[number % 6],
                    linewidth=0,
                    alpha=0.85,
                    label=emotion,
                )
            panel.set_title(name, size=9.5)
            panel.set_xticks([])
            panel.set_yticks([])
        for unused in np.ravel(axes)[len(maps) :]:
            unused.set_visible(False)
        handles, names = np.ravel(axes)[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4)
        return figure


# ------------------------------------------------------------------------------------- pieces


def _figure(
    width: float,
    height: float,
    title: str,
    corpus: str,
    columns: int = 1,
    *,
    rows: int = 1,
    ratios: Sequence[float] | None = None,
    sharex=False,
    sharey=False,
    squeeze=True,
):
    """A figure with its title and the corpus above its axes; sizes in inches."""
    figure = sheet(width, height, title, corpus)
    axes = figure.subplots(
        rows, columns, sharex=sharex, sharey=sharey, squeeze=squeeze, height_ratios=ratios
    )
    return figure, axes


def _bare(axes) -> None:
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)

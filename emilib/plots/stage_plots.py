"""Figures of paper A's two stages: what the equations do, and what training with them gave.

As in `plots`: pure functions that return a Figure, made without pyplot.

Dimension key: B clips, T steps, M segments, D width, E emotions.
"""

import itertools
import math
import textwrap
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
FPS = 5.0  # frames a second, of both papers

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


# ----------------------------------------------------------------------------------- Stage II


def receptive_field(dilations: Sequence[int], kernel_size: int, influence: np.ndarray) -> Figure:
    """Which frames a TCN output looks at: the paths above, the measured influence below.

    influence : (2 R + 1,) size of the gradient of the middle output by each input frame
    """
    half = len(influence) // 2
    reach = (kernel_size - 1) // 2
    with matplotlib.rc_context(STYLE):
        title = "Eq. 2: what one output of the TCN depends on"
        figure, (top, bottom) = _figure(8.4, 4.2, title, "", rows=2, ratios=(3, 1.3), sharex=True)
        needed, levels = {0}, len(dilations)
        for level, dilation in reversed(list(enumerate(dilations))):
            top.plot(sorted(needed), [level + 1] * len(needed), "o", color=BLUE, markersize=3)
            taps = [tap * dilation for tap in range(-reach, reach + 1)]
            for at, tap in itertools.product(needed, taps):
                top.plot([at, at + tap], [level + 1, level], color=BLUE, linewidth=0.6, alpha=0.5)
            needed = {at + tap for at in needed for tap in taps}
        top.plot(sorted(needed), [0] * len(needed), "o", color="#000000", markersize=3)
        names = [f"layer {k + 1}, d = {d}" for k, d in enumerate(dilations)]
        top.set_yticks(range(levels + 1), ["frames", *names])
        top.grid(visible=False)
        bottom.bar(range(-half, half + 1), influence / influence.max(), color=ORANGE, width=0.8)
        seen = np.flatnonzero(influence > 0) - half
        for edge in (seen.min() - 0.5, seen.max() + 0.5):
            bottom.axvline(edge, color="#000000", linestyle=":", linewidth=1)
        bottom.set_ylabel("|gradient|\n(largest = 1)")
        bottom.set_xlabel(f"frame, from the output's own ({FPS:g} a second)")
        return figure


def segments(assignment: np.ndarray, lengths: Sequence[int]) -> Figure:
    """Eq. 5: which segment each frame of each clip goes to.

    assignment : (B, T) int, the segment of a frame, −1 in padding; lengths : (B,) real frames
    """
    count = int(assignment.max()) + 1
    with matplotlib.rc_context(STYLE):
        title = f"Eq. 5: each clip's own length is cut into M = {count} segments"
        figure, axes = _figure(8.2, 0.75 + 0.42 * len(assignment), title, "")
        colours = (BLUE, YELLOW, GREEN, PINK, SKY, ORANGE)
        for row, clip in enumerate(assignment):
            for t, segment in enumerate(clip):
                style = {"edgecolor": "white", "linewidth": 1.5}
                if segment < 0:
                    style |= {"color": "#F2F2F2", "hatch": "////", "edgecolor": "#D0D0D0"}
                else:
                    style |= {"facecolor": colours[segment % len(colours)]}
                axes.barh(-row, 1, left=t, height=0.72, **style)
                if segment >= 0 and (t == 0 or clip[t - 1] != segment):
                    axes.text(t + 0.12, -row, str(segment + 1), va="center", color="white", size=9)
        axes.set_yticks(
            -np.arange(len(assignment)), [f"clip of {n} frame{'s'[: n != 1]}" for n in lengths]
        )
        axes.set_xlabel("frame (hatched: padding)")
        axes.set_xlim(0, assignment.shape[1])
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        return figure


def gate(
    waveform: np.ndarray, rate: int, change: np.ndarray, alpha: np.ndarray, corpus: str
) -> Figure:
    """Eq. 6 on a clip: sound, how much the BiLSTM's state changes, and the gate of each unit.

    waveform : (S,) at `rate` Hz; change : (T,) norm of Δh; alpha : (T, D) gate values
    """
    seconds = len(waveform) / rate
    steps = (np.arange(len(change)) + 0.5) * seconds / len(change)
    order = np.argsort(alpha.mean(axis=0))
    with matplotlib.rc_context(STYLE):
        title = "Eq. 6 on a validation clip: the gate of every unit, over time"
        ratios = (1, 1, 1.9)
        figure, axes = _figure(8.4, 4.6, title, corpus, rows=3, ratios=ratios, sharex=True)
        _draw_sound(axes[0], waveform, rate)
        axes[1].plot(steps, change, color=BLUE)
        axes[1].set_ylabel("‖Δh‖")
        axes[1].set_ylim(bottom=0)
        span = max(0.05, float(np.abs(alpha - 0.5).max()))
        image = axes[2].imshow(
            alpha[:, order].T,
            aspect="auto",
            cmap="PuOr_r",
            vmin=0.5 - span,
            vmax=0.5 + span,
            origin="lower",
            extent=(0, seconds, 0, alpha.shape[1]),
            interpolation="nearest",
        )
        axes[2].set_ylabel("unit, sorted")
        axes[2].set_xlabel("time in s")
        axes[2].set_xlim(0, seconds)
        axes[2].grid(visible=False)
        figure.colorbar(image, ax=axes[2], label="gate α", fraction=0.05, pad=0.01)
        return figure


def weights_over_time(clips: Sequence[Mapping], rate: int, corpus: str) -> Figure:
    """Frames, sound and the three weights of Eq. 8 of some clips, a column each.

    clips : dicts with title, frames (T, 3, S, S) uint8 or None, waveform (S,) or None, seconds,
        weights (M, 3)
    """
    with matplotlib.rc_context(STYLE):
        title = "Eq. 8: what each modality weighs, over the segments of a clip"
        width = max(6.8, 2.0 + 3.0 * len(clips))
        figure, axes = _figure(
            width, 3.9, title, corpus, len(clips), rows=3, ratios=(1, 0.8, 1.9), squeeze=False
        )
        for column, clip in enumerate(clips):
            images, sound, lines = axes[:, column]
            _draw_frames(images, clip["frames"], 9 if len(clips) == 1 else 6)
            images.set_title(textwrap.fill(clip["title"], 60), size=9.5)
            if clip["waveform"] is None:
                _say(sound, "no sound")
            else:
                _draw_sound(sound, clip["waveform"], rate)
                sound.set_ylabel("sound" if column == 0 else "")
                sound.tick_params(labelbottom=False)
            _draw_weights(lines, clip["weights"], clip["seconds"])
            lines.set_ylabel("weight β" if column == 0 else "")
        handles, names = axes[2, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3)
        return figure


def weight_shares(table: pd.DataFrame, corpus: str) -> Figure:
    """Mean weight of each modality, a thin bar a group of clips.

    table : columns clips (name of the group), count, frames, audio, text (mean weights)
    """
    with matplotlib.rc_context(STYLE):
        title = "Mean weight of each modality, by what a clip has"
        figure, axes = _figure(7.2, 1.0 + 0.42 * len(table), title, corpus)
        y = np.arange(len(table))[::-1]
        left = np.zeros(len(table))
        for name in MODALITIES:
            bars = axes.barh(y, table[name], 0.6, left=left, color=COLOURS[name], label=name)
            texts = [f"{v:.2f}" if v > 0.06 else "" for v in table[name]]
            axes.bar_label(bars, texts, label_type="center", color="white", size=9)
            left += table[name].to_numpy()
        names = [f"{r.clips}, {r.count} clips" for r in table.itertuples()]
        axes.set_yticks(y, names)
        axes.set_xlabel("mean weight β over segments and clips")
        axes.set_xlim(0, 1)
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside lower center", ncols=3)
        return figure


def averaging(table: pd.DataFrame, corpus: str) -> Figure:
    """Eq. 11: validation ρ after every epoch, of the weights as trained and of their average.

    table : columns gamma, epoch, trained, averaged
    """
    with matplotlib.rc_context(STYLE):
        title = "Eq. 11: one training run, judged with and without averaged weights"
        figure, axes = _figure(6.8, 3.2, title, corpus)
        axes.plot(
            table["epoch"],
            table["trained"],
            "s--",
            color=SKY,
            markersize=4,
            label="θ, weights as trained",
        )
        axes.plot(
            table["epoch"],
            table["averaged"],
            "o-",
            color="#000000",
            markersize=4,
            label=f"θ_EMA, γ = {table['gamma'].iloc[0]:g}",
        )
        axes.set_xlabel("epoch")
        axes.set_ylabel("mean ρ on validation")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
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


def _say(axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set_xticks([])
    axes.set_yticks([])
    _bare(axes)


def _draw_sound(axes, waveform: np.ndarray, rate: int) -> None:
    """The envelope of a waveform: the largest and smallest sample of each of 600 stretches."""
    if np.abs(waveform).max() == 0:
        _say(axes, "silent")
        return
    pieces = np.array_split(waveform.astype(float), min(600, len(waveform)))
    times = np.linspace(0, len(waveform) / rate, len(pieces))
    low, high = [p.min() for p in pieces], [p.max() for p in pieces]
    axes.fill_between(times, low, high, color=GREY, linewidth=0)
    axes.set_ylabel("sound")
    axes.set_yticks([])
    axes.set_xlim(0, len(waveform) / rate)


def _draw_frames(axes, frames: np.ndarray | None, count: int) -> None:
    if frames is None:
        _say(axes, "no face")
        return
    picked = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
    axes.imshow(np.concatenate(list(picked.transpose(0, 2, 3, 1)), axis=1))
    axes.set_xticks([])
    axes.set_yticks([])
    _bare(axes)


def _draw_weights(axes, weights: np.ndarray, seconds: float) -> None:
    borders = np.linspace(0, seconds, len(weights) + 1)
    for column, name in enumerate(MODALITIES):
        values = weights[:, column]
        axes.stairs(values, borders, color=COLOURS[name], linewidth=2.2, label=name, baseline=None)
        if (values == 0).all():
            axes.annotate(
                f"{name}: exactly 0",
                (seconds / 2, 0),
                (0, 4),
                textcoords="offset points",
                ha="center",
                color=COLOURS[name],
                size=8.5,
            )
    for border in itertools.islice(borders, 1, len(borders) - 1):
        axes.axvline(border, color="#E4E4E4", linewidth=0.7, zorder=0)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(0, seconds)
    axes.set_xlabel("time in s")
    axes.grid(axis="x", visible=False)

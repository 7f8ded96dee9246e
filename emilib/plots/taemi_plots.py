"""Figures of paper B's model and of all tables together, and the numbers some of them show.

As in `plots`: pure functions that return a Figure, made without pyplot.

Dimension key: B clips, H heads, T steps, S samples.
"""

import itertools
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import binom

from emilib.metrics import mean_pearson
from emilib.plots.style import (
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    STYLE,
    YELLOW,
    envelope,
    sheet,
)
from emilib.study.results import Results
from emilib.training.loop import predict

MODALITIES = ("frames", "audio", "text")
LETTERS = {"frames": "V", "audio": "A", "text": "T"}
COLOURS = {"frames": BLUE, "audio": ORANGE, "text": GREEN}
STRIP = 6  # frames a strip has room for

# --------------------------------------------------------------------------------- numbers


def subsets(data_modalities: Sequence[str] = MODALITIES) -> list[tuple[str, ...]]:
    """Every choice of at least one modality, single ones first."""
    sizes = range(1, len(data_modalities) + 1)
    return [s for size in sizes for s in itertools.combinations(data_modalities, size)]


def subset_rho(results: Results, names: Mapping[str, str], data) -> pd.DataFrame:
    """ρ of trained models when only some modalities are handed in; nothing is trained again.

    names : experiment → how it is called in the figure
    data : FeatureSet with targets

    Columns model, input ("V+A", ...), rho (mean over seeds), sd (over seeds).
    """
    rows = []
    for name, called in names.items():
        seeds = results[name].seeds
        trained = [results.model(name, seed) for seed in seeds]
        for chosen in subsets(tuple(data.dims)):
            given = data.only(*chosen)
            rho = np.array([mean_pearson(data.target, predict(m, given)) for m in trained])
            rows.append(
                {
                    "model": called,
                    "input": "+".join(LETTERS[m] for m in chosen),
                    "rho": rho.mean(),
                    "sd": rho.std(ddof=1) if len(rho) > 1 else np.nan,
                }
            )
    return pd.DataFrame(rows)


def used_share(attention: np.ndarray) -> np.ndarray:
    """Share of its steps that each head looks at: exp(entropy) / T, from 1 / T to 1.

    attention : (H, T), a head sums to 1. Returns (H,): 1 where all steps weigh the same.
    """
    attention = np.asarray(attention, dtype=np.float64)
    attention = attention / attention.sum(axis=1, keepdims=True)  # single precision is not exact
    logarithm = np.log(np.where(attention > 0, attention, 1.0))
    share = np.exp(-(attention * logarithm).sum(axis=1)) / attention.shape[1]
    return np.minimum(share, 1.0)


# ------------------------------------------------------------------------- the mechanism


def attention_rows(attention: np.ndarray, valid: np.ndarray) -> Figure:
    """Cross-attention of a small batch: a panel a clip, a row a head, padding hatched.

    attention : (B, H, T); valid : (B, T) bool
    """
    clips, heads, steps = attention.shape
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        title = "One query a clip: each head spreads a weight of 1 over the real steps"
        figure = sheet(8.2, 0.7 + 0.34 * heads, title)
        panels = figure.subplots(1, clips, squeeze=False)[0]
        top = float(attention.max())
        for panel, weights, real, number in zip(
            panels, attention, valid, range(1, 9), strict=False
        ):
            image = panel.imshow(weights, cmap="Blues", vmin=0, vmax=top, aspect="auto")
            for step in np.flatnonzero(~real):
                panel.axvspan(
                    step - 0.5, step + 0.5, facecolor="#F2F2F2", hatch="////", ec="#C8C8C8"
                )
            panel.set_title(f"clip {number}: {int(real.sum())} real steps", size=9.5)
            panel.set_xticks(range(steps))
            panel.set_yticks(range(heads), [f"head {h + 1}" for h in range(heads)])
            panel.set_xlabel("step (hatched: padding)")
            panel.tick_params(length=0)
        figure.colorbar(image, ax=panels, label="attention", fraction=0.04, pad=0.01)
        return figure


def dropout_counts(replaced: np.ndarray, chance: float) -> Figure:
    """Modality dropout as drawn: how often each modality, and how many at once.

    replaced : (N, 3) bool, order of MODALITIES; chance : p
    """
    clips = len(replaced)
    with matplotlib.rc_context(STYLE):
        title = f"Modality dropout with p = {chance:g}, over {clips:,} clips in training"
        figure = sheet(8.2, 2.7, title)
        left, right = figure.subplots(1, 2)
        left.bar(
            MODALITIES, replaced.mean(axis=0), color=[COLOURS[m] for m in MODALITIES], width=0.6
        )
        left.axhline(chance, color="#000000", linestyle=":", label=f"p = {chance:g}")
        left.set_ylabel("share of clips replaced")
        left.legend(loc="lower right", frameon=True)
        numbers = np.arange(4)
        share = np.bincount(replaced.sum(axis=1), minlength=4) / clips
        right.bar(numbers, share, color=SKY, width=0.6, label="drawn")
        expected = binom.pmf(numbers, 3, chance)
        right.plot(numbers, expected, "_", color="#000000", ms=26, mew=1.6, label="binomial")
        right.set_yscale("log")
        right.set_xticks(numbers)
        right.set_xlabel("modalities of a clip replaced at once")
        right.set_ylabel("share of clips")
        right.legend(markerscale=0.5)
        return figure


def learning_rate(curve: np.ndarray, runs: Sequence[pd.DataFrame], warmup: int) -> Figure:
    """Warm-up and cosine: the formula at every step, and the rate at each epoch's end as trained.

    curve : (N,) learning rate of each step of a full run; runs : histories with step and lr
    warmup : steps of the warm-up
    """
    with matplotlib.rc_context(STYLE):
        title = "Linear warm-up, then cosine: one rate a step"
        figure = sheet(7.2, 2.8, title)
        axes = figure.subplots()
        axes.axvspan(1, warmup + 1, color="#EDEDED", label=f"warm-up, {warmup} steps")
        steps = np.arange(1, len(curve) + 1)
        axes.plot(steps, curve, color="#000000", linewidth=1, label="formula")
        for number, (run, marker) in enumerate(zip(runs, itertools.cycle("os^Dv"), strict=False)):
            color = CYCLE[number % len(CYCLE)]
            style = {"color": color, "markersize": 4.5, "markerfacecolor": "none"}
            axes.plot(
                run["step"], run["lr"], marker, **style, label=f"as trained, run {number + 1}"
            )
        axes.set_xlabel("step")
        axes.set_ylabel("learning rate")
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper right")
        return figure


# ---------------------------------------------------------------------- what was learnt


def attention_clips(clips: Sequence[Mapping], rate: int, corpus: str) -> Figure:
    """What the anchor looked at in some clips, a column each.

    clips : dicts with title, frames (T, 3, S, S) uint8 or None, waveform (S,) or None, seconds,
        and attention: "frames" and "audio" → (H, T), or None where the token stands in
    rate : samples a second of the waveforms

    Attention is drawn over its uniform value, so that clips of different lengths can be
    compared: 1 is no choice at all. Thin lines are heads, the thick one is their mean.
    """
    with matplotlib.rc_context(STYLE):
        title = "What the text vector looks at, in frames and in sound"
        figure = sheet(max(6.2, 1.4 + 3.1 * len(clips)), 5.2, title, corpus)
        axes = figure.subplots(4, len(clips), squeeze=False, height_ratios=(1, 1.1, 0.7, 1.1))
        for column, clip in enumerate(clips):
            strip, over_frames, sound, over_sound = axes[:, column]
            strip.set_title(textwrap.fill(clip["title"], 44), size=8.8)
            _draw_frames(strip, clip["frames"])
            _draw_attention(over_frames, clip, "frames")
            _draw_sound(sound, clip, rate)
            _draw_attention(over_sound, clip, "audio")
            over_sound.set_xlabel("time in s")
        for row in (axes[1], axes[3]):  # one scale a row, so that clips can be compared
            top = max(panel.get_ylim()[1] for panel in row)
            for panel in row:
                panel.set_ylim(0, top)
        for row, label in (
            (1, "attention over\nframes"),
            (2, "sound"),
            (3, "attention over\nsound"),
        ):
            axes[row, 0].set_ylabel(label)
        return figure


def _draw_frames(axes, frames: np.ndarray | None) -> None:
    axes.axis("off")
    if frames is None:
        _say(axes, "no face in this clip")
        return
    rows = np.linspace(0, len(frames) - 1, STRIP).round().astype(int)
    axes.imshow(np.concatenate(list(frames[rows].transpose(0, 2, 3, 1)), axis=1))


def _draw_sound(axes, clip: Mapping, rate: int) -> None:
    axes.set_xlim(0, clip["seconds"])
    axes.set_yticks([])
    axes.tick_params(labelbottom=False)
    if clip["waveform"] is None:
        _say(axes, "no sound in this clip")
        return
    time, low, high = envelope(clip["waveform"].astype(float), rate)
    reach = max(1.0, float(max(high.max(), -low.min())))  # its own scale: a quiet clip shows too
    axes.fill_between(time, low / reach, high / reach, color=GREY, linewidth=0)


def _draw_attention(axes, clip: Mapping, name: str) -> None:
    axes.set_xlim(0, clip["seconds"])
    axes.axhline(1, color=GREY, linestyle=":", linewidth=1)
    axes.tick_params(labelbottom=name == "audio")
    attention = clip["attention"][name]
    if attention is None:
        _say(axes, "the token is all there is")
        axes.set_ylim(0, 1)
        return
    borders = np.linspace(0, clip["seconds"], attention.shape[1] + 1)
    relative = attention * attention.shape[1]
    for head in relative:
        axes.stairs(head, borders, color=COLOURS[name], linewidth=0.7, alpha=0.55, baseline=None)
    axes.stairs(relative.mean(axis=0), borders, color="#000000", linewidth=1.7, baseline=None)
    axes.set_ylim(bottom=0)


def focus(table: pd.DataFrame, corpus: str) -> Figure:
    """How much of a clip the anchor uses: a histogram of `used_share`, a panel a modality.

    table : columns modality, head, share; a row a clip and head
    """
    names = [m for m in MODALITIES if m in set(table["modality"])]
    with matplotlib.rc_context(STYLE):
        title = "How selective is the anchor? Share of a clip's steps that a head looks at"
        figure = sheet(8.2, 2.8, title, corpus)
        panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
        bins = np.linspace(0, 1, 26)
        for panel, name in zip(panels, names, strict=True):
            values = table.loc[table["modality"] == name, "share"]
            panel.hist(
                values, bins, weights=np.full(len(values), 1 / len(values)), color=COLOURS[name]
            )
            panel.axvline(values.median(), color="#000000", linestyle="--", linewidth=1.2)
            panel.set_title(f"{name}: half of the heads below {values.median():.2f}", size=9.5)
            panel.set_xlim(0, 1)
            panel.set_xlabel("one step  ←  share of steps  →  all the same")
        panels[0].set_ylabel("share of clips and heads")
        return figure


def subset_dots(table: pd.DataFrame, corpus: str) -> Figure:
    """`subset_rho` as dots: a line an input, a marker a model, bars ± sd over seeds."""
    inputs, models = list(dict.fromkeys(table["input"])), list(dict.fromkeys(table["model"]))
    with matplotlib.rc_context(STYLE):
        title = "Trained on everything, given only a part"
        figure = sheet(7.2, 1.0 + 0.42 * len(inputs), title, corpus)
        axes = figure.subplots()
        offsets = np.linspace(0.22, -0.22, len(models)) if len(models) > 1 else [0.0]
        colours = (BLUE, ORANGE, GREEN, PINK, YELLOW)
        for model, offset, color, marker in zip(models, offsets, colours, "osD^v", strict=False):
            rows = table[table["model"] == model].set_index("input").loc[inputs]
            y = np.arange(len(inputs))[::-1] + offset
            axes.errorbar(
                rows["rho"],
                y,
                xerr=rows["sd"],
                fmt=marker,
                color=color,
                ms=5.5,
                capsize=2,
                label=model,
            )
        axes.axvline(0, color="#000000", linewidth=0.9)
        axes.set_yticks(np.arange(len(inputs))[::-1], inputs)
        axes.set_ylim(-0.6, len(inputs) - 0.4)
        axes.set_xlabel("mean Pearson ρ on validation, ± sd over seeds")
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside lower center", ncols=len(models))
        return figure


# ----------------------------------------------------------------------- all tables together


def all_rows(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows of all result tables below each other, with a column `table` in front."""
    parts = [t.assign(table=name) for name, t in tables.items() if "here" in t.columns]
    rows = pd.concat(parts, ignore_index=True)
    return rows[["table", *[c for c in rows.columns if c != "table"]]]


def verdicts(rows: pd.DataFrame) -> pd.DataFrame:
    """Each difference a paper reports, beside ours, and what ours can say about its direction.

    rows : of `all_rows`

    Columns table, difference, paper, here, low, high, verdict: "same direction" or "other
    direction" where our paired interval leaves out 0, "not told apart" where it holds 0.
    """
    kept = rows[rows["delta_here"].notna() & rows["delta_paper"].notna()]
    sure = (kept["delta_low"] > 0) | (kept["delta_high"] < 0)
    same = np.sign(kept["delta_here"]) == np.sign(kept["delta_paper"])
    return pd.DataFrame(
        {
            "table": kept["table"],
            "difference": kept["row"] + " − " + kept["reference"],
            "paper": kept["delta_paper"],
            "here": kept["delta_here"],
            "low": kept["delta_low"],
            "high": kept["delta_high"],
            "verdict": np.select(
                [~sure, same], ["not told apart", "same direction"], "other direction"
            ),
        }
    ).reset_index(drop=True)


def against(rows: pd.DataFrame, corpus: str) -> Figure:
    """The paper's ρ of every row against ours, with our interval; `rows` of `all_rows`.

    Tables stand a little beside each other, because one model may serve rows of several.
    """
    with matplotlib.rc_context(STYLE):
        title = "Every row of both papers: their ρ against ours"
        figure = sheet(6.6, 4.6, title, corpus)
        axes = figure.subplots()
        drawn = rows[rows["here"].notna() & rows["paper"].notna()]
        reach = [min(0.0, drawn["low"].min()), max(drawn[["paper", "high"]].max()) + 0.02]
        axes.plot(reach, reach, color=GREY, linewidth=1, linestyle=":", label="the same ρ")
        colours = (SKY, BLUE, GREEN, ORANGE, PINK)
        for place, (name, mine) in enumerate(drawn.groupby("table", sort=False)):
            lengths = np.maximum(0, [mine["here"] - mine["low"], mine["high"] - mine["here"]])
            label = f"Table {name[1]} of paper {name[0]}"
            style = {"color": colours[place], "ms": 5.5, "elinewidth": 0.8, "capsize": 2}
            x = mine["paper"] + 0.005 * (place - 2)
            axes.errorbar(x, mine["here"], lengths, fmt="vos^D"[place], **style, label=label)
        axes.set_xlabel("paper, on Hume-Vidmimic2: mean ρ")
        axes.set_ylabel("here: mean ρ, 95 % over clips")
        axes.set_xlim(left=0)
        axes.legend(loc="upper left", fontsize=8.5)
        return figure


def _say(axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)

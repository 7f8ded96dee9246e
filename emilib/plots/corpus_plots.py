"""Figures of clips, and of the two architectures."""

import itertools
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.patches import FancyBboxPatch
from scipy.signal import ShortTimeFFT
from scipy.signal.windows import hann

from emilib.plots.style import (
    BLACK,
    COLOURS,
    GREEN,
    GREY,
    ORANGE,
    STYLE,
    envelope,
    say,
    sheet,
    shown_frames,
)

FLOOR_DB = -80.0  # of spectrograms, below their loudest point
MOST_FACES = 10  # side by side in a strip
WORD_LINES = 4  # of a clip's words, and of its defects

# ------------------------------------------------------------------------------------ clips


@rc_context(STYLE | {"axes.grid": False})
def clip_card(
    media,
    title: str,
    labels: pd.Series,
    words,
    defects: Sequence[str] | None = None,
    corpus: str = "",
    tones: bool = True,
    figure=None,
):
    """All that a corpus holds of one clip: frames, sound, labels, words and defects.

    media : decoded clip with images (T, S, S, 3) uint8 or None, times (T,) in s, waveform (S,) or
        None, sample_rate in Hz, duration in s or NaN
    labels : target → value, NaN for a clip without labels; words : no str, or an empty one, where
        there are none
    defects : a line each; None leaves the heading out
    tones : draw the spectrogram; figure : draw on this one, a new sheet where None
    """
    figure = sheet(9.0, 6.1 if tones else 4.6, title, corpus) if figure is None else figure
    rows = [["faces"] * 2, ["wave"] * 2, ["tones"] * 2, ["labels", "words"]]
    heights = [1.15, 0.7, 1.1, 1.3]
    if not tones:
        del rows[2], heights[2]
    axes = figure.subplot_mosaic(rows, height_ratios=heights, width_ratios=[1, 1.15])
    _draw_strip(axes["faces"], media)
    _draw_waveform(axes["wave"], media)
    if tones:
        _draw_spectrogram(figure, axes["tones"], media)
        axes["wave"].tick_params(labelbottom=False)
    for name in rows[1:-1]:
        axes[name[0]].set_xlim(0, media.duration if media.duration > 0 else 1)
    axes[rows[-2][0]].set_xlabel("time, s")
    _draw_labels(axes["labels"], labels)
    _draw_words(axes["words"], words, defects)
    return figure


def _draw_strip(axes, media) -> None:
    axes.axis("off")
    if media.images is None:
        say(axes, "no frame could be decoded")
        return
    rows = shown_frames(len(media.images), MOST_FACES)
    height, width = media.images.shape[1:3]
    step = 1.06 * width
    for place, row in enumerate(rows):
        axes.imshow(media.images[row], extent=(place * step, place * step + width, height, 0))
        middle, label = place * step + width / 2, f"{media.times[row]:.2f} s"
        axes.text(middle, height * 1.06, label, ha="center", va="top", fontsize=8.5)
    axes.set(xlim=(0, max(len(rows), MOST_FACES) * step), ylim=(height * 1.25, 0))
    axes.set_anchor("W")
    text = f"{len(rows)} of {len(media.images)} sampled frames, with their time stamps"
    axes.set_title(text, loc="left", fontsize=9.5, color=GREY)


def _draw_waveform(axes, media) -> None:
    axes.set_ylabel("waveform")
    if media.waveform is None:
        say(axes, "no sound")
        return
    time, low, high = envelope(media.waveform, media.sample_rate)
    axes.fill_between(time, low, high, color=ORANGE, lw=0.4)
    top = max(0.01, float(np.abs(media.waveform).max())) * 1.05
    axes.set_ylim(-top, top)


def _draw_spectrogram(figure, axes, media) -> None:
    axes.set_ylabel("frequency, kHz")
    if media.waveform is None or len(media.waveform) < 400:
        say(axes, "no sound" if media.waveform is None else "sound too short for a spectrogram")
        return
    level, step = spectrogram(media.waveform, media.sample_rate)
    extent = (-step / 2, (level.shape[1] - 0.5) * step, 0, media.sample_rate / 2000)
    colours = {"cmap": "magma", "vmin": FLOOR_DB, "vmax": 0}
    image = axes.imshow(level, origin="lower", aspect="auto", extent=extent, **colours)
    figure.colorbar(image, ax=axes, label="level, dB", pad=0.01, ticks=[-80, -40, 0])


def spectrogram(waveform, sample_rate: int) -> tuple[np.ndarray, float]:
    """Levels (F, T) in dB below the loudest point, over Hann windows of 25 ms; and seconds a step.

    Steps are 10 ms apart; levels end at FLOOR_DB.
    """
    window, hop = hann(round(0.025 * sample_rate), sym=False), round(0.010 * sample_rate)
    transform = ShortTimeFFT(window, hop, sample_rate, mfft=2 ** int(np.ceil(np.log2(len(window)))))
    steps = -(-len(waveform) // hop)  # centred at 0, 10 ms, ... within the waveform
    power = transform.spectrogram(np.asarray(waveform, float), p0=0, p1=steps)
    power = np.maximum(power / max(float(power.max()), 1e-20), 1e-20)
    return np.maximum(10 * np.log10(power), FLOOR_DB), hop / sample_rate


def _draw_labels(axes, labels: pd.Series) -> None:
    """A bar a target; the value beside it, as zeros have no bar."""
    axes.set_title("labels", loc="left", size=9.5, weight="bold")
    if labels.isna().all():
        axes.axis("off")
        say(axes, "no labels")
        return
    bars = axes.barh(list(labels.index), labels, color=GREY)
    texts = ["not known" if np.isnan(value) else f"{value:.2f}" for value in labels]
    axes.bar_label(bars, texts, padding=3, fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xlim(min(0.0, 1.12 * labels.min()), 1.12 * max(1.0, labels.max()))
    axes.tick_params(axis="y", length=0)


def _draw_words(axes, words, defects: Sequence[str] | None) -> None:
    axes.axis("off")
    spoken = isinstance(words, str) and bool(words.strip())
    style = {"style": "italic", "color": GREEN} if spoken else {}
    paragraphs = [("words", [f"“{words}”" if spoken else "no words"], style)]
    if defects is not None:
        paragraphs.append(("defects", defects or ["none"], {}))
    y, step = 1.0, 0.115  # from the top, in heights of the panel
    place = {"va": "top", "linespacing": 1.25, "transform": axes.transAxes}
    for heading, texts, style in paragraphs:
        lines = [line for text in texts for line in textwrap.wrap(text, 62)]
        shown = lines if len(lines) <= WORD_LINES else [*lines[: WORD_LINES - 1], "…"]
        axes.text(0, y, heading, weight="bold", **place)
        axes.text(0, y - 1.2 * step, "\n".join(shown), fontsize=9, **place, **style)
        y -= (len(shown) + 1.9) * step


# ---------------------------------------------------------------------------- architectures

# Boxes are (column, row, text); rows are frames, text and audio from the top; chains are arrows.
DUAL_STAGE = {
    "frames": (0, 0, "frames, 5 a second\nViT-B/16, T × 768"),
    "text": (0, 1, "transcript\nBERT, 768"),
    "audio": (0, 2, "sound\nwav2vec2, T × 1024"),
    "tcn": (1, 0, "TCN\nEq. 2"),
    "lstm": (1, 2, "BiLSTM · gate\nEq. 3, 6"),
    "pool_f": (2, 0, "M segments\nEq. 5"),
    "pool_a": (2, 2, "M segments\nnot stated"),
    "map_f": (3, 0, "MLP · quality q\nEq. 4, 7"),
    "map_t": (3, 1, "MLP · quality q\nEq. 4, 7"),
    "map_a": (3, 2, "MLP · quality q\nEq. 4, 7"),
    "sum": (4, 1, "Σ β · h\nβ = softmax q\nEq. 8"),
    "out": (5, 1, "Transformer\nEq. 9\n→ 6 intensities"),
}
DUAL_STAGE_CHAINS = (
    "frames tcn pool_f map_f sum out",
    "text map_t sum",
    "audio lstm pool_a map_a sum",
)
TAEMI = {
    "frames": (0, 0, "frames\nViT, T × 768"),
    "text": (0, 1, "transcript\nGTE: t, 768"),
    "audio": (0, 2, "sound, 12 s\nwav2vec2, T × 1027"),
    "in_f": (1, 0, "token if missing\nlinear → 512"),
    "in_t": (1, 1, "token if missing"),
    "in_a": (1, 2, "token if missing\nlinear → 512"),
    "self_f": (2, 0, "self-attention\nV′"),
    "self_a": (2, 2, "self-attention\nA′"),
    "cross_f": (3, 0, "cross-attention\n$h_v$ = CA(W t, V′)"),
    "cross_a": (3, 2, "cross-attention\n$h_a$ = CA(W t, A′)"),
    "join": (4, 1, "f = [t; $h_a$; $h_v$]\n1792"),
    "out": (5, 1, "MLP, GELU\n→ 6 intensities"),
}
TAEMI_CHAINS = (
    "frames in_f self_f cross_f join out",
    "text in_t join",
    "audio in_a self_a cross_a join",
)
BOX, GRID = (1.78, 0.72), (2.12, 1.02)  # width and height of a box; distance of two


@rc_context(STYLE | {"font.size": 8.6, "axes.grid": False})
def architectures(upper, lower) -> None:
    """Both papers' networks as boxes and arrows, A on the upper axes and B on the lower."""
    title = "Paper A, dual-stage: quality scores weigh the modalities in each segment"
    _draw_boxes(upper, DUAL_STAGE, DUAL_STAGE_CHAINS, title)
    title = "Paper B, TAEMI: the text asks, frames and sound answer"
    _draw_boxes(lower, TAEMI, TAEMI_CHAINS, title)
    arrow = {"arrowstyle": "-|>", "color": GREEN, "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
    both = arrow | {"arrowstyle": "<|-|>", "ls": "--", "color": GREY, "lw": 1.1}
    x, edge = 3 * GRID[0], BOX[1] / 2
    for side in (1, -1):  # from the text in the middle row up to the frames, down to the sound
        near, far = (-GRID[1] + side * edge, -GRID[1] + side * (GRID[1] - edge))
        upper.annotate("", (0, far), (0, near), arrowprops=both)
        upper.text(0.12, (near + far) / 2, "Stage I, Eq. 1", color=GREY, va="center")
        lower.annotate("", (x, far), (x, -GRID[1]), arrowprops=arrow)
        lower.text(x - 0.15, near + 0.05 * side, "query", color=GREEN, ha="right", va="center")


def _draw_boxes(axes, boxes: dict, chains: Sequence[str], title: str) -> None:
    for column, row, text in boxes.values():
        colour = list(COLOURS.values())[(0, 2, 1)[row]] if column < 4 else GREY
        corner = (column * GRID[0] - BOX[0] / 2, -row * GRID[1] - BOX[1] / 2)
        style = {"boxstyle": "round,pad=0,rounding_size=0.12", "fc": "white", "ec": colour}
        axes.add_patch(FancyBboxPatch(corner, *BOX, lw=1.6, **style))
        x, y = column * GRID[0], -row * GRID[1]
        axes.text(x, y, text, ha="center", va="center", linespacing=1.35)
    arrow = {"arrowstyle": "-|>", "color": BLACK, "lw": 1.1, "shrinkA": 0, "shrinkB": 0}
    for chain in map(str.split, chains):
        for source, target in itertools.pairwise(chain):
            (c0, r0, _), (c1, r1, _) = boxes[source], boxes[target]
            start = (c0 * GRID[0] + BOX[0] / 2, -r0 * GRID[1])
            axes.annotate("", (c1 * GRID[0] - BOX[0] / 2, -r1 * GRID[1]), start, arrowprops=arrow)
    axes.set_xlim(-BOX[0] / 2 - 0.1, 5 * GRID[0] + BOX[0] / 2 + 0.1)
    axes.set_ylim(-2 * GRID[1] - BOX[1] / 2 - 0.1, BOX[1] / 2 + 0.1)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title(title, loc="left", fontweight="bold", size=10)

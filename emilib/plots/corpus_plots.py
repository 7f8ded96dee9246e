"""Figures of clips, and of the two architectures."""

import itertools
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.patches import FancyBboxPatch

from emilib.plots.style import COLOURS, GREEN, GREY, STYLE, say, sheet, shown_frames, sound_wave

MOST_FACES = 10  # side by side in a strip
WORD_LINES = 4  # of a clip's words, and of its defects
ARCHITECTURES = json.loads(Path(__file__).with_name("architectures.json").read_text("utf-8"))
BOX, GRID = (1.78, 0.72), (2.12, 1.02)  # width and height of a box; distance of two


@rc_context(STYLE | {"axes.grid": False})
def clip_card(
    media, title, labels: pd.Series, words, defects=None, corpus="", tones=True, figure=None
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
    sound_wave(axes["wave"], media.waveform, media.sample_rate)
    axes["wave"].set_ylabel("waveform")
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
    for left, row in zip(step * np.arange(len(rows)), rows, strict=True):
        axes.imshow(media.images[row], extent=(left, left + width, height, 0))
        place = {"ha": "center", "va": "top", "fontsize": 8.5}
        axes.text(left + width / 2, height * 1.06, f"{media.times[row]:.2f} s", **place)
    axes.set(xlim=(0, max(len(rows), MOST_FACES) * step), ylim=(height * 1.25, 0), anchor="W")
    text = f"{len(rows)} of {len(media.images)} sampled frames, with their time stamps"
    axes.set_title(text, loc="left", fontsize=9.5, color=GREY)


def _draw_spectrogram(figure, axes, media) -> None:
    """Levels over Hann windows of 25 ms, 10 ms apart, down to 80 dB below the loudest point."""
    axes.set_ylabel("frequency, Hz")
    window, hop = round(0.025 * media.sample_rate), round(0.010 * media.sample_rate)
    if media.waveform is None or len(media.waveform) < window or not np.any(media.waveform):
        say(axes, "no sound to take apart")
        return
    style = {"NFFT": window, "noverlap": window - hop, "pad_to": 512, "cmap": "magma"}
    with np.errstate(divide="ignore"):  # silence has no level
        power, _, _, image = axes.specgram(media.waveform, Fs=media.sample_rate, **style)
    image.set_clim(10 * np.log10(power.max()) + np.array([-80, 0]))
    figure.colorbar(image, ax=axes, label="level, dB", pad=0.01)


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
    paragraphs = [(1.0, "words", [f"“{words}”" if spoken else "no words"], style)]
    if defects is not None:
        paragraphs.append((0.38, "defects", defects or ["none"], {}))
    for top, heading, texts, style in paragraphs:
        lines = [line for text in texts for line in textwrap.wrap(text, 62)]
        lines = lines if len(lines) <= WORD_LINES else [*lines[: WORD_LINES - 1], "…"]
        axes.text(0, top, heading, weight="bold", va="top")
        axes.text(0, top - 0.14, "\n".join(lines), fontsize=9, va="top", linespacing=1.25, **style)


@rc_context(STYLE | {"font.size": 8.6, "axes.grid": False})
def architectures(upper, lower) -> None:
    """Both papers' networks as boxes and arrows, A on the upper axes and B on the lower."""
    for axes, (title, parts) in zip((upper, lower), ARCHITECTURES.items(), strict=True):
        _draw_boxes(axes, parts["boxes"], parts["chains"])
        axes.set_title(title, loc="left", fontweight="bold", size=10)
    arrow = {"arrowstyle": "-|>", "color": GREEN, "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
    both = arrow | {"arrowstyle": "<|-|>", "ls": "--", "color": GREY, "lw": 1.1}
    x, edge = 3 * GRID[0], BOX[1] / 2
    for side in (1, -1):  # from the text in the middle row up to the frames, down to the sound
        near, far = (-GRID[1] + side * edge, -GRID[1] + side * (GRID[1] - edge))
        upper.annotate("", (0, far), (0, near), arrowprops=both)
        upper.text(0.12, (near + far) / 2, "Stage I, Eq. 1", color=GREY, va="center")
        lower.annotate("", (x, far), (x, -GRID[1]), arrowprops=arrow)
        lower.text(x - 0.15, near + 0.05 * side, "query", color=GREEN, ha="right", va="center")


def _draw_boxes(axes, boxes: dict, chains: Sequence[str]) -> None:
    """boxes : name → (column, row, text), rows are frames, text and audio; chains : arrows."""
    for column, row, text in boxes.values():
        colour = list(COLOURS.values())[(0, 2, 1)[row]] if column < 4 else GREY
        x, y = column * GRID[0], -row * GRID[1]
        style = {"boxstyle": "round,pad=0,rounding_size=0.12", "fc": "white", "ec": colour}
        corner = (x - BOX[0] / 2, y - BOX[1] / 2)
        axes.add_patch(FancyBboxPatch(corner, *BOX, lw=1.6, **style))
        axes.text(x, y, text, ha="center", va="center", linespacing=1.35)
    arrow = {"arrowstyle": "-|>", "color": "black", "lw": 1.1, "shrinkA": 0, "shrinkB": 0}
    for source, target in itertools.chain(*(itertools.pairwise(c.split()) for c in chains)):
        (c0, r0, _), (c1, r1, _) = boxes[source], boxes[target]
        start = (c0 * GRID[0] + BOX[0] / 2, -r0 * GRID[1])
        axes.annotate("", (c1 * GRID[0] - BOX[0] / 2, -r1 * GRID[1]), start, arrowprops=arrow)
    axes.set_xlim(-BOX[0] / 2 - 0.1, 5 * GRID[0] + BOX[0] / 2 + 0.1)
    axes.set_ylim(-2 * GRID[1] - BOX[1] / 2 - 0.1, BOX[1] / 2 + 0.1)
    axes.set_aspect("equal")
    axes.axis("off")

"""Figures of the two architectures, of clips, and of features.

As in `plots`: pure functions that return a Figure, made without pyplot.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import NullLocator, PercentFormatter
from scipy.signal import ShortTimeFFT
from scipy.signal.windows import hann

from ..corpus.layout import EMOTIONS
from ..corpus.media import Media
from .plots import BLUE, GREEN, GREY, ORANGE, PINK, SKY, STYLE, YELLOW

COLOURS = {"frames": BLUE, "audio": ORANGE, "text": GREEN}
FLOOR_DB = -80.0  # of spectrograms, below their loudest point
MOST_FACES = 12  # side by side in a strip

# ---------------------------------------------------------------------------- architectures

# name: (column, row, lines); rows count from the top, columns from the left
_DUAL_STAGE = {
    "frames": (0, 0, "frames, 5 a second\nViT-B/16 → T × 768"),
    "audio": (0, 1, "sound\nwav2vec2 → T × 1024"),
    "text": (0, 2, "transcript\nBERT → 768"),
    "tcn": (1, 0, "TCN\nEq. 2"),
    "lstm": (1, 1, "BiLSTM · gate\nEq. 3, 6"),
    "pool": (2, 0, "M segments\nEq. 5"),
    "pool2": (2, 1, "M segments\nnot stated"),
    "map_f": (3, 0, "MLP · quality q\nEq. 4, 7"),
    "map_a": (3, 1, "MLP · quality q\nEq. 4, 7"),
    "map_t": (3, 2, "MLP · quality q\nEq. 4, 7"),
    "sum": (4, 1, "Σ β · h\nβ = softmax q\nEq. 8"),
    "out": (5, 1, "Transformer\nEq. 9\n→ 6 intensities"),
}
_DUAL_STAGE_ARROWS = (
    ("frames", "tcn"),
    ("tcn", "pool"),
    ("pool", "map_f"),
    ("audio", "lstm"),
    ("lstm", "pool2"),
    ("pool2", "map_a"),
    ("text", "map_t"),
    ("map_f", "sum"),
    ("map_a", "sum"),
    ("map_t", "sum"),
    ("sum", "out"),
)
_TAEMI = {
    "frames": (0, 0, "frames\nViT → T × 768"),
    "audio": (0, 1, "sound, 12 s\nwav2vec2 → T × 1027"),
    "text": (0, 2, "transcript\nGTE → t, 768"),
    "lin_f": (1, 0, "token if missing\nlinear → 512"),
    "lin_a": (1, 1, "token if missing\nlinear → 512"),
    "lin_t": (1, 2, "token if missing\nlinear → 512"),
    "sa_f": (2, 0, "self-attention\nV′"),
    "sa_a": (2, 1, "self-attention\nA′"),
    "ca_f": (3, 0, "cross-attention\nh$^v$ = CA(t, V′)"),
    "ca_a": (3, 1, "cross-attention\nh$^a$ = CA(t, A′)"),
    "join": (4, 1, "f = [t; h$^a$; h$^v$]\n1792"),
    "out": (5, 1, "MLP, GELU\n→ 6 intensities"),
}
_TAEMI_ARROWS = (
    ("frames", "lin_f"),
    ("lin_f", "sa_f"),
    ("sa_f", "ca_f"),
    ("audio", "lin_a"),
    ("lin_a", "sa_a"),
    ("sa_a", "ca_a"),
    ("text", "lin_t"),
    ("ca_f", "join"),
    ("ca_a", "join"),
    ("join", "out"),
)
_BOX = (1.62, 0.72)  # width and height of a box, in units of its grid
_GRID = (2.02, 1.05)
_ROW_COLOURS = (BLUE, ORANGE, GREEN)


def architectures() -> Figure:
    """Both papers' networks as boxes and arrows, one above the other."""
    with matplotlib.rc_context({**STYLE, "font.size": 8.6, "axes.grid": False}):
        figure = Figure(figsize=(9.6, 7.0), layout="constrained")
        upper, lower = figure.subplots(2, 1)
        title = "Paper A, dual-stage: one weight a modality and segment, from its quality"
        _draw_boxes(upper, _DUAL_STAGE, _DUAL_STAGE_ARROWS, title)
        title = "Paper B, TAEMI: the text vector asks, sound and frames answer"
        _draw_boxes(lower, _TAEMI, _TAEMI_ARROWS, title)
        _draw_anchor(lower)
        return figure


def _draw_boxes(axes, boxes: dict, arrows, title: str) -> None:
    for name, (column, row, text) in boxes.items():
        own = column < 4 or name.startswith("map")
        colour = _ROW_COLOURS[row] if own else GREY
        x, y = _centre(column, row)
        corner = (x - _BOX[0] / 2, y - _BOX[1] / 2)
        style = "round,pad=0,rounding_size=0.12"
        axes.add_patch(FancyBboxPatch(corner, *_BOX, style, fc="white", ec=colour, lw=1.6))
        axes.text(x, y, text, ha="center", va="center", linespacing=1.35)
    for source, target in arrows:
        _arrow(axes, boxes[source], boxes[target])
    axes.set_xlim(-_BOX[0] / 2 - 0.1, 5 * _GRID[0] + _BOX[0] / 2 + 0.1)
    axes.set_ylim(-2 * _GRID[1] - _BOX[1] / 2 - 0.35, _BOX[1] / 2 + 0.1)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title(title, fontweight="bold")


def _centre(column: int, row: int) -> tuple[float, float]:
    return column * _GRID[0], -row * _GRID[1]


def _arrow(axes, source: tuple, target: tuple, colour: str = "#333333") -> None:
    (x0, y0), (x1, y1) = _centre(*source[:2]), _centre(*target[:2])
    ends = {"xy": (x1 - _BOX[0] / 2, y1), "xytext": (x0 + _BOX[0] / 2, y0)}
    arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.1, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", **ends, arrowprops=arrow)


def _draw_anchor(axes) -> None:
    """The way of t: as the query into both cross-attentions, and into f."""
    x, y = _centre(1, 2)
    start, query, join = x + _BOX[0] / 2, _centre(3, 0)[0], _centre(4, 0)[0]
    line = {"color": GREEN, "lw": 1.6, "solid_capstyle": "round"}
    axes.plot([start, query], [y, y], **line)
    axes.text((start + query) / 2, y + 0.08, "t asks (the query)", ha="center", color=GREEN)
    arrow = {"arrowstyle": "-|>", "color": GREEN, "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
    bottom = _centre(3, 1)[1] - _BOX[1] / 2
    axes.annotate("", (query, bottom), (query, y), arrowprops=arrow)
    between = (_centre(3, 1)[1] + _BOX[1] / 2, _centre(3, 0)[1] - _BOX[1] / 2)
    axes.annotate("", (query, between[1]), (query, between[0]), arrowprops=arrow)
    x0 = _centre(0, 2)[0]
    low = y - _BOX[1] / 2 - 0.22
    axes.plot([x0, x0, join], [y - _BOX[1] / 2, low, low], **line)
    axes.annotate("", (join, bottom), (join, low), arrowprops=arrow)
    axes.text((x + query) / 2, low + 0.06, "t itself, 768 wide", ha="center", color=GREEN)

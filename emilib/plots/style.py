"""The style of all figures, and the pieces that several of them share; `save` writes a figure.
Blue, orange and green are frames, audio and text, and nothing else; models are black and grey."""

import io
import json
import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from emilib.cache import atomic_write

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
BLACK, SKY, YELLOW, GREY = "#000000", "#56B4E9", "#E69F00", "#666666"
COLOURS = {"frames": BLUE, "audio": ORANGE, "text": GREEN}

# Without formulas: a "$" in words, a file's name or a target's is a dollar.
STYLE = json.loads(Path(__file__).with_name("style.json").read_text("utf-8"))


@rc_context(STYLE)
def sheet(width: float, height: float, title: str, corpus: str = "") -> Figure:
    """An empty figure with its title, and below it the corpus in grey; sizes in inches."""
    titles, lines = textwrap.wrap(title, int(width * 9)), textwrap.wrap(corpus, int(width * 13))
    head = 0.12 + 0.2 * len(titles)
    header = head + 0.04 + 0.17 * len(lines)
    height += header
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - header / height))
    figure.text(0.012, 1 - 0.08 / height, "\n".join(titles), va="top", size=11.5, weight="bold")
    figure.text(0.012, 1 - head / height, "\n".join(lines), va="top", size=8.5, color=GREY)
    return figure


@rc_context(STYLE)
def canvas(width: float, height: float, title: str, corpus: str = "", rows=1, columns=1, **options):
    """A `sheet` and its axes, as `Figure.subplots` returns them; `options` are passed on to it."""
    figure = sheet(width, height, title, corpus)
    return figure, figure.subplots(rows, columns, **options)


def save(figure: Figure, folder, name: str, data: pd.DataFrame) -> None:
    """NAME.svg and NAME.csv, what is drawn in numbers; the same bytes for the same results."""
    index = not isinstance(data.index, pd.RangeIndex)
    atomic_write(Path(folder) / f"{name}.svg", rendered(figure, "svg"))
    atomic_write(Path(folder) / f"{name}.csv", data.to_csv(index=index, float_format="%.6g"))


@rc_context(STYLE)
def rendered(figure: Figure, kind: str) -> bytes:
    """The figure as a file of this kind, "svg" or "png" (256 colours), the same bytes each time."""
    metadata = {"svg": ("Date", "Creator"), "png": ("Software",)}  # of today, of this matplotlib
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, dpi=110, metadata=dict.fromkeys(metadata[kind]))
    if kind == "png":  # a third of the size
        image, stream = Image.open(stream).convert("RGB").quantize(), io.BytesIO()
        image.save(stream, "png", optimize=True)
    return stream.getvalue()


def bare(axes) -> None:
    """Axes without ticks, grid and frame, for a picture."""
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def say(axes, text: str) -> None:
    """A grey sentence in place of what can't be drawn."""
    bare(axes)
    axes.text(0.5, 0.5, text, ha="center", va="center", color=GREY, transform=axes.transAxes)


@rc_context(STYLE)
def legend_below(figure: Figure, axes, columns: int = 2) -> None:
    """One legend below all axes, of what `axes` holds."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def reach(value, low, high) -> np.ndarray:
    """(2, N) lengths of error bars; an interval of percentiles may leave the mean at its edge."""
    return np.maximum(0.0, np.stack([value - low, high - value]))


def evenly(count: int, most: int = 10) -> np.ndarray:
    """Positions of the frames a strip has room for, evenly spread, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def frame_strip(axes, frames: np.ndarray | None, most: int = 6) -> None:
    """Up to `most` frames of a clip, (T, 3, S, S) uint8 or None, side by side."""
    bare(axes)
    if frames is None:
        return say(axes, "no face")
    chosen = frames[evenly(len(frames), most)].transpose(0, 2, 3, 1)
    axes.imshow(np.concatenate(list(chosen), axis=1))


def envelope(waveform, sample_rate: int, points: int = 900):
    """Time in s, lowest and highest sample of each of up to `points` pieces of a waveform."""
    pieces = np.array_split(np.asarray(waveform, float), min(points, len(waveform)))
    starts = np.cumsum([0] + [len(piece) for piece in pieces[:-1]])
    low, high = (np.array([f(piece) for piece in pieces]) for f in (np.min, np.max))
    return starts / sample_rate, low, high


def sound_wave(axes, waveform: np.ndarray | None, sample_rate: int, start: float = 0.0) -> None:
    """The envelope of a waveform (S,) or None over time in s from `start`, on its own scale."""
    if waveform is None or not np.any(waveform):
        return say(axes, "no sound" if waveform is None else "silent")
    time, low, high = envelope(waveform, sample_rate)
    top = max(high.max(), -low.min())
    axes.fill_between(start + time, low / top, high / top, color=ORANGE, linewidth=0.4)
    axes.set(yticks=[], ylim=(-1.05, 1.05), xlim=(start, start + len(waveform) / sample_rate))


def label_ends(axes, ends: Mapping) -> None:
    """Names right of where lines end, (x, y) by name, moved apart where they would touch."""
    gap = 0.045 * np.ptp(axes.get_ylim())
    place = {"textcoords": "offset points", "va": "center", "size": 8.5, "annotation_clip": False}
    for x, column in pd.DataFrame(ends, index=["x", "y"]).T.groupby("x")["y"]:
        steps = gap * np.arange(len(column))
        y = column.sort_values() - steps  # pushed up, pushed down: between the two
        for name, at in ((y.cummax() + y[::-1].cummin()[::-1]) / 2 + steps).items():
            axes.annotate(name, (x, at), (6, 0), **place)

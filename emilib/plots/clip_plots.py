"""Figures of clips, of what models made of them, and of the two architectures."""

import functools
import itertools
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from emilib import MODALITIES, SAMPLE_RATE
from emilib.plots.style import COLOURS, GREY, STYLE, bare, canvas, evenly, say, sheet, sound_wave

MOST_FACES = 10  # side by side in a strip
WORD_LINES = 4  # of a clip's words, and of its defects
ARCHITECTURES = json.loads(Path(__file__).with_name("architectures.json").read_text("utf-8"))
SPOKEN = {"style": "italic", "color": COLOURS["text"]}
ARROW = {"arrowstyle": "-|>", "color": "black", "lw": 1.1, "shrinkA": 0, "shrinkB": 0}
BOX, GRID = (1.78, 0.72), (2.12, 1.02)  # width and height of a box; distance of two


@rc_context(STYLE | {"axes.grid": False})
def clip_card(media, title, labels: pd.Series, words, defects=None, corpus="", figure=None):
    """All that a corpus holds of one clip: frames, sound, labels, words and defects.

    media : `corpus.media.Media`, of which images, times, waveform, sample_rate and duration count
    labels : target → value, NaN for a clip without labels; words : no str where there are none
    defects : a line each; None leaves the heading out
    figure : draw on this one, without title and spectrogram; None for a new sheet
    """
    tones, figure = figure is None, figure or sheet(9.0, 6.1, title, corpus)
    rows = [["faces"] * 2, ["wave"] * 2, *[["tones"] * 2] * tones, ["labels", "words"]]
    heights = [1.15, 0.7, *[1.1] * tones, 1.3]
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
        return say(axes, "no frame could be decoded")
    rows = evenly(len(media.images), MOST_FACES)
    height, width = media.images.shape[1:3]
    step = 1.06 * width
    for left, row in zip(step * np.arange(len(rows)), rows, strict=True):
        axes.imshow(media.images[row], extent=(left, left + width, height, 0))
        stamp = {"ha": "center", "va": "top", "fontsize": 8.5}
        axes.text(left + width / 2, height * 1.06, f"{media.times[row]:.2f} s", **stamp)
    axes.set(xlim=(0, max(len(rows), MOST_FACES) * step), ylim=(height * 1.25, 0), anchor="W")
    text = f"{len(rows)} of {len(media.images)} sampled frames, with their time stamps"
    axes.set_title(text, loc="left", fontsize=9.5, color=GREY)


def _draw_spectrogram(figure, axes, media) -> None:
    """Levels over Hann windows of 25 ms, 10 ms apart, down to 80 dB below the loudest point."""
    axes.set_ylabel("frequency, Hz")
    window, hop = round(0.025 * media.sample_rate), round(0.010 * media.sample_rate)
    if media.waveform is None or len(media.waveform) < window or not np.any(media.waveform):
        return say(axes, "no sound to take apart")
    style = {"NFFT": window, "noverlap": window - hop, "pad_to": 512, "cmap": "magma"}
    with np.errstate(divide="ignore"):  # silence has no level
        power, _, _, image = axes.specgram(media.waveform, Fs=media.sample_rate, **style)
    image.set_clim(10 * np.log10(power.max()) + np.array([-80, 0]))
    figure.colorbar(image, ax=axes, label="level, dB", pad=0.01)


def _draw_labels(axes, labels: pd.Series) -> None:
    """A bar a target; the value beside it, as zeros have no bar."""
    axes.set_title("labels", loc="left", size=9.5, weight="bold")
    if labels.isna().all():
        return say(axes, "no labels")
    bars = axes.barh(list(labels.index), labels, color=GREY)
    texts = ["not known" if np.isnan(value) else f"{value:.2f}" for value in labels]
    axes.bar_label(bars, texts, padding=3, fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xlim(min(0.0, 1.12 * labels.min()), 1.12 * max(1.0, labels.max()))


def _draw_words(axes, words, defects: Sequence[str] | None) -> None:
    axes.axis("off")
    spoken = isinstance(words, str) and bool(words.strip())
    style = SPOKEN if spoken else {}
    paragraphs = [(1.0, "words", [f"“{words}”" if spoken else "no words"], style)]
    if defects is not None:
        paragraphs.append((0.38, "defects", defects or ["none"], {}))
    for top, heading, texts, style in paragraphs:
        lines = textwrap.wrap("; ".join(texts), 62, max_lines=WORD_LINES, placeholder=" …")
        axes.text(0, top, heading, weight="bold", va="top")
        axes.text(0, top - 0.14, "\n".join(lines), fontsize=9, va="top", linespacing=1.25, **style)


@rc_context(STYLE)
def explained(look, note: str = "") -> Figure:
    """One clip: words, frames, sound, what the models looked at, and the intensities.

    look : of `EmiPredictor.look`; note : below the title, `EmiPredictor.note`

    Weights are means over seeds. Attention is drawn over its uniform value (1 is no choice at all).
    """
    words, timed, attention = look.prediction.text, [], look.attention or {}
    quoted = f"“{words}”" if words else "no words"
    lines = textwrap.wrap(quoted, 95, max_lines=6, placeholder=" …")
    both = (("frames", 0.74, look.images, _draw_frames), ("audio", 0.6, look.waveform, _draw_sound))
    for name, height, data, draw in both:
        timed.append((height, data, draw))
        if name in attention:
            draw = functools.partial(_draw_attention, name=name)
            timed.append((0.85, attention[name], draw))
    if look.weights is not None:
        timed.append((1.2, look.weights, _draw_weights))
    heights = [0.34 if data is None else height for height, data, _ in timed]
    heights = [0.25 + 0.17 * len(lines), *heights, 2.3]
    remarks = " ".join([note, *(f"{p[0].upper()}{p[1:]}." for p in look.prediction.problems)])
    # The title: the strongest emotion, and the modality without which the answer moves most.
    name, everything = Path(look.prediction.clip.name).name, look.without.loc["all"]
    moves = (look.without.drop("all") - everything).abs().mean(axis=1)
    title = f"{name[:24]}: {everything.idxmax()} {everything.max():.2f}"
    title += f"; {moves.idxmax()} the answer moves most"
    rows, height = {"rows": len(heights), "height_ratios": heights}, sum(heights) + 0.7
    figure, (top, *middle, bottom) = canvas(9.0, height, title, remarks.strip(), **rows)
    top.axis("off")
    style = SPOKEN if words else {"color": GREY}
    top.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", **style)
    for axes, (_, _, draw) in zip(middle, timed, strict=True):
        draw(axes, look)
        axes.set_xlim(look.start, look.end)
        axes.tick_params(labelbottom=axes is middle[-1])
    middle[-1].set_xlabel("time in s")
    _draw_intensities(bottom, look)
    figure.legend(*bottom.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _draw_sound(axes, look) -> None:
    sound_wave(axes, look.waveform, SAMPLE_RATE, look.start)
    axes.set_ylabel("audio" if look.waveform is not None else "")


def _draw_frames(axes, look) -> None:
    """In each ninth of the time the frame nearest to its middle."""
    if look.images is None:
        return say(axes, "no picture")
    bare(axes)
    width = (look.end - look.start) / 9
    for left in look.start + width * np.arange(9):
        away = np.abs(look.times - (left + width / 2))
        if away.min() <= width:  # else nothing was shown around here
            image = look.images[away.argmin()].transpose(1, 2, 0)
            axes.imshow(image, extent=(left, left + width, 0, 1), aspect="auto")
    axes.set(ylim=(0, 1), ylabel="frames")
    axes.xaxis.set_major_locator(MaxNLocator())


def _draw_attention(axes, look, name: str) -> None:
    if look.attention[name] is None:
        return say(axes, f"no attention over {name}: a learnt token stands in")
    heads = look.attention[name].reshape(-1, look.attention[name].shape[-1])
    attended(axes, heads, look.attention_borders[name], name)
    axes.set_ylabel(f"attention\nover {name}")


def attended(axes, heads, borders, name: str) -> None:
    """Attention (H, T) of heads over its uniform value: their range, and black their mean."""
    relative = heads * heads.shape[-1]
    low, high, mean = relative.min(axis=0), relative.max(axis=0), relative.mean(axis=0)
    axes.axhline(1, color=GREY, linestyle=":", linewidth=1)
    axes.stairs(high, borders, baseline=low, fill=True, color=COLOURS[name], alpha=0.3)
    axes.stairs(mean, borders, baseline=None, color="black", linewidth=1.5)
    # At least to 2: attention that hardly chooses must look like it.
    axes.set_ylim(0, 1.08 * max(1.85, float(relative.max())))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    axes.yaxis.set_major_formatter("{x:g} ×")
    _beside(axes, f"black: mean of {len(heads)}\nheads; dotted:\nno choice", 1, size=8.5)


def _beside(axes, text: str, y: float, **style) -> None:
    """A text right of the axes, at a height of their data."""
    axes.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), va="center", **style)


def _draw_weights(axes, look) -> None:
    """Stacked: the three weights of a segment sum to 1."""
    axes.set(ylabel="weight of\neach modality", ylim=(0, 1), yticks=[0, 0.5, 1])
    weights = look.weights.mean(axis=0)  # (M, 3)
    for name, value, top in zip(MODALITIES, weights.T, weights.cumsum(axis=1).T, strict=True):
        if value.any():
            style = {"fill": True, "alpha": 0.8, "color": COLOURS[name], "baseline": top - value}
            axes.stairs(top, look.weight_borders, **style)
            _beside(axes, name, top[-1] - value[-1] / 2, color=COLOURS[name])


def _draw_intensities(axes, look) -> None:
    """A line an emotion: the prediction ± sd, and where it goes without each modality."""
    everything, bounded = look.without.loc["all"], look.prediction.bounded
    y, seeds = np.arange(len(everything))[::-1], look.prediction.intensity.mean(axis=1)  # (S, E)
    reach = 1.1 * float(look.without.to_numpy().max())
    if len(seeds) > 1:
        mean, spread = seeds.mean(axis=0), seeds.std(axis=0, ddof=1)
        style = {"color": "#D4D4D4", "linewidth": 9, "label": "± sd over seeds"}
        axes.hlines(y, mean - spread, mean + spread, **style)
        reach = max(reach, float((mean + spread).max()))
    removed = [name for name in MODALITIES if f"without {name}" in look.without.index]
    offsets = np.linspace(0.24, -0.24, len(removed)) if len(removed) > 1 else [0.2]
    for offset, name in zip(offsets, removed, strict=True):
        values, style = look.without.loc[f"without {name}"], {"color": COLOURS[name]}
        axes.hlines(y + offset, everything, values, linewidth=1, **style)
        # Not clipped: many values are 0, on the axis.
        style |= {"markersize": 5, "zorder": 3, "clip_on": False, "label": f"without {name}"}
        axes.plot(values, y + offset, "sD^"[MODALITIES.index(name)], **style)
    style = {"markersize": 17, "mew": 2.4, "zorder": 4, "clip_on": False}
    axes.plot(everything, y, "|", color="black", **style)  # the number beside the name
    axes.set_yticks(y, [f"{name}  {value:.2f}" for name, value in everything.items()])
    axes.set(ylim=(-0.6, len(y) - 0.4), xlabel="intensity, mean over seeds; | with everything")
    if bounded:
        axes.set_xlim(0, min(1.0, max(0.5, reach)))
    axes.grid(axis="y", visible=False)


@rc_context(STYLE | {"axes.grid": False})
def over_time(windows: pd.DataFrame, emotions: Sequence[str], name: str, note: str = "") -> Figure:
    """Intensities of a long clip over time: a row an emotion, a column a window.
    windows : of `EmiPredictor.over_time`, around its middle; a dot marks the strongest emotion"""
    middle = ((windows["start"] + windows["end"]) / 2).to_numpy()
    values = windows[list(emotions)].to_numpy(float)  # (windows, E)
    strongest, first, last = values.argmax(axis=1), windows.iloc[0], windows.iloc[-1]
    lead = np.bincount(strongest).argmax()
    title = f"{name[:24]}: {emotions[lead]} leads in {(strongest == lead).sum()} of {len(values)}"
    remarks = f"windows of {first['end'] - first['start']:g} s. {note}".strip()
    figure, axes = canvas(9.0, 0.9 + 0.3 * len(emotions), f"{title} windows", remarks)
    borders = [first["start"], *(middle[1:] + middle[:-1]) / 2, last["end"]]
    mesh = axes.pcolormesh(borders, np.arange(len(emotions) + 1), values.T, cmap="Greys", vmin=0)
    axes.plot(middle, strongest + 0.5, "o", color="white", mec="black", markersize=5)
    axes.set_yticks(np.arange(len(emotions)) + 0.5, emotions)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("time in s; each window at its middle")
    figure.colorbar(mesh, ax=axes, label="intensity", pad=0.01)
    return figure


@rc_context(STYLE | {"font.size": 8.6, "axes.grid": False, "text.parse_math": True})
def architecture(axes, paper: str, lit: Sequence[str] = ()) -> None:
    """The network of paper "A" or "B" as boxes and arrows; those `lit`, by name, are filled."""
    (wide, high), half, parts = GRID, BOX[0] / 2, ARCHITECTURES[paper]
    axes.set_title(parts["title"], loc="left", fontweight="bold", size=10)
    boxes = parts["boxes"]  # name → (column, row, text), rows are frames, text and audio
    for name, (column, row, text) in boxes.items():
        colour = list(COLOURS.values())[(0, 2, 1)[row]] if column < 4 else GREY
        x, y = column * wide, -row * high
        fill = (colour, 0.3) if name in lit else "white"
        style = {"boxstyle": "round,pad=0,rounding_size=0.12", "fc": fill, "ec": colour}
        axes.add_patch(FancyBboxPatch((x - half, y - BOX[1] / 2), *BOX, lw=1.6, **style))
        axes.text(x, y, text, ha="center", va="center", linespacing=1.35)
    for chain in parts["chains"]:
        for (a, b, _), (c, d, _) in itertools.pairwise(boxes[name] for name in chain.split()):
            ends = (c * wide - half, -d * high), (a * wide + half, -b * high)
            axes.annotate("", *ends, arrowprops=ARROW)
    bottom, top = -2 * high - BOX[1] / 2 - 0.1, BOX[1] / 2 + 0.1
    axes.set(xlim=(-half - 0.1, 5 * wide + half + 0.1), ylim=(bottom, top), aspect="equal")
    axes.axis("off")
    x, start, text, style = 3 * wide, 0, "query", {"color": COLOURS["text"], "lw": 1.6}
    if paper == "A":
        x, start, text = 0, BOX[1] / 2, "Stage I, Eq. 1"
        style = {"color": GREY, "ls": "--", "arrowstyle": "<|-|>"}
    for side in (1, -1):  # from the text in the middle row up to the frames, down to the sound
        ends = ((x, side * y - high) for y in (high - BOX[1] / 2, start))
        axes.annotate("", *ends, arrowprops=ARROW | style)
        axes.text(x + 0.12, (side - 2) * high / 2, text, color=style["color"], va="center")

"""Pictures of a prediction, for a person: what the models saw, looked at, and made of it.

As in `plots`: pure functions that return a Figure, made without pyplot.

Dimension key: S seeds, H heads, T steps, M segments.
"""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from emilib.corpus.layout import EMOTIONS
from emilib.plots.style import CYCLE, GREY, STYLE, envelope, sheet
from emilib.plots.taemi_plots import COLOURS, MODALITIES

CALLED = {"frames": "frames", "audio": "sound", "text": "words"}
PICTURES = 9  # frames a strip has room for
NOTHING = 0.34  # inches of a panel that has nothing to show
WORDS = 6  # lines of words shown
MARKERS = {"frames": "s", "audio": "D", "text": "^"}
DOTS = 80  # windows that are told apart as dots
WIDTH = 9.2  # inches
DPI = 130


def look(look, note: str = "") -> Figure:
    """One clip: words, frames, sound, what the models looked at, and the intensities.

    look : of `EmiPredictor.look`; note : said below the title, `EmiPredictor.note`

    Weights are means over seeds. Attention is drawn over its uniform value (1 is no choice at
    all), thin lines a head and seed, the thick one their mean. At the bottom stand the intensities,
    ± sd over seeds, and where each goes when a modality is removed.
    """
    rows = _rows(look)
    heights = [height for _, height in rows]
    with matplotlib.rc_context(STYLE):
        name = Path(look.prediction.clip.name).name
        remarks = [f"{problem[0].upper()}{problem[1:]}." for problem in look.prediction.problems]
        said = " ".join([note, *remarks, *look.prediction.notes]).strip()
        figure = sheet(WIDTH, sum(heights) + 0.5, f"What the models made of {name}", said)
        panels = figure.subplots(len(rows), 1, height_ratios=heights)
        timed = [p for p, (draw, _) in zip(panels, rows, strict=True) if draw in _TIMED]
        for panel, (draw, _) in zip(panels, rows, strict=True):
            if draw in _TIMED:
                panel.set_xlim(look.start, look.end)
                panel.tick_params(labelbottom=panel is timed[-1])
            draw(panel, look)
        timed[-1].set_xlabel("time in s")
        return figure


def _rows(look) -> list:
    """The panels a clip has, from top to bottom, with their heights in inches."""
    attention = look.attention or {}
    rows = [(_draw_words, 0.25 + 0.17 * len(_wrapped(look)))]
    rows.append((_draw_frames, NOTHING if look.images is None else 0.74))
    if "frames" in attention:
        rows.append((_draw_frame_attention, NOTHING if attention["frames"] is None else 1.0))
    rows.append((_draw_sound, NOTHING if look.waveform is None else 0.7))
    if "audio" in attention:
        rows.append((_draw_sound_attention, NOTHING if attention["audio"] is None else 1.0))
    if look.weights is not None:
        rows.append((_draw_weights, 1.2))
    return [*rows, (_draw_intensities, 2.5)]


def _wrapped(look) -> list[str]:
    """The words in lines; many words are cut, so that they leave room for the rest."""
    words = look.prediction.text
    lines = textwrap.wrap(f"“{words}”" if words else "no words", 95)
    return [*lines[: WORDS - 1], f"{lines[WORDS - 1]} …"] if len(lines) > WORDS else lines


def _say(axes, words: str) -> None:
    axes.text(0.5, 0.5, words, ha="center", va="center", color=GREY, transform=axes.transAxes)


def _draw_frames(axes, look) -> None:
    """In each ninth of the time the frame nearest to its middle."""
    axes.set_yticks([])
    axes.grid(visible=False)
    if look.images is None:
        _say(axes, "no picture")
        return
    axes.set_ylabel("frames")
    width = (look.end - look.start) / PICTURES
    for slot in range(PICTURES):
        left = look.start + slot * width
        nearest = np.abs(look.times - (left + width / 2)).argmin()
        if abs(look.times[nearest] - (left + width / 2)) > width:
            continue  # nothing was shown around here
        image = look.images[nearest].transpose(1, 2, 0)
        axes.imshow(image, extent=(left, left + width, 0, 1), aspect="auto")
    axes.set_xlim(look.start, look.end)
    axes.set_ylim(0, 1)


def _draw_sound(axes, look) -> None:
    axes.set_yticks([])
    if look.waveform is None:
        _say(axes, "no sound")
        axes.grid(visible=False)
        return
    axes.set_ylabel("sound")
    time, low, high = envelope(look.waveform.astype(float), look.sample_rate)
    reach = max(1.0, float(max(high.max(), -low.min())))  # its own scale: a quiet clip shows too
    axes.fill_between(look.start + time, low / reach, high / reach, color=GREY, linewidth=0)
    axes.set_ylim(-1.05, 1.05)


def _draw_frame_attention(axes, look) -> None:
    _draw_attention(axes, look, "frames")


def _draw_sound_attention(axes, look) -> None:
    _draw_attention(axes, look, "audio")


def _draw_attention(axes, look, name: str) -> None:
    attention = look.attention[name]
    if attention is None:
        _say(axes, f"no attention over {CALLED[name]}: a learnt token stands in")
        axes.set_yticks([])
        axes.grid(visible=False)
        return
    axes.set_ylabel(f"attention\nover {CALLED[name]}")
    axes.axhline(1, color=GREY, linestyle=":", linewidth=1, label="no choice")
    borders = look.attention_borders[name]
    heads = attention.reshape(-1, attention.shape[-1])
    relative = heads * attention.shape[-1]
    thin = {"color": COLOURS[name], "linewidth": 0.6, "alpha": 0.4, "baseline": None}
    for number, head in enumerate(relative):
        axes.stairs(head, borders, label=None if number else "a head of a seed", **thin)
    mean = {"color": "#000000", "linewidth": 1.7, "baseline": None, "label": "mean of all"}
    axes.stairs(relative.mean(axis=0), borders, **mean)
    # At least to 2: attention that hardly chooses must look like it.
    axes.set_ylim(0, 1.08 * max(1.85, float(relative.max())))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    axes.yaxis.set_major_formatter("{x:g} ×")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.2)


def _draw_weights(axes, look) -> None:
    """Stacked: the three weights of a segment sum to 1."""
    axes.set_ylabel("weight of\neach modality")
    weights = look.weights.mean(axis=0)  # (M, 3)
    below = np.zeros(len(weights))
    for column, name in enumerate(MODALITIES):
        if not weights[:, column].any():
            continue
        above = below + weights[:, column]
        axes.stairs(
            above,
            look.weight_borders,
            baseline=below,
            fill=True,
            color=COLOURS[name],
            alpha=0.8,
            label=CALLED[name],
        )
        below = above
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1])
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1)


def _draw_words(axes, look) -> None:
    axes.axis("off")
    words = look.prediction.text
    axes.text(
        0.5,
        0.5,
        "\n".join(_wrapped(look)),
        ha="center",
        va="center",
        style="italic" if words else "normal",
        color="#000000" if words else GREY,
        transform=axes.transAxes,
    )


def _draw_intensities(axes, look) -> None:
    """A line an emotion: the prediction ± sd, and where it goes without each modality."""
    everything = look.without.loc["all"]
    names = list(look.without.columns)
    y = np.arange(len(names))[::-1]
    seeds = look.prediction.intensity.mean(axis=1)  # (S, E), not clipped
    reach = 1.1 * float(look.without.to_numpy().max())
    if len(seeds) > 1:
        mean, spread = seeds.mean(axis=0), seeds.std(axis=0, ddof=1)
        low, high = mean - spread, mean + spread
        if look.prediction.bounded:
            low, high = low.clip(0, 1), high.clip(0, 1)
        axes.hlines(y, low, high, color="#C4C4C4", linewidth=7, label="± sd over seeds")
        reach = max(reach, float(high.max()))
    removed = [m for m in MODALITIES if f"without {m}" in look.without.index]
    offsets = np.linspace(0.24, -0.24, len(removed)) if len(removed) > 1 else [0.2]
    for offset, name in zip(offsets, removed, strict=True):
        values = look.without.loc[f"without {name}"]
        axes.hlines(y + offset, everything, values, color=COLOURS[name], linewidth=1)
        # Not clipped: many values are 0, on the axis.
        style = {"color": COLOURS[name], "markersize": 5, "zorder": 3, "clip_on": False}
        axes.plot(values, y + offset, MARKERS[name], label=f"without {CALLED[name]}", **style)
    style = {"markersize": 17, "mew": 2.4, "zorder": 4, "clip_on": False}
    axes.plot(everything, y, "|", color="#000000", label="with everything", **style)
    axes.set_yticks(y, [f"{n}  {value:.2f}" for n, value in everything.items()])
    axes.set_ylim(-0.6, len(names) - 0.4)
    if look.prediction.bounded:
        axes.set_xlim(0, min(1.0, max(0.5, reach)))
    axes.set_xlabel("intensity, mean over seeds")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


_TIMED = (_draw_frames, _draw_frame_attention, _draw_sound, _draw_sound_attention, _draw_weights)


def over_time(windows: pd.DataFrame, emotions: Sequence[str], name: str, note: str = "") -> Figure:
    """Intensities of a long clip over time, a panel an emotion, all on one scale.

    windows : of `EmiPredictor.over_time`. A dot is at the middle of its window, the band is ± sd
        over seeds, the dashed line the mean over the windows
    """
    middle = ((windows["start"] + windows["end"]) / 2).to_numpy()
    length = float(windows["end"].iloc[0] - windows["start"].iloc[0])
    dots = "o-" if len(windows) <= DOTS else "-"
    bounded = tuple(emotions) == EMOTIONS  # other targets may have any range
    said = (
        f"Each value is of the {length:g} s around it. Band: ± sd over seeds; dashed: mean of the "
        f"windows. {note}"
    )
    with matplotlib.rc_context(STYLE):
        title = f"{Path(name).name}: intensities in windows of {length:g} s"
        figure = sheet(WIDTH, 0.5 + 0.8 * len(emotions), title, said.strip())
        panels = figure.subplots(len(emotions), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        top = 0.0
        for number, (axes, emotion) in enumerate(zip(panels, emotions, strict=True)):
            color = CYCLE[number % len(CYCLE)]
            values, spread = windows[emotion].to_numpy(), windows[f"{emotion} sd"].fillna(0)
            low, high = values - spread, values + spread
            if bounded:
                low, high = low.clip(0, 1), high.clip(0, 1)
            axes.axhline(values.mean(), color=color, linewidth=0.9, linestyle="--")
            axes.fill_between(middle, low, high, color=color, alpha=0.22, linewidth=0)
            axes.plot(middle, values, dots, color=color, markersize=3.5)
            axes.set_ylabel(emotion.replace(" ", "\n"), rotation=0, ha="right", va="center")
            top = max(top, float(high.max()))
        if bounded:
            panels[0].set_ylim(0, min(1.0, max(0.2, 1.08 * top)))
        panels[0].yaxis.set_major_locator(MaxNLocator(nbins=3))
        panels[-1].set_xlim(0, windows["end"].max())
        panels[-1].set_xlabel("middle of the window, s")
        return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, the same bytes each time."""
    stream = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()

"""Pictures of a prediction: what the models saw, what they looked at, and the result."""

import functools
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from emilib import EMOTIONS, MODALITIES, SAMPLE_RATE
from emilib.plots.style import BLACK, COLOURS, CYCLE, GREY, STYLE, bare, canvas, say, sound_wave

PICTURES = 9  # frames a strip has room for
NOTHING = 0.34  # inches of a panel that has nothing to show
WORDS = 6  # lines of words shown
MARKERS = {"frames": "s", "audio": "D", "text": "^"}
WIDTH = 9.2  # inches
BESIDE = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}  # a legend right of its axes


@rc_context(STYLE)
def explained(look, note: str = "") -> Figure:
    """One clip: words, frames, sound, what the models looked at, and the intensities.

    look : of `EmiPredictor.look`; note : below the title, `EmiPredictor.note`

    Weights are means over seeds. Attention is drawn over its uniform value (1 is no choice at
    all), thin lines a head and seed, the thick one their mean. At the bottom stand the intensities,
    ± sd over seeds, and where each goes when a modality is removed.
    """
    words, attention = look.prediction.text, look.attention or {}
    lines = textwrap.wrap(f"“{words}”" if words else "no words", 95)
    lines = lines if len(lines) <= WORDS else [*lines[: WORDS - 1], f"{lines[WORDS - 1]} …"]

    def draw_sound(axes, look):
        sound_wave(axes, look.waveform, SAMPLE_RATE, look.start)
        axes.set_ylabel("audio" if look.waveform is not None else "")

    timed = [(0.74, look.images, _draw_frames), (0.7, look.waveform, draw_sound)]
    for place, name in ((1, "frames"), (3, "audio")):
        if name in attention:
            draw = functools.partial(_draw_attention, name=name)
            timed.insert(place, (1.0, attention[name], draw))
    if look.weights is not None:
        timed.append((1.2, look.weights, _draw_weights))
    heights = [0.25 + 0.17 * len(lines)]
    heights += [NOTHING if data is None else height for height, data, _ in timed] + [2.5]
    problems = [f"{problem[0].upper()}{problem[1:]}." for problem in look.prediction.problems]
    remarks = " ".join([note, *problems, *look.prediction.notes]).strip()
    title = f"What the models made of {Path(look.prediction.clip.name).name}"
    rows = {"rows": len(heights), "height_ratios": heights}
    figure, (top, *middle, bottom) = canvas(WIDTH, sum(heights) + 0.5, title, remarks, **rows)
    top.axis("off")
    style = {"style": "italic", "color": BLACK} if words else {"color": GREY}
    top.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", **style)
    for axes, (_, _, draw) in zip(middle, timed, strict=True):
        draw(axes, look)
        axes.set_xlim(look.start, look.end)
        axes.tick_params(labelbottom=axes is middle[-1])
    middle[-1].set_xlabel("time in s")
    _draw_intensities(bottom, look)
    return figure


def _draw_frames(axes, look) -> None:
    """In each ninth of the time the frame nearest to its middle."""
    if look.images is None:
        say(axes, "no picture")
        return
    bare(axes)
    axes.set_ylabel("frames")
    width = (look.end - look.start) / PICTURES
    for left in look.start + width * np.arange(PICTURES):
        away = np.abs(look.times - (left + width / 2))
        if away.min() <= width:  # else nothing was shown around here
            image = look.images[away.argmin()].transpose(1, 2, 0)
            axes.imshow(image, extent=(left, left + width, 0, 1), aspect="auto")
    axes.set(ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator())


def _draw_attention(axes, look, name: str) -> None:
    if look.attention[name] is None:
        say(axes, f"no attention over {name}: a learnt token stands in")
        return
    heads = look.attention[name].reshape(-1, look.attention[name].shape[-1])
    relative, borders = heads * heads.shape[-1], look.attention_borders[name]
    axes.set_ylabel(f"attention\nover {name}")
    axes.axhline(1, color=GREY, linestyle=":", linewidth=1, label="no choice")
    thin = {"color": COLOURS[name], "linewidth": 0.6, "alpha": 0.4, "baseline": None}
    for number, head in enumerate(relative):
        axes.stairs(head, borders, label=None if number else "a head of a seed", **thin)
    mean = {"color": BLACK, "linewidth": 1.7, "baseline": None, "label": "mean of all"}
    axes.stairs(relative.mean(axis=0), borders, **mean)
    # At least to 2: attention that hardly chooses must look like it.
    axes.set_ylim(0, 1.08 * max(1.85, float(relative.max())))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    axes.yaxis.set_major_formatter("{x:g} ×")
    axes.legend(handlelength=1.2, **BESIDE)


def _draw_weights(axes, look) -> None:
    """Stacked: the three weights of a segment sum to 1."""
    axes.set_ylabel("weight of\neach modality")
    weights = look.weights.mean(axis=0)  # (M, 3)
    tops = weights.cumsum(axis=1)
    for column, name in enumerate(MODALITIES):
        if weights[:, column].any():
            below, style = tops[:, column] - weights[:, column], {"fill": True, "alpha": 0.8}
            style |= {"color": COLOURS[name], "label": name, "baseline": below}
            axes.stairs(tops[:, column], look.weight_borders, **style)
    axes.set(ylim=(0, 1), yticks=[0, 0.5, 1])
    axes.legend(handlelength=1, **BESIDE)


def _draw_intensities(axes, look) -> None:
    """A line an emotion: the prediction ± sd, and where it goes without each modality."""
    everything, bounded = look.without.loc["all"], look.prediction.bounded
    limits = (0, 1) if bounded else (-np.inf, np.inf)
    y = np.arange(len(everything))[::-1]
    seeds = look.prediction.intensity.mean(axis=1)  # (S, E), not clipped
    reach = 1.1 * float(look.without.to_numpy().max())
    if len(seeds) > 1:
        mean, spread = seeds.mean(axis=0), seeds.std(axis=0, ddof=1)
        low, high = np.clip([mean - spread, mean + spread], *limits)
        axes.hlines(y, low, high, color="#C4C4C4", linewidth=7, label="± sd over seeds")
        reach = max(reach, float(high.max()))
    removed = [name for name in MODALITIES if f"without {name}" in look.without.index]
    offsets = np.linspace(0.24, -0.24, len(removed)) if len(removed) > 1 else [0.2]
    for offset, name in zip(offsets, removed, strict=True):
        values, style = look.without.loc[f"without {name}"], {"color": COLOURS[name]}
        axes.hlines(y + offset, everything, values, linewidth=1, **style)
        # Not clipped: many values are 0, on the axis.
        style |= {"markersize": 5, "zorder": 3, "clip_on": False, "label": f"without {name}"}
        axes.plot(values, y + offset, MARKERS[name], **style)
    style = {"markersize": 17, "mew": 2.4, "zorder": 4, "clip_on": False}
    axes.plot(everything, y, "|", color=BLACK, label="with everything", **style)
    axes.set_yticks(y, [f"{name}  {value:.2f}" for name, value in everything.items()])
    axes.set(ylim=(-0.6, len(y) - 0.4), xlabel="intensity, mean over seeds")
    if bounded:
        axes.set_xlim(0, min(1.0, max(0.5, reach)))
    axes.grid(axis="y", visible=False)
    axes.legend(**BESIDE)


@rc_context(STYLE)
def over_time(windows: pd.DataFrame, emotions: Sequence[str], name: str, note: str = "") -> Figure:
    """Intensities of a long clip over time, a panel an emotion, all on one scale.

    windows : of `EmiPredictor.over_time`. A dot is at the middle of its window, the band is ± sd
        over seeds, the dashed line the mean over the windows
    """
    middle = ((windows["start"] + windows["end"]) / 2).to_numpy()
    length = f"{windows['end'].iloc[0] - windows['start'].iloc[0]:g} s"
    bounded = tuple(emotions) == EMOTIONS  # other targets may have any range
    limits = (0, 1) if bounded else (-np.inf, np.inf)
    remarks = f"Band: ± sd over seeds; dashed: mean of the windows. {note}".strip()
    title = f"{Path(name).name}: intensities in windows of {length}"
    shared = {"rows": len(emotions), "sharex": True, "sharey": True, "squeeze": False}
    figure, panels = canvas(WIDTH, 0.5 + 0.8 * len(emotions), title, remarks, **shared)
    for number, (axes, emotion) in enumerate(zip(panels[:, 0], emotions, strict=True)):
        color = CYCLE[number % len(CYCLE)]
        values, spread = windows[emotion].to_numpy(), windows[f"{emotion} sd"].fillna(0).to_numpy()
        low, high = np.clip([values - spread, values + spread], *limits)
        axes.axhline(values.mean(), color=color, linewidth=0.9, linestyle="--")
        axes.fill_between(middle, low, high, color=color, alpha=0.22, linewidth=0)
        axes.plot(middle, values, ".-", color=color)
        axes.set_ylabel(emotion.replace(" ", "\n"), rotation=0, ha="right", va="center")
    if bounded:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.set(xlim=(0, windows["end"].max()), xlabel="middle of the window, s")
    return figure

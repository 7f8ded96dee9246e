"""Figures of the two architectures, of clips, and of features.

As in `plots`: pure functions that return a Figure, made without pyplot.
"""

import textwrap
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

from emilib.corpus.defects import RATE_RATIO, packet_facts
from emilib.corpus.layout import EMOTIONS
from emilib.corpus.media import Media, MediaError
from emilib.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    STYLE,
    envelope,
    sheet,
    shown_frames,
)

FLOOR_DB = -80.0  # of spectrograms, below their loudest point
MOST_FACES = 10  # side by side in a strip
WORD_LINES = 4  # of a clip's words, and of its defects

# ---------------------------------------------------------------------------- architectures

# name: (column, row, lines); rows count from the top, columns from the left
_DUAL_STAGE = {
    "frames": (0, 0, "frames, 5 a second\nViT-B/16, T × 768"),
    "audio": (0, 1, "sound\nwav2vec2, T × 1024"),
    "text": (0, 2, "transcript\nBERT, 768"),
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
    "frames": (0, 0, "frames\nViT, T × 768"),
    "audio": (0, 1, "sound, 12 s\nwav2vec2, T × 1027"),
    "text": (0, 2, "transcript\nGTE: t, 768"),
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
_BOX = (1.78, 0.72)  # width and height of a box, in units of its grid
_GRID = (2.12, 1.02)
_ROW_COLOURS = (BLUE, ORANGE, GREEN)


def architectures() -> Figure:
    """Both papers' networks as boxes and arrows, one above the other."""
    with matplotlib.rc_context({**STYLE, "font.size": 8.6, "axes.grid": False}):
        figure = Figure(figsize=(9.6, 6.1), layout="constrained")
        upper, lower = figure.subplots(2, 1)
        title = "Paper A, dual-stage: quality weighs the modalities in each segment"
        note = (
            "Stage I (Eq. 1) has aligned the encoders with the words; in Stage II they are frozen."
        )
        _draw_boxes(upper, _DUAL_STAGE, _DUAL_STAGE_ARROWS, title, note)
        title = "Paper B, TAEMI: the text vector asks, sound and frames answer"
        _draw_boxes(lower, _TAEMI, _TAEMI_ARROWS, title)
        _draw_anchor(lower)
        return figure


def _draw_boxes(axes, boxes: dict, arrows, title: str, note: str = "") -> None:
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
    lowest = -2 * _GRID[1] - _BOX[1] / 2 - 0.3
    axes.set_ylim(lowest, _BOX[1] / 2 + 0.1)
    if note:
        axes.text(-_BOX[0] / 2, lowest, note, color=GREY, va="bottom")
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title(title, loc="left", fontweight="bold")


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


# ------------------------------------------------------------------------------------ clips


def clip(media: Media, title: str, corpus: str = "") -> Figure:
    """Frames, waveform and spectrogram of one decoded clip over one time axis.

    media : of `emilib.corpus.media.decode`; what it lacks leaves its panel empty
    """
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = sheet(9.0, 4.6, title, corpus)
        faces, wave, tones = figure.subplots(3, 1, height_ratios=[1.15, 0.9, 1.3])
        _draw_strip(faces, media)
        _draw_waveform(wave, media)
        _draw_spectrogram(figure, tones, media)
        for axes in (wave, tones):
            axes.set_xlim(0, media.duration)
        tones.set_xlabel("time, s")
        wave.tick_params(labelbottom=False)
        return figure


def card(
    row: pd.Series, media: Media, labels: pd.Series, defects: Sequence[str], corpus: str = ""
) -> Figure:
    """All that a corpus holds of one clip: frames, sound, labels, words and defects.

    row : of `corpus.read`; media : what could be decoded of it, see `clip`
    labels : target → value, NaN for a clip without labels; defects : a line each
    """
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        length = "of unknown length" if np.isnan(media.duration) else f"{media.duration:.1f} s"
        title = f"Clip {row['id']}, {row['split']}, {length}"
        figure = sheet(9.0, 6.1, title, corpus)
        places = [["faces"] * 2, ["wave"] * 2, ["tones"] * 2, ["labels", "words"]]
        axes = figure.subplot_mosaic(
            places, height_ratios=[1.15, 0.7, 1.1, 1.3], width_ratios=[1, 1.15]
        )
        _draw_strip(axes["faces"], media)
        _draw_waveform(axes["wave"], media)
        _draw_spectrogram(figure, axes["tones"], media)
        for name in ("wave", "tones"):
            axes[name].set_xlim(0, media.duration if media.duration > 0 else 1)
        axes["tones"].set_xlabel("time, s")
        axes["wave"].tick_params(labelbottom=False)
        _draw_labels(axes["labels"], labels)
        _draw_words(axes["words"], row["transcript"], defects)
        return figure


def _draw_labels(axes, labels: pd.Series) -> None:
    """A bar a target; the value beside it, as zeros have no bar."""
    axes.set_title("labels", loc="left")
    if labels.isna().all():
        axes.axis("off")
        axes.text(0.5, 0.5, "no labels", ha="center", color=GREY, transform=axes.transAxes)
        return
    bars = axes.barh(list(labels.index), labels, color=BLUE)
    texts = ["not known" if np.isnan(value) else f"{value:.2f}" for value in labels]
    axes.bar_label(bars, texts, padding=3, fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(1.0, float(labels.max())))
    axes.set_xticks([0, 0.5, 1])
    axes.tick_params(axis="y", length=0)


def _draw_words(axes, words, defects: Sequence[str]) -> None:
    """The words, where they are a str and not empty, and the defects."""
    axes.axis("off")
    spoken = isinstance(words, str) and bool(words.strip())
    said = f"“{words}”" if spoken else "no words"
    paragraphs = [
        ("words", [said], {"style": "italic" if spoken else "normal"}),
        ("defects", defects or ["none"], {}),
    ]
    y, step = 1.0, 0.115  # from the top, in heights of the panel
    for heading, texts, style in paragraphs:
        axes.text(0, y, heading, va="top", weight="bold", transform=axes.transAxes)
        lines = [line for text in texts for line in textwrap.wrap(text, 62)]
        shown = lines if len(lines) <= WORD_LINES else [*lines[: WORD_LINES - 1], "…"]
        text = "\n".join(shown)
        place = {"va": "top", "fontsize": 9, "linespacing": 1.25, "transform": axes.transAxes}
        axes.text(0, y - 1.2 * step, text, **place, **style)
        y -= (len(shown) + 1.9) * step


def _draw_strip(axes, media: Media) -> None:
    axes.axis("off")
    if media.images is None:
        axes.text(0.5, 0.5, "no frame could be decoded", ha="center", color=GREY)
        return
    rows = shown_frames(len(media.images))
    height, width = media.images.shape[1:3]
    gap = 0.06 * width
    for place, row in enumerate(rows):
        left = place * (width + gap)
        axes.imshow(media.images[row], extent=(left, left + width, height, 0))
        label = f"{media.times[row]:.2f} s"
        axes.text(left + width / 2, height * 1.06, label, ha="center", va="top", fontsize=8.5)
    axes.set_xlim(0, max(len(rows), MOST_FACES) * (width + gap) - gap)
    axes.set_ylim(height * 1.25, 0)
    axes.set_anchor("W")
    kept = f"{len(rows)} of {len(media.images)} kept frames, with their time stamps"
    axes.set_title(kept, loc="left", fontsize=9.5, color=GREY)


def _draw_waveform(axes, media: Media) -> None:
    axes.set_ylabel("waveform")
    if media.waveform is None:
        axes.text(0.5, 0.5, "no sound", ha="center", color=GREY, transform=axes.transAxes)
        axes.set_yticks([])
        return
    time, low, high = envelope(media.waveform, media.sample_rate)
    axes.fill_between(time, low, high, color=ORANGE, lw=0.4)
    reach = max(0.01, float(np.abs(media.waveform).max())) * 1.05
    axes.set_ylim(-reach, reach)


def _draw_spectrogram(figure: Figure, axes, media: Media) -> None:
    axes.set_ylabel("frequency, kHz")
    if media.waveform is None or len(media.waveform) < 400:
        said = "no sound" if media.waveform is None else "sound too short for a spectrogram"
        axes.text(0.5, 0.5, said, ha="center", color=GREY, transform=axes.transAxes)
        axes.set_yticks([])
        return
    level, step = spectrogram(media.waveform, media.sample_rate)
    top = media.sample_rate / 2000
    image = axes.imshow(
        level,
        origin="lower",
        aspect="auto",
        extent=(-step / 2, (level.shape[1] - 0.5) * step, 0, top),
        cmap="magma",
        vmin=FLOOR_DB,
        vmax=0,
    )
    figure.colorbar(image, ax=axes, label="level, dB", pad=0.01, ticks=[-80, -40, 0])


def spectrogram(waveform, sample_rate: int) -> tuple[np.ndarray, float]:
    """Levels (F, T) in dB below the loudest point, over Hann windows of 25 ms; and seconds a step.

    Steps are 10 ms apart; levels end at FLOOR_DB.
    """
    window, hop = hann(round(0.025 * sample_rate), sym=False), round(0.010 * sample_rate)
    transform = ShortTimeFFT(window, hop, sample_rate, mfft=2 ** int(np.ceil(np.log2(len(window)))))
    steps = -(-len(waveform) // hop)  # centred at 0, 10 ms, ... within the waveform
    power = transform.spectrogram(np.asarray(waveform, float), p0=0, p1=steps)
    loudest = max(float(power.max()), 1e-20)
    return np.maximum(
        10 * np.log10(np.maximum(power / loudest, 1e-20)), FLOOR_DB
    ), hop / sample_rate


def rate_table(clips: pd.DataFrame) -> pd.DataFrame:
    """Frame rates of all videos that open: id, declared, measured (frames a second), lies (bool).

    Measured by the time stamps of the packets; nothing is decoded.
    """
    rows = []
    for id_, path in clips[["id", "video"]].dropna().itertuples(index=False):
        try:
            facts = packet_facts(path)
        except MediaError:
            continue  # the audit names it
        rows.append((id_, facts.declared_fps, facts.measured_fps))
    found = pd.DataFrame(rows, columns=["id", "declared", "measured"]).dropna(ignore_index=True)
    ratio = np.log(found["declared"] / found["measured"]).abs()
    return found.assign(lies=ratio > np.log(RATE_RATIO))


def rates(found: pd.DataFrame, corpus: str = "") -> Figure:
    """What the rate field of each video says against what its time stamps say.

    found : of `rate_table`, at least one row
    """
    with matplotlib.rc_context(STYLE):
        figure = sheet(8.4, 3.6, "The rate a video states, and the rate it has", corpus)
        axes = figure.subplots()
        ends = [found[["declared", "measured"]].min(axis=None) * 0.8]
        ends.append(found[["declared", "measured"]].max(axis=None) * 1.25)
        axes.plot(ends, ends, color=GREY, lw=1, label="stated = measured")
        for lies, colour, marker, label in (
            (False, BLUE, "o", f"within a factor of {RATE_RATIO:g}"),
            (True, ORANGE, "D", "lying frame rate"),
        ):
            rows = found[found["lies"] == lies]
            label = f"{label} ({len(rows)} clips)"
            axes.plot(
                rows["measured"],
                rows["declared"],
                marker,
                color=colour,
                ms=5,
                alpha=0.6,
                label=label,
            )
        axes.set(xscale="log", yscale="log")
        for axis, name in ((axes.xaxis, "measured"), (axes.yaxis, "declared")):
            low, high = found[name].min() * 0.8, found[name].max() * 1.25
            ticks = [t for t in (5, 10, 20, 30, 50, 100, 250, 500, 1000) if low <= t <= high]
            axis.set_ticks(ticks, [str(t) for t in ticks])
            axis.set_minor_locator(NullLocator())
        axes.set_xlim(found["measured"].min() * 0.8, found["measured"].max() * 1.25)
        axes.set_ylim(found["declared"].min() * 0.8, found["declared"].max() * 1.25)
        axes.set_xlabel("frames a second by time stamps")
        axes.set_ylabel("frames a second as stated")
        figure.legend(loc="outside right upper")
        return figure


def label_table(clips: pd.DataFrame) -> pd.DataFrame:
    """Share of zero, low (0, 1/3], middle (1/3, 2/3] and high labels a emotion; mean and median.

    clips : of `corpus.read`; clips without labels are left out. Targets of your own may have any
        range: of them mean, sd, smallest, median and largest
    """
    targets = _targets(clips)
    labels = clips[targets].dropna()
    if targets != list(EMOTIONS):
        told = {
            "mean": "mean",
            "sd": "std",
            "smallest": "min",
            "median": "median",
            "largest": "max",
        }
        found = labels.agg(list(told.values())).T.set_axis(list(told), axis=1)
        return found.rename_axis("target").reset_index()
    bins = np.digitize(labels, [1e-9, 1 / 3 + 1e-3, 2 / 3 + 1e-3])  # labels are rounded fractions
    table = pd.DataFrame({"emotion": EMOTIONS})
    for number, name in enumerate(("zero", "low", "middle", "high")):
        table[name] = (bins == number).mean(axis=0)
    table["mean"], table["median"] = labels.mean().to_numpy(), labels.median().to_numpy()
    return table


def _targets(clips: pd.DataFrame) -> list[str]:
    return list(clips.attrs.get("targets", EMOTIONS))


def label_values(clips: pd.DataFrame, most: int = 9) -> pd.DataFrame:
    """How often each non-zero value k/N stands among the labels, over all emotions.

    Columns value, fraction ("2/5", of a denominator up to `most`), count.
    """
    labels = clips[list(EMOTIONS)].to_numpy().ravel()
    fractions = [Fraction(float(v)).limit_denominator(most) for v in labels[labels > 0]]
    counted = pd.Series(fractions, dtype=object).value_counts()
    rows = [(float(f), str(f), n) for f, n in counted.items()]
    table = pd.DataFrame(rows, columns=["value", "fraction", "count"])
    return table.sort_values("value", ignore_index=True)


def labels(clips: pd.DataFrame, corpus: str = "") -> Figure:
    """Left: how many labels are zero, low, middle and high; right: which values occur.

    Of targets of your own: how often which value occurs, a panel each.
    """
    if _targets(clips) != list(EMOTIONS):
        return _histograms(clips, corpus)
    with matplotlib.rc_context(STYLE):
        figure = sheet(9.0, 3.7, "Labels are fractions of annotators, and often zero", corpus)
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.25])
        table = label_table(clips)
        start = np.zeros(len(table))
        shades = ("#D9D9D9", SKY, BLUE, "#003B63")
        names = ("0", "up to 1/3", "up to 2/3", "above")
        for column, colour, name in zip(table.columns[1:5], shades, names, strict=True):
            left.barh(table["emotion"], table[column], left=start, color=colour, label=name)
            start += table[column].to_numpy()
        left.invert_yaxis()
        left.set_xlim(0, 1)
        left.xaxis.set_major_formatter(PercentFormatter(1))
        left.set_xlabel("share of clips with this label")
        left.grid(visible=False)
        left.legend(loc="upper center", bbox_to_anchor=(0.4, -0.2), ncols=4, columnspacing=1)
        values = label_values(clips)
        right.vlines(values["value"], 0, values["count"], color=BLUE, lw=3)
        for row in values.itertuples(index=False):
            if row.value in (1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 1):
                right.text(row.value, row[2], row.fraction, ha="center", va="bottom", fontsize=8)
        right.set_xlim(0, 1.05)
        right.set_ylim(0, values["count"].max() * 1.12)
        right.set_xlabel("label above zero, all emotions")
        right.set_ylabel("how often it occurs")
        return figure


def _histograms(clips: pd.DataFrame, corpus: str) -> Figure:
    targets = _targets(clips)
    labels = clips[targets].dropna()
    across = min(4, len(targets))
    down = -(-len(targets) // across)
    with matplotlib.rc_context(STYLE):
        figure = sheet(2.2 + 1.7 * across, 0.3 + 1.7 * down, "Labels, a panel a target", corpus)
        panels = np.ravel(figure.subplots(down, across, squeeze=False))
        for axes, target in zip(panels, targets, strict=False):
            axes.hist(labels[target], bins=20, color=BLUE)
            axes.set_title(target, size=9.5)
        for unused in panels[len(targets) :]:
            unused.set_visible(False)
        panels[0].set_ylabel("clips")
        return figure


# --------------------------------------------------------------------------------- features


def start_curves(losses: Mapping[str, Sequence[float]], corpus: str = "") -> Figure:
    """Losses of the self-supervised start, a panel an encoder; thin every step, thick smoothed.

    losses : of "vision" and "audio" as a share of the variance to be told, of "text" in nats
    """
    units = {
        "vision": "share of variance left",
        "audio": "share of variance left",
        "text": "cross-entropy, nats",
    }
    colours = {"vision": BLUE, "audio": ORANGE, "text": GREEN}
    with matplotlib.rc_context(STYLE):
        title = "What the small encoders learn before Stage I, without any label"
        figure = sheet(9.0, 2.9, title, corpus)
        for axes, (role, values) in zip(
            figure.subplots(1, len(losses), squeeze=False)[0], losses.items(), strict=True
        ):
            axes.plot(values, color=colours[role], lw=0.5, alpha=0.4)
            axes.plot(smoothed(values), color=colours[role])
            axes.set_xlabel("step")
            axes.set_ylabel(units[role])
            axes.set_title(role, loc="left")
            axes.set_ylim(0, 1.1 * max(np.percentile(values, 99), 0.1))
        return figure


def smoothed(values: Sequence[float], share: float = 0.05) -> np.ndarray:
    """Mean over a window of about `share` of the values, shorter at the ends."""
    series = pd.Series(values, dtype=float)
    window = max(1, round(share * len(series)))
    return series.rolling(window, center=True, min_periods=1).mean().to_numpy()


# what is probed: colour, marker
_SOURCES = {
    "random": (GREY, "v"),
    "start": (SKY, "s"),
    "aligned": (BLUE, "o"),
    "official": (PINK, "^"),
}
_NAMES = {"frames": "frames", "audio": "audio", "text": "text", "all": "together"}


def probe_dots(table: pd.DataFrame, goal: float | None = None, corpus: str = "") -> Figure:
    """Mean ρ of the probes of each modality beside the ceiling.

    table : columns source ("random", "start", "aligned", "official", "ceiling"), modality, rho
    goal : share of the ceiling to reach; a thin line each
    """
    with matplotlib.rc_context(STYLE):
        title = "What a ridge regression finds in frozen features"
        figure = sheet(7.4, 3.6, title, corpus)
        axes = figure.subplots()
        modalities = [m for m in _NAMES if m in set(table["modality"])]
        places = {m: place for place, m in enumerate(modalities)}
        for source, (colour, marker) in _SOURCES.items():
            rows = table[table["source"] == source]
            if len(rows):
                x = rows["modality"].map(places) + 0.13 * (list(_SOURCES).index(source) - 1.5)
                axes.plot(x, rows["rho"], marker, color=colour, ms=7, label=source)
        _draw_ceiling(axes, table[table["source"] == "ceiling"], places, goal)
        axes.axhline(0, color="#000000", lw=0.8)
        axes.set_xticks(list(places.values()), [_NAMES[m] for m in modalities])
        axes.set_xlim(-0.5, len(places) - 0.5)
        axes.grid(axis="x", visible=False)
        axes.set_ylabel("mean ρ on validation")
        figure.legend(loc="outside right center")
        return figure


def _draw_ceiling(axes, rows: pd.DataFrame, places: dict, goal: float | None) -> None:
    if rows.empty:
        return
    x, rho = rows["modality"].map(places).to_numpy(), rows["rho"].to_numpy()
    axes.hlines(rho, x - 0.36, x + 0.36, color="#000000", lw=2, label="ceiling")
    if goal is not None:
        label = f"{goal:g} of the ceiling"
        ends = {"color": "#000000", "lw": 1, "linestyles": "dotted", "label": label}
        axes.hlines(goal * rho, x - 0.36, x + 0.36, **ends)


def emotion_probes(rho: pd.DataFrame, corpus: str = "") -> Figure:
    """ρ of each emotion and modality, probe and ceiling side by side.

    rho : columns source, modality, and one an emotion
    """
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        sources = list(dict.fromkeys(rho["source"]))
        modalities = [m for m in _NAMES if m in set(rho["modality"])]
        figure = sheet(4.2 + 2.6 * len(sources), 2.9, "ρ of each emotion by probe", corpus)
        panels = figure.subplots(1, len(sources), sharey=True, squeeze=False)[0]
        emotions = [c for c in rho.columns if c not in ("source", "modality")]
        top = max(0.1, float(rho[emotions].max(axis=None)))
        for axes, source in zip(panels, sources, strict=True):
            rows = rho[rho["source"] == source].set_index("modality").reindex(modalities)
            image = axes.imshow(rows[emotions], cmap="viridis", vmin=0, vmax=top, aspect="auto")
            for (i, j), value in np.ndenumerate(rows[emotions].to_numpy()):
                colour = "black" if value > 0.6 * top else "white"
                text = f"{value:.2f}".replace("-", "−")
                axes.text(j, i, text, ha="center", va="center", color=colour, size=8.5)
            axes.set_xticks(range(len(emotions)), emotions, rotation=35, ha="right")
            axes.set_yticks(range(len(modalities)), [_NAMES[m] for m in modalities])
            axes.set_title(source, loc="left")
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=panels.tolist(), label="Pearson ρ", pad=0.01)
        return figure

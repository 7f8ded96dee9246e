"""Figures as pure functions of results. Each returns a matplotlib Figure; `save` keeps it.

Figures are made without pyplot, so no global state is touched and no window is needed. Colours
are those of Okabe and Ito, which colour-blind readers tell apart, and markers differ too.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure

from emilib import metrics
from emilib.cache import atomic_write
from emilib.study import claims
from emilib.study.experiments import Results

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, YELLOW, GREY = "#56B4E9", "#E69F00", "#666666"
CYCLE = (BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, "#000000")

STYLE = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "emilib",  # ids in the file are then the same each time
}


def reported_and_here(table: pd.DataFrame, corpus: str = "") -> Figure:
    """Paper's ρ beside ours with its interval, a line a row of a result table."""
    with matplotlib.rc_context(STYLE):
        title = _table_title(table, "reported and here")
        figure, axes = _canvas(7.2, 1.1 + 0.36 * len(table), title, corpus)
        y = np.arange(len(table))[::-1]
        axes.scatter(
            table["paper"], y + 0.14, marker="D", s=34, color=GREY, label="paper (Hume-Vidmimic2)"
        )
        here = table["here"].notna().to_numpy()
        rows = table[here]
        axes.errorbar(
            rows["here"],
            y[here] - 0.14,
            xerr=_reach(rows["here"], rows["low"], rows["high"]),
            fmt="o",
            markersize=6,
            capsize=3,
            color=BLUE,
            label="here, 95 % over clips",
        )
        for row, height in zip(table[~here].itertuples(), y[~here], strict=True):
            axes.text(0.005, height - 0.14, row.status, color=GREY, va="center", style="italic")
        axes.set_yticks(y, table["row"])
        axes.set_xlim(min(0.0, float(rows["low"].min()) - 0.02 if len(rows) else 0.0))
        axes.set_xlabel("mean Pearson ρ on validation")
        axes.set_ylim(-0.6, len(table) - 0.4)
        axes.grid(axis="y", visible=False)
        _legend_below(figure, axes)
        return figure


def differences(table: pd.DataFrame, corpus: str = "") -> Figure:
    """Differences to the table's reference row, ours with the paired interval, and the paper's."""
    rows = table[table["delta_here"].notna()]
    if rows.empty:
        raise ValueError(f"{table.attrs['name']} has no differences to draw: train its rows first")
    with matplotlib.rc_context(STYLE):
        title = _table_title(table, "differences")
        figure, axes = _canvas(7.2, 1.1 + 0.36 * len(rows), title, corpus)
        y = np.arange(len(rows))[::-1]
        axes.axvline(0, color="#000000", linewidth=0.9)
        if rows["delta_paper"].notna().any():
            axes.scatter(rows["delta_paper"], y + 0.14, marker="D", s=34, color=GREY, label="paper")
        axes.errorbar(
            rows["delta_here"],
            y - 0.14,
            xerr=_reach(rows["delta_here"], rows["delta_low"], rows["delta_high"]),
            fmt="o",
            markersize=6,
            capsize=3,
            color=ORANGE,
            label="here, 95 % over clips, paired",
        )
        references = rows["reference"].unique()
        same = len(references) == 1
        labels = rows["row"] if same else rows["row"] + " − " + rows["reference"]
        axes.set_yticks(y, labels)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel(f"ρ minus that of {references[0]}" if same else "difference in ρ")
        axes.grid(axis="y", visible=False)
        _legend_below(figure, axes)
        return figure


def emotion_rho(results: Results, names: Sequence[str] | None = None) -> pd.DataFrame:
    """ρ of each emotion, mean over seeds: a row an experiment; the data of `emotion_map`."""
    names = results.names if names is None else list(names)
    rows = {}
    for name in names:
        outcome = results[name]
        rows[name] = np.mean([metrics.pearson(outcome.target, p) for p in outcome.predictions], 0)
    columns = list(results[names[0]].targets)
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def row_labels(results: Results) -> dict[str, str]:
    """Experiment → the first row it serves, e.g. "A3 V+A+T"."""
    served = {name: e.rows for name, e in results.experiments.items() if e.rows}
    return {name: " ".join(rows[0]) for name, rows in served.items()}


def emotion_map(
    rho: pd.DataFrame, corpus: str = "", labels: Mapping[str, str] | None = None
) -> Figure:
    """Heat map of `emotion_rho`; `labels` renames experiments, as `row_labels` does."""
    with matplotlib.rc_context(STYLE):
        title = "ρ of each emotion on validation"
        figure, axes = _canvas(9.4, 0.8 + 0.3 * len(rho), title, corpus)
        values = rho.to_numpy()
        seaborn.heatmap(
            rho,
            ax=axes,
            cmap="viridis",
            vmin=min(0.0, float(values.min())),
            vmax=max(0.1, float(values.max())),
            annot=[[f"{value:.2f}".replace("-", "−") for value in row] for row in values],
            fmt="",
            annot_kws={"size": 8.5},
            cbar_kws={"label": "Pearson ρ", "fraction": 0.04, "pad": 0.02},
        )
        columns = [str(column).replace(" ", "\n") for column in rho.columns]
        axes.set_xticklabels(columns, size=9, rotation=0)
        axes.set_yticklabels([(labels or {}).get(name, name) for name in rho.index], rotation=0)
        axes.set(xlabel="", ylabel="")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        return figure


def learning_curves(histories: Mapping[str, Sequence[pd.DataFrame]], corpus: str = "") -> Figure:
    """Training loss and validation ρ over epochs; a colour a model, a thin line a seed.

    histories : name → a history a seed, as in `Outcome.histories`; the thick line is the mean over
        the seeds still running, the dot the best epoch of a seed
    """
    with matplotlib.rc_context(STYLE):
        figure, panels = _canvas(8.2, 3.2, "Learning curves", corpus, columns=2)
        for number, (name, runs) in enumerate(histories.items()):
            color = CYCLE[number % len(CYCLE)]
            for axes, column in zip(panels, ("loss", "rho"), strict=True):
                for history in runs:
                    axes.plot(history["epoch"], history[column], color=color, lw=0.7, alpha=0.45)
                mean = pd.concat(runs).groupby("epoch")[column].mean()
                axes.plot(mean.index, mean, color=color, label=name)
            for history in runs:
                if history["rho"].notna().any():
                    best = history.loc[history["rho"].idxmax()]
                    panels[1].plot(best["epoch"], best["rho"], "o", color=color, markersize=4.5)
        for axes, label in zip(panels, ("training loss", "mean ρ on validation"), strict=True):
            axes.set_xlabel("epoch")
            axes.set_ylabel(label)
            axes.xaxis.get_major_locator().set_params(integer=True)
        panels[0].legend()
        return figure


def save(figure: Figure, folder, name: str, data: pd.DataFrame) -> tuple[Path, Path]:
    """NAME.svg and NAME.csv, what is drawn in numbers; the same bytes for the same results."""
    picture, numbers = Path(folder) / f"{name}.svg", Path(folder) / f"{name}.csv"
    stream = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    index = not isinstance(data.index, pd.RangeIndex)
    atomic_write(picture, stream.getvalue())
    atomic_write(numbers, data.to_csv(index=index, float_format="%.6g"))
    return picture, numbers


def sheet(width: float, height: float, title: str, corpus: str = "") -> Figure:
    """An empty figure with its title, and below it the corpus in grey; sizes in inches."""
    lines = textwrap.wrap(corpus, int(width * 13))
    header = 0.36 + 0.17 * len(lines)
    height += header
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - header / height))
    figure.text(0.012, 1 - 0.08 / height, title, va="top", size=11.5, weight="bold")
    top = 1 - 0.32 / height
    figure.text(0.012, top, "\n".join(lines), va="top", size=8.5, color=GREY)
    return figure


def _canvas(width: float, height: float, title: str, corpus: str, columns: int = 1):
    """A `sheet` and axes on it, side by side."""
    figure = sheet(width, height, title, corpus)
    return figure, figure.subplots(1, columns)


def _table_title(table: pd.DataFrame, what: str) -> str:
    name = table.attrs["name"]
    where = f"{name[1]} of paper {name[0]}" if name in claims.PAPER_TABLES else name
    return f"Table {where}: {what}"


def _legend_below(figure: Figure, axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)


def _reach(value, low, high) -> np.ndarray:
    """(2, N) lengths of the bars; an interval of percentiles may leave the mean at its edge."""
    return np.maximum(0.0, np.stack([value - low, high - value]))

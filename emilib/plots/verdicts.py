"""Many differences at a glance: the rows of one table, or a matrix of verdicts."""

import itertools

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from emilib.plots import style

# Only what is resolved has a colour.
COLOURS = {"pays": style.SKY, "as claimed": style.SKY, "costs": style.YELLOW}
COLOURS |= {"the opposite": style.YELLOW, "below .01": "#DDDDDD", "not resolved": "#FFFFFF"}


def signed(value: float) -> str:
    """A difference in ρ as cells and titles have it: "+.24"; "−.004" below a hundredth; "0"."""
    digits = 2 if abs(value) >= 0.01 else 3
    text = f"{value:+z.{digits}f}".replace("-", "−").replace("0.", ".", 1)
    return text if text.strip("+−.0") else "0"


def summary(table: pd.DataFrame) -> str:
    """What a matrix of verdicts comes to, as its title: in how many rows something is resolved."""
    rows, words = table["row"].nunique(), table["verdict"]
    better = table.loc[words.isin(["pays", "as claimed"]), "row"].nunique()
    worse = table.loc[words.isin(["costs", "the opposite"]), "row"].nunique()
    if set(words) & {"pays", "costs", "below .01"}:
        return f"{better} of {rows} mechanisms pay somewhere, {worse} cost somewhere"
    return f"{better} of {rows} claims hold under some damage, {worse} fail under some"


@rc_context(style.STYLE)
def differences(table: pd.DataFrame, corpus: str = "") -> Figure:
    """Differences to a result table's reference row, sorted: the paper's, ours with the interval.

    table : of `study.tables.table`; its lines to beat are drawn where all rows have one reference
    """
    rows = table[table["delta_here"].notna()].sort_values("delta_here", ascending=False)
    name, here, y = table.attrs["name"], rows["delta_here"], np.arange(len(rows))
    if rows.empty:
        raise ValueError(f"{name} has no differences to draw: train its rows first")
    paper = rows["delta_paper"].notna()  # none in A4
    words = rows.loc[paper, "verdict"] if paper.any() else rows["verdict"]
    holds, turned = words.isin(["as claimed", "resolved"]).sum(), (words == "the opposite").sum()
    what = "differences hold here" if paper.any() else "parts make a difference that is resolved"
    title = f"Table {name[1]} of paper {name[0]}" if paper.any() else f"Table {name}"
    title += f": {holds} of {len(words)} {what}" + f", {turned} turn round" * bool(turned)
    figure, axes = style.canvas(7.2, 1.2 + 0.36 * len(rows), title, corpus)
    if paper.any():
        marks = {"marker": "D", "s": 34, "color": style.GREY, "label": "paper (Hume-Vidmimic2)"}
        axes.scatter(rows["delta_paper"], y + 0.14, **marks)
    bars, low = style.reach(here, rows["delta_low"], rows["delta_high"]), y - 0.14 * paper.any()
    axes.errorbar(here, low, xerr=bars, fmt="none", capsize=3, color=style.BLACK, zorder=2)
    for word, which in rows.groupby(rows["verdict"] == "not resolved").indices.items():
        dot = {"s": 36, "color": "white" if word else "black", "edgecolor": "black", "zorder": 3}
        label = "here, not resolved" if word else "here, resolved"
        axes.scatter(here.iloc[which], low[which], label=label, **dot)
    references = rows["reference"].unique()
    one, base = len(references) == 1, table.loc[table["row"] == references[0], "here"]
    lines = table[table["row"].str.startswith("line to beat") & one].sort_values("here")
    for side, line in zip(("right", "left"), lines.itertuples(), strict=False):
        x, text = line.here - base.item(), f" {line.row.removeprefix('line to beat: ')} "
        axes.axvline(x, color=style.GREY, linestyle="--", linewidth=1.1)
        axes.text(x, len(y) - 0.4, text, ha=side, va="bottom", size=8.5, color=style.GREY)
    axes.axvline(0, color=style.BLACK, linewidth=0.9, zorder=1)
    axes.set_yticks(y, rows["row"] if one else rows["row"] + " − " + rows["reference"])
    axes.grid(axis="y", visible=False)
    to = f"ρ minus that of “{references[0]}”" if one else "difference in ρ"
    axes.set(ylim=(-0.6, len(y) - 0.4), xlabel=f"{to}; bars: 95 %, paired over clips and seeds")
    style.legend_below(figure, axes, columns=3)
    return figure


@rc_context(style.STYLE)
def matrix(table: pd.DataFrame, title: str, corpus: str = "") -> Figure:
    """Verdicts: "row", "group" and "column" place a cell, "value" stands in it."""
    rows, cells = list(dict.fromkeys(table["row"])), table[["group", "column"]].drop_duplicates()
    columns = list(cells.itertuples(index=False, name=None))
    new = [0, *(a[0] != b[0] for a, b in itertools.pairwise(columns))]
    place = dict(zip(columns, np.arange(len(columns)) + 0.5 * np.cumsum(new), strict=True))
    right = max(place.values())
    width = 0.4 + 0.068 * max(map(len, rows)) + 0.4 * (right + 1)
    figure, axes = style.canvas(max(width, 7.2), 0.9 + 0.27 * len(rows), title, corpus)
    for cell in table.itertuples():
        x, y = place[cell.group, cell.column], rows.index(cell.row)
        box = {"facecolor": COLOURS[cell.verdict], "edgecolor": style.GREY, "linewidth": 0.6}
        axes.add_patch(Rectangle((x - 0.46, y - 0.42), 0.92, 0.84, **box))
        axes.text(x, y, signed(cell.value), ha="center", va="center", size=7.5)
    style.bare(axes)
    axes.tick_params(length=0, labelbottom=False, labeltop=True, pad=0)
    axes.set(xlim=(-0.6, right + 0.6), ylim=(len(rows) - 0.4, -0.6))
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(list(place.values()), [column for _, column in columns], size=8)
    for group in dict.fromkeys(group for group, _ in columns):
        middle = np.mean([x for (name, _), x in place.items() if name == group])
        axes.text(middle, -1.3, group, ha="center", va="bottom", size=8.5, weight="bold")
    used = [word for word in COLOURS if word in set(table["verdict"])]
    patches = [Rectangle((0, 0), 1, 1, fc=COLOURS[word], ec=style.GREY) for word in used]
    figure.legend(patches, used, loc="outside lower center", ncols=len(used))
    return figure

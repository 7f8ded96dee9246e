"""What the two papers report and where: the one place their numbers stand, as three CSV files.

``claims.csv`` lists every number, ``checks.csv`` the numbers that follow from others, with the
formula that recomputes them, ``contradictions.csv`` what does not add up.

Paper A is *Dual-Stage Cross-Modal Network with Dynamic Feature Fusion for Emotional Mimicry
Intensity Estimation* (8th ABAW, 2025; first version of arXiv 2503.10603). Paper B is *Anchoring
Emotions in Text: Robust Multimodal Fusion for Mimicry Intensity Estimation* (10th ABAW, 2026).

A table is called by paper and number: A2 is Table 2 of paper A. ρ is the mean Pearson correlation
over six emotions on the validation set of Hume-Vidmimic2.
"""

import dataclasses
import math
from pathlib import Path

import pandas as pd

PAPER_TABLES = ("A1", "A2", "A3", "B1", "B2", "B3", "B4")
TABLES = ("A1", "A2", "A3", "A4", "B1", "B2", "B3", "B4")


@dataclasses.dataclass(frozen=True)
class Claim:
    """One number of one paper.

    name : what formulas in ``checks.csv`` call it; "" where none does
    where : table or section
    row, modality : the table's row as it is called here, and its modalities; "" in running text
    value : NaN for a row that neither paper has: what a part of paper A's network does, and what
        else belongs beside the systems of B2
    unit : "ρ", "%", "clips", "s" (seconds) or "h" (hours)
    delta : the Δ the table prints beside the value
    """

    name: str
    paper: str
    where: str
    row: str
    modality: str
    quantity: str
    value: float
    unit: str
    delta: float | None


def _read(name: str) -> pd.DataFrame:
    return pd.read_csv(Path(__file__).with_name(name), dtype=str, keep_default_na=False)


def _number(text: str, empty=None):
    return (float(text) if "." in text else int(text)) if text else empty


CLAIMS = tuple(
    Claim(**row | {"value": _number(row["value"], math.nan), "delta": _number(row["delta"])})
    for row in _read("claims.csv").to_dict("records")
)


def rows(table: str) -> tuple[Claim, ...]:
    """The rows of a table in its order, the paper's before those beyond the paper (value NaN).

    Raises ValueError for a table that is not in TABLES.
    """
    if table not in TABLES:
        raise ValueError(f"expected a table among {', '.join(TABLES)}, got {table!r}")
    place = (table[0], f"Table {table[1]}")
    return tuple(claim for claim in CLAIMS if (claim.paper, claim.where) == place)


def reported(table: str, row: str, quantity: str | None = None) -> Claim:
    """The claim of one row. Raises ValueError when there is none, or several without `quantity`."""
    matching = [c for c in rows(table) if c.row == row and quantity in (None, c.quantity)]
    if len(matching) != 1:
        names = ", ".join(dict.fromkeys(f"{c.row!r}" for c in rows(table)))
        raise ValueError(f"{table} has {len(matching)} numbers for row {row!r}; its rows: {names}")
    return matching[0]


def stated(paper: str, where: str, quantity: str) -> float:
    """The number a paper's running text states. Raises StopIteration when it states none."""
    place = (paper, where, quantity)
    return next(c.value for c in CLAIMS if (c.paper, c.where, c.quantity) == place)


def checks() -> pd.DataFrame:
    """Every number of a paper that follows from others of it, recomputed by its formula.

    Columns paper, where, what, stated, recomputed, holds (both agree when rounded to the decimals
    the paper gives), contradiction: the title of the entry of `ledger` it belongs to, or "".
    """
    numbers = {c.name: c.value for c in CLAIMS if c.name}
    numbers |= {f"{c.name}_delta": c.delta for c in CLAIMS if c.delta is not None}
    table = _read("checks.csv")
    for column in ("stated", "recomputed"):
        values = (pd.eval(f, engine="python", local_dict=numbers) for f in table[column])
        table[column] = [float(value) for value in values]
    tolerance = 0.5 * 10.0 ** -table.pop("digits").astype(int) * (1 + 1e-9)
    holds = (table["stated"] - table["recomputed"]).abs() <= tolerance
    table.insert(table.columns.get_loc("contradiction"), "holds", holds)
    return table


def ledger() -> pd.DataFrame:
    """What does not add up, a row each: paper, title, places, text, here, stated, recomputed.

    places : the places that disagree; text : what each says, and what is right where that can be
    told; here : what this project does about it; stated, recomputed : from `checks`, as text
    """
    table, numbers = _read("contradictions.csv"), checks().groupby("contradiction")
    for column, form in (("stated", "{:g}"), ("recomputed", "{:.5g}")):
        text = numbers[column].agg(lambda values, form=form: ", ".join(map(form.format, values)))
        table[column] = table["title"].map(text).fillna("")
    return table

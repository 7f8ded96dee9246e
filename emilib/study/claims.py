"""What the two papers report and where: the one place their numbers stand, as CSV. A2: A's Table 2.

Paper A: *Dual-Stage Cross-Modal Network with Dynamic Feature Fusion for Emotional Mimicry Intensity
Estimation* (8th ABAW, 2025; first version of arXiv 2503.10603). Paper B: *Anchoring Emotions in
Text: Robust Multimodal Fusion for Mimicry Intensity Estimation* (10th ABAW, 2026).
"""

import json
from pathlib import Path

import pandas as pd

TABLES = ("A1", "A2", "A3", "A4", "B1", "B2", "B3", "B4")


def _read(name: str) -> pd.DataFrame:
    return pd.read_csv(Path(__file__).with_name(name), dtype=str, keep_default_na=False)


# Named tuples: name (for formulas in checks.csv), paper, where, row and modality ("" in running
# text), quantity, value (NaN for a row that neither paper has), unit, delta (printed Δ or None).
_TABLE = _read("claims.csv").astype(object)
for _column, _empty in (("value", "NaN"), ("delta", "null")):
    _TABLE[_column] = pd.Series([json.loads(t or _empty) for t in _TABLE[_column]], dtype=object)
CLAIMS = tuple(_TABLE.itertuples(index=False, name="Claim"))


def rows(table: str) -> tuple:
    """The rows of one of TABLES in its order, those beyond the paper (value NaN) last."""
    if table not in TABLES:
        raise ValueError(f"expected a table among {', '.join(TABLES)}, got {table!r}")
    return tuple(c for c in CLAIMS if (c.paper, c.where) == (table[0], f"Table {table[1]}"))


def reported(table: str, row: str, quantity: str | None = None):
    """The claim of one row. Raises ValueError when there is none, or several without `quantity`."""
    matching = [c for c in rows(table) if c.row == row and quantity in (None, c.quantity)]
    if len(matching) != 1:
        names = ", ".join(dict.fromkeys(f"{c.row!r}" for c in rows(table)))
        raise ValueError(f"{table} has {len(matching)} numbers for row {row!r}; its rows: {names}")
    return matching[0]


def checks() -> pd.DataFrame:
    """Every number of a paper that follows from others of it, recomputed by its formula.
    Columns paper, where, what, stated, recomputed, holds (both agree when rounded to the decimals
    the paper gives), contradiction: the title of the entry of `ledger` it belongs to, or ""."""
    numbers = {c.name: c.value for c in CLAIMS}
    numbers |= {f"{c.name}_delta": c.delta for c in CLAIMS if c.delta is not None}
    table = _read("checks.csv")
    for column in ("stated", "recomputed"):
        values = [pd.eval(f, engine="python", local_dict=numbers) for f in table[column]]
        table[column] = pd.Series(values, dtype=float)
    tolerance = 0.5 * 10.0 ** -table.pop("digits").astype(int) * (1 + 1e-9)
    holds = (table["stated"] - table["recomputed"]).abs() <= tolerance
    table.insert(table.columns.get_loc("contradiction"), "holds", holds)
    return table


def ledger() -> pd.DataFrame:
    """What does not add up, a row each: paper, title, places, text, here, stated, recomputed."""
    table, numbers = _read("contradictions.csv"), checks().groupby("contradiction")
    for column, form in (("stated", "{:g}"), ("recomputed", "{:.5g}")):
        text = numbers[column].agg(lambda values, form=form: ", ".join(map(form.format, values)))
        table[column] = table["title"].map(text).fillna("")
    return table

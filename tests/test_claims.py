"""The papers' numbers: complete, and what can be recomputed is."""

import math

import pytest

from emilib.study import claims

SPLITS = 2 * (120_190 + 17_246)
SUMS = [("A1", 4, SPLITS), ("A2", 4, 0.7634), ("A3", 5, 1.2924), ("A4", 7, 0)]
SUMS += [("B1", 4, SPLITS), ("B2", 14, 3.24), ("B3", 6, 2.51), ("B4", 3, 1.45)]
CHECKS = claims.checks().set_index(["paper", "where", "what"])


@pytest.mark.parametrize(
    ("table", "rows", "total"),  # rows, and the sum of what the paper prints in them
    SUMS,
)
def test_every_table_has_its_rows_and_numbers(table, rows, total):
    listed = claims.rows(table)
    assert len({c.row for c in listed}) == rows
    assert len(listed) == rows * (2 if table in ("A1", "B1") else 1)
    assert sum(c.value for c in listed if c.value == c.value) == pytest.approx(total)
    assert all(math.isnan(c.value) == (not c.quantity) for c in listed)


def test_what_can_be_recomputed_and_the_ledger_of_what_does_not_hold():
    gain = CHECKS.loc[("A", "5.2", "gain in % of the full model over the best unimodal")]
    assert gain["recomputed"] == pytest.approx(100 * (0.3626 / 0.2734 - 1))
    hours = CHECKS.loc[("B", "1", "hours against Table 1")]
    assert hours["recomputed"] == pytest.approx(33 + 23 / 60 + 10 / 3600)
    assert (hours["stated"], hours["holds"], CHECKS["holds"].sum()) == (25, False, 13)
    in_text = {c.value for c in claims.CLAIMS if c.quantity == "ρ of TAEMI"}
    assert in_text == {claims.reported("B2", "TAEMI").value}
    ledger = claims.ledger().set_index("title")
    assert len(ledger) == 27
    assert set(CHECKS.loc[~CHECKS["holds"], "contradiction"]) <= set(ledger.index)
    named = CHECKS[CHECKS["contradiction"] != ""].groupby("contradiction")["holds"]
    assert not named.all().any(), "each contradiction with numbers has one that does not hold"
    gain = ledger.loc["Gain over the best baseline"]
    assert (gain["stated"], gain["recomputed"]) == ("40, 40", "40, 45.04")


@pytest.mark.parametrize(
    ("table", "row", "words"),
    [("A3", "V+B", r"V\+A"), ("A3", "", "0 num"), ("A1", "Train", "2 num"), ("C1", "", "A1")],
)
def test_unknown_rows_are_refused(table, row, words):
    with pytest.raises(ValueError, match=words):
        claims.reported(table, row)

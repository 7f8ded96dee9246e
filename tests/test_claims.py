"""The papers' numbers: complete, and what can be recomputed is."""

import math

import pytest

from emilib.study import claims


def test_every_table_has_its_rows():
    rows = {name: [c.row for c in claims.rows(name)] for name in claims.TABLES}
    assert {name: len(dict.fromkeys(found)) for name, found in rows.items()} == {
        "A1": 4,
        "A2": 4,
        "A3": 4,
        "A4": 8,
        "B1": 4,
        "B2": 14,
        "B3": 5,
        "B4": 3,
    }
    for name, found in rows.items():
        per_row = 2 if name in ("A1", "B1") else 1
        assert len(found) == per_row * len(set(found))


def test_best_rows_of_the_tables():
    """Checked against the papers' running text, which names the best of each table."""
    best = {
        table: max((c for c in claims.CLAIMS if c.table == table), key=lambda c: c.value)
        for table in ("A2", "A3", "B2", "B3", "B4")
    }
    assert best["A2"].value == claims.stated("A", "5.1", "ρ of Wav2Vec2 (ours)")
    assert best["A3"].value == claims.stated("A", "5.2", "ρ of the full model")
    for table in ("B2", "B3", "B4"):
        assert best[table].value == claims.stated("B", "5", "ρ of TAEMI")


def test_partition_sums_hold():
    assert claims.reported("A1", "Sum", "duration").value == 33 * 3600 + 23 * 60 + 10
    for check in claims.CHECKS:
        if check.where == "Table 1":
            assert check.holds


def test_what_can_be_recomputed():
    frame = claims.checks().set_index(["paper", "where", "what"])
    gain = frame.loc[("A", "5.2", "gain in % of the full model over the best unimodal")]
    assert gain["recomputed"] == pytest.approx(100 * (0.3626 / 0.2734 - 1))
    assert not gain["holds"]
    over_pair = frame.loc[("A", "5.2", "the same gain in %, over V+A")]
    assert over_pair["recomputed"] == pytest.approx(27.4, abs=0.05)
    for what in ("gain in % of ViT (ours) over the baseline", "gain in % of V+T over V+A"):
        assert frame.xs(what, level="what")["holds"].all()
    deltas = frame.xs("Table 3", level="where")
    assert len(deltas) == 4
    assert deltas["holds"].all()


def test_a_contradiction_with_numbers_really_is_one():
    by_name = {(c.paper, c.where, c.what): c for c in claims.CHECKS}
    for entry in claims.CONTRADICTIONS:
        found = [by_name[name] for name in entry.checks]
        assert all(math.isfinite(c.recompute()) for c in found)
        if found:
            assert any(not c.holds for c in found), entry.title
    named = {name for entry in claims.CONTRADICTIONS for name in entry.checks}
    broken = {name for name, check in by_name.items() if not check.holds}
    assert broken <= named  # whatever does not hold is in the ledger


def test_the_ledger_is_a_table():
    ledger = claims.ledger()
    assert len(ledger) == len(claims.CONTRADICTIONS) >= 15
    assert ledger["text"].str.len().min() > 20
    anchor = ledger.set_index("title").loc["ρ with vision as anchor"]
    assert (anchor["stated"], anchor["recomputed"]) == ("0.49", "0.39")


def test_unknown_rows_are_refused():
    with pytest.raises(ValueError, match="expected a table among A1"):
        claims.rows("C1")
    with pytest.raises(ValueError, match="its rows: 'V\\+A'"):
        claims.reported("A3", "V+B")
    with pytest.raises(ValueError, match="states no"):
        claims.stated("A", "5.2", "accuracy")

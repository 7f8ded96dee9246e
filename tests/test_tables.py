import math

import numpy as np
import pandas as pd
import pytest
from test_experiments import LISTED

from emilib import EMOTIONS, metrics
from emilib.study import claims, replication, tables
from emilib.study.runs import Outcome, Results

CORPUS = "embedded corpus: drawn faces and synthetic voices; not comparable with the paper's number"
CLIPS, TEST = 90, [f"t{i}" for i in range(20)]
PARTITIONS = {"split": ["train", "validation", "test"], "clips": [400, 240, 60]}
PARTITIONS = pd.DataFrame(PARTITIONS | {"seconds": [2001.4, 1200.2, 3599.0]})


def drawn_results(seed=0) -> Results:
    """Predictions of growing strength under noise, an experiment after the other."""
    draw, seeds = np.random.default_rng(seed), (0, 1, 2)
    target = np.clip(draw.normal(0.1, 0.4, (CLIPS, 6)), 0, 1).round(1)
    ids, seconds = list(map(str, range(CLIPS))), np.full(len(seeds), 71.0)
    outcomes = {}
    for number, (name, e) in enumerate(LISTED.items()):
        predictions = (0.2 + 0.05 * number) * target
        predictions = predictions + draw.normal(0, 0.3, (len(seeds), CLIPS, 6))
        test = draw.random((len(seeds), len(TEST), 6))
        rest = (TEST, test, [], 123_456, seconds, [])
        outcomes[name] = Outcome(e, seeds, ids, target, predictions, *rest)
    valid, test = draw.random((CLIPS, 6)) + 3 * target, draw.random((len(TEST), 6))
    both = np.concatenate([valid, test])
    lines = {name: both for name in ("ridge_frames", "ridge_text", "ridge_sum")}
    labels = pd.DataFrame(draw.random((len(TEST), 6)), TEST[::-1], EMOTIONS)
    return Results(LISTED, outcomes, (), lambda: lines, labels)


RESULTS = drawn_results()
TABLES = tables.tables(RESULTS, PARTITIONS, CORPUS)


def test_rows_and_numbers_are_those_of_papers_and_results():
    assert list(TABLES) == list(claims.TABLES)
    for name in ("A2", "A3", "A4", "B2", "B3", "B4"):
        trained = TABLES[name][TABLES[name]["kind"] != "line"]
        assert trained["row"].tolist() == [c.row for c in claims.rows(name)]
        papers = [c.value for c in claims.rows(name)]
        np.testing.assert_equal(trained["paper"].tolist(), papers)
    marks = TABLES["B2"].query("kind != 'line'").set_index("row")
    ours = marks.index.str.startswith("TAEMI")[:, None]
    assert ((marks[["specified", "inferred", "unknown"]] == "") == ours).all(axis=None)
    assert TABLES["A1"]["paper_clips"].tolist() == [8072, 4588, 4586, 17246]
    frame = TABLES["B3"].set_index("row")
    row = frame.loc["w/o modality dropout"]
    result, full = RESULTS["taemi_no_dropout"], RESULTS["taemi"]
    each = [metrics.mean_pearson(result.target, p) for p in result.predictions]
    base = [metrics.mean_pearson(full.target, p) for p in full.predictions]
    assert (row["here"], row["sd"]) == pytest.approx((np.mean(each), np.std(each, ddof=1)))
    assert row["low"] < row["here"] < row["high"]
    paired = metrics.difference(full.target, result.predictions, full.predictions)
    assert row["delta_here"] == pytest.approx(np.mean(each) - np.mean(base))
    expected = (paired.sd, paired.low, paired.high, -0.04)
    assert tuple(row[[f"delta_{n}" for n in ("sd", "low", "high", "paper")]]) == expected
    assert (row["seeds"], row["parameters"], row["seconds"]) == (3, 123_456, 71.0)
    assert frame.loc["TAEMI (full)", ["delta_here", "delta_paper"]].isna().all()
    assert TABLES["B2"].set_index("row").loc["TAEMI", "here"] == frame.loc["TAEMI (full)", "here"]
    a2 = TABLES["A2"].set_index("row")  # compares with the baseline of the modality
    expected = RESULTS.summary("dual_stage_v").value - RESULTS.summary("vit_baseline").value
    assert a2.loc["ViT (ours)", "delta_here"] == pytest.approx(expected)
    assert a2.loc["ViT (ours)", "delta_paper"] == pytest.approx(0.07)
    assert np.isnan(a2.loc["ViT (baseline)", "delta_here"])


def test_lines_to_beat_come_last_without_a_verdict():
    for name, modalities in (("A2", ["V"]), ("A3", ["T", "V+A+T"]), ("B2", ["T", "V+A+T"])):
        lines = TABLES[name].iloc[-len(modalities) :]
        assert set(lines["kind"]) == {"line"}
        assert lines["modality"].tolist() == modalities
        assert lines["row"].str.contains("line to beat").all()
        assert not lines["delta_here"].notna().any()
        assert set(lines["verdict"]) == {""}
        assert (TABLES[name]["kind"] == "line").sum() == len(modalities)
    row, target = TABLES["B4"].iloc[-1], RESULTS["taemi"].target
    valid, test = np.split(RESULTS.lines()["ridge_sum"], [CLIPS])
    rho = metrics.estimate(target, valid)
    assert (row["here"], row["low"], row["high"]) == (rho.value, rho.low, rho.high)
    labels = RESULTS.test_labels.loc[TEST].to_numpy()
    assert row["test"] == pytest.approx(metrics.mean_pearson(labels, test))
    full = TABLES["B3"].set_index("row").loc["TAEMI (full)", "test"]
    each = [metrics.mean_pearson(labels, p) for p in RESULTS["taemi"].test_predictions]
    assert full == pytest.approx(np.mean(each))
    unknown = tables.table("B3", Results(LISTED, dict(RESULTS)), CORPUS)
    assert len(unknown) == len(claims.rows("B3")), "without lines"
    assert set(tables.display(unknown)["ρ test"]) == {"–"}


def test_verdicts_are_of_the_whole_table():
    for name in ("A2", "A3", "B2", "B3"):
        table = TABLES[name]
        alone = [
            RESULTS.difference(*(RESULTS.experiment_for(name, n).name for n in pair)).p
            for pair in table.loc[table["delta_here"].notna(), ["row", "reference"]].to_numpy()
        ]
        compared = table[table["delta_here"].notna()]
        np.testing.assert_allclose(compared["p"], metrics.holm(alone))
        words = metrics.verdict(compared["delta_here"], alone, compared["delta_paper"])
        assert compared["verdict"].tolist() == words.tolist()


def test_replication_is_the_mean_over_corpora_with_what_corpora_change():
    corpora = {seed: drawn_results(seed) for seed in (0, 1, 2)}
    table = replication.replicate(corpora).set_index("row")
    expected = {row for t in ("B3", "B4") for row in TABLES[t].query("p >= 0")["row"]} | {"T"}
    assert set(table.index) == expected
    row = table.loc["Vision-anchored"]
    gaps = [r.difference("taemi_vision_anchor", "taemi") for r in corpora.values()]
    assert row[["corpus 0", "corpus 1", "corpus 2"]].tolist() == [g.value for g in gaps]
    assert row["mean"] == pytest.approx(np.mean([g.value for g in gaps]))
    assert row["same sign"] == sum(np.sign(g.value) == np.sign(row["mean"]) for g in gaps)
    names = replication.differences(LISTED).values()
    alone = [metrics.holm([r.difference(*n).p for n in names]) for r in corpora.values()]
    assert table["resolved"].tolist() == (np.array(alone) < 0.05).sum(axis=0).tolist()
    clips = np.mean([r.gap("taemi_vision_anchor", "taemi")[1] for r in corpora.values()], axis=0)
    expected = metrics.summarise(np.array([g.value for g in gaps]), clips)
    assert (row["low"], row["high"]) == (expected.low, expected.high)


def test_partitions_add_up_and_cells_read_as_in_a_paper():
    shown = tables.display(TABLES["A1"])
    assert shown["Duration, paper"].tolist() == ["15:07:03", "9:12:02", "9:04:05", "33:23:10"]
    assert shown["Duration, here"].tolist() == ["0:33:21", "0:20:00", "0:59:59", "1:53:21"]
    assert shown["Clips, here"].tolist() == ["400", "240", "60", "700"]
    row = {"paper": 0.2734, "here": -0.1204, "sd": 0.01, "low": -0.2, "high": 0.05}
    row |= {"delta_paper": 0.0334, "delta_here": 0.1, "delta_sd": np.nan, "delta_low": -4e-4}
    row |= {"delta_high": 0.2, "p": 0.012, "test": -1e-4, "parameters": 2.5e6, "seconds": 90.0}
    shown = tables.display(TABLES["B2"].iloc[:1].assign(**row)).iloc[0]
    assert shown.tolist()[2:] == [
        *("0.2734", "−0.120 ± 0.010", "[−0.200, 0.050]", "0.000"),
        *("+0.0334", "+0.100", "[+0.000, +0.200]", "0.012", "2.5 M", "1.5 min"),
    ]


def test_rows_without_a_result_say_why():
    fewer = set(LISTED) - {"hallmen_2024", "tfn", "taemi"}
    results = Results(LISTED, {n: RESULTS[n] for n in fewer}, {"tfn": "no words"})
    every = {**TABLES, "B2": tables.table("B2", results, CORPUS), "B4": TABLES["B4"].iloc[1:]}
    every["A1"] = tables.table("A1", partitions=PARTITIONS.iloc[:2])
    del every["A3"]
    shown = tables.display(every["B2"]).set_index("Row")
    assert shown.loc["Hallmen 2024", "ρ here"] == tables.NO_RESULT
    assert shown.loc["Hallmen 2024", "ρ paper"] == "0.38"
    assert set(shown.loc["Hallmen 2024", ["95 %", "Δ here", "Params", "Train"]]) == {"–"}
    assert shown.loc["TFN", "ρ here"] == "–, no words"
    assert shown.loc["MISA", "Δ here"] == "–", "the reference has no result"
    assert set(shown.loc[["TFN", "MulT", "MISA"], "ρ paper"]) == {"–"}, "beyond the paper"
    assert tables.complete(TABLES) == []
    missing = [line.removesuffix(": no result") for line in tables.complete(every)]
    a3 = [f"A3, {claim.row}" for claim in claims.rows("A3")]
    expected = ["A1, Test", "A1, Sum", *a3, "B2, Hallmen 2024", "B2, TAEMI", "B4, Vision-anchored"]
    assert missing == expected


def test_written_files(tmp_path):
    paths = tables.write(TABLES, tmp_path)
    endings = ("md", "tex", "csv", "txt")
    assert {p.name for p in paths} == {f"{n}.{e}" for n in claims.TABLES for e in endings}
    back = pd.read_csv(tmp_path / "B2.csv")
    np.testing.assert_allclose(back["here"], TABLES["B2"]["here"], rtol=1e-5)
    for name in claims.TABLES:
        markdown = (tmp_path / f"{name}.md").read_text()
        lines = [line for line in markdown.split("\n\n")[0].splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1
        assert len(lines) == 2 + len(TABLES[name])
        assert CORPUS in markdown
        latex = (tmp_path / f"{name}.tex").read_text("ascii")
        assert latex.count(r"\\") == 1 + len(TABLES[name])
        assert latex.replace(r"\%", "").count("%") == 0
        text = (tmp_path / f"{name}.txt").read_text()
        assert max(map(len, text.splitlines())) <= 100
        assert all(claim.row in text for claim in claims.rows(name))


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

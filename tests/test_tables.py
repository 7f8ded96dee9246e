"""Tables and figures as pure functions of results."""

import types

import numpy as np
import pandas as pd
import pytest

from emilib import metrics
from emilib.study import claims, tables
from emilib.study.experiments import Outcome, Results, experiments
from emilib.training.loop import Recipe

CORPUS = "embedded corpus: drawn faces and synthetic voices; not comparable with the paper's number"
PROFILE = types.SimpleNamespace(
    dual_stage={},
    taemi={},
    dual_stage_recipe=Recipe.dual_stage(),
    taemi_encoders=None,
    taemi_fine_tune=False,
    taemi_recipe=Recipe.taemi(),
    baseline={},
    baseline_recipe=Recipe(),
    earlier={},
    earlier_recipe=Recipe.hallmen(),
    savchenko_recipe=Recipe.savchenko(),
)
CLIPS = 90
PARTITIONS = pd.DataFrame(
    {
        "split": ["train", "validation", "test"],
        "clips": [400, 240, 60],
        "seconds": [2001.4, 1200.2, 3599.0],
    }
)


def outcome(experiment, strength, target, seeds):
    generator = np.random.default_rng(int(1000 * strength))
    noise = generator.normal(0, 0.3, (len(seeds), CLIPS, 6))
    epochs = np.arange(1, 11)
    histories = [
        pd.DataFrame(
            {
                "epoch": epochs,
                "loss": 0.1 + 0.1 / epochs + generator.normal(0, 0.002, 10),
                "rho": strength * (1 - 0.8 / epochs) + generator.normal(0, 0.01, 10),
            }
        )
        for _ in seeds
    ]
    return Outcome(
        experiment=experiment,
        seeds=seeds,
        ids=[f"{i:05d}" for i in range(CLIPS)],
        target=target,
        predictions=strength * target + noise,
        test_ids=[],
        test_predictions=np.zeros((len(seeds), 0, 6)),
        histories=histories,
        parameters=123_456,
        seconds=np.full(len(seeds), 71.0),
        epochs=np.full(len(seeds), 7),
        folders=[],
    )


def made_up(seeds=(0, 1, 2)) -> Results:
    listed = experiments(PROFILE)
    target = np.clip(np.random.default_rng(0).normal(0.1, 0.4, (CLIPS, 6)), 0, 1).round(1)
    outcomes = {
        e.name: outcome(e, 0.2 + 0.05 * i, target, seeds) for i, e in enumerate(listed.values())
    }
    return Results(listed, outcomes)


@pytest.fixture(scope="module")
def results():
    return made_up()


@pytest.fixture(scope="module")
def all_tables(results):
    return tables.tables(results, PARTITIONS, CORPUS)


def test_rows_and_numbers_of_the_papers(all_tables):
    assert list(all_tables) == list(claims.TABLES)
    for name in tables.RESULT_TABLES:
        assert all_tables[name]["row"].tolist() == [c.row for c in claims.rows(name)]
        np.testing.assert_equal(
            all_tables[name]["paper"].tolist(), [c.value for c in claims.rows(name)]
        )
    assert all_tables["A1"]["paper_clips"].tolist() == [8072, 4588, 4586, 17246]


def test_numbers_are_those_of_the_results(results, all_tables):
    frame = all_tables["B3"].set_index("row")
    row = frame.loc["w/o modality dropout"]
    result, full = results["taemi_no_dropout"], results["taemi"]
    each = [metrics.mean_pearson(result.target, p) for p in result.predictions]
    base = [metrics.mean_pearson(full.target, p) for p in full.predictions]
    assert row["here"] == pytest.approx(np.mean(each))
    assert row["sd"] == pytest.approx(np.std(each, ddof=1))
    assert row["low"] < row["here"] < row["high"]
    assert row["delta_here"] == pytest.approx(np.mean(each) - np.mean(base))
    assert row["delta_paper"] == -0.04
    assert (row["seeds"], row["parameters"], row["seconds"]) == (3, 123_456, 71.0)
    assert np.isnan(frame.loc["TAEMI (full)"]["delta_here"])
    same = all_tables["B4"].set_index("row").loc["Text-anchored", "here"]
    b2 = all_tables["B2"].set_index("row")
    assert same == frame.loc["TAEMI (full)", "here"] == b2.loc["TAEMI", "here"]


def test_a2_compares_with_the_baseline_of_the_modality(results, all_tables):
    frame = all_tables["A2"].set_index("row")
    expected = results.rho("dual_stage_v").mean() - results.rho("vit_baseline").mean()
    assert frame.loc["ViT (ours)", "delta_here"] == pytest.approx(expected)
    assert frame.loc["ViT (ours)", "delta_paper"] == pytest.approx(0.07)
    assert np.isnan(frame.loc["ViT (baseline)", "delta_here"])


def test_partitions_add_up(all_tables):
    shown = tables.display(all_tables["A1"])
    assert shown["Duration, paper"].tolist() == ["15:07:03", "9:12:02", "9:04:05", "33:23:10"]
    assert shown["Duration, here"].tolist() == ["0:33:21", "0:20:00", "0:59:59", "1:53:21"]
    assert shown["Clips, here"].tolist() == ["400", "240", "60", "700"]


def test_rows_without_a_result_say_so(results):
    fewer = {n: o for n, o in results.outcomes.items() if n != "hallmen_2024"}
    table = tables.table("B2", Results(results.experiments, fewer), CORPUS)
    shown = tables.display(table).set_index("Row")
    assert shown.loc["Hallmen 2024", "ρ here"] == tables.NO_RESULT
    assert shown.loc["Hallmen 2024", "ρ paper"] == "0.38"
    assert set(shown.loc["Hallmen 2024", ["95 %", "Δ here", "Params", "Train"]]) == {"–"}


def test_rows_beyond_the_papers_have_no_number_of_a_paper(all_tables):
    shown = tables.display(all_tables["B2"]).set_index("Row")
    for row in ("TAEMI, as released", "Savchenko 2025, leaked", "TFN", "MulT", "MISA"):
        assert set(shown.loc[row, ["ρ paper", "Δ paper"]]) == {"–"}
        assert shown.loc[row, "Δ here"] != "–"
    assert not {"ρ paper", "Δ paper"} & set(tables.display(all_tables["A4"]))
    assert "paper has not" in all_tables["A4"].attrs["caption"]
    assert "Hume" not in all_tables["A4"].attrs["caption"]


def test_b2_says_what_is_known_of_each_system(all_tables):
    marks = tables.marks(all_tables["B2"])
    others = [
        row for row in all_tables["B2"]["row"] if not row.startswith(("TAEMI", "Savchenko 2025,"))
    ]
    assert marks["row"].tolist() == others
    assert (marks.drop(columns="row") != "").all(axis=None)
    assert all_tables["B2"].set_index("row").loc["TAEMI", "unknown"] == ""


def test_complete_finds_what_is_missing(results, all_tables):
    assert tables.complete(all_tables) == []
    without_row = {**all_tables, "B4": all_tables["B4"].iloc[1:]}
    assert tables.complete(without_row) == ["B4, Vision-anchored: 0 such rows"]
    without_table = {n: t for n, t in all_tables.items() if n != "A3"}
    assert len(tables.complete(without_table)) == 4
    fewer = {n: o for n, o in results.outcomes.items() if n != "dual_stage_at"}
    one_less = Results(results.experiments, fewer)
    lacking = tables.tables(one_less, PARTITIONS, CORPUS)
    assert tables.complete(lacking) == ["A3, A+T: no result"]
    no_test = tables.table("A1", partitions=PARTITIONS.iloc[:2])
    assert tables.complete({"A1": no_test}, names=("A1",)) == [
        "A1, Test: no result",
        "A1, Sum: no result",
    ]


def test_written_files(all_tables, tmp_path):
    paths = tables.write(all_tables, tmp_path)
    assert sorted(p.name for p in paths) == sorted(
        f"{name}.{ending}" for name in claims.TABLES for ending in ("md", "tex", "csv")
    )
    back = pd.read_csv(tmp_path / "B2.csv")
    np.testing.assert_allclose(back["here"], all_tables["B2"]["here"], rtol=1e-5)
    for name in claims.TABLES:
        markdown = (tmp_path / f"{name}.md").read_text()
        lines = [line for line in markdown.split("\n\n")[0].splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1
        assert len(lines) == 2 + len(all_tables[name])
        assert CORPUS in markdown
        latex = (tmp_path / f"{name}.tex").read_text()
        assert latex.isascii()
        assert latex.count(r"\\") == 1 + len(all_tables[name])
        assert latex.replace(r"\%", "").count("%") == 0
        assert f"tab:{name}" in latex
    before = {p: p.read_bytes() for p in paths}
    tables.write(all_tables, tmp_path)
    assert before == {p: p.read_bytes() for p in paths}


def test_text_fits_the_terminal(all_tables):
    for name, frame in all_tables.items():
        text = tables.render_text(frame)
        assert max(map(len, text.splitlines())) <= 100
        assert CORPUS.split(":")[0] in text
        for claim in claims.rows(name):
            assert claim.row in text


def test_one_seed_has_no_spread():
    frame = tables.table("B4", made_up(seeds=(0,)), CORPUS)
    shown = tables.display(frame)
    assert not shown["ρ here"].str.contains("±").any()
    assert (frame["seeds"] == 1).all()


def test_bad_requests_are_refused(results):
    with pytest.raises(ValueError, match="expected a table among"):
        tables.table("A5", results)
    with pytest.raises(ValueError, match="A1 needs `partitions`"):
        tables.table("A1", results)
    with pytest.raises(ValueError, match="B2 needs `results`"):
        tables.table("B2")
    with pytest.raises(ValueError, match="partitions: expected columns"):
        tables.table("A1", partitions=pd.DataFrame({"split": ["train"]}))

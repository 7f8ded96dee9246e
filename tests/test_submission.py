import csv
import dataclasses
import pickle
import re
import sys

import numpy as np
import pandas as pd
import pytest

from emilib import __main__ as command_line
from emilib import profiles, submission
from emilib.corpus.layout import EMOTIONS
from emilib.features import FeatureSet
from emilib.models import build
from emilib.pipeline import Workspace
from emilib.study import experiments, results

HEADER = "Filename,Admiration,Amusement,Determination,Empathic Pain,Excitement,Joy"
IDS = ["12660", "12661", "12662", "12663"]
ROWS = [f"{i},0.1,0.{n},0.{n},0.{n},0.{n},1" for n, i in enumerate(IDS, start=2)]
ROWS = [row.replace(",0.1,", f",0.{k}5,")[:-1] + f"0.{k}" for k, row in enumerate(ROWS)]
DRAW = np.random.default_rng(0)


# ------------------------------------------------------------------ write


def test_what_is_written_is_read_back_in_order_of_id(tmp_path):
    values = DRAW.normal(0.5, 0.6, size=(4, 6))
    order = [2, 0, 3, 1]
    path = submission.write(
        tmp_path / "new" / "s.csv", [IDS[i] for i in order], values[order], expected_ids=IDS
    )
    with open(path, encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)
    assert ",".join(header) == HEADER
    assert [row[0] for row in rows] == IDS
    read = np.array([row[1:] for row in rows], float)
    assert (values < 0).any()
    assert (values > 1).any()
    np.testing.assert_allclose(read, np.minimum(np.maximum(values, 0), 1), atol=5e-7)
    assert submission.validate(path) == []
    assert [p.name for p in path.parent.iterdir()] == ["s.csv"], "nothing temporary is left"


def test_seeds_are_averaged_before_clipping(tmp_path):
    values = np.zeros((2, 1, 6))
    values[0], values[1] = 1.4, 0.2
    path = submission.write(tmp_path / "s.csv", ["12660"], values)
    assert pd.read_csv(path)[list(EMOTIONS)].to_numpy() == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("ids", "values", "expected", "words"),
    [
        (IDS[:3], np.zeros((3, 6)), IDS, "No prediction for 12663; expected one for every"),
        (IDS, np.zeros((4, 6)), IDS[:2], "Predictions for 12662, 12663, which are no test clips"),
        ([*IDS, "12660"], np.zeros((5, 6)), IDS, "hold 12660 more than once"),
        (IDS, np.zeros((4, 6)), [*IDS, "12660"], "expected ids hold 12660 more than once"),
        (["660"], np.zeros((1, 6)), None, "Test clips are called 660; .* five digits"),
        (IDS, np.zeros((4, 5)), IDS, r"shape \(4, 5\); expected \(4, 6\)"),
        (IDS, np.zeros((0, 4, 6)), IDS, r"shape \(0, 4, 6\)"),
        ([], np.zeros((0, 6)), None, "There is no test clip"),
        (IDS, np.full((4, 6), np.nan), IDS, "of 12660, 12661, .* are not finite"),
    ],
)
def test_what_is_no_submission_is_not_written(tmp_path, ids, values, expected, words):
    path = tmp_path / "s.csv"
    with pytest.raises(ValueError, match=words):
        submission.write(path, ids, values, expected)
    assert not path.exists()


# ------------------------------------------------------------------ validate


def written(tmp_path, lines, encoding="utf-8"):
    path = tmp_path / "s.csv"
    path.write_bytes("\n".join([*lines, ""]).encode(encoding))
    return path


def test_a_good_file_has_no_problem(tmp_path):
    assert submission.validate(written(tmp_path, [HEADER, *ROWS])) == []
    path = tmp_path / "windows.csv"
    path.write_bytes("\r\n".join([HEADER, *ROWS, ""]).encode())
    assert submission.validate(path) == []


def changed(row, column, value):
    fields = ROWS[row].split(",")
    fields[column] = value
    return [HEADER, *ROWS[:row], ",".join(fields), *ROWS[row + 1 :]]


def columns(*order):
    """All lines with the fields in this order."""
    return [",".join(line.split(",")[i] for i in order) for line in [HEADER, *ROWS]]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (columns(0, 1, 2, 3, 5, 6), "line 1: the header lacks Empathic Pain; expected Filename,"),
        (
            [HEADER + ",Anger", *(r + ",0" for r in ROWS)],
            "line 1: the header holds 'Anger' besides",
        ),
        (columns(0, 2, 1, 3, 4, 5, 6), "line 1: the columns are Filename,Amusement,Admiration"),
        ([HEADER.replace("Joy", "Admiration"), *ROWS], "holds Admiration twice"),
        ([HEADER.lower(), *ROWS], "lacks Filename, Admiration"),
        (ROWS, "line 1: there is no header; expected Filename,"),
        (changed(1, 0, "661"), "line 3: the Filename '661' is not five digits; expected 00661"),
        (changed(1, 0, "12661.0"), "'12661.0' is not five digits; expected 12661"),
        (changed(1, 0, "١٢٦٦١"), "is not five digits; expected an id as 12660"),
        (changed(1, 0, "clip"), "line 3: the Filename 'clip' is not five digits"),
        (changed(1, 0, "12660"), "line 3: the id 12660 stood in line 2 already"),
        (changed(2, 4, "much"), "line 4: Empathic Pain is 'much', not a number; expected a number"),
        (changed(2, 4, "0_1"), "line 4: Empathic Pain is '0_1', not a number"),
        (changed(2, 4, ""), "line 4: Empathic Pain is empty"),
        (changed(2, 4, "NaN"), "line 4: Empathic Pain is NaN; expected a number from 0 to 1"),
        (changed(2, 4, "-inf"), "line 4: Empathic Pain is -inf"),
        (changed(2, 4, "1.0001"), r"line 4: Empathic Pain is 1.0001, outside \[0, 1\]"),
        (changed(2, 4, "-1e-3"), r"line 4: Empathic Pain is -1e-3, outside \[0, 1\]"),
        ([HEADER, *ROWS, "12664,0.5"], "line 6: has 2 fields; expected 7"),
        ([HEADER, ROWS[0], "", *ROWS[1:]], "line 3: is empty"),
        ([line.replace(",", ";") for line in [HEADER, *ROWS]], "separated by ';'; expected commas"),
        ([line.replace(",", "\t") for line in [HEADER, *ROWS]], r"separated by '\\t'"),
        ([HEADER], "has no row below its header"),
        ([HEADER, '12660,"0.1,0.1'], "is no readable CSV"),
        ([HEADER, *ROWS, "\0"], "line 6: holds a zero byte"),
    ],
)
def test_each_problem_is_a_sentence_with_file_and_line(tmp_path, lines, words):
    path = written(tmp_path, lines)
    found = submission.problems(submission.validate(path))
    assert any(re.search(words, sentence) for sentence in found), found
    for sentence in found:
        assert sentence.startswith(str(path))
        assert sentence.endswith(".")
        assert "\n" not in sentence
        assert "expected" in sentence
    assert len(found) <= 2, "one fault is not told many times"


def test_what_is_no_text_file(tmp_path):
    def only(path):
        [sentence] = submission.validate(path)
        return sentence

    assert "There is no file" in only(tmp_path / "none.csv")
    assert "is not a file" in only(tmp_path)
    for content in (b"", b"\n \n"):
        (tmp_path / "s.csv").write_bytes(content)
        assert "s.csv is empty" in only(tmp_path / "s.csv")
    bom = written(tmp_path, [HEADER, *ROWS], "utf-8-sig")
    assert "line 1: starts with a byte order mark" in only(bom)
    lines = [HEADER, ROWS[0], "12661,é"]
    assert "line 3: is not UTF-8" in only(written(tmp_path, lines, "latin1"))
    assert "is not UTF-8" in only(written(tmp_path, lines, "utf-16"))


def test_what_is_odd_is_a_warning(tmp_path):
    lines = [HEADER, *(row.rsplit(",", 1)[0] + ",0.5" for row in ROWS)]
    found = submission.validate(written(tmp_path, lines))
    assert submission.problems(found) == []
    [sentence] = found
    assert sentence.startswith("Warning: ")
    assert "column Joy: is 0.5 in every row" in sentence
    [sentence] = submission.validate(written(tmp_path, [HEADER, ROWS[0], ROWS[3]]))
    assert "no row for 12661, 12662, between" in sentence
    [sentence] = submission.validate(written(tmp_path, [HEADER, *ROWS[::-1]]))
    assert "rows out of order" in sentence


# ------------------------------------------------------------------ with a corpus, and the command


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Official features alone. Of the test clips 12661 is damaged, and 12662 has no file at all."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = np.random.default_rng(0)
    splits = {
        "train": [f"{i:05d}" for i in range(12)],
        "valid": [f"{i:05d}" for i in range(12, 20)],
        "test": IDS,
    }
    for split, ids in splits.items():
        table = pd.DataFrame(draw.random((len(ids), 6)).round(2), columns=EMOTIONS)
        table.insert(0, "Filename", ids)
        table.to_csv(folder / f"{split}_split.csv", index=False)
        root = folder / "test_data" if split == "test" else folder
        for name, width in (("vit", 5), ("wav2vec2", 3)):
            (root / name).mkdir(parents=True, exist_ok=True)
            for id_ in ids:
                array = draw.normal(size=(draw.integers(2, 9), width)).astype(np.float32)
                (root / name / f"{id_}.pkl").write_bytes(pickle.dumps(array))
    for name in ("vit", "wav2vec2"):
        broken = folder / "test_data" / name / "12661.pkl"
        broken.write_bytes(broken.read_bytes()[:40])
        (folder / "test_data" / name / "12662.pkl").unlink()
    return folder


@pytest.fixture
def emilib(monkeypatch, capsys, tmp_path):
    """Runs a command line: (exit code, stdout, stderr)."""
    monkeypatch.setenv("EMI_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["emilib", *map(str, arguments)])
        try:
            code = command_line.main()
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return call


def test_validation_against_a_corpus(tmp_path, corpus):
    assert submission.validate(written(tmp_path, [HEADER, *ROWS]), corpus) == []
    extra = "00003" + ROWS[3][5:]
    missing, other = submission.validate(written(tmp_path, [HEADER, extra, *ROWS[:3]]), corpus)
    assert "has no row for 12663; expected a row for each of the 4 test clips" in missing
    assert "line 2: 00003 is no test clip" in other


def test_every_test_clip_has_a_row_whatever_is_broken(emilib, corpus, tmp_path, monkeypatch):
    one = dataclasses.replace(profiles.get("smoke"), workers=1)  # no processes for small models
    monkeypatch.setattr(
        command_line, "_workspace", lambda _, folder, visual: Workspace(one, folder)
    )
    arguments = ["--run", "baseline_average", "--corpus", corpus, "--profile", "smoke"]
    code, out, err = emilib("submit", *arguments, "--out", "mine.csv")
    assert (code, out) == (0, "mine.csv\n"), err
    assert "training runs" in err
    table = pd.read_csv("mine.csv", dtype={"Filename": str})
    assert table["Filename"].tolist() == IDS
    outcome = Workspace(one, corpus).results(["baseline_average"])["baseline_average"]
    expected = np.clip(outcome.test_predictions.mean(axis=0), 0, 1)
    assert outcome.test_ids == IDS
    np.testing.assert_allclose(table[list(EMOTIONS)], expected, atol=5e-7)
    np.testing.assert_array_equal(expected[1], expected[2], "nothing is known of either")
    code, out, _ = emilib("submit", "--check", "mine.csv", "--corpus", corpus)
    *warned, last = out.splitlines()
    assert (code, last) == (0, "mine.csv is a valid submission")
    assert all(line.startswith("Warning: mine.csv, column ") for line in warned), "short training"


def test_problems_are_printed_and_the_exit_code_says_so(emilib, tmp_path):
    path = written(tmp_path, [HEADER, *(f"{i:05d},2,2,2,2,2,2" for i in range(9))])
    code, out, err = emilib("submit", "--check", path)
    assert code == 1
    assert out.count("\n") == 21
    assert out.endswith("and 34 more\n")
    assert err == f"emilib: {path} is no valid submission: 54 problems\n"
    code, out, err = emilib("submit", "--check", tmp_path / "none.csv")
    assert code == 1
    assert err.endswith("1 problem\n")


def test_the_command_must_be_understood(emilib):
    assert emilib("submit")[0] == 2
    assert emilib("submit", "--run", "taemi", "--check", "s.csv")[0] == 2
    code, out, _ = emilib("submit", "--help")
    assert code == 0
    assert out.count("Example: python -m emilib submit") == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--run": "taemo"}, "There is no run 'taemo'; expected one of vit_baseline, "),
        ({"--out": "."}, "is a folder; give the name of the CSV"),
        ({"--out": "file/s.csv"}, "can't be written: .*file is a file"),
        ({"--corpus": "nowhere"}, "There is no corpus folder"),
    ],
)
def test_what_can_not_be_done_is_said_before_training(emilib, corpus, tmp_path, change, words):
    (tmp_path / "file").write_text("")
    options = {"--run": "taemi", "--corpus": corpus, "--profile": "smoke", **change}
    code, out, err = emilib("submit", *(word for pair in options.items() for word in pair))
    assert (code, out) == (1, "")
    assert re.match(f"emilib: .*{words}", err)
    assert err.count("\n") == 1


def test_a_corpus_without_test_clips_is_refused(emilib, corpus, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("train_split.csv", "valid_split.csv", "wav2vec2"):
        (bare / name).symlink_to(corpus / name)
    code, _, err = emilib("submit", "--run", "taemi", "--corpus", bare, "--profile", "smoke")
    assert code == 1
    assert re.fullmatch(r"emilib: The corpus in .*bare has no test clips; expected .*\.\n", err)
    with pytest.raises(ValueError, match="has no test clips"):
        submission.validate(written(tmp_path, [HEADER, *ROWS]), bare)


def test_a_run_without_test_predictions_is_refused(corpus, tmp_path, monkeypatch):
    workspace = Workspace("smoke", corpus, tmp_path)
    done = results.Outcome(None, (0,), [], [], [], [], np.zeros((1, 0, 6)), [], 0, [], [], [])
    monkeypatch.setattr(workspace, "results", lambda names: {names[0]: done})
    with pytest.raises(ValueError, match="run taemi has no predictions for test clips; expected 4"):
        submission.make(workspace, "taemi", tmp_path / "s.csv")


# ------------------------------------------------------------------ models and damaged clips


def test_every_model_answers_for_a_clip_of_which_nothing_can_be_read():
    draw = np.random.default_rng(1)
    frames = [draw.normal(size=(7, 8)), None, None, draw.normal(size=(1, 8))]
    audio = [draw.normal(size=(20, 6)), None, draw.normal(size=(1, 6)), None]
    text = draw.normal(size=(4, 10))
    text[1:3] = np.nan
    data = FeatureSet.from_arrays(IDS, frames, audio, text)
    assert data.present.tolist() == [[1, 1, 1], [0, 0, 0], [0, 1, 0], [1, 0, 1]]
    listed = experiments.all_experiments(profiles.get("smoke"))
    trained = [e for e in listed.values() if e.model is not None]
    assert len(trained) > 20
    for experiment in trained:
        given = data.only(*experiment.modalities)
        if experiment.model == "Savchenko2025":  # its settings are those of the search for weights
            experiment = dataclasses.replace(experiment, model_args={})
        model = build(experiment.model, given.dims, 6, **experiment.model_args).eval()
        [batch] = given.batches(4)
        found = model(**batch.inputs()).intensity
        assert found.shape == (4, 6), experiment.name
        assert found.isfinite().all(), experiment.name

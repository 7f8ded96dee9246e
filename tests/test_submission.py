import dataclasses
import pickle
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from emilib import __main__ as command_line
from emilib import profiles, submission
from emilib.corpus.layout import EMOTIONS, HEADER
from emilib.pipeline import Workspace

IDS = ["12660", "12661", "12662", "12663"]
ROWS = [f"{i},0.{k}5,0.{k},0.{k},0.{k},0.{k},0.{k}" for k, i in enumerate(IDS)]


@settings(deadline=None)
@given(arrays(float, (4, 6), elements=st.floats(-2, 3)), st.permutations(range(4)))
def test_a_written_file_is_valid_and_read_back_in_order_of_id(values, order):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "new" / "s.csv"
        submission.write(path, [IDS[i] for i in order], values[order], expected_ids=IDS)
        assert submission.problems(submission.validate(path)) == []
        header, *rows = [line.split(",") for line in path.read_text().splitlines()]
        assert [p.name for p in path.parent.iterdir()] == ["s.csv"], "nothing temporary is left"
    assert header == ["Filename", *EMOTIONS]
    assert [row[0] for row in rows] == IDS
    read = np.array([row[1:] for row in rows], float)
    np.testing.assert_allclose(read, np.minimum(np.maximum(values, 0), 1), atol=6e-7)


@pytest.mark.parametrize(
    ("ids", "shape", "expected", "word"),
    [
        (IDS[:3], (3, 6), IDS, "12663"),
        (IDS, (4, 6), IDS[:2], "12662 is no test clip.*12663 is no"),
        ([*IDS, "12660"], (5, 6), IDS, "12660 again"),
        (["660"], (1, 6), None, "five digits.*'660'"),
        (IDS, (4, 5), IDS, r"\(4, 6\).*\(4, 5\)"),
        ([], (0, 6), None, "no row"),
        (IDS, None, IDS, "NaN .* 12660, 12661"),
    ],
)
def test_what_is_no_submission_is_not_written(tmp_path, ids, shape, expected, word):
    path = submission.write(tmp_path / "s.csv", ["12660"], np.full((2, 1, 6), [[[1.4]], [[0.2]]]))
    assert pd.read_csv(path)[list(EMOTIONS)].to_numpy() == pytest.approx(0.8)  # mean, then cut
    path.unlink()
    values = np.full((4, 6), np.nan) if shape is None else np.zeros(shape)
    with pytest.raises(ValueError, match=word):
        submission.write(path, ids, values, expected)
    assert not path.exists()


def written(tmp_path, lines, end="\n"):
    path = tmp_path / "s.csv"
    path.write_bytes(end.join([*lines, ""]).encode())
    return path


def changed(row, column, value):
    fields = ROWS[row].split(",")
    fields[column] = value
    return [HEADER, *ROWS[:row], ",".join(fields), *ROWS[row + 1 :]]


def columns(*order):
    """All lines with the fields in this order."""
    return [",".join(line.split(",")[i] for i in order) for line in [HEADER, *ROWS]]


@pytest.mark.parametrize(
    ("lines", "line", "word"),
    [
        (columns(0, 1, 2, 3, 5, 6), 1, "Empathic Pain"),
        (columns(0, 2, 1, 3, 4, 5, 6), 1, "Filename,Amusement,Admiration"),
        (ROWS, 1, "12660,0.05"),
        (changed(1, 0, "661"), 3, "five digits .*got '661'"),
        (changed(1, 0, "12660"), 3, "12660 again"),
        *((changed(2, 4, v), 4, f"Pain, got '{v}'") for v in ("0_1", "NaN", "-0.1", "1.0001", "")),
        ([HEADER, *ROWS, ROWS[0] + ",0"], None, "line 6, saw 8"),
        ([line.replace(",", ";") for line in [HEADER, *ROWS]], 1, "Filename;Admiration"),
        ([HEADER], None, "no row"),
        ([HEADER, '12660,"0.1,0.1'], None, "CSV"),
    ],
)
def test_each_problem_is_a_sentence_with_file_and_line(tmp_path, lines, line, word):
    path = written(tmp_path, lines)
    (sentence,) = submission.problems(submission.validate(path))
    assert sentence.startswith(str(path) if line is None else f"{path}, line {line}: ")
    assert re.search(word, sentence)


def test_what_is_odd_is_a_warning_and_what_is_no_csv_a_problem(tmp_path):
    constant = [row.rsplit(",", 1)[0] + ",0.5" for row in ROWS]
    odd = {"column Joy": constant, "none for 12661, 12662": ROWS[::3], "order": ROWS[::-1]}
    for word, rows in odd.items():
        (sentence,) = found = submission.validate(written(tmp_path, [HEADER, *rows]))
        assert submission.problems(found) == []
        assert re.match(f"Warning: .*{word}", sentence)
    for content in (b"", b"\n \n", f"{HEADER}\né".encode("latin1")):
        (tmp_path / "s.csv").write_bytes(content)
        for path in (tmp_path / "s.csv", tmp_path / "nowhere.csv"):
            assert "no readable CSV" in submission.validate(path)[0]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Official features alone. Of the test clips 12661 is damaged, and 12662 has no file at all."""
    folder, draw = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    splits = {"train": range(12), "valid": range(12, 20), "test": range(12660, 12664)}
    for split, numbers in splits.items():
        ids = [f"{number:05d}" for number in numbers]
        table = pd.DataFrame(draw.random((len(ids), 6)).round(2), ids, EMOTIONS)
        table.to_csv(folder / f"{split}_split.csv", index_label="Filename")
        root = folder / "test_data" if split == "test" else folder
        for name, width in (("vit", 5), ("wav2vec2", 3)):
            (root / name).mkdir(parents=True, exist_ok=True)
            for id_ in ids:
                array = draw.normal(size=(draw.integers(2, 9), width)).astype(np.float32)
                (root / name / f"{id_}.pkl").write_bytes(pickle.dumps(array))
    for inside in folder.glob("test_data/*"):
        (inside / "12661.pkl").write_bytes(b"cut")
        (inside / "12662.pkl").unlink()
    return folder


@pytest.fixture
def emilib(monkeypatch, capsys, tmp_path):
    """Runs `emilib submit`: (exit code, stdout, stderr)."""
    monkeypatch.setenv("EMI_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["emilib", "submit", *map(str, arguments)])
        return command_line.main(), *capsys.readouterr()

    return call


def test_validation_against_a_corpus(tmp_path, corpus):
    for end in ("\n", "\r\n"):
        assert submission.validate(written(tmp_path, [HEADER, *ROWS], end), corpus) == []
    extra = "00003" + ROWS[3][5:]
    missing, other = submission.validate(written(tmp_path, [HEADER, extra, *ROWS[:3]]), corpus)
    assert re.search("every test clip, .* 12663", missing)
    assert re.search("line 2: 00003", other)


def test_every_test_clip_has_a_row_whatever_is_broken(emilib, corpus, tmp_path, monkeypatch):
    one = dataclasses.replace(profiles.get("smoke"), workers=1)  # no processes for small models
    monkeypatch.setattr(command_line.Source, "workspace", lambda self: Workspace(one, self.corpus))
    arguments = ["--run", "baseline_average", "--corpus", corpus, "--profile", "smoke"]
    code, out, err = emilib(*arguments, "--out", "mine.csv")
    assert (code, out) == (0, "mine.csv\n"), err
    table = pd.read_csv("mine.csv", dtype={"Filename": str})
    assert table["Filename"].tolist() == IDS
    outcome = Workspace(one, corpus).results(["baseline_average"])["baseline_average"]
    expected = np.clip(outcome.test_predictions.mean(axis=0), 0, 1)
    assert outcome.test_ids == IDS
    np.testing.assert_allclose(table[list(EMOTIONS)], expected, atol=5e-7)
    np.testing.assert_array_equal(expected[1], expected[2], "nothing is known of either")
    code, out, _ = emilib("--check", "mine.csv", "--corpus", corpus)
    assert (code, out.splitlines()[-1]) == (0, "mine.csv is a valid submission")
    path = written(tmp_path, [HEADER, *(f"{i:05d},2,2,2,2,2,2" for i in range(9))])
    code, out, err = emilib("--check", path)
    assert (code, out.count("\n")) == (1, 20)
    assert err == f"emilib: {path} is no valid submission, problems: 54\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [({"--run": "taemo"}, "no experiment .'taemo'"), ({"--corpus": "bare"}, "has no test clips")],
)
def test_what_can_not_be_done_is_said_before_training(emilib, corpus, tmp_path, change, words):
    (tmp_path / "bare").mkdir()
    for name in ("train_split.csv", "valid_split.csv", "wav2vec2"):
        (tmp_path / "bare" / name).symlink_to(corpus / name)
    options = {"--run": "taemi", "--corpus": corpus, "--profile": "smoke", **change}
    code, out, err = emilib(*(word for pair in options.items() for word in pair))
    assert (code, out) == (1, "")
    assert re.match(f"emilib: .*{words}", err)

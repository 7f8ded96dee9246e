"""A folder of videos with a CSV of one's own: columns, files, splits, and what is wrong with it."""

import math
import re
from collections import Counter
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from emilib.corpus import CorpusError, read
from emilib.corpus.layout import FILE_COLUMNS
from emilib.corpus.reading import read_with_findings
from emilib.corpus.user_dataset import table_of


def make(folder, text, names=("a", "b", "c", "d"), inside="raw", suffix=".mp4"):
    """Files that are only there, and the CSV."""
    for name in names:
        path = folder / inside / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return folder


def column(clips, name):
    return clips.set_index("id")[name].to_dict()


SPLIT = "file,x,Y 2,split\na,1,-7.5,train\nb,2.5,1e3,TRAIN\nc,3,0,Val\nd,,,test\n"


def test_targets_of_any_range_and_number_keep_their_names_and_order(tmp_path):
    clips = read(make(tmp_path, SPLIT))
    assert clips.attrs["targets"] == ["x", "Y 2"]
    assert list(clips.columns) == ["id", "split", *FILE_COLUMNS, "x", "Y 2"]
    np.testing.assert_array_equal(clips[["x", "Y 2"]].iloc[:3], [[1, -7.5], [2.5, 1000], [3, 0]])
    assert clips[["x", "Y 2"]].iloc[3].isna().all()
    assert (clips[["x", "Y 2"]].dtypes == np.float64).all()
    assert clips.attrs["folder"] == str(tmp_path)
    assert clips.attrs["notes"] == []


def test_forty_targets(tmp_path):
    names = [f"t{i}" for i in range(40)]
    splits = {"a": "train", "b": "train", "c": "dev", "d": "test"}
    lines = [",".join(["file", *names, "split"])]
    for k, (name, split) in enumerate(splits.items(), 1):
        lines.append(",".join([name, *(str(k * (i + 1)) for i in range(40)), split]))
    clips = read(make(tmp_path, "\n".join(lines)))
    assert clips.attrs["targets"] == names
    assert clips.loc[1, names].tolist() == [2 * (i + 1) for i in range(40)]


def test_the_other_functions_take_it_like_the_real_layout(tmp_path):
    from emilib.corpus import audit

    table = audit(make(tmp_path, SPLIT), workers=1)
    assert table.attrs["clips"] == 4
    assert set(table["defect"]) == {"unreadable"}  # the files hold nothing
    assert sorted(table["id"]) == ["a", "b", "c", "d"]


SAID = {
    **dict.fromkeys(("train", "Training"), "train"),
    **dict.fromkeys(("validation", "valid", "VAL", "dev"), "validation"),
    "Test": "test",
}


@pytest.mark.parametrize(("said", "split"), SAID.items())
def test_names_of_splits(tmp_path, said, split):
    text = f"file,x,split\na,1,train\nb,2,train\nc,3,val\nd,4,{said}\n"
    assert column(read(make(tmp_path, text)), "split")["d"] == split


@pytest.mark.parametrize("cell", ["a", "a.mp4", "raw/a.mp4", "raw/a", "./raw/a.mp4", "raw\\a.mp4"])
def test_the_file_is_found_with_or_without_folder_and_ending(tmp_path, cell):
    clips = read(make(tmp_path, SPLIT.replace("\na,", f"\n{cell},")))
    row = clips[clips["video"] == str(tmp_path / "raw/a.mp4")]
    assert len(row) == 1
    assert row["x"].item() == 1
    assert row["id"].item() == cell.replace("\\", "/").removeprefix("./").removesuffix(".mp4")


@pytest.mark.parametrize("inside", [".", "videos", "deep/er"])
def test_any_subfolder_and_any_container(tmp_path, inside):
    clips = read(make(tmp_path, SPLIT, inside=inside, suffix=".WEBM"))
    assert column(clips, "video")["b"] == str(tmp_path / inside / "b.WEBM")


def test_two_files_of_one_name_are_told_apart_by_their_path(tmp_path):
    make(tmp_path, "", names=("a", "b"), inside="one")
    make(tmp_path, "file,x,split\na,1,train\nb,2,val\n", names=("a",), inside="two")
    with pytest.raises(CorpusError, match=r"line 2: a may be one/a.mp4 and two/a.mp4; write"):
        read(tmp_path)
    (tmp_path / "labels.csv").write_text(
        "file,x,split\none/a,1,train\ntwo/a.mp4,2,train\nb,2,val\n"
    )
    videos = column(read(tmp_path), "video")
    assert videos["one/a"] == str(tmp_path / "one/a.mp4")
    assert videos["two/a"] == str(tmp_path / "two/a.mp4")


def test_sound_alone_is_a_clip_too(tmp_path):
    clips = read(make(tmp_path, SPLIT, inside="recordings", suffix=".wav"))
    assert clips["video"].isna().all()
    assert column(clips, "audio")["c"] == str(tmp_path / "recordings/c.wav")


def test_words_come_from_a_column_or_from_text_files(tmp_path):
    text = SPLIT.replace("split\n", "split,Transcript\n")
    for line, words in (("train", '"well, yes"'), ("TRAIN", ""), ("Val", "no"), ("test", "hm")):
        text = text.replace(f",{line}\n", f",{line},{words}\n")
    make(tmp_path, text)
    assert column(read(tmp_path), "transcript") == {"a": "well, yes", "b": "", "c": "no", "d": "hm"}
    make(tmp_path, SPLIT)
    assert set(column(read(tmp_path), "transcript").values()) == {None}
    (tmp_path / "text").mkdir()
    (tmp_path / "text/b.txt").write_text("from a file\n")
    assert column(read(tmp_path), "transcript") == {
        "a": None,
        "b": "from a file",
        "c": None,
        "d": None,
    }


def test_folders_of_the_real_layout_are_used_where_they_are(tmp_path):
    make(tmp_path, SPLIT)
    for name in ("audio/a.mp3", "vit/a.pkl", "face_images/a/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    row = read(tmp_path).iloc[0]
    assert row["audio"] == str(tmp_path / "audio/a.mp3")
    assert row["official_vision"] == str(tmp_path / "vit/a.pkl")
    assert row["faces"] == str(tmp_path / "face_images/a")


def people(folder, column="speaker", count=60, each=4):
    """`count` clips of people with `each` clips, in an order that has nothing to do with them."""
    names = [f"clip{i}" for i in range(count)]
    who = [f"p{i % (count // each)}" for i in range(count)]
    rows = [f"{n},{i % 7},{p}" for i, (n, p) in enumerate(zip(names, who, strict=True))]
    head = f"file,x,{column}"
    return make(folder, "\n".join([head, *rows]) + "\n", names), dict(zip(names, who, strict=True))


@pytest.mark.parametrize("name", ["group", "Speaker", "person", "subject"])
def test_without_a_split_column_no_group_is_in_two_splits(tmp_path, name):
    folder, who = people(tmp_path, name)
    splits = column(read(folder), "split")
    groups = {split: {who[i] for i, s in splits.items() if s == split} for split in splits.values()}
    assert set(groups) == {"train", "validation"}
    assert not groups["train"] & groups["validation"]
    assert Counter(splits.values())["validation"] == 12  # a fifth, in whole groups of four


def test_the_drawn_split_does_not_hang_on_the_order_of_rows_and_is_no_prefix(tmp_path):
    folder, _ = people(tmp_path)
    before = column(read(folder), "split")
    head, *rows = (folder / "labels.csv").read_text().splitlines()
    (folder / "labels.csv").write_text("\n".join([head, *reversed(rows)]) + "\n")
    assert column(read(folder), "split") == before
    numbers = [int(i[4:]) for i, s in before.items() if s == "validation"]
    assert max(numbers) - min(numbers) > 15


def test_without_groups_clips_are_drawn_and_rows_without_targets_are_test_clips(tmp_path):
    names = [f"c{i}" for i in range(25)]
    rows = [f"{n},{i},{i % 3}" if i < 20 else f"{n},," for i, n in enumerate(names)]
    splits = column(read(make(tmp_path, "file,x,y\n" + "\n".join(rows), names)), "split")
    assert Counter(splits.values()) == {"train": 16, "validation": 4, "test": 5}
    assert {n for n, s in splits.items() if s == "test"} == set(names[20:])


def test_a_large_group_stays_in_training(tmp_path):
    names = [f"c{i}" for i in range(10)]
    rows = [f"{n},{i},{'big' if i < 7 else f'small{i}'}" for i, n in enumerate(names)]
    splits = column(read(make(tmp_path, "file,x,group\n" + "\n".join(rows), names)), "split")
    assert {splits[f"c{i}"] for i in range(7)} == {"train"}
    assert Counter(splits.values())["validation"] == 2


def test_ids_without_files_and_files_without_id_are_noted(tmp_path):
    make(tmp_path, SPLIT + "gone,1,1,train\n", names=("a", "b", "c", "d", "spare"))
    clips = read(tmp_path)
    assert clips.attrs["notes"] == [
        "Ids in labels.csv without any file (1): gone.",
        "Files without a row in labels.csv (1): raw/spare.",
    ]
    assert clips.set_index("id").loc["gone", "video"] is None


def test_a_row_twice_is_harmless_a_contradiction_is_not(tmp_path):
    make(tmp_path, SPLIT + "a,1,-7.5,train\n")
    assert len(read(tmp_path)) == 4
    make(tmp_path, SPLIT + "raw/a.mp4,1,9,train\n")
    with pytest.raises(CorpusError, match=r"lines 2 and 6: raw/a stands there twice"):
        read(tmp_path)
    clips, findings = read_with_findings(tmp_path)
    assert column(clips, "Y 2")["a"] == -7.5
    assert [f[0] for f in findings.duplicates] == ["raw/a"]


def test_the_csv_itself_may_be_named(tmp_path):
    make(tmp_path, SPLIT)
    other = tmp_path / "other.csv"
    other.write_text("file,z,split\na,5,train\nb,6,train\nc,7,val\n")
    with pytest.raises(CorpusError, match=r"has 2 CSVs \(labels.csv, other.csv\); name the one"):
        read(tmp_path)
    assert read(other).attrs["targets"] == ["z"]
    assert read(tmp_path / "labels.csv").attrs["targets"] == ["x", "Y 2"]


def test_a_real_layout_is_none_of_ones_own(tmp_path):
    (tmp_path / "train_split.csv").write_text("Filename,x\n")
    assert table_of(tmp_path) is None
    assert table_of(tmp_path / "nowhere") is None
    with pytest.raises(CorpusError, match=r"train_split.csv has the header Filename,x, without"):
        read(tmp_path)


def test_labels_that_are_not_numbers_are_findings_where_it_is_not_strict(tmp_path):
    make(tmp_path, SPLIT.replace("2.5", "high"))
    clips, findings = read_with_findings(tmp_path)
    assert math.isnan(column(clips, "x")["b"])
    assert findings.labels == [("b", "train", "labels.csv, line 3: x is 'high', not a number")]


def test_quotes_byte_order_marks_spaces_and_empty_lines(tmp_path):
    text = '\ufefffile , "x",split\n\n a.mp4, 1 ,train\nb,2,train\r\nc,3, val\n'
    clips = read(make(tmp_path, text))
    assert clips.attrs["targets"] == ["x"]
    assert column(clips, "x") == {"a": 1, "b": 2, "c": 3}


BAD = {
    "empty": ("", "names no clip; expected a header such as file,valence,arousal"),
    "header alone": ("file,x\n", "names no clip"),
    "no header": ("a,1,2\nb,2,3\n", "has no header; expected a first line such as"),
    "no target": ("file,split\na,train\n", "has the header file,split, without a target"),
    "a column twice": ("file,x,x\na,1,2\n", "header .*'x', 'x'"),
    "no name": ("file,x,\na,1,2\n", "header .*'x', ''"),
    "taken": ("file,audio\na,1\n", "calls a target 'audio', a name used here; rename it"),
    "two groups": ("file,x,group,Speaker\na,1,p,p\n", "columns group and Speaker, which mean"),
    "ragged": ("file,x\na,1\nb,2,3\n", "line 3: expected 2 cells .* got 3"),
    "no file name": ("file,x\na,1\n,2\n", "line 3: names no file"),
    "not a number": (SPLIT.replace("2.5", "high"), "line 3: x is 'high', not a number; every"),
    "not finite": (SPLIT.replace("2.5", "inf"), "line 3: x is 'inf', not a number"),
    "no label": (SPLIT.replace("2.5", ""), "line 3: x is '', not a number"),
    "constant": (SPLIT.replace("2.5", "1"), "x is 1 in every training clip, so there is nothing"),
    "split": (SPLIT.replace("Val", "eval"), "line 4: expected split .* got 'eval'"),
    "no split": (SPLIT.replace("Val", ""), "line 4: expected split .* got ''"),
    "no validation": (SPLIT.replace("Val", "train"), "has no validation clip; expected some"),
    "no train": (SPLIT.replace("train", "val").replace("TRAIN", "val"), "has no train clip"),
    "one group": ("file,x,person\na,1,p\nb,2,p\n", "has 1 group of labelled clips, which can't"),
    "no group": ("file,x,person\na,1,p\nb,2,\n", "line 3: names no group"),
    "no files": (re.sub("\n(?=.)", "\nz", SPLIT), "None of the 4 clips in labels.csv"),
    "not UTF-8": ("file,x\n\udcff,1\n", "is no readable CSV .*expected UTF-8 text"),
}


@pytest.mark.parametrize("how", BAD)
def test_one_sentence_for_what_is_wrong(tmp_path, how):
    text, says = BAD[how]
    folder = make(tmp_path, "")
    (folder / "labels.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CorpusError, match=says) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    assert "labels.csv" in str(caught.value)


def test_a_folder_without_csv_and_a_file_that_is_none(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(CorpusError, match=r"has no CSV; expected train_split.csv and .*, or one"):
        read(tmp_path)
    with pytest.raises(CorpusError, match=r"Expected a corpus folder .* got the file .*a.mp4"):
        read(tmp_path / "a.mp4")


def test_numbers_agree_with_pandas(tmp_path):
    folder, _ = people(tmp_path)
    plain = pd.read_csv(folder / "labels.csv").set_index("file")["x"].to_dict()
    assert column(read(folder), "x") == plain


def test_the_example_of_notebook_08_is_read(tmp_path):
    path = Path(__file__).parent.parent / "notebooks" / "08_your_own_data.ipynb"
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    (example,) = re.findall(r"^```csv\n(.*?)^```$", text, re.M | re.S)
    make(tmp_path, example, names=("ann_01",), inside=".")
    make(tmp_path, example, names=("ben_01",), inside="session2")
    clips = read(tmp_path)
    assert clips.attrs["targets"] == ["valence", "arousal"]
    assert clips["video"].notna().all()
    assert sorted(clips["split"]) == ["train", "validation"]
    assert set(clips["transcript"]) == {"well that was fun", ""}

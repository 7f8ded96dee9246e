import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from emilib.corpus import CorpusError, audit, read
from emilib.corpus.layout import FILE_COLUMNS
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


def test_targets_of_any_name_and_range_are_what_pandas_alone_reads(tmp_path):
    clips = read(make(tmp_path, SPLIT))
    plain = pd.read_csv(tmp_path / "labels.csv")[targets := ["x", "Y 2"]]
    assert clips.attrs["targets"] == targets
    assert list(clips.columns) == ["id", "split", *FILE_COLUMNS, *targets]
    np.testing.assert_array_equal(clips[targets], plain)
    assert (clips[targets].dtypes == np.float64).all()
    table = audit(tmp_path, workers=1)
    assert set(table["defect"]) == {"unreadable"}  # the files hold nothing
    assert sorted(table["id"]) == ["a", "b", "c", "d"]
    for word in ("validation", "valid", "VAL", "dev"):
        text = SPLIT.replace("Val", word).replace("TRAIN", "Training")
        (tmp_path / "labels.csv").write_text(text)
        assert read(tmp_path)["split"].tolist() == clips["split"].tolist()


@pytest.mark.parametrize("cell", ["a", "a.mp4", "raw/a.mp4", "raw/a", "./raw/a.mp4", "raw\\a.mp4"])
def test_the_file_is_found_with_or_without_folder_and_ending(tmp_path, cell):
    clips = read(make(tmp_path, SPLIT.replace("\na,", f"\n{cell},")))
    (row,) = clips[clips["video"] == str(tmp_path / "raw/a.mp4")].itertuples()
    assert row.x == 1
    assert row.id == cell.replace("\\", "/").removeprefix("./").removesuffix(".mp4")


@pytest.mark.parametrize(
    ("inside", "suffix", "kind"), [(".", ".WEBM", "video"), ("deep/er", ".wav", "audio")]
)
def test_any_subfolder_and_any_container_also_sound_alone(tmp_path, inside, suffix, kind):
    clips = read(make(tmp_path, SPLIT, inside=inside, suffix=suffix))
    assert column(clips, kind)["b"] == str(tmp_path / inside / f"b{suffix}")
    assert clips[["video", "audio"]].notna().sum().sum() == 4


def test_two_files_of_one_name_are_told_apart(tmp_path):
    make(tmp_path, "", names=("a", "b"), inside="one")
    make(tmp_path, "file,x,split\na,1,train\nb,2,val\n", names=("a",), inside="two")
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio/a.mp3").write_bytes(b"x")
    with pytest.raises(CorpusError, match=r"line 2: a may be one/a.mp4 and two/a.mp4"):
        read(tmp_path)
    text = "file,x,split\none/a,1,train\ntwo/a.mp4,2,train\nb,2,val\n"
    (tmp_path / "labels.csv").write_text(text)
    clips = read(tmp_path)
    for name in ("one/a", "two/a"):
        assert column(clips, "video")[name] == str(tmp_path / f"{name}.mp4")
    assert clips["audio"].isna().all()  # nothing tells whose a.mp3 is


def test_folders_of_the_real_layout_are_used(tmp_path):
    for inside, suffix in (("audio", ".mp3"), ("vit", ".pkl"), ("face_images/a", ".jpg")):
        make(tmp_path, SPLIT, names="a", inside=inside, suffix=suffix)
    row = read(make(tmp_path, SPLIT)).iloc[0]
    places = {"audio": "audio/a.mp3", "official_vision": "vit/a.pkl", "faces": "face_images/a"}
    assert row[[*places]].tolist() == [str(tmp_path / place) for place in places.values()]


def test_words_come_from_a_column_or_from_text_files(tmp_path):
    text = 'file,x,split,Transcript\na,1,train,"well, yes"\nb,2,train,\nc,3,val,"h\nm"\n'
    words = column(read(make(tmp_path, text)), "transcript")
    assert words == {"a": "well, yes", "b": "", "c": "h\nm"}
    make(tmp_path, SPLIT)
    (tmp_path / "text").mkdir()
    (tmp_path / "text/b.txt").write_text("from a file\n")
    words = column(read(tmp_path), "transcript")
    assert words == {"a": None, "b": "from a file", "c": None, "d": None}


@pytest.mark.parametrize("name", ["group", "Speaker", "person", "subject"])
def test_without_a_split_column_no_group_is_in_two_splits(tmp_path, name):
    who = {f"clip{i}": f"p{i % 15}" for i in range(60)}
    rows = [f"{clip},{i % 7},{person}" for i, (clip, person) in enumerate(who.items())]
    splits = column(read(make(tmp_path, "\n".join([f"file,x,{name}", *rows]), who)), "split")
    groups = {split: {who[i] for i, s in splits.items() if s == split} for split in splits.values()}
    assert not groups["train"] & groups["validation"]
    assert Counter(splits.values()) == {"train": 48, "validation": 12}  # whole groups of four
    assert groups["validation"] == {"p1", "p4", "p5"}  # kept results hold on to the draw
    make(tmp_path, "\n".join([f"file,x,{name}", *reversed(rows)]), who)
    assert column(read(tmp_path), "split") == splits
    rows = [f"clip{i},{i},{'big' if i < 7 else f'small{i}'}" for i in range(10)]
    splits = read(make(tmp_path, "\n".join([f"file,x,{name}", *rows]), [*who][:10]))["split"]
    assert splits.tolist() == ["train"] * 7 + ["validation"] * 3, "four would be too many"


def test_without_groups_clips_are_drawn_and_rows_without_targets_are_test_clips(tmp_path):
    names = [f"c{i}" for i in range(25)]
    rows = [f"{n},{i},{i % 3}" if i < 20 else f"{n},," for i, n in enumerate(names)]
    splits = column(read(make(tmp_path, "file,x,y\n" + "\n".join(rows), names)), "split")
    assert Counter(splits.values()) == {"train": 16, "validation": 4, "test": 5}
    assert {n for n, s in splits.items() if s == "test"} == set(names[20:])


def test_files_without_id_are_noted_and_a_row_twice_is_harmless(tmp_path):
    make(tmp_path, SPLIT + "gone,1,1,train\na,1,-7.5,train\n", names=("a", "b", "c", "d", "spare"))
    clips = read(tmp_path)
    assert clips["id"].tolist() == ["a", "b", "gone", "c", "d"]
    notes = " ".join(clips.attrs["notes"])
    assert "gone" in notes
    assert "raw/spare" in notes


def test_the_csv_itself_may_be_named(tmp_path):
    other = make(tmp_path, SPLIT) / "other.csv"
    other.write_text("file,z,split\na,5,train\nb,6,train\nc,7,val\n")
    with pytest.raises(CorpusError, match=r"2 CSVs \(labels.csv, other.csv\)"):
        read(tmp_path)
    assert read(other).attrs["targets"] == ["z"]
    assert read(tmp_path / "labels.csv").attrs["targets"] == ["x", "Y 2"]
    with pytest.raises(CorpusError, match="got 0 CSVs"):
        read(tmp_path / "raw")
    (tmp_path / "train_split.csv").write_text("Filename,x\n")
    assert table_of(tmp_path) is table_of(tmp_path / "nowhere") is None  # the real layout


BAD = [
    ("", "CSV"),
    ("file,x\n", "no clip"),
    ("a,1,2\nb,2,3\n", "header .* got a,1,2"),
    ("file,split\na,train\n", "column of numbers"),
    ("file,x,x\na,1,2\n", "got file,x,x"),
    ("file,audio\na,1\n", "'audio'"),
    ("file,x\na,1\nb,2,3\n", "2 fields in line 3, saw 3"),
    ("file,x\na,1\n,2\n", "line 3: names no file"),
    (SPLIT.replace("2.5", "high"), "line 3: x is 'high'"),
    (SPLIT + "raw/a.mp4,1,9,train\n", "raw/a .*twice.*line 2 .*line 6"),
    ('file,x,text\na,1,"\n"\nb,,y\nc,z,w\n', "line 5: x is 'z'"),
    (SPLIT.replace("Val", "eval"), "line 4: .*'eval'"),
    (SPLIT.replace("Val", "train"), "no validation clip"),
    (SPLIT.replace("train", "val").replace("TRAIN", "val"), "no train clip"),
    ("file,x,person\na,1,p\nb,2,p\n", "got 1 group"),
    ("file,x,person\na,1,p\nb,2,\n", "line 3: names no group"),
    (re.sub("\n(?=.)", "\nz", SPLIT), "None of the 2 train clips"),
]


@pytest.mark.parametrize(("text", "word"), BAD)
def test_one_sentence_for_what_is_wrong(tmp_path, text, word):
    with pytest.raises(CorpusError, match=word) as caught:
        read(make(tmp_path, text))
    assert "labels.csv" in str(caught.value)

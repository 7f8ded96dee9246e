"""Reading a corpus folder: ids, files by name, splits, and one clear sentence for what is wrong."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from emilib.corpus import EMOTIONS, CorpusError, read
from emilib.corpus.layout import face_paths
from emilib.corpus.reading import read_with_findings

HEADER = "Filename," + ",".join(EMOTIONS)


def write_csv(path, rows, header=HEADER):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def row(name, *labels):
    return ",".join([name, *(str(v) for v in (labels or (0, 0.5, 1, 0, 0.333, 0.25)))])


def touch(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def corpus(tmp_path):
    """Four labelled clips in shuffled order and two test clips known by their files only."""
    write_csv(tmp_path / "train_split.csv", [row("00012", 1, 0, 0, 0, 0, 0), row("00003")])
    write_csv(tmp_path / "valid_split.csv", [row("00007"), row("00001")])
    for name in ("00012", "00003", "00007", "00001"):
        touch(tmp_path / f"raw/{name}.mp4")
        touch(tmp_path / f"audio/{name}.mp3")
        touch(tmp_path / f"vit/{name}.pkl")
        touch(tmp_path / f"wav2vec2/{name}.pkl")
        touch(tmp_path / f"text/{name}.txt", f" words of {name}\n".encode())
        touch(tmp_path / f"face_images/{name}/1.jpg")
    for name in ("12661", "12660"):
        touch(tmp_path / f"test_data/raw/{name}.mp4")
        touch(tmp_path / f"test_data/face_images/{name}/1.jpg")
    return tmp_path


def test_order_columns_and_types(corpus):
    clips = read(corpus)
    assert clips["id"].tolist() == ["00003", "00012", "00001", "00007", "12660", "12661"]
    assert clips["split"].tolist() == ["train"] * 2 + ["validation"] * 2 + ["test"] * 2
    assert list(clips.columns[:8]) == [
        *("id", "split", "video", "audio", "faces"),
        *("official_vision", "official_audio", "transcript"),
    ]
    assert tuple(clips.columns[8:]) == EMOTIONS
    assert (clips[list(EMOTIONS)].dtypes == np.float64).all()
    assert clips.loc[1, list(EMOTIONS)].tolist() == [1, 0, 0, 0, 0, 0]
    assert clips[clips["split"] == "test"][list(EMOTIONS)].isna().all(axis=None)
    assert clips.attrs["folder"] == str(corpus)
    assert clips.attrs["notes"] == []


def test_every_file_is_that_of_its_filename_not_of_its_row(corpus):
    for clip in read(corpus).itertuples():
        inside = corpus / "test_data" if clip.split == "test" else corpus
        assert clip.video == str(inside / "raw" / f"{clip.id}.mp4")
        assert clip.faces == str(inside / "face_images" / clip.id)
        if clip.split == "test":
            assert clip.audio is None
            assert clip.official_vision is None
            assert clip.transcript is None
        else:
            assert clip.official_audio == str(corpus / "wav2vec2" / f"{clip.id}.pkl")
            assert clip.transcript == f"words of {clip.id}"


def test_empty_transcript_is_not_a_missing_one(corpus):
    (corpus / "text/00003.txt").write_text("\n")
    (corpus / "text/00012.txt").unlink()
    clips = read(corpus).set_index("id")
    assert clips.loc["00003", "transcript"] == ""
    assert clips.loc["00012", "transcript"] is None


@pytest.mark.parametrize("name", ["00012", "12", "00012.mp4", "raw/00012.mp4", " 00012 "])
def test_filename_forms(corpus, name):
    write_csv(corpus / "train_split.csv", [row(name), row("00003")])
    assert read(corpus)["id"].tolist()[:2] == ["00003", "00012"]


def test_short_number_stays_where_the_file_is_called_so(corpus):
    touch(corpus / "raw/12.mp4")
    write_csv(corpus / "train_split.csv", [row("12"), row("00003")])
    clips = read(corpus).set_index("id")
    assert clips.loc["12", "video"] == str(corpus / "raw/12.mp4")


def test_test_split_file_decides_and_its_zeros_are_no_labels(corpus):
    write_csv(corpus / "test_split.csv", [row("12661", 0, 0, 0, 0, 0, 0)])
    clips = read(corpus)
    assert clips[clips["split"] == "test"]["id"].tolist() == ["12661"]
    assert clips[clips["split"] == "test"][list(EMOTIONS)].isna().all(axis=None)
    assert clips.attrs["notes"] == ["Files without a row in a split file (1): 12660."]


def test_test_files_may_lie_beside_the_others(corpus):
    write_csv(corpus / "test_split.csv", [row("12660"), row("17000")])
    touch(corpus / "raw/17000.mp4")
    touch(corpus / "text/12660.txt", b"hello")
    clips = read(corpus).set_index("id")
    assert clips.loc["17000", "video"] == str(corpus / "raw/17000.mp4")
    assert clips.loc["12660", "video"] == str(corpus / "test_data/raw/12660.mp4")
    assert clips.loc["12660", "transcript"] == "hello"


def test_faces_in_numeric_order_without_thumbs(tmp_path):
    for name in ("10.jpg", "2.JPG", "0001.jpg", "Thumbs.db", "x3.jpg", "3.jpg.part", ".4.jpg"):
        touch(tmp_path / "f" / name)
    assert [p.name for p in face_paths(tmp_path / "f")] == ["0001.jpg", "2.JPG", "10.jpg"]
    assert face_paths(None) == []
    assert face_paths(tmp_path / "nowhere") == []


def test_mp4_is_taken_before_rarer_containers(corpus):
    touch(corpus / "raw/00003.avi")
    touch(corpus / "raw/00003.json")
    assert read(corpus).set_index("id").loc["00003", "video"].endswith("00003.mp4")


def test_ids_without_files_are_kept_and_noted(corpus):
    write_csv(corpus / "valid_split.csv", [row("00007"), row("00001"), row("00099")])
    clips = read(corpus)
    bare = clips.set_index("id").loc["00099"]
    assert bare["video"] is None
    assert bare["Joy"] == 0.25
    assert clips.attrs["notes"] == ["Ids in a split file without any file (1): 00099."]


def test_same_row_twice_is_harmless_a_contradiction_is_not(corpus):
    write_csv(corpus / "train_split.csv", [row("00012"), row("00003"), row("00012.mp4")])
    assert read(corpus)["id"].tolist().count("00012") == 1
    write_csv(corpus / "train_split.csv", [row("00012"), row("00012", 1, 1, 1, 1, 1, 1)])
    with pytest.raises(CorpusError, match=r"00012 stands twice in .*train_split.csv"):
        read(corpus)
    clips, findings = read_with_findings(corpus)
    assert clips.set_index("id").loc["00012", "Admiration"] == 0  # the first row counts
    assert [f[0] for f in findings.duplicates] == ["00012"]
    write_csv(corpus / "train_split.csv", [row("00012"), row("00007")])  # also in validation
    with pytest.raises(CorpusError, match=r"00007 stands twice in .*train_split.csv and valid_"):
        read(corpus)


def test_label_that_is_no_number(corpus):
    write_csv(corpus / "train_split.csv", [row("00012"), row("00003", 0, 0, "high", 0, "", "inf")])
    with pytest.raises(CorpusError, match=r"train_split.csv, line 3: Determination is 'high'"):
        read(corpus)
    clips = read(corpus, strict=False).set_index("id")
    assert np.isnan(clips.loc["00003", ["Determination", "Excitement", "Joy"]].astype(float)).all()
    assert clips.loc["00003", "Amusement"] == 0


def test_header_may_have_a_byte_order_mark_spaces_and_another_order(corpus):
    names = list(reversed(EMOTIONS))
    text = "Filename, " + ", ".join(names) + "\n00012,1,2,3,4,5,6\n00003,0,0,0,0,0,0\n"
    (corpus / "train_split.csv").write_text(text, encoding="utf-8-sig")
    clips = read(corpus).set_index("id")
    assert clips.loc["00012", "Joy"] == 1
    assert clips.loc["00012", "Admiration"] == 6


def broken(folder, how):
    if how == "no folder":
        return folder / "nowhere"
    if how == "no csv":
        (folder / "valid_split.csv").unlink()
    if how == "header":
        write_csv(folder / "train_split.csv", [row("00012")], header=HEADER.replace("Joy", "joy"))
    if how == "binary":
        (folder / "train_split.csv").write_bytes(bytes(range(128, 256)) * 9)
    if how == "empty file":
        (folder / "train_split.csv").write_bytes(b"")
    if how == "empty name":
        write_csv(folder / "train_split.csv", [row("")])
    if how == "no files":
        for name in ("raw", "audio", "vit", "wav2vec2", "text", "face_images", "test_data"):
            (folder / name).rename(folder / f"old_{name}")
    return folder


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("no folder", "There is no corpus folder .*nowhere"),
        ("no csv", "valid_split.csv is missing.*train_split.csv and valid_split.csv"),
        ("header", "train_split.csv has the header .*without Joy; expected Filename,Admiration"),
        ("binary", "train_split.csv is no readable CSV"),
        ("empty file", "train_split.csv is no readable CSV"),
        ("empty name", "train_split.csv, line 2: Filename is empty"),
        ("no files", "None of the 4 clips .* has a file; expected for example .*raw/00003.mp4"),
    ],
)
def test_one_sentence_for_what_is_wrong(corpus, how, says):
    with pytest.raises(CorpusError, match=says) as caught:
        read(broken(corpus, how))
    assert "\n" not in str(caught.value).strip()


def test_header_alone_names_no_clip(tmp_path):
    write_csv(tmp_path / "train_split.csv", [])
    write_csv(tmp_path / "valid_split.csv", [])
    with pytest.raises(CorpusError, match="name no clip"):
        read(tmp_path)


def test_labels_survive_a_round_trip_through_pandas(corpus):
    """The table agrees with what pandas alone reads from the same file."""
    plain = pd.read_csv(corpus / "valid_split.csv", dtype={"Filename": str}).set_index("Filename")
    clips = read(corpus).set_index("id")
    for name in plain.index:
        np.testing.assert_array_equal(
            clips.loc[name, list(EMOTIONS)].astype(float), plain.loc[name, list(EMOTIONS)]
        )


def test_the_corpus_package_does_without_torch():
    code = "import sys, emilib.corpus; assert 'torch' not in sys.modules; print(emilib.corpus.read)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

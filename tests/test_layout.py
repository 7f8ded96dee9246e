import numpy as np
import pytest

from emilib.corpus import EMOTIONS, CorpusError, read
from emilib.corpus.layout import HEADER, SOURCES, face_paths
from emilib.corpus.user_dataset import read_with_findings


def write_csv(path, *rows):
    path.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")


def row(name, *labels):
    return ",".join([name, *(str(v) for v in (labels or (0, 0.5, 1, 0, 0.333, 0.25)))])


def touch(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def corpus(tmp_path):
    """Four labelled clips in shuffled order and two test clips known by their files only."""
    write_csv(tmp_path / "train_split.csv", row("00012", 1, 0, 0, 0, 0, 0), row("00003"))
    write_csv(tmp_path / "valid_split.csv", row("00007"), row("00001"))
    for name in ("00012", "00003", "00007", "00001"):
        for place in ("raw/{}.mp4", "audio/{}.mp3", "vit/{}.pkl", "wav2vec2/{}.pkl"):
            touch(tmp_path / place.format(name))
        touch(tmp_path / f"text/{name}.txt", f" words of {name}\n".encode())
        touch(tmp_path / f"face_images/{name}/1.jpg")
    for name in ("12661", "12660"):
        touch(tmp_path / f"test_data/raw/{name}.mp4")
        touch(tmp_path / f"test_data/face_images/{name}/1.jpg")
    return tmp_path


def test_order_columns_and_types_and_files_by_name_not_by_row(corpus):
    clips = read(corpus)
    assert clips["id"].tolist() == ["00003", "00012", "00001", "00007", "12660", "12661"]
    assert clips["split"].tolist() == ["train"] * 2 + ["validation"] * 2 + ["test"] * 2
    assert list(clips.columns) == ["id", "split", *SOURCES, *EMOTIONS]
    assert (clips[list(EMOTIONS)].dtypes == np.float64).all()
    assert clips.loc[1, list(EMOTIONS)].tolist() == [1, 0, 0, 0, 0, 0]
    assert clips[clips["split"] == "test"][list(EMOTIONS)].isna().all(axis=None)
    assert clips.attrs == {"folder": str(corpus), "notes": [], "targets": list(EMOTIONS)}
    for name in ("00003.avi", "00003.json", ".00003.mp4"):  # mp4 is taken before rarer containers
        touch(corpus / "raw" / name)
    (corpus / "text/00003.txt").write_text("\n")
    (corpus / "text/00012.txt").unlink()
    for clip in read(corpus).itertuples():
        inside = corpus / "test_data" if clip.split == "test" else corpus
        assert clip.video == str(inside / "raw" / f"{clip.id}.mp4")
        assert clip.faces == str(inside / "face_images" / clip.id)
        if clip.split == "test":
            assert clip.audio is clip.official_vision is clip.transcript is None
        else:
            assert clip.official_audio == str(corpus / "wav2vec2" / f"{clip.id}.pkl")
            words = {"00003": "", "00012": None}  # an empty transcript is not a missing one
            assert clip.transcript == words.get(clip.id, f"words of {clip.id}")


@pytest.mark.parametrize("name", ["00012", "12", "raw/00012.mp4", "raw\\00012.MP4", " 00012 "])
def test_filename_forms(corpus, name):
    write_csv(corpus / "train_split.csv", row(name), row("00003"))
    assert read(corpus)["id"].tolist()[:2] == ["00003", "00012"]
    touch(corpus / "raw/12.mp4")  # then a short number stays
    assert ("12" in read(corpus)["id"].tolist()) == (name == "12")


def test_a_test_split_file_decides_and_its_zeros_are_no_labels(corpus):
    write_csv(corpus / "test_split.csv", row("12661", 0, 0, 0, 0, 0, 0), row("17000"))
    touch(corpus / "raw/17000.mp4")  # files may lie beside those of the other splits
    touch(corpus / "text/12661.txt", b"hello")
    write_csv(corpus / "valid_split.csv", row("00007"), row("00001"), row("00099"))
    clips = read(corpus).set_index("id")
    assert clips.loc["00099", ["video", "Joy"]].tolist() == [None, 0.25]
    bare, unlisted = clips.attrs["notes"]
    assert "00099" in bare
    assert "12660" in unlisted
    clips = clips[clips["split"] == "test"]
    assert clips.index.tolist() == ["12661", "17000"]
    assert clips[list(EMOTIONS)].isna().all(axis=None)
    inside = (corpus / "test_data/raw/12661.mp4", corpus / "raw/17000.mp4")
    assert clips["video"].tolist() == [*map(str, inside)]
    assert clips.loc["12661", "transcript"] == "hello"


def test_faces_in_numeric_order_without_thumbs(tmp_path):
    for name in ("10.jpg", "2.JPG", "0001.jpg", "Thumbs.db", "x3.jpg", "3.jpg.part", ".4.jpg"):
        touch(tmp_path / "f" / name)
    assert [p.name for p in face_paths(tmp_path / "f")] == ["0001.jpg", "2.JPG", "10.jpg"]
    assert face_paths(None) == face_paths(tmp_path / "nowhere") == []


def test_same_row_twice_is_harmless_a_contradiction_is_not(corpus):
    write_csv(corpus / "train_split.csv", row("00012"), row("00003"), row("00012.mp4"))
    assert read(corpus)["id"].tolist().count("00012") == 1
    write_csv(corpus / "train_split.csv", row("00012"), row("00012", 1, 1, 1, 1, 1, 1))
    with pytest.raises(CorpusError, match=r"00012 .*twice.*train_split.csv"):
        read(corpus)
    clips, findings = read_with_findings(corpus)
    assert clips.set_index("id").loc["00012", "Admiration"] == 0  # the first row counts
    assert findings[0][:3] == ("00012", "train", "duplicate id")
    write_csv(corpus / "train_split.csv", row("00012"), row("00007"))  # also in validation
    with pytest.raises(CorpusError, match=r"00007 .*train_split.csv and .*valid_"):
        read(corpus)


def test_headers_of_any_form_are_read_and_labels_that_are_no_numbers_refused(corpus):
    head = "Filename , " + ", ".join(f'"{name}"' for name in reversed(EMOTIONS))
    text = f"{head}\n\n 00012, 1 ,2,3,4,5,6\r\n00003,0,0,0,0,0,0\n"
    (corpus / "train_split.csv").write_text(text, encoding="utf-8-sig")
    labels = read(corpus).set_index("id").loc["00012", list(EMOTIONS)]
    assert labels.tolist() == [6, 5, 4, 3, 2, 1]
    write_csv(corpus / "train_split.csv", row("00012"), row("00003", 0, 0, "high", 0, "", "inf"))
    with pytest.raises(CorpusError, match=r"train_split.csv, line 3: Determination .*'high'"):
        read(corpus)
    labels = read(corpus, strict=False).set_index("id").loc["00003", list(EMOTIONS)]
    assert labels.isna().tolist() == [False, False, True, False, True, True]
    defects = [defect for *_, defect, _ in read_with_findings(corpus)[1]]
    assert defects == ["label not a number"] * 3


def fill(folder, text):
    (folder / "train_split.csv").write_bytes(text)


BROKEN = [  # (what happens to the folder, words of the error)
    (lambda f: (f / "valid_split.csv").unlink(), "valid_split.csv is missing"),
    (lambda f: fill(f, HEADER.replace("Joy", "joy").encode()), "train_split.csv lacks .*Joy"),
    (lambda f: fill(f, bytes(range(128, 256))), "train_split.csv .*CSV"),
    (lambda f: fill(f, f"{HEADER}\n{row('')}".encode()), "split.csv, line 2: Filename"),
    (lambda f: [p.rename(f / f"x{p.name}") for p in f.glob("*[!v]")], "None of the 2 train .*raw/"),
    (lambda f: [write_csv(f / f"{s}_split.csv") for s in ("train", "valid", "test")], "no clip"),
    (lambda f: f.rename(f.with_name("elsewhere")), "no corpus folder"),
]


@pytest.mark.parametrize(("act", "word"), BROKEN)
def test_one_sentence_for_what_is_wrong(corpus, act, word):
    act(corpus)
    with pytest.raises(CorpusError, match=word):
        read(corpus)

"""The audit: every defect it documents is built here and found, and nothing else."""

import pickle
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from conftest import noise, sine
from conftest import write_media as write
from test_media import damage

from emilib.corpus import EMOTIONS, CorpusError, media, read
from emilib.corpus.defects import DEFECTS, SHORTEST, audit, durations, packet_facts, report

HEADER = "Filename," + ",".join(EMOTIONS)
LABELS = "0,0.5,1,0,0.25,0.333"


def clip(root, name, sound=None, frames=25, words="hello there", faces=3, width=4, **options):
    """A healthy clip in the layout of the data set; the arguments take something away."""
    for folder in ("raw", "audio", "text", "vit", "wav2vec2"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "face_images" / name).mkdir(parents=True, exist_ok=True)
    options.setdefault("clock", Fraction(1, 25))
    sound = sine(300, 1, 16000) if sound is None else sound
    path = root / "raw" / f"{name}.mp4"
    write(path, np.arange(frames) / 25, sound if len(sound) else None, **options)
    if len(sound):
        mp3 = root / "audio" / f"{name}.mp3"
        write(mp3, sound=sound, sound_codec="libmp3lame")
    (root / "text" / f"{name}.txt").write_text(words)
    for number in range(faces):
        (root / "face_images" / name / f"{number}.jpg").write_bytes(b"jpeg")
    for folder in ("vit", "wav2vec2"):
        data = pickle.dumps(np.ones((5, width), np.float32))
        (root / folder / f"{name}.pkl").write_bytes(data)
    return path


def split(path, rows):
    path.write_text("\n".join([HEADER, *rows]) + "\n")


@pytest.fixture(scope="module")
def sick(tmp_path_factory):
    """One clip for every defect, and healthy ones around them."""
    root = tmp_path_factory.mktemp("sick")
    nothing = np.zeros((0, 0))
    for name in ("00000", "00001", "00020", "00021"):
        clip(root, name)
    clip(root, "00002").write_bytes(b"")
    damage(clip(root, "00003", frames=50, make=noise), 0.4, 0.5)
    clip(root, "00004", faces=0)
    (root / "face_images/00004/Thumbs.db").write_bytes(b"x")
    clip(root, "00005", sound=nothing)
    write(root / "audio/00006.mp3", sound=sine(300, 1, 16000)[:, :200], sound_codec="libmp3lame")
    clip(root, "00006", sound=nothing)
    clip(root, "00007", sound=np.zeros((1, 16000), np.float32))
    clip(root, "00008", words=" \n")
    clip(root, "00009")
    (root / "text/00009.txt").unlink()
    clip(root, "00010", clock=Fraction(1, 1000), rate=1000)
    clip(root, "00011")
    clip(root, "00012")
    clip(root, "00013", width=5)
    clip(root, "00014")
    (root / "vit/00014.pkl").write_bytes(pickle.dumps({"not": "an array"}))
    clip(root, "00015").unlink()
    clip(root, "00030")  # in no split file
    clip(root, "00016")
    (root / "face_images/00016/1.jpg").write_bytes(b"")
    zeroed = clip(root, "00017", frames=50, make=noise)
    data = zeroed.read_bytes()
    zeroed.write_bytes(data[: len(data) // 2] + bytes(512) + data[len(data) // 2 + 512 :])
    names = [f"{n:05d}" for n in range(18) if n not in (11, 12)]
    rows = [f"{name},{LABELS}" for name in names]
    rows += ["00011,0,0,1.5,-0.1,0,0", "00012,0,many,0,0,0,0", f"00000,{LABELS}"]
    split(root / "train_split.csv", rows)
    split(root / "valid_split.csv", [f"{n},{LABELS}" for n in ("00020", "00021", "00099")])
    return root


EXPECTED = {
    ("00000", "duplicate id"),
    ("00002", "unreadable"),
    ("00003", "damaged frames"),
    ("00004", "no face"),
    ("00005", "no sound"),
    ("00006", "too short"),
    ("00007", "silent"),
    ("00008", "empty transcript"),
    ("00009", "no transcript"),
    ("00010", "lying frame rate"),
    ("00011", "label out of range"),
    ("00012", "label not a number"),
    ("00013", "bad features"),
    ("00014", "bad features"),
    ("00015", "no video"),
    ("00016", "unreadable"),
    ("00017", "damaged frames"),
    ("00030", "missing id"),
    ("00099", "missing id"),
}


def test_every_defect_is_found_and_no_other(sick):
    table = audit(sick, workers=1)
    assert set(zip(table["id"], table["defect"], strict=True)) == EXPECTED
    assert set(table["defect"]) == set(DEFECTS)
    assert list(table.columns) == ["id", "split", "defect", "detail"]
    assert table["detail"].str.len().min() > 0
    assert table.attrs["clips"] == 21


def test_details_name_numbers(sick):
    table = audit(sick, workers=1)
    detail = table.groupby(["id", "defect"])["detail"].agg("; ".join)
    lying = detail["00010", "lying frame rate"]
    assert lying == "states 1000 a second, time stamps say 25.00"
    assert detail["00011", "label out of range"] == "Determination is 1.5; Empathic Pain is -0.1"
    assert "line 19: Amusement is 'many'" in detail["00012", "label not a number"]
    assert "width 5, most clips have 4" in detail["00013", "bad features"]
    assert f"{SHORTEST} needed" in detail["00006", "too short"]
    assert "no row: only in" in detail["00030", "missing id"]


def test_order_is_by_split_then_id(sick):
    table = audit(sick, workers=1)
    train = table[table["split"] == "train"]
    assert table["split"].tolist() == sorted(table["split"], key=["train", "validation", ""].index)
    assert train["id"].is_monotonic_increasing


def test_worker_processes_say_the_same(sick):
    pd.testing.assert_frame_equal(audit(sick, workers=2), audit(sick, workers=1))


def test_quick_looks_at_packets_and_decodes_what_looks_odd(sick):
    quick = audit(sick, workers=1, thorough=False)
    full = audit(sick, workers=1, thorough=True)
    assert (quick.attrs["decoded"], full.attrs["decoded"]) == (1, 18)
    found = set(zip(quick["id"], quick["defect"], strict=True))
    # flipped bits inside a picture leave the packets' structure whole; a zeroed block does not
    assert found == EXPECTED - {("00003", "damaged frames")}


def test_a_healthy_folder_has_no_defect(tmp_path):
    for name in ("00000", "00001", "00002"):
        clip(tmp_path, name)
    split(tmp_path / "train_split.csv", [f"00000,{LABELS}"])
    split(tmp_path / "valid_split.csv", [f"00001,{LABELS}"])
    split(tmp_path / "test_split.csv", ["00002,0,0,0,0,0,0"])
    table = audit(tmp_path)
    assert len(table) == 0
    assert list(table.columns) == ["id", "split", "defect", "detail"]


def test_a_kind_of_file_that_nobody_has_is_no_defect(tmp_path):
    for number in range(2):
        (tmp_path / "raw").mkdir(exist_ok=True)
        path = tmp_path / f"raw/{number:05d}.mp4"
        write(path, np.arange(10) / 25, sine(300, 1, 16000), clock=Fraction(1, 25))
    split(tmp_path / "train_split.csv", [f"00000,{LABELS}"])
    split(tmp_path / "valid_split.csv", [f"00001,{LABELS}"])
    assert len(audit(tmp_path)) == 0


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match="There is no corpus folder"):
        audit(tmp_path / "nowhere")


def test_packet_facts_agree_with_decoding(tmp_path):
    path = write(tmp_path / "a.mp4", np.arange(50) / 25, sine(300, 1, 16000), options={"bf": "3"})
    facts = packet_facts(path)
    decoded = media.decode(path, fps=None)
    assert facts.frames == len(decoded.images) == 50
    assert facts.pixels == 50 * 64 * 96
    assert facts.measured_fps == pytest.approx(decoded.measured_fps)
    assert facts.duration == pytest.approx(2.0, abs=0.05)
    assert facts.hints == ()
    assert facts.lost == 0


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_cut_file_and_a_zeroed_block_are_seen_without_decoding(tmp_path, codec):
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {"g": "250"}
    cut = write(tmp_path / "a.mp4", np.arange(50) / 25, make=noise, codec=codec, options=options)
    whole = packet_facts(cut)
    assert whole.hints == ()
    data = cut.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    facts = packet_facts(cut)
    assert facts.hints
    assert facts.frames + facts.lost == 50
    middle = len(data) // 2
    cut.write_bytes(data[:middle] + bytes(512) + data[middle + 512 :])
    assert packet_facts(cut).hints == ("coded pictures are malformed",)


def test_durations_are_those_of_the_files(tmp_path):
    for number, frames in enumerate((25, 50, 75, 100)):
        clip(tmp_path, f"{number:05d}", frames=frames, sound=np.zeros((0, 0)))
    split(tmp_path / "train_split.csv", [f"00000,{LABELS}", f"00001,{LABELS}"])
    split(tmp_path / "valid_split.csv", [f"00002,{LABELS}"])
    split(tmp_path / "test_split.csv", ["00003,0,0,0,0,0,0"])
    clips = read(tmp_path)
    seconds = durations(clips, workers=1)
    np.testing.assert_allclose(seconds, [1, 2, 3, 4], atol=0.05)
    assert seconds.index.tolist() == clips["id"].tolist()


def test_unreadable_clips_have_no_duration(tmp_path):
    clip(tmp_path, "00000").write_bytes(b"nothing")
    clip(tmp_path, "00001").write_bytes(b"nothing")
    (tmp_path / "audio/00000.mp3").unlink()
    split(tmp_path / "train_split.csv", [f"00000,{LABELS}"])
    split(tmp_path / "valid_split.csv", [f"00001,{LABELS}"])
    seconds = durations(read(tmp_path), workers=1)
    assert np.isnan(seconds["00000"])
    assert seconds["00001"] == pytest.approx(1, abs=0.1)  # the sound file steps in


def test_the_report_counts_clips_and_names_ids():
    rows = [(f"{i:05d}", "train", "silent", "") for i in range(9)]
    rows += [("00003", "train", "label out of range", d) for d in ("Joy is 2", "Amusement is 3")]
    table = pd.DataFrame(rows, columns=["id", "split", "defect", "detail"])
    table.attrs["clips"] = 40
    lines = report(table, most=3).splitlines()
    assert lines[0] == "40 clips, 9 ids with a defect"
    silent = next(i for i, line in enumerate(lines) if line.split()[1:2] == ["silent"])
    assert lines[silent].split()[0] == "9"
    assert lines[silent + 1].strip() == "00000, 00001, 00002 and 6 more (all: --ids)"
    outside = next(i for i, line in enumerate(lines) if "label out of range" in line)
    assert lines[outside].split()[0] == "1"
    assert lines[outside + 1].strip() == "00003"
    assert len(lines) == 1 + len(DEFECTS) + 2

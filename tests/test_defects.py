"""The audit: every defect it documents is built here and found, and nothing else."""

import pickle
import re
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from conftest import damage, noise, sine, write_media

from emilib.corpus import audit, media, read
from emilib.corpus.defects import DEFECTS, SHORTEST, durations, report
from emilib.corpus.layout import HEADER
from emilib.pipeline import Workspace

LABELS = "0,0.5,1,0,0.25,0.333"
TONE = sine(300, 1)


def put(root, folder, name, content):
    path = root / folder / f"{name}.pkl"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return path


def clip(root, name, sound=TONE, frames=25, words="hello there", faces=3, width=4, **options):
    """A healthy clip in the layout of the data set; the arguments take something away."""
    for folder in ("raw", "audio", "text", f"face_images/{name}"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    path = root / "raw" / f"{name}.mp4"
    write_media(path, np.arange(frames) / 25, sound, **{"clock": Fraction(1, 25), **options})
    if sound is not None:
        write_media(root / "audio" / f"{name}.mp3", sound=sound, sound_codec="libmp3lame")
    (root / "text" / f"{name}.txt").write_text(words)
    for number in range(faces):
        (root / "face_images" / name / f"{number}.jpg").write_bytes(b"jpeg")
    for folder in ("vit", "wav2vec2"):
        put(root, folder, name, np.ones((5, width), np.float32))
    return path


def splits(root, **ids):
    """Split files: names of clips, or whole rows."""
    for name, listed in ids.items():
        rows = [row if "," in row else f"{row},{LABELS}" for row in listed]
        (root / f"{name}_split.csv").write_text("\n".join([HEADER, *rows]) + "\n")


HEALTHY = ("00000", "00001", "00020", "00021")
# of each broken clip: the defect, how it differs from a healthy one, words of the detail
BROKEN = {
    "00002": ("unreadable", {}, ("is empty",)),
    "00003": ("damaged frames", {"frames": 50, "make": noise}, ("damaged frames of 50",)),
    "00004": ("no face", {"faces": 0}, ()),
    "00005": ("no sound", {"sound": None}, ()),
    "00006": ("too short", {"sound": None}, (str(SHORTEST),)),
    "00007": ("silent", {"sound": np.zeros((1, 16000), np.float32)}, ()),
    "00008": ("empty transcript", {"words": " \n"}, ()),
    "00009": ("no transcript", {}, ()),
    "00010": ("lying frame rate", {"clock": Fraction(1, 1000), "rate": 1000}, ("1000", "25.00")),
    "00011": ("label out of range", {}, ("Determination is 1.5", "Empathic Pain is -0.1")),
    "00012": ("label not a number", {}, ("line 19", "Amusement", "'many'")),
    "00013": ("bad features", {"width": 5}, ("width 5, most clips have 4",)),
    "00014": ("bad features", {}, ("dict",)),
    "00015": ("no video", {}, ()),
    "00016": ("unreadable", {}, ("1 of 3",)),
    "00017": ("damaged frames", {"frames": 50, "make": noise}, ("of 50 frames missing",)),
    "00030": ("missing id", {}, ("raw", "text")),  # in no split file
}


@pytest.fixture(scope="module")
def sick(tmp_path_factory):
    """One clip for every defect, and healthy ones around them."""
    root = tmp_path_factory.mktemp("sick")
    videos = {name: clip(root, name) for name in HEALTHY}
    videos |= {name: clip(root, name, **options) for name, (_, options, _) in BROKEN.items()}
    videos["00002"].write_bytes(b"")
    damage(videos["00003"], 0.4, 0.5)
    (root / "face_images/00004/Thumbs.db").write_bytes(b"x")
    write_media(root / "audio/00006.mp3", sound=TONE[:, :200], sound_codec="libmp3lame")
    (root / "text/00009.txt").unlink()
    put(root, "vit", "00014", {"not": "an array"})
    videos["00015"].unlink()
    (root / "face_images/00016/1.jpg").write_bytes(b"")
    whole = videos["00017"].read_bytes()
    videos["00017"].write_bytes(whole[: len(whole) // 2])
    names = [name for name in BROKEN if name not in ("00011", "00012", "00030")]
    odd = ["00011,0,0,1.5,-0.1,0,0", "00012,0,many,0,0,0,0", "00000"]
    splits(root, train=["00000", "00001", *names, *odd], valid=["00020", "00021", "00099"])
    return root


def test_every_defect_is_found_and_no_other(sick):
    table = audit(sick, workers=1)
    pd.testing.assert_frame_equal(audit(sick, workers=2), table)
    expected = {(name, defect) for name, (defect, _, _) in BROKEN.items()}
    expected |= {("00000", "duplicate id"), ("00099", "missing id")}
    assert set(zip(table["id"], table["defect"], strict=True)) == expected
    assert set(table["defect"]) == set(DEFECTS)
    assert table.attrs["clips"] == 21
    assert 15 < media.timing(sick / "raw/00017.mp4")["missing"] < 35
    assert 3 <= len(media.decode(sick / "raw/00017.mp4").images) < 10
    order = table["split"].map(["train", "validation", ""].index)
    assert (keys := [*zip(order, table["id"], strict=True)]) == sorted(keys)
    told = report(table)
    assert told.startswith("21 clips, ")
    for defect, ids in table.groupby("defect")["id"]:  # an id counts once
        assert re.search(rf"\b{ids.nunique()}  {defect}\b.*\n +{ids.iloc[0]}", told), defect
    details = table.groupby("id")["detail"].agg("; ".join)
    for name, (_, _, words) in BROKEN.items():
        assert all(word in details[name] for word in words), details[name]


def test_a_healthy_folder_has_no_defect_and_timing_agrees_with_decoding(tmp_path):
    for name in ("00000", "00001", "00002"):
        clip(tmp_path, name)
    splits(tmp_path, train=["00000"], valid=["00001"], test=["00002"])
    assert audit(tmp_path, workers=1).empty
    for folder in ("text", "vit", "wav2vec2", "face_images"):  # nor where nobody has such files
        (tmp_path / folder).rename(tmp_path / f"no {folder}")
    assert audit(tmp_path, workers=1).empty
    path = write_media(tmp_path / "a.mp4", np.arange(50) / 25, TONE, options={"bf": "3"})
    timing, decoded = media.timing(path), media.decode(path, fps=None)
    rates = {"declared": 90_000, "measured": 49 / decoded.times[-1]}  # the clock, and the frames
    assert timing == pytest.approx({**rates, "seconds": 2, "frames": 50, "missing": 0})
    assert (len(decoded.images), decoded.duration) == (50, pytest.approx(2))


def test_durations_are_those_of_the_files(tmp_path):
    names = [f"{number:05d}" for number in range(6)]
    for name, frames in zip(names, (25, 50, 75, 100, 25, 25), strict=True):
        clip(tmp_path, name, frames=frames, sound=None)
    for name in names[4:]:
        (tmp_path / f"raw/{name}.mp4").write_bytes(b"nothing")
    write_media(tmp_path / "audio/00005.mp3", sound=sine(300, 3), sound_codec="libmp3lame")
    splits(tmp_path, train=names[:2], valid=names[2:3], test=names[3:])
    seconds = durations(read(tmp_path), workers=1)
    np.testing.assert_allclose(seconds, [1, 2, 3, 4, np.nan, 3], atol=0.1)
    assert seconds.index.tolist() == names


def test_features_that_can_not_be_used_or_mix_widths(tmp_path):
    names = [f"{i:05d}" for i in range(12)]
    splits(tmp_path, train=names[:8], valid=names[8:])
    for name in names:
        put(tmp_path, "vit", name, np.ones((5, 12), np.float32))
    odd = put(tmp_path, "vit", "00004", np.ones((5, 24), np.float32))
    with pytest.raises(ValueError, match=rf"{odd}: expected 12 values .* got 24"):
        Workspace("smoke", tmp_path, tmp_path / "home").features("official")
    put(tmp_path, "vit", "00001", np.full((2, 12), np.nan))
    put(tmp_path, "vit", "00002", np.zeros((0, 12)))
    (tmp_path / "vit/00003.pkl").write_bytes(b"")
    table = audit(tmp_path, workers=1)
    assert set(table["defect"]) == {"bad features"}
    assert table["id"].tolist() == ["00001", "00002", "00003", "00004"]

"""A folder exactly like the real one is read, audited and measured with all its defects."""

import pickle
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import real_layout
from PIL import Image
from test_media import all_frames

from emilib.corpus import EMOTIONS, audit, media, read
from emilib.corpus.defects import durations
from emilib.corpus.layout import face_paths


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return real_layout.build(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def clips(built):
    return read(built.folder)


def test_the_layout_is_the_real_one(built, clips):
    names = {path.name for path in built.folder.iterdir()}
    assert names == {
        *("train_split.csv", "valid_split.csv", "raw", "audio", "face_images"),
        *("vit", "wav2vec2", "text", "test_data"),
    }
    assert {p.name for p in (built.folder / "test_data").iterdir()} == {"raw", "face_images"}
    assert clips["split"].value_counts().to_dict() == {"train": 24, "validation": 16, "test": 6}
    assert clips["id"].map(lambda i: bool(re.fullmatch(r"\d{5}", i))).all()
    for split, ids in clips.groupby("split")["id"]:
        assert (ids.astype(int) >= 12660).all() == (split == "test")
    assert clips.attrs["notes"] == []


def test_rows_are_in_another_order_than_the_files(built):
    table = pd.read_csv(built.folder / "train_split.csv", dtype={"Filename": str})
    assert not table["Filename"].is_monotonic_increasing
    assert table["Filename"].str.len().eq(5).all()


def test_labels_are_shares_of_a_few_annotators(clips):
    labels = clips.loc[clips["split"] != "test", list(EMOTIONS)]
    shares = [Fraction(float(v)).limit_denominator(12) for v in np.unique(labels)]
    np.testing.assert_allclose([float(s) for s in shares], np.unique(labels), atol=5e-4)
    assert (labels == 0).to_numpy().mean() > 0.5
    assert (labels.std() > 0).all()
    assert clips.loc[clips["split"] == "test", list(EMOTIONS)].isna().all(axis=None)


def test_every_defect_is_found_with_its_id(built):
    table = audit(built.folder, workers=1)
    ids = built.ids
    expected = {
        "unreadable": ids("unreadable video", "unreadable sound"),
        "no face": ids("no face folder", "only Thumbs.db"),
        "no sound": ids("no sound"),
        "too short": ["02404", "10155"],
        "silent": ids("silent"),
        "empty transcript": ids("empty transcript", "shortest", "too short", "no sound"),
        "no transcript": ids("no transcript"),
        "lying frame rate": ids("lying rate"),
    }
    found = table.groupby("defect")["id"].agg(sorted).to_dict()
    assert found == expected
    stated = table[table["defect"] == "lying frame rate"].set_index("id")["detail"]
    for id_, rate in built.rates.items():
        assert stated[id_].startswith(f"states {rate} a second")
    assert set(built.rates.values()) <= set(range(25, 1001))


def test_the_shortest_and_the_longest_have_the_real_lengths(built, clips):
    seconds = durations(clips, workers=1)
    (shortest,), (longest,) = built.ids("shortest"), built.ids("longest")
    assert seconds[shortest] == pytest.approx(0.064)
    assert seconds[longest] == pytest.approx(1249.92)
    assert seconds.drop([shortest, longest]).between(0.3, 10).all()
    row = clips.set_index("id").loc[longest]
    assert len(face_paths(row["faces"])) == 2591
    sound = media.decode(row["audio"], frames=False).waveform
    assert len(sound) / 16000 == pytest.approx(1249.92, abs=0.1)
    assert media.loudness(sound, 16000) > media.SILENCE


def test_faces_are_numbered_thirty_a_second(built, clips):
    healthy = clips[clips["id"].isin(built.ids("", split="train"))]
    seconds = durations(healthy, workers=1)
    for row in healthy.itertuples():
        paths = face_paths(row.faces)
        numbers = [int(path.stem) for path in paths]
        assert numbers == list(range(len(paths)))
        assert len(paths) / seconds[row.id] == pytest.approx(30, rel=0.1)
        with Image.open(paths[0]) as face:
            assert face.size == (160, 160)
        sampled = media.face_frames(row.faces, seconds[row.id], fps=5.0)
        assert len(sampled) == pytest.approx(5 * seconds[row.id], abs=1)
    thumbs = list(built.folder.glob("*/*/Thumbs.db"))
    assert thumbs, "some face folders hold Thumbs.db"


def test_official_pickles_have_widths_of_their_own(built, clips):
    for column, folder in (("official_vision", "vit"), ("official_audio", "wav2vec2")):
        paths = clips[column].dropna()
        assert 20 < len(paths) < 40
        widths = {pickle.loads(Path(p).read_bytes()).shape[1] for p in paths}
        assert widths == {real_layout.WIDTHS[folder]}


def test_sound_is_mp3_or_mp4(built, clips):
    endings = clips["audio"].dropna().str[-4:]
    assert set(endings) == {".mp3", ".mp4"}
    row = clips.set_index("id").loc[built.ids("sound in mp4")[0]]
    assert media.decode(row["audio"], frames=False).duration > 2
    assert clips.loc[clips["split"] == "test", "audio"].isna().all()


def test_lying_rates_change_no_time_stamp(built, clips):
    rows = clips.set_index("id")
    for id_ in built.rates:
        times = [time for time, _ in all_frames(rows.loc[id_, "video"])]
        assert 1 / np.diff(times).mean() == pytest.approx(11, abs=2)


def test_mixed_widths_are_an_option(tmp_path):
    mixed = real_layout.build(tmp_path, train=17, validation=8, test=1, mixed_widths=True)
    found = audit(mixed.folder, workers=1).query("defect == 'bad features'")
    assert found["detail"].str.contains(r"width 200, most clips have 192").any()
    assert found["detail"].str.contains(r"width 520, most clips have 512").any()

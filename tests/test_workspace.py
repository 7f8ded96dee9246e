import dataclasses
import json
import shutil

import numpy as np
import pytest

from emilib import profiles
from emilib.corpus.layout import EMOTIONS
from emilib.pipeline import SYNTHETIC, Workspace


@pytest.fixture(scope="module")
def profile():
    small = profiles.get("smoke")
    counts = {"train": 14, "validation": 8, "test": 3}
    return dataclasses.replace(small, corpus_size=counts, seeds=(0,), workers=1)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, profile):
    return Workspace(profile, home=tmp_path_factory.mktemp("home"))


def test_the_embedded_corpus_is_made_and_named(workspace):
    assert workspace.corpus_name == SYNTHETIC
    assert workspace.clips["split"].value_counts().to_dict() == {
        "train": 14,
        "validation": 8,
        "test": 3,
    }
    assert workspace.transcript_source.startswith("Text: from")


def test_media_follow_the_defects_of_the_clips(workspace):
    folder = workspace.folder / ".synthetic"
    manifest = json.loads((folder / "manifest.json").read_text())
    text = json.dumps(manifest)
    frames, waveform = workspace.media["frames"], workspace.media["waveform"]
    clips = workspace.clips.set_index("id")
    assert frames.ids == clips.index.tolist()
    missing = [i for i in frames.ids if frames[i] is None]
    assert missing, "a corpus of this size has a clip without a face"
    for id_ in frames.ids:
        faces = clips.loc[id_, "faces"]
        crops = 0
        if isinstance(faces, str):
            crops = len(list((workspace.folder / faces).glob("*.jpg")))
        assert (frames[id_] is None) == (crops == 0)
        if frames[id_] is not None:
            assert frames[id_].shape[1:] == (3, 64, 64)
            assert frames[id_].dtype == np.uint8
            seconds = workspace.seconds[id_]
            assert abs(len(frames[id_]) - 5 * seconds) <= 1.5 or len(frames[id_]) == crops
        if waveform[id_] is not None:
            assert waveform[id_].dtype == np.int16
    assert "no_face" in text


def test_features_have_the_clips_targets_and_gaps(workspace):
    ours = workspace.features("ours")
    assert (len(ours.train), len(ours.validation), len(ours.test)) == (14, 8, 3)
    assert ours.train.dims == {"frames": 64, "audio": 64, "text": 128}
    expected = workspace.clips.query("split == 'validation'")[list(EMOTIONS)].to_numpy(float)
    np.testing.assert_array_equal(ours.validation.target, expected)
    assert ours.test.target is None
    present = dict(zip(ours.train.ids, ours.train.present, strict=True))
    for row in workspace.clips.query("split == 'train'").itertuples():
        words = isinstance(row.transcript, str) and bool(row.transcript.strip())
        assert present[row.id][2] == words
        assert present[row.id][0] == (workspace.media["frames"][row.id] is not None)
    official = workspace.features("official")
    assert official.train.dims == {"frames": 384, "audio": 768}
    assert official.fingerprint != ours.fingerprint


def test_media_that_are_not_changed_give_the_features_as_they_were(workspace):
    plain = workspace.features(standardised=False).validation
    for modality in ("frames", "audio"):
        parts = {"changed": "not at all"}
        encoded = workspace.spoilt_features("aligned", modality, lambda id_, m: m, parts)
        for id_, expected in zip(plain.ids, getattr(plain, modality), strict=True):
            if expected is None:
                assert encoded.length(id_) == 0
            else:
                np.testing.assert_allclose(encoded[id_], expected, atol=1e-2, rtol=1e-2)
    with pytest.raises(ValueError, match="modality: expected frames or audio, came 'text'"):
        workspace.spoilt_features("aligned", "text", None, {})


def test_a_second_workspace_makes_nothing_again(workspace, profile, monkeypatch):
    workspace.features("ours")
    again = Workspace(profile, home=workspace.home)

    def refuse(*_):
        raise AssertionError("a step that is kept was made again")

    for name in ("_make_start", "_make_contrast"):
        monkeypatch.setattr(again, name, refuse)
    monkeypatch.setattr("emilib.pipeline._decode", refuse)
    assert again.features("ours").fingerprint == workspace.features("ours").fingerprint


def test_a_corpus_folder_from_elsewhere_gives_the_same_features(workspace, profile, tmp_path):
    elsewhere = tmp_path / "a corpus"
    shutil.copytree(workspace.folder, elsewhere)
    other = Workspace(profile, corpus=elsewhere, home=tmp_path / "home")
    assert other.corpus_name == SYNTHETIC, "a copied synthetic corpus is still labelled so"
    theirs, ours = other.features("official"), workspace.features("official")
    assert theirs.fingerprint == ours.fingerprint
    (elsewhere / "synthetic.json").unlink()
    real = Workspace(profile, corpus=elsewhere, home=tmp_path / "home")
    assert real.corpus_name == "corpus a corpus"
    assert real.corpus_key != other.corpus_key


def _append(path):
    path.write_bytes(path.read_bytes() + b"more")


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("text/*.txt", lambda path: path.write_text(path.read_text() + " indeed")),
        ("train_split.csv", lambda path: path.write_text(path.read_text().replace("0.", "0.0"))),
        ("raw/*", _append),
        ("audio/*.mp3", _append),
        ("vit/*", _append),
        ("wav2vec2/*", _append),
        ("face_images/*", shutil.rmtree),
    ],
)
def test_the_corpus_key_of_a_real_folder_follows_what_is_in_it(
    workspace, profile, tmp_path, where, change
):
    folder = tmp_path / "corpus"
    shutil.copytree(workspace.folder, folder)
    (folder / "synthetic.json").unlink()

    def key():
        return Workspace(profile, corpus=folder, home=tmp_path / "home").corpus_key

    first = key()
    assert key() == first
    change(next(path for path in sorted(folder.rglob("*")) if path.match(where)))
    assert key() != first


def test_the_paper_profile_needs_a_corpus(tmp_path):
    with pytest.raises(ValueError, match="needs a corpus folder"):
        Workspace("paper", home=tmp_path)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda w: w.features("theirs"), "expected ours or official"),
        (lambda w: w.encoders("middle"), "expected one of random, start, aligned, one_way"),
        (lambda w: w.results(["nothing"]), "no experiment"),
    ],
)
def test_unknown_names_are_refused(workspace, call, words):
    with pytest.raises(ValueError, match=words):
        call(workspace)


def test_an_unknown_profile_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="smoke, embedded, paper"):
        profiles.get("large")
    monkeypatch.setenv("EMI_PROFILE", "embedded")
    assert profiles.get().name == "embedded"


def test_figures_of_anything_but_the_default_run_stay_out_of_the_project(workspace, tmp_path):
    assert workspace.figures.is_relative_to(workspace.home)
    assert Workspace("embedded", home=tmp_path).figures.is_relative_to(tmp_path)

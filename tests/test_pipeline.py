import dataclasses
import json
import shutil

import numpy as np
import pytest
from conftest import write_media as write
from transformers import BertConfig

from emilib import profiles
from emilib.cache import Cache
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


def test_pretraining_sees_no_clip_that_is_judged_later(workspace):
    clips = workspace.clips
    training = clips.loc[clips["split"] == "train", "id"]
    assert list(workspace.pretraining_clips().ids) == training.tolist()


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
    with pytest.raises(ValueError, match="modality: expected frames or audio, got 'text'"):
        workspace.spoilt_features("aligned", "text", None, {})


def test_a_second_workspace_makes_nothing_again(workspace, profile, monkeypatch):
    workspace.features("ours")
    again = Workspace(profile, home=workspace.home)

    def refuse(*_):
        raise AssertionError("a step that is kept was made again")

    monkeypatch.setattr("emilib.steps.decode", refuse)
    monkeypatch.setattr(Cache, "scratch", refuse)
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
    assert real.reader.key != other.reader.key


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
        return Workspace(profile, corpus=folder, home=tmp_path / "home").reader.key

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


def test_steps_count_what_is_kept_and_make_nothing(tmp_path):
    profile = dataclasses.replace(
        profiles.smoke(), corpus_size={"train": 6, "validation": 4, "test": 2}, workers=1
    )
    workspace = Workspace(profile, home=tmp_path)
    first = workspace.steps()
    assert not any(tmp_path.iterdir())
    assert first[["step", "done", "all"]].to_dict("records") == [
        {"step": "embedded corpus, clips", "done": 0, "all": 12}
    ]
    workspace.folder  # noqa: B018 - made when asked for
    steps = workspace.steps().set_index("step")
    assert steps["done"].sum() == 0
    workspace.media  # noqa: B018
    steps = Workspace(profile, home=tmp_path).steps().set_index("step")
    assert steps["done"].to_dict() == {s: int(s == "decoding") for s in steps.index}
    runs = steps.index.str.startswith("training runs")
    assert steps.loc[runs, "all"].sum() == 2 * sum(
        e.model is not None for e in workspace.experiments().values()
    )
    seen = set()
    for step in steps[~runs].itertuples():
        assert {name for name in step.needs.split("; ") if name} <= seen, "steps are in order"
        seen.add(step.Index)
    assert steps.loc[~runs, "key"].is_unique


def test_weights_of_another_family_are_found_before_anything_is_made(tmp_path):
    folder = tmp_path / "bert"
    BertConfig().save_pretrained(folder)
    profile = dataclasses.replace(profiles.smoke(), vision={"checkpoint": str(folder)})
    workspace = Workspace(profile, home=tmp_path / "home")
    with pytest.raises(ValueError, match=r"expected weights for vision .* type 'bert'"):
        workspace.require()
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [({"visual": "eyes"}, "'faces' or 'video'"), ({"seeds": "0"}, "from 1"), ({"seeds": "x"}, "x")],
)
def test_what_a_profile_can_not_be_changed_to(change, words):
    with pytest.raises(ValueError, match=words):
        profiles.changed(profiles.smoke(), **change)


def test_pictures_and_seeds_are_changed_from_outside(monkeypatch, tmp_path):
    monkeypatch.setenv("EMI_VISUAL", "video")
    monkeypatch.setenv("EMI_SEEDS", "4")
    workspace = Workspace("smoke", home=tmp_path)
    assert (workspace.profile.visual, workspace.profile.seeds) == ("video", (0, 1, 2, 3))
    assert Workspace("smoke", home=tmp_path, visual="faces", seeds=1).profile.seeds == (0,)


def test_a_corpus_without_words_is_refused_before_anything_is_made(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("a", "b", "c"):
        write(folder / f"{name}.mp4", times=[0.0, 0.2])
    rows = "file,joy,split\na,1,train\nb,3,train\nc,2,validation\n"
    (folder / "labels.csv").write_text(rows)
    with pytest.raises(ValueError, match="words of at least two training clips, got 0"):
        Workspace("smoke", folder, tmp_path / "home").require()
    (folder / "labels.csv").write_text(
        "file,joy,split,text\na,1,train,oh\nb,3,train,no\nc,2,val,\n"
    )
    Workspace("smoke", folder, tmp_path / "home").require()
    assert not (tmp_path / "home").exists()

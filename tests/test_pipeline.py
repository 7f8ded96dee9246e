"""From a corpus to features: what is made, kept, made again, and refused at once."""

import dataclasses
import shutil

import numpy as np
import pytest
from conftest import write_media
from transformers import BertConfig

from emilib import EMOTIONS, profiles
from emilib.pipeline import SYNTHETIC, Workspace


def test_the_embedded_corpus_is_made_and_named(workspace, tmp_path):
    assert workspace.corpus_name == SYNTHETIC
    clips = workspace.clips
    assert clips["split"].value_counts().to_dict() == {"train": 14, "validation": 8, "test": 3}
    assert workspace.transcript_source.startswith("Text: from")
    assert Workspace("embedded", home=tmp_path).figures.is_relative_to(tmp_path)
    # Pretraining sees no clip that is judged later.
    assert workspace.steps.clips().ids == clips.loc[clips["split"] == "train", "id"].tolist()


def test_media_follow_the_defects_of_the_clips(workspace):
    frames, waveform = workspace.media["frames"], workspace.media["waveform"]
    clips = workspace.clips.set_index("id")
    assert list(frames) == clips.index.tolist()
    assert any(frames[i] is None for i in frames), "a clip of this corpus has no face"
    for id_ in frames:
        faces = clips.loc[id_, "faces"]
        crops = isinstance(faces, str) and len(list((workspace.folder / faces).glob("*.jpg")))
        assert (frames[id_] is None) == (not crops)
        if frames[id_] is not None:
            assert frames[id_].shape[1:] == (3, 64, 64)
            assert frames[id_].dtype == np.uint8
            assert abs(len(frames[id_]) - 5 * workspace.seconds[id_]) <= 1.5
        if waveform[id_] is not None:
            assert waveform[id_].dtype == np.int16
            assert len(waveform[id_]) / 16000 == pytest.approx(workspace.seconds[id_], abs=0.2)


def test_features_have_the_clips_targets_and_gaps(workspace):
    ours, official = workspace.features("ours"), workspace.features("official")
    assert (len(ours.train), len(ours.validation), len(ours.test)) == (14, 8, 3)
    assert ours.train.dims == {"frames": 64, "audio": 64, "text": 128}
    expected = workspace.clips.query("split == 'validation'")[list(EMOTIONS)].to_numpy(float)
    np.testing.assert_array_equal(ours.validation.target, expected)
    assert ours.test.target is None
    for row, present in zip(ours.train.ids, ours.train.present, strict=True):
        words = workspace.clips.set_index("id").loc[row, "transcript"]
        assert present[2] == (isinstance(words, str) and bool(words.strip()))
        assert present[0] == (workspace.media["frames"][row] is not None)
    assert official.train.dims == {"frames": 384, "audio": 768}
    assert len({official.fingerprint, ours.fingerprint, workspace.features().fingerprint}) == 2


def test_media_that_are_not_changed_give_the_features_as_they_were(workspace):
    plain = workspace.features(standardised=False).validation
    for modality in ("frames", "audio"):
        encoded = workspace.steps.corrupted("aligned", modality, lambda id_, m: m, {"by": 0})
        for id_, expected in zip(plain.ids, getattr(plain, modality), strict=True):
            if expected is None:
                assert encoded.length(id_) == 0
            else:
                np.testing.assert_allclose(encoded[id_], expected, atol=1e-2, rtol=1e-2)


def test_a_second_workspace_makes_nothing_again(workspace, monkeypatch):
    fingerprint = workspace.features("ours").fingerprint
    for place in ("emilib.reader.decode", "emilib.cache.Cache.scratch"):
        monkeypatch.setattr(place, None)
    again = Workspace(workspace.profile, home=workspace.home)
    assert again.features("ours").fingerprint == fingerprint


def _append(path):
    path.write_bytes(path.read_bytes() + b"more")


CHANGES = {
    "text/*.txt": _append,
    "train_split.csv": lambda path: path.write_text(path.read_text().replace("0.", "0.0")),
    "raw/*": _append,
    "audio/*.mp3": _append,
    "vit/*": _append,
    "wav2vec2/*": _append,
    "face_images/*": shutil.rmtree,
}


def test_a_corpus_folder_from_elsewhere_has_a_key_of_what_is_in_it(workspace, tmp_path):
    folder = tmp_path / "a corpus"
    shutil.copytree(workspace.folder, folder)

    def elsewhere():
        return Workspace(workspace.profile, folder, tmp_path / "home")

    assert elsewhere().corpus_name == SYNTHETIC, "a copied synthetic corpus is still labelled so"
    assert elsewhere().steps.official.key == workspace.steps.official.key
    (folder / "synthetic.json").unlink()
    assert elsewhere().corpus_name == "corpus a corpus"
    keys = [workspace.reader.key, elsewhere().reader.key]
    assert elsewhere().reader.key == keys[1]
    for where, change in CHANGES.items():
        change(next(path for path in sorted(folder.rglob("*")) if path.match(where)))
        keys.append(elsewhere().reader.key)
        assert len(set(keys)) == len(keys), where


def test_the_plan_counts_what_is_kept_and_makes_nothing(tmp_path):
    counts = {"train": 6, "validation": 4, "test": 2}
    profile = dataclasses.replace(profiles.smoke(), corpus_size=counts, workers=1)
    workspace = Workspace(profile, home=tmp_path)
    assert workspace.plan().to_numpy().tolist() == [["embedded corpus", 0, 12]]
    assert not any(tmp_path.iterdir())
    workspace.media  # noqa: B018 - made when asked for
    plan = workspace.plan().set_index("step")
    assert plan["done"].to_dict() == {s: int(s == "decoding") for s in plan.index}
    models = [e for e in workspace.experiments().values() if e.model is not None]
    assert plan.loc["training runs", "all"] == 2 * len(models)
    seen = []
    for step in workspace.steps:
        assert repr(step).startswith(step.name)
        assert {need.key for need in step.needs} <= set(seen), "steps are in order"
        seen.append(step.key)
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda w: w.features("theirs"), "expected ours, official or media"),
        (lambda w: w.encoders("middle"), "expected one of random, start, aligned"),
        (lambda w: w.results(["nothing"]), "no experiment"),
        (lambda w: Workspace("paper", home=w.home), "needs a corpus folder"),
        (lambda w: profiles.get("large"), "smoke, embedded, paper"),
        (lambda w: profiles.get("smoke", visual="eyes"), "'faces' or 'video'"),
        (lambda w: profiles.get("smoke", seeds="0"), "from 1"),
        (lambda w: profiles.get("smoke", seeds="x"), "x"),
    ],
)
def test_unknown_names_are_refused(workspace, call, words):
    with pytest.raises(ValueError, match=words):
        call(workspace)


def test_pictures_seeds_and_profile_are_changed_from_outside(monkeypatch, tmp_path):
    for name, value in {"VISUAL": "video", "SEEDS": "4", "PROFILE": "embedded"}.items():
        monkeypatch.setenv(f"EMI_{name}", value)
    profile = Workspace(home=tmp_path).profile
    assert (profile.name, profile.visual, profile.seeds) == ("embedded", "video", (0, 1, 2, 3))
    assert profiles.get("smoke", "faces", seeds=1).seeds == (0,)


def test_weights_of_another_family_are_found_before_anything_is_made(tmp_path):
    BertConfig().save_pretrained(tmp_path / "bert")
    vision = {"checkpoint": str(tmp_path / "bert")}
    workspace = Workspace(dataclasses.replace(profiles.smoke(), vision=vision), home=tmp_path / "h")
    with pytest.raises(ValueError, match=r"expected weights for vision .* type 'bert'"):
        workspace.require()
    assert not (tmp_path / "h").exists()


def test_a_corpus_without_words_is_refused_before_anything_is_made(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("a", "b", "c"):
        write_media(folder / f"{name}.mp4", times=[0.0, 0.2])
    (folder / "labels.csv").write_text("file,joy,split\na,1,train\nb,3,train\nc,2,validation\n")
    with pytest.raises(ValueError, match="words of at least two training clips, got 0"):
        Workspace("smoke", folder, tmp_path / "home").require()
    rows = "file,joy,split,text\na,1,train,oh\nb,3,train,no\nc,2,val,\n"
    (folder / "labels.csv").write_text(rows)
    Workspace("smoke", folder, tmp_path / "home").require()
    assert not (tmp_path / "home").exists()

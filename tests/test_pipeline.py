import dataclasses
import shutil

import numpy as np
import pytest
import torch
from conftest import write_media
from transformers import BertConfig

from emilib import EMOTIONS, profiles
from emilib.cache import Cache
from emilib.metrics import mean_pearson
from emilib.pipeline import SYNTHETIC, Workspace
from emilib.steps import Step, finish


def sum_up(step, folder):
    """A sum whose last bits depend on the number of threads."""
    terms = torch.randn(200_000, generator=torch.Generator().manual_seed(step.settings["n"]))
    (folder / "sum").write_text(f"{(terms * terms).sum().item().hex()}")


def test_a_step_has_the_same_bits_alone_and_beside_another(tmp_path):
    def made(folder, *numbers):
        kept = Cache(tmp_path / folder)
        every = [Step(f"sum {n}", "sum", {"n": n}, sum_up, kept) for n in (0, 1)]
        finish([every[n] for n in numbers])
        return [(every[n].folder() / "sum").read_text() for n in numbers]

    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert made("alone", 0) + made("alone", 1) == made("both", 0, 1)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)


def test_media_and_features_have_the_embedded_clips_targets_and_gaps(workspace, tmp_path):
    assert workspace.corpus_name == SYNTHETIC
    clips = workspace.clips
    assert clips["split"].value_counts().to_dict() == {"train": 14, "validation": 8, "test": 3}
    assert workspace.transcript_source.startswith("Text: from")
    assert Workspace("embedded", home=tmp_path).figures.is_relative_to(tmp_path)
    # Pretraining sees no clip that is judged later.
    assert workspace.steps.clips().ids == clips.loc[clips["split"] == "train", "id"].tolist()
    media, clips = workspace.media, workspace.clips.set_index("id")
    ours, official = workspace.features("ours"), workspace.features("official")
    assert list(media["frames"]) == clips.index.tolist()
    lacking = [id_ for id_, frames in media["frames"].items() if frames is None]
    faces = clips["faces"].map(lambda path: [*(workspace.folder / str(path)).glob("*.jpg")])
    assert lacking == clips.index[faces.map(len) == 0].tolist() != []
    for id_, seconds in workspace.seconds.items():
        if (frames := media["frames"][id_]) is not None:
            assert (frames.shape[1:], frames.dtype) == ((3, 64, 64), np.uint8)
            assert abs(len(frames) - 5 * seconds) <= 1.5
        if (sound := media["waveform"][id_]) is not None:
            assert sound.dtype == np.int16
            assert len(sound) / 16000 == pytest.approx(seconds, abs=0.2)
    assert (len(ours.train), len(ours.validation), len(ours.test)) == (14, 8, 3)
    assert ours.train.dims == {"frames": 96, "audio": 64, "text": 128}
    expected = workspace.clips.query("split == 'validation'")[list(EMOTIONS)].to_numpy(float)
    np.testing.assert_array_equal(ours.validation.target, expected)
    assert ours.test.target is None
    words = clips.loc[ours.train.ids, "transcript"].fillna("").str.strip() != ""
    np.testing.assert_array_equal(ours.train.present[:, 2], words)
    np.testing.assert_array_equal(~ours.train.present[:, 0], np.isin(ours.train.ids, lacking))
    assert official.train.dims == {"frames": 384, "audio": 768}
    assert len({official.fingerprint, ours.fingerprint, workspace.features().fingerprint}) == 2


def test_unchanged_media_give_the_same_features_and_nothing_is_made_again(workspace, monkeypatch):
    plain = workspace.features(standardised=False).validation
    for modality in ("frames", "audio"):
        encoded = workspace.steps.corrupted("aligned", modality, lambda id_, m: m, {"by": 0})
        for id_, expected in zip(plain.ids, getattr(plain, modality), strict=True):
            if expected is None:
                assert encoded.length(id_) == 0
            else:
                np.testing.assert_allclose(encoded[id_], expected, atol=1e-2, rtol=1e-2)
    fingerprint = workspace.features("ours").fingerprint
    for place in ("emilib.reader.decode", "emilib.cache.Cache.scratch"):
        monkeypatch.setattr(place, None)
    again = Workspace(workspace.profile, home=workspace.home)
    assert again.features("ours").fingerprint == fingerprint


def test_a_joint_stage_one_has_one_text_encoder_for_both_sides(workspace):
    plan = dataclasses.replace(workspace.profile.stage_one["audio"], joint=True)
    both = [{"frames": plan, "audio": plan}, {**workspace.profile.stage_one, "audio": plan}]
    profiles = (dataclasses.replace(workspace.profile, stage_one=plans) for plans in both)
    joint, torn = (Workspace(profile, home=workspace.home) for profile in profiles)
    steps = [step for step in joint.steps if "Stage I" in step.name]
    assert len(steps) == 1
    texts = [[*joint.contrast(side).text.parameters()] for side in ("frames", "audio")]
    texts.append([*joint.encoders("aligned")["text"].parameters()])
    assert all(a.equal(b) and b.equal(c) for a, b, c in zip(*texts, strict=True))
    apart = (workspace.contrast(side).text.parameters() for side in ("frames", "audio"))
    assert not all(a.equal(b) for a, b in zip(*apart, strict=True))
    with pytest.raises(ValueError, match="one StageOne for both sides"):
        torn.steps.align()


def test_results_know_the_lines_to_beat_and_the_labels_of_the_test_clips(workspace):
    results = workspace.results(["wav2vec2_baseline"])
    lines = results.lines()
    assert {x.shape for x in lines.values()} == {(8 + 3, 6)}
    np.testing.assert_array_equal(workspace.lines()["ceiling_all"], lines["ceiling_all"])
    target = workspace.reader.test_labels.loc[workspace.features().test.ids].to_numpy()
    each = [mean_pearson(target, p) for p in results["wav2vec2_baseline"].test_predictions]
    rho = results.test_rho(results["wav2vec2_baseline"].test_predictions)
    assert rho == pytest.approx(np.mean(each))


READ = ("text/*.txt", "train_split.csv", "raw/*", "audio/*.mp3", "vit/*", "wav2vec2/*")


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
    for where in (*READ, "face_images/*"):
        path = min(folder.glob(where))
        if path.is_dir():
            shutil.rmtree(path)
        elif where.endswith("csv"):
            path.write_text(path.read_text().replace("0.", "0.0"))
        else:
            path.write_bytes(path.read_bytes()[::-1])  # of the same size
        keys.append(elsewhere().reader.key)
        assert len(set(keys)) == len(keys), where


def test_the_plan_counts_what_is_kept_and_makes_nothing(tmp_path):
    counts = {"train": 8, "validation": 4, "test": 2}
    profile = dataclasses.replace(profiles.smoke(), corpus_size=counts, workers=1)
    workspace = Workspace(profile, home=tmp_path)
    assert workspace.plan().to_numpy().tolist() == [["embedded corpus", 0, 14]]
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
        (lambda w: profiles.get("smoke", corpus_seed="-1"), "whole number from 0, got '-1'"),
    ],
)
def test_unknown_names_are_refused(workspace, call, words):
    with pytest.raises(ValueError, match=words):
        call(workspace)


def test_pictures_seeds_and_profile_are_changed_from_outside(monkeypatch, tmp_path):
    outside = {"VISUAL": "video", "SEEDS": "4", "PROFILE": "embedded", "CORPUS_SEED": "7"}
    for name, value in outside.items():
        monkeypatch.setenv(f"EMI_{name}", value)
    workspace = Workspace(home=tmp_path)
    profile = workspace.profile
    assert (profile.name, profile.visual, profile.seeds) == ("embedded", "video", (0, 1, 2, 3))
    assert profile.corpus_size["seed"] == 7
    folders = (workspace.source, workspace.figures)
    assert [path.name for path in folders] == ["corpus-7", "figures-7"]
    assert profiles.get("smoke", "faces", seeds=1).seeds == (0,)
    assert Workspace(profiles.get(corpus_seed=0), home=tmp_path).source.name == "corpus"


def test_other_weights_and_too_few_clips_are_refused_before_anything_is_made(tmp_path):
    BertConfig().save_pretrained(tmp_path / "bert")
    vision = {"checkpoint": str(tmp_path / "bert")}
    profile = dataclasses.replace(profiles.smoke(), vision=vision)
    workspace = Workspace(profile, home=tmp_path / "home")
    with pytest.raises(ValueError, match=r"expected weights for vision .* type 'bert'"):
        workspace.require()
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in "abcdefghijkl":
        write_media(folder / f"{name}.mp4", times=[0.0, 0.2])
    rows = [f"{name},{n},{'train' if n < 8 else 'val'}," for n, name in enumerate("abcdefghijkl")]
    (folder / "labels.csv").write_text("\n".join(["file,joy,split,text", *rows[1:]]))
    with pytest.raises(ValueError, match=r"8 train and 4 validation .* got 7 train and 4"):
        Workspace("smoke", folder, tmp_path / "home").require()
    (folder / "labels.csv").write_text("\n".join(["file,joy,split,text", *rows]))
    Workspace("smoke", folder, tmp_path / "home").require()  # words are nowhere
    assert not (tmp_path / "home").exists()

"""Operation counts against torch's own counter, and what is said before a long run."""

import dataclasses

import pandas as pd
import pytest
import torch
from conftest import write_media as write
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, ViTConfig, ViTModel, Wav2Vec2Config, Wav2Vec2Model

from emilib import environment, profiles
from emilib.pipeline import Workspace
from emilib.study import claims, needs

REAL = pd.DataFrame(
    {
        "split": ["train", "validation", "test"],
        "clips": [
            claims.reported("A1", s, "samples").value for s in ("Train", "Validation", "Test")
        ],
        "seconds": [
            claims.reported("A1", s, "duration").value for s in ("Train", "Validation", "Test")
        ],
    }
)


def counted(model, **inputs):
    """What torch counts; on the meta device nothing is computed."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(**inputs)
    return counter.get_total_flops()


def test_a_vit_takes_what_torch_counts():
    with torch.device("meta"):
        model = ViTModel(ViTConfig(attn_implementation="eager"), add_pooling_layer=False)
        expected = counted(model, pixel_values=torch.zeros(1, 3, 224, 224))
    assert needs.vit(1) == pytest.approx(expected, rel=0.01)


def test_a_bert_takes_what_torch_counts():
    with torch.device("meta"):
        model = BertModel(BertConfig(attn_implementation="eager"), add_pooling_layer=False)
        ids = torch.zeros(1, 32, dtype=torch.long)
        expected = counted(model, input_ids=ids)
    assert needs.BERT.operations(32) == pytest.approx(expected, rel=0.01)


def test_a_wav2vec2_takes_what_torch_counts():
    config = Wav2Vec2Config(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
        attn_implementation="eager",
    )
    with torch.device("meta"):
        model = Wav2Vec2Model(config)
        expected = counted(model, input_values=torch.zeros(1, 7 * 16000))
    # The positional convolution and the projection are left out: a few per cent.
    assert needs.sound(needs.WAV2VEC2, 7.0, 1) == pytest.approx(expected, rel=0.08)


def test_the_real_data_take_hours_not_minutes_or_months():
    found = needs.needs(profiles.paper(), REAL, transcribe=REAL["clips"].sum(), cores=16)
    assert (found[["pflop", "hours", "disk", "gpu"]] >= 0).all(axis=None)
    by_stage = found.set_index("stage")
    stages = ["decoding", "transcripts", "Stage I", "features", "Stage II", "fine-tuning"]
    assert list(by_stage.index) == stages
    assert 1 < found["hours"].sum() < 24 * 30
    said = needs.text(found)
    assert "Counted, not measured" in said
    assert all(stage in said for stage in by_stage.index)


def test_twice_the_clips_take_twice_the_work():
    double = REAL.assign(clips=2 * REAL["clips"], seconds=2 * REAL["seconds"])
    one, two = (needs.needs(profiles.paper(), clips) for clips in (REAL, double))
    assert two["pflop"].tolist() == pytest.approx((2 * one["pflop"]).tolist())


def test_the_readme_has_the_table():
    text = (environment.ROOT / "README.md").read_text("utf-8")
    found = needs.needs(profiles.paper(), REAL, transcribe=REAL["clips"].sum(), cores=16)
    assert f"<!-- needs -->\n{needs.markdown(found)}\n<!-- /needs -->" in text


def test_checkpoints_are_counted_by_the_manifest():
    assert needs.weights_gb(profiles.smoke()) == 0
    frozen = dataclasses.replace(profiles.paper(), taemi_encoders=None)
    assert 1 < needs.weights_gb(frozen) < needs.weights_gb(profiles.paper()) < 10


def test_steps_count_what_is_kept_and_make_nothing(tmp_path):
    profile = dataclasses.replace(
        profiles.smoke(), corpus_size={"train": 6, "validation": 4, "test": 2}, workers=1
    )
    workspace = Workspace(profile, home=tmp_path)
    first = workspace.steps()
    assert not any(tmp_path.iterdir())
    assert first.to_dict("records") == [{"step": "embedded corpus, clips", "there": 0, "all": 12}]
    workspace.folder  # noqa: B018 - made when asked for
    steps = workspace.steps().set_index("step")
    assert steps["there"].sum() == 0
    workspace.media  # noqa: B018
    steps = Workspace(profile, home=tmp_path).steps().set_index("step")
    assert steps["there"].to_dict() == {s: int(s == "decoded media") for s in steps.index}
    assert steps.loc["training runs", "all"] == 2 * sum(
        e.model is not None for e in workspace.experiments().values()
    )


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
    with pytest.raises(ValueError, match="expected words of at least two training clips, came 0"):
        Workspace("smoke", folder, tmp_path / "home").require()
    (folder / "labels.csv").write_text(
        "file,joy,split,text\na,1,train,oh\nb,3,train,no\nc,2,val,\n"
    )
    Workspace("smoke", folder, tmp_path / "home").require()
    assert not (tmp_path / "home").exists()

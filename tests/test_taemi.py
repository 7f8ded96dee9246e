"""TAEMI against attention written out, and against what its docstrings promise."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from test_models import batch
from torch import nn

from emilib import MODALITIES
from emilib.models.taemi import MAX_AUDIO, TAEMI, CrossAttention, SelfAttention

DIMS = {"frames_dim": 6, "audio_dim": 7, "text_dim": 5}
VALID = {name: batch()[f"{name}_valid"] for name in ("frames", "audio")}


def complete():
    return batch([[1, 1, 1]] * 4)


def small(**settings):
    torch.manual_seed(1)
    return TAEMI(**{**DIMS, "num_targets": 3, "width": 8, "heads": 2, **settings}).eval()


def fused(model, data):
    """f, what the MLP head reads."""
    seen = {}
    model.head[0].register_forward_pre_hook(lambda _, args: seen.update(f=args[0]))
    out = model(**data)
    torch.testing.assert_close(out.intensity, model.head[3](F.gelu(model.head[0](seen["f"]))))
    return seen["f"], out


def test_a_sigmoid_bounds_what_the_head_says():
    with_it, without = (small(sigmoid=on)(**complete()).intensity for on in (True, False))
    torch.testing.assert_close(with_it, 1 / (1 + (-without).exp()))


def means(x, valid):
    return torch.stack([clip[real].mean(0) for clip, real in zip(x, valid, strict=True)])


def test_cross_attention_is_scaled_dot_product_attention():
    torch.manual_seed(0)
    layer = CrossAttention(5, 7, 12, 3, norm=True).eval()
    query, context, valid = torch.randn(4, 5), torch.randn(4, 9, 7), VALID["audio"]
    answer, attention = layer(query, context, valid)
    norm_q, norm_k = F.layer_norm(query, (5,)), F.layer_norm(context, (7,))
    for clip, steps in enumerate(valid.sum(1)):
        q = layer.query(norm_q[clip]).view(3, 1, 4)
        k = layer.key(norm_k[clip, :steps]).view(-1, 3, 4).transpose(0, 1)
        v = layer.value(context[clip, :steps]).view(-1, 3, 4).transpose(0, 1)
        expected = layer.output(F.scaled_dot_product_attention(q, k, v).reshape(12))
        torch.testing.assert_close(answer[clip], expected)
        scores = (q @ k.transpose(1, 2)).squeeze(1) / 2.0  # sqrt(12 / 3)
        torch.testing.assert_close(attention[clip, :, :steps], scores.softmax(-1))
        assert (attention[clip, :, steps:] == 0).all()


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_self_attention_is_torchs_layer(norm):
    torch.manual_seed(0)
    layer = SelfAttention(8, 2, norm=norm).eval()
    reference = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    reference.in_proj_weight = layer.query_key_value.weight
    reference.in_proj_bias = layer.query_key_value.bias
    reference.out_proj.load_state_dict(layer.output.state_dict())
    x, valid = torch.randn(4, 6, 8), VALID["frames"]
    inner = F.layer_norm(x, (8,)) if norm == "pre" else x
    expected = x + reference(inner, inner, inner, key_padding_mask=~valid)[0]
    expected = F.layer_norm(expected, (8,)) if norm == "post" else expected
    torch.testing.assert_close(layer(x, valid)[valid], expected[valid])


def test_width_of_f_is_the_papers():
    wide = [{}, {"projection": False}, {"fusion": "concat", "text_in_fusion": "raw"}]
    narrow = [{"fusion": name} for name in ("concat", "self_attention")]
    narrow += [{"text_in_fusion": "projected"}, {"anchor": "audio"}]
    with torch.device("meta"):
        assert {TAEMI(**settings).head[0].in_features for settings in wide} == {768 + 512 + 512}
        assert {TAEMI(**settings).fused_dim for settings in narrow} == {1536}
    assert MAX_AUDIO == 599


@pytest.mark.parametrize("anchor", MODALITIES)
def test_f_is_the_anchor_and_what_the_others_answer(anchor):
    model, data = small(anchor=anchor), complete()
    data["present"][2] = False
    f, out = fused(model, data)
    x = {name: model.projection[name](data[name]) for name in MODALITIES}
    x["text"], valid = x["text"][:, None], VALID | {"text": torch.ones(4, 1, dtype=torch.bool)}
    for name in VALID:
        x[name] = model.self_attention[name](x[name], valid[name])
    query = means(x[anchor], valid[anchor])
    parts, whole = [data["text"] if anchor == "text" else query], data["present"].all(1)
    for name in [n for n in ("audio", "frames", "text") if n != anchor]:
        answer, attention = model.cross_attention[name](query, x[name], valid[name])
        parts.append(answer)
        torch.testing.assert_close(out.attention[name][whole], attention[whole])
        torch.testing.assert_close(out.attention[name].sum(-1), torch.ones(4, 2))
        assert (out.attention[name][2, :, 0] == 1).all(), "a token is one step"
    torch.testing.assert_close(f[whole], torch.cat(parts, -1)[whole])
    assert set(out.attention) == set(MODALITIES) - {anchor}


@pytest.mark.parametrize("fusion", ["concat", "self_attention"])
def test_fusion_without_cross_attention_concatenates_means(fusion):
    model, data = small(fusion=fusion), complete()
    parts = [model.projection["text"](data["text"])]
    for name in ("audio", "frames"):
        x = model.projection[name](data[name])
        if fusion == "self_attention":
            x = model.self_attention[name](x, VALID[name])
        parts.append(means(x, VALID[name]))
    f, out = fused(model, data)
    torch.testing.assert_close(f, torch.cat(parts, -1))
    assert out.attention is None
    assert len(model.cross_attention) == 0
    assert len(model.self_attention) == (2 if fusion == "self_attention" else 0)


@pytest.mark.parametrize(
    "settings", [{}, {"missing_tokens": False}, {"explicit_missing": ("frames", "text")}], ids=str
)
@pytest.mark.parametrize("present", [p for p in itertools.product([0, 1], repeat=3) if any(p)])
def test_a_missing_modality_is_its_token(present, settings):
    """Leaving a modality out equals giving its token (or zero) as a sequence of one step."""
    model, data = small(**settings), batch([present] * 4)
    by_hand = complete()
    for name in itertools.compress(MODALITIES, [not there for there in present]):
        token = torch.zeros(DIMS[f"{name}_dim"])
        if name in model.missing and name in settings.get("explicit_missing", MODALITIES):
            token = model.missing[name].detach()
        by_hand[name] = token.expand(4, -1) if name == "text" else token.expand(4, 1, -1)
        by_hand |= {} if name == "text" else {f"{name}_valid": torch.ones(4, 1).bool()}
    torch.testing.assert_close(model(**data).intensity, model(**by_hand).intensity)


def test_modality_dropout_has_its_frequency_and_is_independent():
    torch.manual_seed(3)
    present = torch.ones(20_000, 3, dtype=torch.bool)
    left, tokens = small().train().drop(present)
    assert torch.equal(left, ~tokens)
    together = tokens.double().T @ tokens.double() / len(tokens)
    expected = torch.full((3, 3), 0.1**2, dtype=torch.double).fill_diagonal_(0.1)
    bound = 4 * (expected * (1 - expected) / len(tokens)).sqrt()
    assert ((together - expected).abs() < bound).all()
    for still in (small().eval(), small(modality_dropout=0.0).train()):
        assert not still.drop(present)[1].any()


def test_all_three_dropped_is_three_tokens_also_where_a_lacking_modality_is_zeros():
    settings = {"dropout": 0.0, "attention_dropout": 0.0}
    model = small(**settings, explicit_missing=("frames", "text"), modality_dropout=1 - 1e-9)
    data = complete()
    dropped = model.train()(**data).intensity
    data["present"][:] = False  # every token is explicit by default
    torch.testing.assert_close(dropped, small(**settings)(**data).intensity)

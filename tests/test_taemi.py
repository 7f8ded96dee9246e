"""TAEMI against attention written out, and against what its docstrings promise."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from emilib import MODALITIES
from emilib.models.inputs import masked_mean, stand_in
from emilib.models.taemi import MAX_AUDIO, TAEMI, CrossAttention, SelfAttention

DIMS = {"frames_dim": 6, "audio_dim": 7, "text_dim": 5}
LENGTHS = {"frames": torch.tensor([4, 1, 6, 3]), "audio": torch.tensor([2, 9, 5, 1])}
VALID = {n: torch.arange(int(x.max())) < x[:, None] for n, x in LENGTHS.items()}


def batch():
    torch.manual_seed(0)
    data = {"frames": torch.randn(4, 6, 6), "audio": torch.randn(4, 9, 7)}
    masks = {f"{name}_valid": valid for name, valid in VALID.items()}
    present = torch.ones(4, 3, dtype=torch.bool)
    return {**data, "text": torch.randn(4, 5), **masks, "present": present}


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


def test_cross_attention_is_scaled_dot_product_attention():
    torch.manual_seed(0)
    layer = CrossAttention(5, 7, 12, 3, norm=True).eval()
    query, context, valid = torch.randn(4, 5), torch.randn(4, 9, 7), VALID["audio"]
    answer, attention = layer(query, context, valid)
    norm_q, norm_k = F.layer_norm(query, (5,)), F.layer_norm(context, (7,))
    for clip, steps in enumerate(LENGTHS["audio"]):
        q = layer.query(norm_q[clip]).view(3, 1, 4)
        k = layer.key(norm_k[clip, :steps]).view(-1, 3, 4).transpose(0, 1)
        v = layer.value(context[clip, :steps]).view(-1, 3, 4).transpose(0, 1)
        expected = layer.output(F.scaled_dot_product_attention(q, k, v).reshape(12))
        torch.testing.assert_close(answer[clip], expected)
        scores = (q @ k.transpose(1, 2)).squeeze(1) / 2.0  # sqrt(12 / 3)
        torch.testing.assert_close(attention[clip, :, :steps], scores.softmax(-1))
        assert (attention[clip, :, steps:] == 0).all()


def test_cross_attention_over_nothing_is_finite_with_finite_gradients():
    layer = CrossAttention(5, 7, 8, 2)
    context = torch.randn(2, 3, 7, requires_grad=True)
    answer, attention = layer(torch.randn(2, 5), context, torch.tensor([[False] * 3, [True] * 3]))
    answer.sum().backward()
    assert (attention[0] == 0).all()
    torch.testing.assert_close(answer[0], layer.output.bias)
    assert torch.isfinite(context.grad).all()
    assert (context.grad[0] == 0).all()


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


@pytest.mark.parametrize(
    ("settings", "width"),
    [
        ({}, 768 + 512 + 512),
        ({"projection": False, "self_attention": False, "attention_norm": True}, 1792),
        ({"text_in_fusion": "projected"}, 1536),
        ({"fusion": "concat"}, 1536),
        ({"fusion": "self_attention"}, 1536),
        ({"fusion": "concat", "text_in_fusion": "raw"}, 1792),
        ({"anchor": "audio"}, 1536),
    ],
)
def test_width_of_f_is_the_papers(settings, width):
    with torch.device("meta"):
        model = TAEMI(**settings)
    assert model.fused_dim == model.head[0].in_features == width
    assert model.head[3].out_features == 6
    assert {layer.output.out_features for layer in model.cross_attention.values()} <= {512}
    assert MAX_AUDIO == 599


@pytest.mark.parametrize("anchor", MODALITIES)
def test_f_is_the_anchor_and_what_the_others_answer(anchor):
    model, data = small(anchor=anchor), batch()
    data["present"][2] = False
    f, out = fused(model, data)
    x = {name: model.projection[name](data[name]) for name in MODALITIES}
    x["text"], valid = x["text"][:, None], VALID | {"text": torch.ones(4, 1, dtype=torch.bool)}
    for name in LENGTHS:
        x[name] = model.self_attention[name](x[name], valid[name])
    query = torch.stack(
        [steps[v].mean(0) for steps, v in zip(x[anchor], valid[anchor], strict=True)]
    )
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
    model, data = small(fusion=fusion), batch()
    parts = [model.projection["text"](data["text"])]
    for name in ("audio", "frames"):
        x = model.projection[name](data[name])
        if fusion == "self_attention":
            x = model.self_attention[name](x, VALID[name])
        parts.append(torch.stack([clip[v].mean(0) for clip, v in zip(x, VALID[name], strict=True)]))
    f, out = fused(model, data)
    torch.testing.assert_close(f, torch.cat(parts, -1))
    assert out.attention is None
    assert len(model.cross_attention) == 0
    assert len(model.self_attention) == (2 if fusion == "self_attention" else 0)


SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(MODALITIES, n)]


@pytest.mark.parametrize(
    "settings", [{}, {"missing_tokens": False}, {"explicit_missing": ("frames", "text")}], ids=str
)
@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_a_missing_modality_is_its_token(subset, settings):
    """Leaving a modality out equals giving its token (or zero) as a sequence of one step."""
    model, data = small(**settings), batch()
    by_hand = {k: v.clone() for k, v in data.items()}
    for column, name in enumerate(MODALITIES):
        if name in subset:
            continue
        data["present"][:, column] = False
        token = torch.zeros(DIMS[f"{name}_dim"])
        if name in model.missing and name in settings.get("explicit_missing", MODALITIES):
            token = model.missing[name].detach()
        if name == "text":
            by_hand["text"] = token.expand(4, -1)
        else:
            by_hand[name] = token.expand(4, 1, -1)
            by_hand[f"{name}_valid"] = torch.ones(4, 1, dtype=torch.bool)
    torch.testing.assert_close(model(**data).intensity, model(**by_hand).intensity)


def test_tokens_are_drawn_small():
    torch.manual_seed(0)
    assert TAEMI(width=8).missing["text"].std().item() == pytest.approx(0.02, rel=0.15)


def replaced(model, count=20_000):
    """(B, 3) where modality dropout put a token, read off the sequences after it."""
    seen = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0].abs().sum((1, 2)) > 0})
        )
        for name, layer in model.projection.items()
    ]
    model(torch.zeros(count, 1, 6), torch.zeros(count, 1, 7), torch.zeros(count, 5))
    for hook in hooks:
        hook.remove()
    return torch.stack([seen[name] for name in MODALITIES], dim=1)


def test_modality_dropout_has_its_frequency_is_independent_and_repeats_with_its_seed():
    model = small().train()
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(replaced(model))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    dropped = draws[0].double()
    assert (dropped.mean(0) - 0.1).abs().max() < 4 * (0.1 * 0.9 / len(dropped)) ** 0.5
    together = dropped.T @ dropped / len(dropped)
    for a, b in itertools.combinations(range(3), 2):
        assert abs(together[a, b] - 0.01) < 4 * (0.01 * 0.99 / len(dropped)) ** 0.5
    assert not replaced(model.eval()).any()
    assert not replaced(small(modality_dropout=0.0).train()).any()


@pytest.mark.parametrize("explicit", [MODALITIES, ("frames", "text")], ids=len)
def test_all_three_dropped_is_three_tokens(explicit):
    settings = {"dropout": 0.0, "attention_dropout": 0.0}
    model = small(**settings, explicit_missing=explicit, modality_dropout=1 - 1e-9)
    data = batch()
    dropped = model.train()(**data).intensity
    # what a model with every token explicit makes of a clip that has nothing
    data["present"][:] = False
    torch.testing.assert_close(dropped, small(**settings)(**data).intensity)


def test_masked_mean_and_stand_in():
    x = torch.arange(12.0).view(2, 3, 2)
    valid = torch.tensor([[True, True, False], [False, False, False]])
    torch.testing.assert_close(masked_mean(x, valid), torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    y, real = stand_in(x, valid, torch.tensor([True, False]), torch.tensor([7.0, 8.0]))
    assert torch.equal(y[0], x[0])
    assert y[1].tolist() == [[7, 8], [0, 0], [0, 0]]
    assert real.tolist() == [[True, True, False], [True, False, False]]

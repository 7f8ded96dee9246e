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
SMALL = {**DIMS, "num_targets": 3, "width": 8, "heads": 2}
LENGTHS = torch.tensor([4, 1, 6, 3])
AUDIO_LENGTHS = torch.tensor([2, 9, 5, 1])


def valid_steps(lengths, steps):
    return torch.arange(steps) < lengths[:, None]


def batch(seed=0):
    torch.manual_seed(seed)
    b = len(LENGTHS)
    return {
        "frames": torch.randn(b, 6, 6),
        "audio": torch.randn(b, 9, 7),
        "text": torch.randn(b, 5),
        "frames_valid": valid_steps(LENGTHS, 6),
        "audio_valid": valid_steps(AUDIO_LENGTHS, 9),
        "present": torch.ones(b, 3, dtype=torch.bool),
    }


def small(**settings):
    torch.manual_seed(1)
    return TAEMI(**{**SMALL, **settings}).eval()


def test_cross_attention_is_scaled_dot_product_attention():
    torch.manual_seed(0)
    layer = CrossAttention(5, 7, 12, 3, norm=True).eval()
    query, context = torch.randn(4, 5), torch.randn(4, 9, 7)
    valid = valid_steps(AUDIO_LENGTHS, 9)
    answer, attention = layer(query, context, valid)

    norm_q, norm_k = F.layer_norm(query, (5,)), F.layer_norm(context, (7,))
    for clip in range(4):
        q = layer.query(norm_q[clip]).view(3, 1, 4)
        k = layer.key(norm_k[clip, valid[clip]]).view(-1, 3, 4).transpose(0, 1)
        v = layer.value(context[clip, valid[clip]]).view(-1, 3, 4).transpose(0, 1)
        expected = layer.output(F.scaled_dot_product_attention(q, k, v).reshape(12))
        torch.testing.assert_close(answer[clip], expected)
        steps = int(AUDIO_LENGTHS[clip])
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


def test_self_attention_is_torchs_layer():
    torch.manual_seed(0)
    layer = SelfAttention(8, 2).eval()
    reference = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    reference.in_proj_weight = layer.query_key_value.weight
    reference.in_proj_bias = layer.query_key_value.bias
    reference.out_proj.load_state_dict(layer.output.state_dict())
    x, valid = torch.randn(4, 6, 8), valid_steps(LENGTHS, 6)
    mixed, _ = reference(x, x, x, key_padding_mask=~valid)
    expected = F.layer_norm(x + mixed, (8,))
    torch.testing.assert_close(layer(x, valid)[valid], expected[valid])


def test_width_of_f_is_the_papers():
    with torch.device("meta"):
        assert TAEMI.paper().fused_dim == 1792
        assert TAEMI.release().fused_dim == 1792
        assert TAEMI.paper(text_in_fusion="projected").fused_dim == 1536
        assert TAEMI.paper(fusion="concat").fused_dim == 1536
        assert TAEMI.paper(fusion="self_attention").fused_dim == 1536
        assert TAEMI.paper(fusion="concat", text_in_fusion="raw").fused_dim == 1792
        assert TAEMI.paper(anchor="audio").fused_dim == 1536
        model = TAEMI()
    assert model.head[0].in_features == 1792
    assert model.head[3].out_features == 6
    for layer in model.cross_attention.values():
        assert layer.output.out_features == 512
    assert MAX_AUDIO == 599


def test_text_lies_raw_in_f():
    model, data = small(), batch()
    seen = {}
    model.head[0].register_forward_pre_hook(lambda _, args: seen.update(f=args[0]))
    model(**data)
    assert torch.equal(seen["f"][:, :5], data["text"])


SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(MODALITIES, n)]


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_a_missing_modality_is_its_token(subset, tokens):
    """Leaving a modality out equals giving its token (or zero) as a sequence of one step."""
    model, data = small(missing_tokens=tokens), batch()
    by_hand = {k: v.clone() for k, v in data.items()}
    for column, name in enumerate(MODALITIES):
        if name in subset:
            continue
        data["present"][:, column] = False
        token = model.missing[name].detach() if tokens else torch.zeros(DIMS[f"{name}_dim"])
        if name == "text":
            by_hand["text"] = token.expand(4, -1)
        else:
            by_hand[name] = token.expand(4, 1, -1)
            by_hand[f"{name}_valid"] = torch.ones(4, 1, dtype=torch.bool)
    expected = model(**by_hand).intensity
    torch.testing.assert_close(model(**data).intensity, expected)

    lacking = {name: None for name in MODALITIES if name not in subset}
    lacking |= {f"{n}_valid": None for n in ("frames", "audio") if n not in subset}
    torch.testing.assert_close(model(**{**data, **lacking, "present": None}).intensity, expected)


def test_without_an_explicit_token_a_missing_modality_is_zeros():
    model, data = small(explicit_missing=("frames", "text")), batch()
    data["present"][:, 1] = False
    zeros = {"audio": torch.zeros(4, 1, 7), "audio_valid": torch.ones(4, 1, dtype=torch.bool)}
    by_hand = {**data, **zeros, "present": None}
    torch.testing.assert_close(model(**data).intensity, model(**by_hand).intensity)


def test_tokens_are_drawn_small():
    torch.manual_seed(0)
    assert TAEMI(width=8).missing["text"].std().item() == pytest.approx(0.02, rel=0.15)


def many_clips(count=20_000):
    return {"frames": torch.zeros(count, 1, 6), "audio": torch.zeros(count, 1, 7)} | {
        "text": torch.zeros(count, 5)
    }


def replaced(model, data, generator=None):
    """(B, 3) where modality dropout put a token, read off the sequences after it."""
    seen = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0].abs().sum((1, 2)) > 0})
        )
        for name, layer in model.projection.items()
    ]
    model(**data, generator=generator)
    for hook in hooks:
        hook.remove()
    return torch.stack([seen[name] for name in MODALITIES], dim=1)


def test_modality_dropout_has_its_frequency_and_is_independent():
    torch.manual_seed(0)
    model, data = small().train(), many_clips()
    dropped = replaced(model, data).double()
    error = 4 * (0.1 * 0.9 / len(dropped)) ** 0.5
    assert (dropped.mean(0) - 0.1).abs().max() < error
    together = dropped.T @ dropped / len(dropped)
    for a, b in itertools.combinations(range(3), 2):
        assert abs(together[a, b] - 0.01) < 4 * (0.01 * 0.99 / len(dropped)) ** 0.5
    assert not replaced(model.eval(), data).any()
    assert not replaced(small(modality_dropout=0.0).train(), data).any()


def test_modality_dropout_repeats_with_its_seed():
    model, data = small().train(), many_clips(200)
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        runs.append(replaced(model, data))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    first, second = (replaced(model, data, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("explicit", [MODALITIES, ("frames", "text")], ids=len)
def test_all_three_dropped_is_three_tokens(explicit):
    settings = {"dropout": 0.0, "attention_dropout": 0.0, "explicit_missing": explicit}
    model, data = small(**settings, modality_dropout=1 - 1e-9), batch()
    dropped = model.train()(**data).intensity
    # what a model with every token explicit makes of a clip that has nothing
    everything = small(**settings | {"explicit_missing": MODALITIES})
    data["present"][:] = False
    torch.testing.assert_close(dropped, everything(**data).intensity)
    torch.testing.assert_close(dropped, dropped[:1].expand(4, -1))


@pytest.mark.parametrize("anchor", ["text", "audio", "frames"])
def test_attention_sums_to_one_over_valid_steps(anchor):
    model, data = small(anchor=anchor), batch()
    data["present"][2, :] = False
    attention = model(**data).attention
    steps = {"frames": 6, "audio": 9, "text": 1}
    assert set(attention) == set(MODALITIES) - {anchor}
    for name, values in attention.items():
        assert values.shape == (4, 2, steps[name])
        torch.testing.assert_close(values.sum(-1), torch.ones(4, 2))
        assert (values[2, :, 0] == 1).all()
        if name != "text":
            real = data[f"{name}_valid"].clone()
            real[2] = torch.arange(steps[name]) == 0
            assert (values.transpose(1, 2)[~real] == 0).all()


def test_anchor_is_the_pooled_vector_of_its_modality():
    model, data = small(anchor="audio"), batch()
    projected = model.projection["audio"](data["audio"])
    attended = model.self_attention["audio"](projected, data["audio_valid"])
    pooled = torch.stack([x[v].mean(0) for x, v in zip(attended, data["audio_valid"], strict=True)])
    text = model.projection["text"](data["text"])[:, None]
    answer, _ = model.cross_attention["text"](pooled, text, torch.ones(4, 1, dtype=torch.bool))
    seen = {}
    model.head[0].register_forward_pre_hook(lambda _, args: seen.update(f=args[0]))
    model(**data)
    torch.testing.assert_close(seen["f"][:, :8], pooled)
    torch.testing.assert_close(seen["f"][:, 16:], answer)


@pytest.mark.parametrize("fusion", ["concat", "self_attention"])
def test_fusion_without_cross_attention_concatenates_means(fusion):
    model, data = small(fusion=fusion), batch()
    parts = [model.projection["text"](data["text"])]
    for name in ("audio", "frames"):
        x = model.projection[name](data[name])
        if fusion == "self_attention":
            x = model.self_attention[name](x, data[f"{name}_valid"])
        pairs = zip(x, data[f"{name}_valid"], strict=True)
        parts.append(torch.stack([clip[real].mean(0) for clip, real in pairs]))
    f = torch.cat(parts, -1)
    expected = model.head[3](F.gelu(model.head[0](f)))
    out = model(**data)
    torch.testing.assert_close(out.intensity, expected)
    assert out.attention is None
    assert len(model.cross_attention) == 0
    assert len(model.self_attention) == (2 if fusion == "self_attention" else 0)


def test_paper_and_release_differ_as_the_table_says():
    with torch.device("meta"):
        paper, release = TAEMI.paper(), TAEMI.release()
    assert all(isinstance(x, nn.Linear) for x in paper.projection.values())
    assert all(isinstance(x, nn.Identity) for x in release.projection.values())
    assert set(paper.self_attention) == {"frames", "audio"}
    assert len(release.self_attention) == 0
    assert isinstance(release.cross_attention["audio"].query_norm, nn.LayerNorm)
    assert isinstance(paper.cross_attention["audio"].query_norm, nn.Identity)
    assert release.cross_attention["audio"].heads == 4
    rows = TAEMI.differences()
    assert all(row.paper != row.release for row in rows)
    assert len({row.what for row in rows}) == len(rows) >= 10


def test_masked_mean_and_stand_in():
    x = torch.arange(12.0).view(2, 3, 2)
    valid = torch.tensor([[True, True, False], [False, False, False]])
    torch.testing.assert_close(masked_mean(x, valid), torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    here, token = torch.tensor([True, False]), torch.tensor([7.0, 8.0])
    y, real = stand_in(x, valid, here, token)
    assert torch.equal(y[0], x[0])
    assert y[1].tolist() == [[7, 8], [0, 0], [0, 0]]
    assert real.tolist() == [[True, True, False], [True, False, False]]

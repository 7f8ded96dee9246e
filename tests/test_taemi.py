import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_models import DIMS, batch, ready
from torch import nn

from emilib import MODALITIES
from emilib.models import earlier, multimodal
from emilib.models.taemi import MAX_AUDIO, TAEMI, CrossAttention, SelfAttention

INPUTS = {f"{name}_dim": width for name, width in DIMS.items()}
VALID = {name: batch()[f"{name}_valid"] for name in ("frames", "audio")}


def complete():
    return batch([[1, 1, 1]] * 4)


def small(**settings):
    torch.manual_seed(1)
    return TAEMI(**{**INPUTS, "num_targets": 3, "width": 8, "heads": 2, **settings}).eval()


def fused(model, data):
    """f, what the MLP head reads."""
    seen = {}
    model.head[0].register_forward_pre_hook(lambda _, args: seen.update(f=args[0]))
    out = model(**data)
    torch.testing.assert_close(out.intensity, model.head[3](F.gelu(model.head[0](seen["f"]))))
    return seen["f"], out


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


def test_stated_sizes_and_what_a_sigmoid_bounds():
    wide = [{}, {"projection": False}, {"fusion": "concat", "text_in_fusion": "raw"}]
    narrow = [{"fusion": name} for name in ("concat", "self_attention")]
    narrow += [{"text_in_fusion": "projected"}, {"anchor": "audio"}]
    with torch.device("meta"):
        assert {TAEMI(**settings).head[0].in_features for settings in wide} == {768 + 512 + 512}
        assert {TAEMI(**settings).fused_dim for settings in narrow} == {1536}
    assert MAX_AUDIO == 599
    with_it, without = (small(sigmoid=on)(**complete()).intensity for on in (True, False))
    torch.testing.assert_close(with_it, 1 / (1 + (-without).exp()))
    with torch.device("meta"):
        hallmen, savchenko = earlier.Hallmen2024(), earlier.Savchenko2025()
        gru, tfn = earlier.LastStepGRU().gru, multimodal.TFN()
    lstm = hallmen.lstm
    assert (lstm.hidden_size, lstm.num_layers, lstm.bidirectional) == (1027, 2, False)
    assert (gru.input_size, gru.num_layers, gru.bidirectional) == (384, 3, False)
    assert [tuple(hallmen.head[i].weight.shape) for i in (0, 2)] == [(2054, 2054), (6, 2054)]
    sizes = [(m.head[0].in_features, m.head[0].out_features) for m in savchenko.members.values()]
    assert sizes == [(4 * 768, 64), (1027, 64), (768, 64)]
    assert tfn.head[0][0].in_features == 129 * 33 * 33


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
        token = torch.zeros(DIMS[name])
        if name in model.missing and name in settings.get("explicit_missing", MODALITIES):
            token = model.missing[name].detach()
        by_hand[name] = token.expand(4, -1) if name == "text" else token.expand(4, 1, -1)
        by_hand |= {} if name == "text" else {f"{name}_valid": torch.ones(4, 1).bool()}
    torch.testing.assert_close(model(**data).intensity, model(**by_hand).intensity)


def test_modality_dropout_has_its_frequency_and_three_dropped_are_three_tokens():
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
    settings = {"dropout": 0.0, "attention_dropout": 0.0}
    model = small(**settings, explicit_missing=("frames", "text"), modality_dropout=1 - 1e-9)
    data = complete()
    dropped = model.train()(**data).intensity
    data["present"][:] = False  # every token is explicit by default
    torch.testing.assert_close(dropped, small(**settings)(**data).intensity)


LENGTHS = {"frames": [4, 1, 6, 3], "audio": [2, 9, 5, 1]}
WHOLE = batch([[1, 1, 1]] * 4)


def test_mean_linear_and_last_step_are_written_out_per_clip():
    linear, gru, hallmen = (ready(name) for name in ("MeanLinear", "LastStepGRU", "Hallmen2024"))
    for clip in range(4):
        heard, seen = (WHOLE[name][clip, : LENGTHS[name][clip]] for name in ("audio", "frames"))
        torch.testing.assert_close(linear(**WHOLE).intensity[clip], linear.head(heard.mean(0)))
        states, _ = gru.gru(seen)
        torch.testing.assert_close(gru(**WHOLE).intensity[clip], gru.head(states[-1]))
        states, _ = hallmen.lstm(heard)
        expected = hallmen.head(torch.cat([states.mean(0), states[-1]]))
        torch.testing.assert_close(hallmen(**WHOLE).intensity[clip], expected)
    states, _ = gru.gru(gru.missing["frames"][None])  # clip 1 lacks frames here
    torch.testing.assert_close(gru(**batch()).intensity[1], gru.head(states[-1]))


def test_error_of_an_average_is_that_of_its_members_and_clip_statistics_are_numpys():
    torch.manual_seed(0)
    members, target = [torch.randn(8, 3) for _ in range(4)], torch.randn(8, 3)
    out = earlier.average(members, training=True)
    together = F.mse_loss(out.intensity, target) + out.auxiliary_loss
    apart = torch.stack([F.mse_loss(m, target) for m in members]).mean()
    torch.testing.assert_close(together, apart)
    x, valid = WHOLE["frames"], WHOLE["frames_valid"]
    statistics = earlier.clip_statistics(x, valid).numpy()
    for clip, length in enumerate(LENGTHS["frames"]):
        seen = x[clip, :length].numpy()
        parts = [seen.mean(0), seen.std(0), seen.min(0), seen.max(0)]
        np.testing.assert_allclose(statistics[clip], np.concatenate(parts), atol=2e-6)


def test_tensor_fusion_holds_every_product():
    model, seen = ready("TFN"), {}
    model.head.register_forward_pre_hook(lambda _, args: seen.update(cube=args[0]))
    model(**WHOLE)
    z = {"text": WHOLE["text"]}
    for name, lengths in LENGTHS.items():
        z[name] = torch.stack([x[:n].mean(0) for x, n in zip(WHOLE[name], lengths, strict=True)])
    z = {name: F.pad(model.embed[name](x), (0, 1), value=1.0).detach() for name, x in z.items()}
    for clip in range(4):
        product = np.multiply.outer(z["text"][clip], z["frames"][clip])
        product = np.multiply.outer(product, z["audio"][clip])
        np.testing.assert_allclose(seen["cube"][clip].detach(), product.ravel(), rtol=1e-5)


def test_crossmodal_block_reads_the_source():
    torch.manual_seed(0)
    layer = multimodal.Crossmodal(8, 2, 1, 0.0).eval()
    target, source = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    block = layer.blocks[0]
    query, context = F.layer_norm(target, (8,)), F.layer_norm(source, (8,))
    weights = block["attention"].in_proj_weight.chunk(3)  # its biases are 0 at first
    pairs = zip((query, context, context), weights, strict=True)
    q, k, v = (F.linear(x, w).view(1, -1, 2, 4).transpose(1, 2) for x, w in pairs)
    read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 3, 8)
    y = F.layer_norm(block["attention"].out_proj(read) + query, (8,))
    result = layer(target, source, torch.ones(1, 5, dtype=torch.bool))
    torch.testing.assert_close(result, block["feed_forward"](y) + y)


def test_losses_of_misa_are_numpys():
    rng = np.random.default_rng(0)
    x, y = rng.random((20, 3)), rng.random((30, 3)) ** 2
    expected = np.linalg.norm(x.mean(0) - y.mean(0))
    for k in range(2, 6):
        a, b = (((v - v.mean(0)) ** k).mean(0) for v in (x, y))
        expected += np.linalg.norm(a - b)
    value = multimodal.central_moment_discrepancy(torch.tensor(x), torch.tensor(y))
    assert value.item() == pytest.approx(expected)
    torch.manual_seed(0)
    u, shared, private, rebuilt = ({n: torch.rand(6, 4) for n in DIMS} for _ in range(4))
    losses = multimodal.misa_losses(u, shared, private, rebuilt)
    unit = [{n: x - x.mean(0) for n, x in d.items()} for d in (shared, private)]
    unit = [{n: x / x.norm(dim=1, keepdim=True) for n, x in d.items()} for d in unit]
    pairs = [(unit[0][n], unit[1][n]) for n in DIMS]
    pairs += [(unit[1][a], unit[1][b]) for a, b in itertools.combinations(DIMS, 2)]
    assert losses[1] == pytest.approx(sum(((a.T @ b) ** 2).mean().item() for a, b in pairs))
    assert losses[2] == pytest.approx(sum(F.mse_loss(u[n], rebuilt[n]).item() for n in DIMS) / 3)


@torch.no_grad()
def test_misa_reads_the_end_states_of_both_lstms():
    """Beside torch's own final states, of a clip alone and of the same clip padded."""
    model = multimodal.MISA(frames_dim=4, audio_dim=5, text_dim=6, width=4).eval()
    x, seen = torch.randn(1, 7, 5), []
    model.project["audio"].register_forward_hook(lambda module, args, out: seen.append(args[0]))
    lower, norm, upper = model.recurrent["audio"]
    ones = torch.ones(1, 7, 1)
    states, (first, _) = lower.lstm(torch.cat([x, ones], dim=2).transpose(0, 1))
    _, (second, _) = upper.lstm(torch.cat([norm(states), ones.transpose(0, 1)], dim=2))
    expected = torch.cat([first[0], second[0], first[1], second[1]], dim=1)
    padded = torch.cat([x, torch.full((1, 3, 5), 9.0)], dim=1)
    valid = torch.arange(10)[None] < 7
    for audio, real in ((x, valid[:, :7]), (padded, valid)):
        model(torch.randn(1, 2, 4), audio, torch.randn(1, 6), audio_valid=real)
        torch.testing.assert_close(seen[-1], expected)

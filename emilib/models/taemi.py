"""TAEMI (paper B): a text vector asks the audio and the frames, and an MLP answers.

The paper and the authors' public release describe two different models; both are configurations
of the one class here, `TAEMI.paper()` and `TAEMI.release()`, and `TAEMI.differences()` lists
what sets them apart, as data.

Data that goes in is cut before it comes here: `MAX_FRAMES` and `MAX_AUDIO` say where the paper
cuts. The models themselves take sequences of any length.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from emilib.models.inputs import MODALITIES, Inputs, check_inputs
from emilib.models.output import Output

# Paper B, 3.2: the vision sequence is clipped to 400 frames, the waveform to 12 s. The convolution
# stack of wav2vec2 has a receptive field of 400 samples and a stride of 320 samples at 16 kHz.
MAX_FRAMES = 400
MAX_AUDIO_SECONDS = 12.0
MAX_AUDIO = (12 * 16_000 - 400) // 320 + 1  # 599 steps

TOKEN_STD = 0.02  # not stated in the paper; the release draws its missing tokens from N(0, 0.02^2)


class Difference(NamedTuple):
    """One row of the table of what sets the paper's TAEMI apart from the release's."""

    what: str
    paper: str
    release: str


def masked_mean(sequence: Tensor, valid: Tensor) -> Tensor:
    """Mean of (B, T, D) over the steps that are real; (B, D), zeros where no step is."""
    weight = valid.unsqueeze(-1).to(sequence.dtype)
    return (sequence * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)


def stand_in(sequence: Tensor, valid: Tensor, here: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """A token in place of the sequences that are not here: one real step, at step 0.

    sequence (B, T, D), valid (B, T) bool, here (B,) bool, token (D,) or (B, D).
    Returns the sequence and its mask; nothing of what is not here is left in either.
    """
    steps = sequence.shape[1]
    alone = F.pad(token.unsqueeze(-2), (0, 0, 0, steps - 1))  # (T, D) or (B, T, D)
    first = torch.arange(steps, device=valid.device) == 0
    sequence = torch.where(here[:, None, None], sequence, alone)
    return sequence, torch.where(here[:, None], valid, first)


class CrossAttention(nn.Module):
    """Multi-head attention of one vector a clip over a sequence: CA(t, X) of paper B, 3.3.

    head_h = softmax(q_h K_h^T / sqrt(width / heads)) V_h, concatenated and mapped linearly.
    There is no residual connection (not stated in the paper): what comes out speaks of the context
    alone, so that f = [t; h_a; h_v] keeps the three apart.

    query_dim, context_dim : widths of what asks and of what answers
    norm : LayerNorm on what becomes query and key, not on the value (the release has it)
    """

    def __init__(
        self,
        query_dim: int,
        context_dim: int,
        width: int,
        heads: int,
        dropout: float = 0.0,
        norm: bool = False,
    ):
        super().__init__()
        self.heads = heads
        self.query_norm = nn.LayerNorm(query_dim) if norm else nn.Identity()
        self.key_norm = nn.LayerNorm(context_dim) if norm else nn.Identity()
        self.query = nn.Linear(query_dim, width)
        self.key = nn.Linear(context_dim, width)
        self.value = nn.Linear(context_dim, width)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, context: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """query (B, D_q), context (B, T, D_c), valid (B, T) → (B, width) and (B, H, T).

        The attention is returned as it was before dropout: each head sums to 1 over the valid
        steps. A clip without a valid step gets attention 0 everywhere and the output's bias.
        """
        b, t, _ = context.shape
        q = self.query(self.query_norm(query)).view(b, self.heads, -1)
        k = self.key(self.key_norm(context)).view(b, t, self.heads, -1)
        v = self.value(context).view(b, t, self.heads, -1)
        scores = torch.einsum("bhd,bthd->bht", q, k).float() / q.shape[-1] ** 0.5
        # The smallest number in place of -inf: a row that is masked throughout has no NaN, also
        # not in its gradient, and is set to 0 afterwards.
        mask = valid.unsqueeze(1)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        attention = scores.softmax(dim=-1) * mask
        heads = torch.einsum("bht,bthd->bhd", self.dropout(attention).to(v.dtype), v)
        return self.output(heads.reshape(b, -1)), attention


class SelfAttention(nn.Module):
    """One self-attention layer over a sequence, with residual connection and LayerNorm.

    Paper B, 3.3 says "a dedicated self-attention layer" for each modality. The residual connection,
    the norm and its place, and dropout are not stated in the paper: norm="post" is
    LN(x + SA(x)), norm="pre" x + SA(LN(x)). No feed-forward part and no positions: the paper names
    neither.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, norm: str = "post"):
        super().__init__()
        if norm not in ("post", "pre"):
            raise ValueError(f'norm is {norm!r}: give "post" or "pre".')
        self.heads = heads
        # On what comes out and not on the attention itself: with dropout inside, a CPU's fused
        # attention falls back to one four times slower.
        self.dropout = nn.Dropout(dropout)
        self.pre = norm == "pre"
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, sequence: Tensor, valid: Tensor) -> Tensor:
        """sequence (B, T, W), valid (B, T) → (B, T, W); steps that are not valid are not read."""
        b, t, width = sequence.shape
        x = self.norm(sequence) if self.pre else sequence
        q, k, v = self.query_key_value(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # (B, 1, 1, T): every query of a clip sees the same steps
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None, :])
        x = sequence + self.dropout(self.output(mixed.transpose(1, 2).reshape(b, t, width)))
        return x if self.pre else self.norm(x)


class TAEMI(nn.Module, PyTorchModelHubMixin):
    """Text-anchored fusion of frames, audio and text (paper B, 3.3 and 3.4).

    A' = SA_a(W_a A), V' = SA_v(W_v V), h_a = CA_a(W_t t, A'), h_v = CA_v(W_t t, V'),
    f = [t; h_a; h_v], intensity = W_2 Dropout(GELU(W_1 f)).

    With the paper's widths f is 768 + 512 + 512 = 1792, which needs the raw t in it although the
    text says that t was projected: `text_in_fusion`. The query is the projected t.

    width : of the shared space and of both cross-attentions
    hidden : of the MLP head, `width` where None (not stated in the paper)
    heads, dropout, attention_dropout : not stated in the paper; the release has 4 heads and
        dropout 0.1 on the cross-attention, which has it here; so has what self-attention gives
    projection, self_attention : False leaves the step out, as the release does
    self_attention_norm : "post" or "pre" (not stated in the paper)
    attention_norm : LayerNorm on query and key of the cross-attention (release)
    fusion : "cross_attention", the full model; "self_attention", without the text-anchored
        cross-attention (Table 3, row 2); "concat", without either attention (Table 3, row 1).
        The last two concatenate the mean over the valid steps: the paper says "flattened", but
        sequences of different lengths have no common flattened width.
    anchor : who asks. With "audio" or "frames" (Table 4) the mean over the anchor's valid steps,
        after projection and self-attention, asks; the two others answer, the text as a
        sequence of length 1; f = [anchor; h of the two others, in the order audio, frames, text].
    text_in_fusion : "raw" or "projected" text in f; None is what the paper says for each fusion:
        raw for cross-attention (f is 1792), projected for the two others (f is 1536).
    missing_tokens : False puts zeros where a token would stand (Table 3, row 3)
    explicit_missing : modalities whose token stands in where a clip lacks them; others are
        zeros then. The paper names vision and text; audio is added because modality dropout
        replaces every modality by its token. The release marks vision and text only.
    modality_dropout : chance p, in training only, that a clip's modality is replaced by its
        token, drawn for each clip and modality by itself. When all three are dropped
        the clip is its three tokens: the prediction the model makes of nothing.

    A missing sequence is its token alone, a sequence of length 1: the attention over it is 1 at
    step 0. A missing text's token asks in its place. Self-attention is not applied to the text: a
    sequence of length 1 has nothing to attend to. Steps carry no positions (not stated in the
    paper).

    Raises ValueError for settings that do not fit together.
    """

    def __init__(
        self,
        frames_dim: int = 768,
        audio_dim: int = 1027,
        text_dim: int = 768,
        num_targets: int = 6,
        *,
        width: int = 512,
        hidden: int | None = None,
        heads: int = 4,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        projection: bool = True,
        self_attention: bool = True,
        self_attention_norm: str = "post",
        attention_norm: bool = False,
        fusion: str = "cross_attention",
        anchor: str = "text",
        text_in_fusion: str | None = None,
        missing_tokens: bool = True,
        explicit_missing: tuple[str, ...] = MODALITIES,
        modality_dropout: float = 0.1,
    ):
        super().__init__()
        _check_settings(
            width, heads, fusion, anchor, text_in_fusion, explicit_missing, modality_dropout
        )
        dims = {"frames": frames_dim, "audio": audio_dim, "text": text_dim}
        self.dims = dims
        self.fusion = fusion
        self.anchor = anchor
        self.modality_dropout = modality_dropout
        full = fusion == "cross_attention"
        default = "raw" if full else "projected"
        self.raw_text = (text_in_fusion or default) == "raw"

        self.missing = nn.ParameterDict()
        if missing_tokens:
            for name, dim in dims.items():
                self.missing[name] = nn.Parameter(torch.randn(dim) * TOKEN_STD)
        explicit = [missing_tokens and name in explicit_missing for name in MODALITIES]
        self.register_buffer("explicit", torch.tensor(explicit), persistent=False)

        inner = {name: width if projection else dim for name, dim in dims.items()}
        self.projection = nn.ModuleDict(
            {n: nn.Linear(d, width) if projection else nn.Identity() for n, d in dims.items()}
        )
        self.self_attention = nn.ModuleDict()
        if self_attention and fusion != "concat":
            for name in ("frames", "audio"):
                heads_here = _divisor(inner[name], heads)
                self.self_attention[name] = SelfAttention(
                    inner[name], heads_here, attention_dropout, self_attention_norm
                )

        self.asked = tuple(n for n in ("audio", "frames", "text") if n != anchor)
        self.cross_attention = nn.ModuleDict()
        if full:
            for name in self.asked:
                self.cross_attention[name] = CrossAttention(
                    inner[anchor], inner[name], width, heads, attention_dropout, attention_norm
                )

        text_width = text_dim if self.raw_text else inner["text"]
        if full:
            first = text_width if anchor == "text" else inner[anchor]
            self.fused_dim = first + 2 * width
        else:
            self.fused_dim = text_width + inner["audio"] + inner["frames"]
        hidden = hidden or width
        self.head = nn.Sequential(
            nn.Linear(self.fused_dim, hidden),  # W_1
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_targets),  # W_2; labels have a mean, so both keep their bias
        )

    @classmethod
    def paper(cls, **settings) -> TAEMI:
        """The model the paper's text describes. `settings` change widths (or anything else)."""
        return cls(**{**PAPER, **settings})

    @classmethod
    def release(cls, **settings) -> TAEMI:
        """The model the authors' release trains by default. `settings` as in `paper`."""
        return cls(**{**RELEASE, **settings})

    @staticmethod
    def differences() -> list[Difference]:
        """What sets the two apart, as (what, paper, release): model first, then data and recipe."""
        rows = [
            Difference(what, str(PAPER[name]), str(RELEASE[name]))
            for name, what in _SETTING_NAMES.items()
            if PAPER[name] != RELEASE[name]
        ]
        return rows + list(_OTHER_DIFFERENCES)

    def forward(
        self,
        frames: Tensor | None,
        audio: Tensor | None,
        text: Tensor | None,
        frames_valid: Tensor | None = None,
        audio_valid: Tensor | None = None,
        present: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Output:
        """frames (B, T_v, D_v), audio (B, T_a, D_a), text (B, D_t) → `Output`.

        frames_valid, audio_valid : (B, T) bool, True where a step is real; None: every step
        present : (B, 3) bool, order frames, audio, text; None: a modality is present where it has
            a valid step, and a text that is given is present
        generator : for modality dropout in training; None is torch's own, seeded by
            torch.manual_seed

        `attention` holds, for each modality asked, (B, H, T) over the steps given. Where the clip's
        modality is replaced by its token it is 1 at step 0. It is None without cross-attention.
        What lies in padding or in the slot of an absent modality, NaN included, changes nothing.
        Raises ValueError when shapes disagree.
        """
        dtype = self.head[0].weight.dtype
        given = check_inputs(
            *(frames, audio, text, frames_valid, audio_valid, present), dims=self.dims, dtype=dtype
        )
        given, tokens = self._drop(complete_inputs(given, self.dims), generator)
        raw, valid = self._fill(given, tokens)
        projected = {name: self.projection[name](x) for name, x in raw.items()}
        for name, layer in self.self_attention.items():
            projected[name] = layer(projected[name], valid[name])
        fused, attention = self._fuse(raw["text"][:, 0], projected, valid)
        return Output(intensity=self.head(fused), attention=attention)

    def _drop(self, given: Inputs, generator) -> tuple[Inputs, Tensor]:
        """Modality dropout; which modalities are left, and (B, 3) where the token stands in."""
        tokens = ~given.present & self.explicit
        if not (self.training and self.modality_dropout > 0):
            return given, tokens
        device = generator.device if generator is not None else given.present.device
        chance = torch.rand(given.present.shape, generator=generator, device=device)
        dropped = (chance < self.modality_dropout).to(given.present.device)
        return replace(given, present=given.present & ~dropped), tokens | dropped

    def _fill(self, given: Inputs, tokens: Tensor) -> tuple[dict, dict]:
        """Every modality as a sequence (B, T, D) with its mask (B, T), nothing lacking in it."""
        text_valid = given.present.new_ones(len(given.text), 1)
        sequences = {
            "frames": (given.frames, given.frames_valid),
            "audio": (given.audio, given.audio_valid),
            "text": (given.text[:, None], text_valid),
        }
        filled, valid = {}, {}
        for column, name in enumerate(MODALITIES):
            x, mask = sequences[name]
            token = x.new_zeros(x.shape[-1])
            if name in self.missing:  # (B, D): the token where it stands in, zeros elsewhere
                token = self.missing[name].to(x.dtype) * tokens[:, column, None]
            filled[name], valid[name] = stand_in(x, mask, given.present[:, column], token)
        return filled, valid

    def _fuse(self, text: Tensor, sequences: dict, valid: dict) -> tuple[Tensor, dict | None]:
        """f (B, fused_dim) and the attention of each modality asked."""
        pooled = {name: masked_mean(sequences[name], valid[name]) for name in MODALITIES}
        text = text if self.raw_text else pooled["text"]
        if self.fusion != "cross_attention":
            return torch.cat([text, pooled["audio"], pooled["frames"]], dim=-1), None
        parts, attention = [text if self.anchor == "text" else pooled[self.anchor]], {}
        for name in self.asked:
            answer, attention[name] = self.cross_attention[name](
                pooled[self.anchor], sequences[name], valid[name]
            )
            parts.append(answer)
        return torch.cat(parts, dim=-1), attention


PAPER = {
    "projection": True,
    "self_attention": True,
    "attention_norm": False,
    "heads": 4,
    "width": 512,
    "attention_dropout": 0.1,
    "modality_dropout": 0.1,
    "explicit_missing": MODALITIES,
}
RELEASE = PAPER | {
    "projection": False,
    "self_attention": False,
    "attention_norm": True,
    "explicit_missing": ("frames", "text"),
}
_SETTING_NAMES = {
    "projection": "linear projection into a shared space",
    "self_attention": "self-attention layer for each sequence",
    "attention_norm": "LayerNorm on query and key of the cross-attention",
    "explicit_missing": "modalities whose token stands in where a clip lacks them",
}
_OTHER_DIFFERENCES = (
    Difference("attention heads", "not stated", "4"),
    Difference("attention dropout", "not stated", "0.1"),
    Difference("initial missing tokens", "not stated", f"N(0, {TOKEN_STD}²)"),
    Difference("vision encoder", "a pretrained ViT", "ViT-B/16 in21k, mean over a frame's tokens"),
    Difference("text encoder", "GTE, CLS", "gte-en-mlm-base, CLS"),
    Difference("padding of a batch", "masked, variable lengths", "always 12 s and 400 frames"),
    Difference("gradient clipping at 100", "norm or value not stated", "by value"),
    Difference("learning rate of the encoders", "not stated apart from 1e-4", "1e-4"),
    Difference("seed", "not stated", "3407"),
)


def complete_inputs(given: Inputs, dims: dict[str, int]) -> Inputs:
    """Checked inputs with zeros, one step long, for each modality of `dims` that is None.

    A model then has no special case for a batch that lacks a modality altogether.
    """
    like = next(x for x in (given.frames, given.audio, given.text) if x is not None)
    filled = {}
    for name, dim in dims.items():
        if getattr(given, name) is not None:
            continue
        shape = (len(like), dim) if name == "text" else (len(like), 1, dim)
        filled[name] = like.new_zeros(shape)
        if name != "text":
            filled[f"{name}_valid"] = given.present.new_zeros(shape[:2])
    return replace(given, **filled)


def _divisor(width: int, heads: int) -> int:
    """The most heads, at most `heads`, that divide a width: without projection it may be 1027."""
    return next(h for h in range(heads, 0, -1) if width % h == 0)


def _check_settings(width, heads, fusion, anchor, text_in_fusion, explicit, chance) -> None:
    choices = {
        "fusion": (fusion, ("cross_attention", "self_attention", "concat")),
        "anchor": (anchor, ("text", "audio", "frames")),
        "text_in_fusion": (text_in_fusion, (None, "raw", "projected")),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}: give one of {', '.join(map(repr, allowed))}.")
    if width % heads:
        raise ValueError(f"width {width} is no multiple of heads {heads}: change one of them.")
    if not set(explicit) <= set(MODALITIES):
        raise ValueError(f"explicit_missing is {tuple(explicit)}: give names of {MODALITIES}.")
    if not 0 <= chance < 1:
        raise ValueError(f"modality_dropout is {chance}: give a chance from 0 up to below 1.")

"""TAEMI (paper B): a text vector asks the audio and the frames, and an MLP answers.

The paper and the authors' public release describe two different models; the defaults are the
paper's, the experiment "taemi_release" holds the settings of the release. Sequences may have any
length; the paper cuts vision at 400 frames, sound at `MAX_AUDIO` steps, and names no frame rate.
"""

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from emilib import MODALITIES, SAMPLE_RATE
from emilib.models.inputs import Output, check_choice, check_inputs, masked_mean, stand_in, vectors

MAX_AUDIO_SECONDS = 12.0  # paper B, 3.2
# The convolution stack of wav2vec2: a receptive field of 400 samples, a stride of 320.
MAX_AUDIO = (int(MAX_AUDIO_SECONDS * SAMPLE_RATE) - 400) // 320 + 1  # 599 steps


class CrossAttention(nn.Module):
    """Multi-head attention of one vector a clip over a sequence: CA(t, X) of paper B, 3.3.
    head_h = softmax(q_h K_h^T / sqrt(width / heads)) V_h, concatenated and mapped linearly.
    There is no residual connection (not stated in the paper): f = [t; h_a; h_v] keeps the three
    apart. norm=True puts a LayerNorm on what becomes query and key (the release has it)."""

    def __init__(self, query_dim, context_dim, width, heads, dropout=0.0, norm=False):
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
        The attention is that before dropout: each head sums to 1 over the valid steps, or is 0
        everywhere in a clip without any."""
        b, t, _ = context.shape
        q = self.query(self.query_norm(query)).view(b, self.heads, -1)
        k = self.key(self.key_norm(context)).view(b, t, self.heads, -1)
        v = self.value(context).view(b, t, self.heads, -1)
        scores = torch.einsum("bhd,bthd->bht", q, k).float() / q.shape[-1] ** 0.5
        # Not -inf: a row that is masked throughout would be NaN, and its gradient too.
        mask = valid.unsqueeze(1)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        attention = scores.softmax(dim=-1) * mask
        heads = torch.einsum("bht,bthd->bhd", self.dropout(attention).to(v.dtype), v)
        return self.output(heads.reshape(b, -1)), attention


class SelfAttention(nn.Module):
    """One self-attention layer over a sequence, with residual connection and LayerNorm.
    norm="post" is LN(x + SA(x)), norm="pre" x + SA(LN(x)). Paper B, 3.3 says "a dedicated
    self-attention layer": residual connection, norm and dropout are not stated; feed-forward part
    and positions are not named, and not here."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0, norm: str = "post"):
        super().__init__()
        check_choice("self_attention_norm", norm, ("post", "pre"))
        self.heads = heads
        # On what comes out: with dropout inside, a CPU's fused attention is four times slower.
        self.dropout, self.pre = nn.Dropout(dropout), norm == "pre"
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

    The query is the projected t, f has the raw one: 768 + 512 + 512 = 1792. Notebook 05 lists what
    the paper leaves open.

    fusion : "cross_attention", the full model; "self_attention", without the text-anchored
        cross-attention (Table 3, row 2); "concat", without either attention (Table 3, row 1).
        The last two concatenate the mean over the valid steps.
    anchor : who asks. With "audio" or "frames" (Table 4) the mean over the anchor's valid steps
        asks and the two others answer, the text as a sequence of length 1;
        f = [anchor; h of the two others, in the order audio, frames, text].
    text_in_fusion : "raw" or "projected" text in f; None is what the paper says for each fusion:
        raw for cross-attention (f is 1792), projected for the two others (f is 1536).
    explicit_missing : modalities whose token stands in where a clip lacks them; others are zeros
        then. The paper names vision and text; modality dropout replaces all three.

    A missing sequence is its token alone; a missing text's token asks in its place.
    """

    def __init__(
        self,
        frames_dim: int = 768,
        audio_dim: int = 1027,
        text_dim: int = 768,
        num_targets: int = 6,
        *,
        width: int = 512,  # of the shared space and of both cross-attentions
        hidden: int | None = None,  # of the MLP head, else `width`; not stated in the paper, nor
        heads: int = 4,  # these three, which are the release's
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        projection: bool = True,  # False leaves the step out, as the release does
        self_attention: bool = True,  # the same
        self_attention_norm: str = "post",  # of `SelfAttention`
        attention_norm: bool = False,  # of `CrossAttention`
        fusion: str = "cross_attention",
        anchor: str = "text",
        text_in_fusion: str | None = None,
        missing_tokens: bool = True,  # False: zeros (Table 3, row 3)
        explicit_missing: tuple[str, ...] = MODALITIES,
        modality_dropout: float = 0.1,  # chance, in training, that a token replaces a modality
        sigmoid: bool = False,  # intensities in (0, 1); the paper's are real numbers (3.1)
    ):
        super().__init__()
        check_choice("fusion", fusion, ("cross_attention", "self_attention", "concat"))
        check_choice("anchor", anchor, MODALITIES)
        check_choice("text_in_fusion", text_in_fusion, (None, "raw", "projected"))
        for name in explicit_missing:
            check_choice("explicit_missing", name, MODALITIES)
        if width % heads:
            raise ValueError(f"expected a width that heads divide, got {width}, heads {heads}")
        self.dims = {"frames": frames_dim, "audio": audio_dim, "text": text_dim}
        self.fusion, self.anchor, self.sigmoid = fusion, anchor, sigmoid
        self.modality_dropout = modality_dropout
        crossed = fusion == "cross_attention"
        self.raw_text = (text_in_fusion or ("raw" if crossed else "projected")) == "raw"

        self.missing = vectors(self.dims if missing_tokens else {})
        explicit = torch.tensor([name in explicit_missing for name in MODALITIES])
        self.register_buffer("explicit", explicit, persistent=False)
        inner = {name: width if projection else dim for name, dim in self.dims.items()}
        project = (lambda dim: nn.Linear(dim, width)) if projection else (lambda dim: nn.Identity())
        self.projection = nn.ModuleDict({name: project(dim) for name, dim in self.dims.items()})
        self.self_attention = nn.ModuleDict()
        for name in ("frames", "audio") if self_attention and fusion != "concat" else ():
            # Without projection a width may be 1027: the most heads that divide it.
            most = next(h for h in range(heads, 0, -1) if inner[name] % h == 0)
            settings = inner[name], most, attention_dropout, self_attention_norm
            self.self_attention[name] = SelfAttention(*settings)
        self.cross_attention = nn.ModuleDict()
        text_width = text_dim if self.raw_text else inner["text"]
        self.fused_dim = text_width + inner["audio"] + inner["frames"]
        if crossed:
            for name in [n for n in ("audio", "frames", "text") if n != anchor]:
                attention = width, heads, attention_dropout, attention_norm
                self.cross_attention[name] = CrossAttention(inner[anchor], inner[name], *attention)
            self.fused_dim = (text_width if anchor == "text" else inner[anchor]) + 2 * width
        first = nn.Linear(self.fused_dim, hidden or width)  # W_1
        second = nn.Linear(hidden or width, num_targets)  # W_2; labels have a mean: with bias
        self.head = nn.Sequential(first, nn.GELU(), nn.Dropout(dropout), second)

    def forward(self, frames, audio, text, frames_valid=None, audio_valid=None, present=None):
        """frames (B, T_v, D_v), audio (B, T_a, D_a), text (B, D_t) → `Output`.
        The six arguments are those of `check_inputs`. `attention` holds, for each modality asked,
        (B, H, T) over the steps passed; None without cross-attention."""
        inputs = (frames, audio, text, frames_valid, audio_valid, present)
        dtype = self.head[0].weight.dtype
        x, valid, present = check_inputs(*inputs, dims=self.dims, dtype=dtype)
        present, tokens = self.drop(present)
        projected = {}
        for column, name in enumerate(MODALITIES):
            token = self.token(name, tokens[:, column])
            x[name], valid[name] = stand_in(x[name], valid[name], present[:, column], token)
            projected[name] = self.projection[name](x[name])
        for name, layer in self.self_attention.items():
            projected[name] = layer(projected[name], valid[name])
        fused, attention = self.fuse(x["text"][:, 0], projected, valid)
        intensity = self.head(fused)
        return Output(intensity.sigmoid() if self.sigmoid else intensity, attention=attention)

    def drop(self, present: Tensor) -> tuple[Tensor, Tensor]:
        """Modality dropout (3.4): which modalities are left, and where a token stands in (B, 3)."""
        tokens = ~present & self.explicit
        if not self.training or self.modality_dropout == 0:
            return present, tokens
        dropped = torch.rand(present.shape, device=present.device) < self.modality_dropout
        return present & ~dropped, tokens | dropped

    def token(self, name: str, stands_in: Tensor) -> Tensor:
        """(B, D): the learned token of a modality where `stands_in` (B,), zeros elsewhere."""
        if name not in self.missing:
            return self.head[0].weight.new_zeros(self.dims[name])
        return self.missing[name] * stands_in.unsqueeze(-1)

    def fuse(self, text: Tensor, sequences: dict, valid: dict) -> tuple[Tensor, dict | None]:
        """f (B, fused_dim) = [t; h_a; h_v] and the attention over each modality of the context.

        text (B, D_t) raw; sequences (B, T, W) and valid (B, T) of each modality, the text's T is 1
        """
        pooled = {name: masked_mean(sequences[name], valid[name]) for name in MODALITIES}
        text = text if self.raw_text else pooled["text"]
        if self.fusion != "cross_attention":
            return torch.cat([text, pooled["audio"], pooled["frames"]], dim=-1), None
        parts, attention = [text if self.anchor == "text" else pooled[self.anchor]], {}
        for name, layer in self.cross_attention.items():
            answer, attention[name] = layer(pooled[self.anchor], sequences[name], valid[name])
            parts.append(answer)
        return torch.cat(parts, dim=-1), attention

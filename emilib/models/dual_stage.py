"""Stage II of paper A: quality-guided fusion of frames, audio and text (Eq. 2 to 9).

    frames (B, T, D) ── TCN (2) ────────────── segments (5) ── MLP (4) ─┐
    audio (B, T, D) ─── BiLSTM (3) ── gate (6) ─ segments ──── MLP (4) ─┼─ β-weighted sum (7, 8)
    text (B, D) ────────────────────────────── broadcast ───── MLP (4) ─┘        │
                      intensity (B, E) ── mean over segments ── linear ── Transformer (9)

Eq. 9 adds frames indexed by segment, audio indexed by 20 ms step and text without a time. The
common time base here is the M segments of Eq. 5: audio is averaged over the same M parts of the
clip after its gate, and text is the same in each.
"""

from collections.abc import Sequence

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from emilib import MODALITIES
from emilib.models.inputs import (
    Inputs,
    Output,
    check_at_least_one,
    check_choice,
    check_heads,
    check_inputs,
    masked_mean,
)
from emilib.models.temporal import TCN, BiLSTM, DifferenceGate, pool_segments, positions


class DualStage(nn.Module, PyTorchModelHubMixin):
    """Paper A's fusion network on features of frozen encoders (Eq. 2 to 9).

    frames_dim, audio_dim, text_dim : widths of the features; 768, 1024 and 768 in the paper
    num_targets : E, one output an emotion
    modalities : which of "frames", "audio", "text" the model has; layers exist only for these
    width : common width of the mapped modalities (Eq. 4)
    segments : M of Eq. 5
    fusion : "sum" weighs and adds the modalities (Eq. 7 to 9); "concat" puts them side by side
        and projects to `width` (Eq. 4 as written); then `quality` has no effect
    quality : weights from quality scores (Eq. 7, 8), or the same weight for each present modality
    gate : the difference gate of Eq. 6
    segment_pooling : pool frames to M segments (Eq. 5). Without it the time base is the clip's
        own frame steps, to which audio is averaged; a clip without frames keeps M segments.
    tcn_width, tcn_kernel, tcn_dilations : of the TCN (Eq. 2)
    audio_hidden : LSTM width of each direction (Eq. 3)
    layers, heads : of the Transformer encoder (Eq. 9); heads must divide width
    dropout : everywhere, in training only

    Of all these the paper states only the feature widths and E. Raises ValueError for values that
    do not fit.
    """

    def __init__(
        self,
        frames_dim: int = 768,
        audio_dim: int = 1024,
        text_dim: int = 768,
        num_targets: int = 6,
        modalities: Sequence[str] = MODALITIES,
        width: int = 256,  # not stated in the paper, nor is anything below
        segments: int = 16,
        fusion: str = "sum",
        quality: bool = True,
        gate: bool = True,
        segment_pooling: bool = True,
        tcn_width: int = 128,
        tcn_kernel: int = 3,
        tcn_dilations: Sequence[int] = (1, 2, 4, 8),
        audio_hidden: int = 128,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
    ):
        super().__init__()
        if isinstance(modalities, str) or not modalities or set(modalities) - set(MODALITIES):
            raise ValueError(f"expected modalities out of {MODALITIES}, got {modalities!r}")
        check_choice("fusion", fusion, ("sum", "concat"))
        check_at_least_one(segments=segments)
        check_heads(width, heads)
        dims = {"frames": frames_dim, "audio": audio_dim, "text": text_dim}
        self.modalities = tuple(name for name in MODALITIES if name in modalities)
        self.dims = {name: dims[name] for name in self.modalities}
        self.width, self.segments, self.segment_pooling = width, segments, segment_pooling

        if "frames" in self.modalities:
            self.tcn = TCN(frames_dim, tcn_width, tcn_kernel, tcn_dilations, dropout)
        if "audio" in self.modalities:
            self.lstm = BiLSTM(audio_dim, audio_hidden)
            self.gate = DifferenceGate(2 * audio_hidden) if gate else nn.Identity()
        states = {"frames": tcn_width, "audio": 2 * audio_hidden, "text": text_dim}
        self.mapping = nn.ModuleDict(
            {name: mapping_mlp(states[name], width, dropout) for name in self.modalities}
        )
        self.concat = nn.Linear(3 * width, width) if fusion == "concat" else None
        self.quality = None
        if quality and fusion == "sum":
            self.quality = nn.ModuleDict({name: score_mlp(width) for name in self.modalities})
        # Stands for a clip without any modality, so that its output is finite and learned.
        self.nothing = nn.Parameter(torch.randn(width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head = nn.Linear(width, num_targets)

    def forward(
        self,
        frames: Tensor | None,
        audio: Tensor | None,
        text: Tensor | None,
        frames_valid: Tensor | None = None,
        audio_valid: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Output:
        """Intensities of B clips and the modality weights of each segment.

        frames (B, T, frames_dim), audio (B, T, audio_dim), text (B, text_dim) float, or None;
        frames_valid, audio_valid (B, T) bool, True = real, audio padded on the right;
        present (B, 3) bool, order frames, audio, text: False drops a modality of a clip.

        Returns `Output`: intensity (B, E) without a bound; weights (B, M, 3) of Eq. 8, exactly
        0 where a modality is absent or has nothing in that segment, None with fusion="concat".
        M is the longest clip's frame count without segment pooling.
        A clip with no modality at all gets a learned constant and weights of 0.
        Raises ValueError as `check_inputs` does, also when no used modality is passed.
        """
        dtype = self.head.weight.dtype
        inputs = check_inputs(
            *(frames, audio, text, frames_valid, audio_valid, present), dims=self.dims, dtype=dtype
        )
        mapped, real = self.map(inputs)  # (B, M, 3, W), (B, M, 3)
        weights = None
        if self.concat is not None:
            fused = self.concat(mapped.flatten(2))  # (B, M, 3 W) -> (B, M, W)
        else:
            weights = self.weigh(mapped, real)
            fused = (weights.unsqueeze(-1) * mapped).sum(2)
        return Output(self.estimate(fused, real.any(-1)), weights=weights)

    def map(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Every modality on the common time base and width (Eq. 2 to 6).

        Returns mapped (B, M, 3, W), zero where there is nothing, and real (B, M, 3) bool.
        """
        x, valid = inputs.sequences, inputs.valid
        counts = self.time_base(inputs)
        base = torch.arange(int(counts.max()), device=counts.device) < counts[:, None]  # (B, M)
        states, real = {}, {}
        if "frames" in x:
            hidden = self.tcn(x["frames"], valid["frames"])  # Eq. 2
            states["frames"], real["frames"] = pool_segments(hidden, valid["frames"], counts)
        if "audio" in x:
            hidden = self.gate(self.lstm(x["audio"], valid["audio"]))  # Eq. 3, 6
            states["audio"], real["audio"] = pool_segments(hidden, valid["audio"], counts)
        if "text" in x:
            states["text"], real["text"] = x["text"], base & valid["text"]  # one step for all
        nothing = self.nothing.new_zeros(())
        mapped = [self.mapping[n](states[n]) if n in states else nothing for n in MODALITIES]
        mapped = torch.stack([m.expand(*base.shape, self.width) for m in mapped], dim=2)
        real = torch.stack([real.get(n, torch.zeros_like(base)) for n in MODALITIES], dim=-1)
        return mapped.masked_fill(~real.unsqueeze(-1), 0.0), real

    def time_base(self, inputs: Inputs) -> Tensor:
        """Segments of each clip (B,): M, or the clip's own frame steps without segment pooling."""
        counts = torch.full_like(inputs.present[:, 0], self.segments, dtype=torch.long)
        if self.segment_pooling or "frames" not in inputs.valid:
            return counts
        valid = inputs.valid["frames"]
        lengths = (torch.arange(1, valid.shape[1] + 1, device=valid.device) * valid).amax(1)
        return torch.where(lengths > 0, lengths, counts)

    def weigh(self, mapped: Tensor, real: Tensor) -> Tensor:
        """Softmax of the quality scores over what is there (Eq. 7, 8); (B, M, 3)."""
        scores = list(torch.zeros_like(mapped[..., 0]).unbind(-1))  # (B, M) of each modality
        for name, score in (self.quality or {}).items():
            column = MODALITIES.index(name)
            scores[column] = score(mapped[:, :, column]).squeeze(-1)
        return present_softmax(torch.stack(scores, dim=-1), real)

    def estimate(self, fused: Tensor, valid: Tensor) -> Tensor:
        """Transformer over the segments, linear output, mean over valid segments (Eq. 9).

        fused (B, M, W), valid (B, M) bool. Returns (B, E).
        """
        # A clip without any valid segment: its first segment is the learned vector instead.
        first = torch.arange(valid.shape[1], device=valid.device) == 0
        empty = first & ~valid.any(1, keepdim=True)  # (B, M)
        valid = valid | empty
        fused = torch.where(empty.unsqueeze(-1), self.nothing.to(fused.dtype), fused)
        fused = fused + positions(fused.shape[1], self.width, fused.device, fused.dtype)
        hidden = self.encoder(fused, src_key_padding_mask=~valid)
        # One label a clip: the mean over the steps answers to it (the paper's loss is a step's).
        return masked_mean(self.head(hidden), valid)


def present_softmax(scores: Tensor, real: Tensor) -> Tensor:
    """Softmax over the last dimension among the real entries (paper A, Eq. 8).

    scores (..., 3) float; real (..., 3) bool. Returns (..., 3): exactly 0 where not real, and
    all 0, never NaN, where nothing is.
    """
    lowest = torch.finfo(scores.dtype).min
    return torch.softmax(scores.masked_fill(~real, lowest), dim=-1).masked_fill(~real, 0.0)


def mapping_mlp(dim: int, width: int, dropout: float) -> nn.Sequential:
    """The MLP of Eq. 4, (..., dim) → (..., width).

    It ends in a LayerNorm: modalities of one scale, so that the weights of Eq. 8 are comparable.
    Form and normalisation are not stated in the paper.
    """
    return nn.Sequential(
        nn.Linear(dim, width),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(width, width),
        nn.LayerNorm(width),
    )


def score_mlp(width: int) -> nn.Sequential:
    """The MLP of Eq. 7, (..., width) → (..., 1). Its hidden width is not stated in the paper."""
    return nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, 1))

"""Stage II of paper A: quality-guided fusion of frames, audio and text (Eq. 2 to 9).

    frames (B, T, D) ── TCN (2) ────────────── segments (5) ── MLP (4) ─┐
    audio (B, T, D) ─── BiLSTM (3) ── gate (6) ─ segments ──── MLP (4) ─┼─ β-weighted sum (7, 8)
    text (B, D) ────────────────────────────── broadcast ───── MLP (4) ─┘        │
                      intensity (B, E) ── mean over segments ── linear ── Transformer (9)

Eq. 9 adds frames indexed by segment, audio indexed by 20 ms step and text without a time. Here all
are on the M segments of Eq. 5: gated audio is averaged over them, and text is the same in each.
"""

from collections.abc import Sequence

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from emilib import MODALITIES
from emilib.models import temporal
from emilib.models.inputs import Output, check_choice, check_inputs, masked_mean, stand_in


class DualStage(nn.Module, PyTorchModelHubMixin):
    """Paper A's fusion network on features of frozen encoders (Eq. 2 to 9).

    modalities : which of "frames", "audio", "text" the model has; layers exist only for these
    fusion : "sum" weighs and adds the modalities (Eq. 7 to 9); "concat" puts them side by side
        and projects to `width` (Eq. 4 as written); then `quality` has no effect
    quality : weights from quality scores (Eq. 7, 8), or the same weight for each present modality
    segment_pooling : pool frames to M segments (Eq. 5). Without it the time base is the clip's
        own frame steps, to which audio is averaged; a clip without frames keeps M segments.
    scored : what Eq. 7 scores. "states": h_v and h_a, as Eq. 2 and 3 define them, and f_s for the
        h_s that is nowhere defined; "mapped": the mapped modalities of Eq. 4
    step_loss : the MSE of 3.6, of each step's output against the clip's one label: what it has
        beyond the MSE of the mean, (y - ŷ)² + mean_t (ŷ^t - ŷ)² = mean_t (y - ŷ^t)², is the
        auxiliary loss. False: of the mean alone

    Of all the others the paper states only the feature widths and E; see notebook 04.
    """

    # As Yu et al. 2025 [34] of paper B, Table 2 (0.51), a later version of paper A.
    def __init__(
        self,
        frames_dim: int = 768,
        audio_dim: int = 1024,
        text_dim: int = 768,
        num_targets: int = 6,  # E
        modalities: Sequence[str] = MODALITIES,
        width: int = 256,  # of Eq. 4; not stated in the paper, nor is anything below
        segments: int = 16,  # M of Eq. 5
        fusion: str = "sum",
        quality: bool = True,
        gate: bool = True,  # Eq. 6
        segment_pooling: bool = True,
        tcn_width: int = 128,
        tcn_kernel: int = 3,
        tcn_dilations: Sequence[int] = (1, 2, 4, 8),
        audio_hidden: int = 128,  # of each direction of the LSTM (Eq. 3)
        layers: int = 2,  # of the Transformer encoder (Eq. 9)
        heads: int = 4,  # must divide width
        dropout: float = 0.1,
        scored: str = "states",
        step_loss: bool = True,
        sigmoid: bool = False,  # every step's output in (0, 1)
    ):
        super().__init__()
        check_choice("scored", scored, ("states", "mapped"))
        if isinstance(modalities, str) or not modalities or set(modalities) - set(MODALITIES):
            raise ValueError(f"expected modalities out of {MODALITIES}, got {modalities!r}")
        check_choice("fusion", fusion, ("sum", "concat"))
        dims = {"frames": frames_dim, "audio": audio_dim, "text": text_dim}
        self.dims = {name: dims[name] for name in MODALITIES if name in modalities}
        self.width, self.segments, self.segment_pooling = width, segments, segment_pooling
        self.scored, self.step_loss, self.sigmoid = scored, step_loss, sigmoid

        if "frames" in modalities:
            self.tcn = temporal.TCN(frames_dim, tcn_width, tcn_kernel, tcn_dilations, dropout)
        if "audio" in modalities:
            self.lstm = temporal.BiLSTM(audio_dim, audio_hidden)
            self.gate = temporal.DifferenceGate(2 * audio_hidden) if gate else nn.Identity()
        states = {"frames": tcn_width, "audio": 2 * audio_hidden, "text": text_dim}
        mapping = {name: mapping_mlp(states[name], width, dropout) for name in self.dims}
        self.mapping = nn.ModuleDict(mapping)
        self.concat = nn.Linear(3 * width, width) if fusion == "concat" else None
        self.quality = None
        if quality and fusion == "sum":
            dims = states if scored == "states" else dict.fromkeys(states, width)
            self.quality = nn.ModuleDict({n: score_mlp(dims[n], width // 2) for n in self.dims})
        # Stands for a clip without any modality, so that its output is finite and learned.
        self.nothing = nn.Parameter(torch.randn(width) * 0.02)
        self.encoder = temporal.transformer(width, heads, layers, dropout)
        self.head = nn.Linear(width, num_targets)

    def forward(self, frames, audio, text, frames_valid=None, audio_valid=None, present=None):
        """frames (B, T, D), audio (B, T, D) padded on the right, text (B, D) → `Output`.
        The six arguments are those of `check_inputs`. `weights` (B, M, 3) are None with
        fusion="concat". A clip with no modality gets a learned constant and weights of 0."""
        inputs = (frames, audio, text, frames_valid, audio_valid, present)
        x, valid, _ = check_inputs(*inputs, dims=self.dims, dtype=self.head.weight.dtype)
        mapped, real, h = self.map(x, valid)  # (B, M, 3, W), (B, M, 3)
        weights = self.weigh(h, real) if self.concat is None else None
        if self.concat is None:
            fused = (weights.unsqueeze(-1) * mapped).sum(2)
        else:
            fused = self.concat(mapped.flatten(2))  # (B, M, 3 W) -> (B, M, W)
        intensity, spread = self.estimate(fused, real.any(-1))
        return Output(intensity, weights=weights, auxiliary_loss=spread)

    def map(self, x: dict[str, Tensor], valid: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict]:
        """Every modality on the common time base and width (Eq. 2 to 6).
        Returns mapped (B, M, 3, W), zero where there is nothing; real (B, M, 3) bool; and what
        Eq. 7 scores, by modality, (B, M, D), or (B, 1, D) for one score of the whole clip."""
        counts = self.time_base(valid)
        base = torch.arange(int(counts.max()), device=counts.device) < counts[:, None]  # (B, M)
        states, real, h = {}, {}, {}
        if "frames" in x:
            tcn = self.tcn(x["frames"], valid["frames"])  # Eq. 2
            states["frames"], real["frames"] = temporal.pool_segments(tcn, valid["frames"], counts)
        if "audio" in x:
            lstm = self.lstm(x["audio"], valid["audio"])  # Eq. 3
            gated = self.gate(lstm)  # Eq. 6
            states["audio"], real["audio"] = temporal.pool_segments(gated, valid["audio"], counts)
            if self.scored == "states":
                h["audio"], _ = temporal.pool_segments(lstm, valid["audio"], counts)
        if "text" in x:
            states["text"], real["text"] = x["text"], base & valid["text"]  # one step for all
        nothing = self.nothing.new_zeros(())
        mapped = [self.mapping[n](states[n]) if n in states else nothing for n in MODALITIES]
        mapped = torch.stack([m.expand(*base.shape, self.width) for m in mapped], dim=2)
        real = torch.stack([real.get(n, torch.zeros_like(base)) for n in MODALITIES], dim=-1)
        mapped = mapped.masked_fill(~real.unsqueeze(-1), 0.0)
        if self.scored == "mapped":
            return mapped, real, dict(zip(MODALITIES, mapped.unbind(2), strict=True))
        return mapped, real, states | h

    def time_base(self, valid: dict[str, Tensor]) -> Tensor:
        """Segments of each clip (B,): M, or the clip's own frame steps without segment pooling."""
        if self.segment_pooling or "frames" not in valid:
            any_mask = next(iter(valid.values()))
            return torch.full_like(any_mask[:, 0], self.segments, dtype=torch.long)
        valid = valid["frames"]
        lengths = (torch.arange(1, valid.shape[1] + 1, device=valid.device) * valid).amax(1)
        return torch.where(lengths > 0, lengths, self.segments)

    def weigh(self, h: dict[str, Tensor], real: Tensor) -> Tensor:
        """Softmax of the quality scores over what is there (Eq. 7, 8); (B, M, 3)."""
        scores = list(self.head.weight.new_zeros(real.shape).unbind(-1))  # (B, M) of each modality
        for name, score in (self.quality or {}).items():
            scores[MODALITIES.index(name)] = score(h[name]).squeeze(-1).expand(real.shape[:2])
        return present_softmax(torch.stack(scores, dim=-1), real)

    def estimate(self, fused: Tensor, valid: Tensor) -> tuple[Tensor, Tensor | None]:
        """Transformer over the segments, an output each, mean over valid segments (Eq. 9, 3.6).

        fused (B, M, W), valid (B, M) bool. Returns the mean (B, E), which answers to the one label
        of a clip, and in training with `step_loss` the mean square of the steps' distance from it.
        """
        # A clip without any valid segment: the learned vector is its only one.
        fused, valid = stand_in(fused, valid, valid.any(1), self.nothing.to(fused.dtype))
        hidden = self.encoder(fused + temporal.positions(fused), src_key_padding_mask=~valid)
        steps = self.head(hidden)  # (B, M, E)
        steps = steps.sigmoid() if self.sigmoid else steps
        intensity, spread = masked_mean(steps, valid), None
        if self.training and self.step_loss:
            spread = masked_mean((steps - intensity.unsqueeze(1)).square(), valid).mean()
        return intensity, spread


def present_softmax(scores: Tensor, real: Tensor) -> Tensor:
    """Softmax of scores (..., 3) among the real ones (A, Eq. 8); exactly 0 elsewhere."""
    lowest = torch.finfo(scores.dtype).min
    return torch.softmax(scores.masked_fill(~real, lowest), dim=-1).masked_fill(~real, 0.0)


def mapping_mlp(dim: int, width: int, dropout: float) -> nn.Sequential:
    """The MLP of Eq. 4, (..., dim) → (..., width). Its form is not stated in the paper.
    It ends in a LayerNorm: modalities of one scale, so that the weights of Eq. 8 are comparable."""
    first, second = nn.Linear(dim, width), nn.Linear(width, width)
    return nn.Sequential(first, nn.GELU(), nn.Dropout(dropout), second, nn.LayerNorm(width))


def score_mlp(dim: int, hidden: int) -> nn.Sequential:
    """The MLP of Eq. 7, (..., dim) → (..., 1). `hidden` is not stated in the paper."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, 1))

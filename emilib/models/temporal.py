"""Time inside a modality: TCN, segment pooling, bidirectional LSTM, difference gate (paper A)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TCN(nn.Module):
    """Stacked dilated convolutions over time with residual connections (paper A, Eq. 2).

    A projection to `width`, then K layers x + conv_k(x) with dilation d_k. Not causal, unlike Bai
    et al. 2018, which the paper cites: a clip is judged when it has been seen whole.

    frames : (B, T, D) float; valid : (B, T) bool. Returns (B, T, width), zero in padding.
    Kernel size, dilations, width and normalisation are not stated in the paper.
    """

    def __init__(self, dim, width=256, kernel_size=3, dilations=(1, 2, 4, 8), dropout=0.1):
        super().__init__()
        self.kernel_size, self.dilations = kernel_size, tuple(dilations)
        self.project, self.dropout = nn.Linear(dim, width), nn.Dropout(dropout)
        self.layers = nn.ModuleList()
        for dilation in dilations:
            conv = nn.Conv1d(width, width, kernel_size, padding="same", dilation=dilation)
            # Normalised over the channels of one step: statistics over time would let padding in.
            self.layers.append(nn.ModuleDict({"norm": nn.LayerNorm(width), "conv": conv}))

    @property
    def receptive_field(self) -> int:
        """Frames that an output frame depends on: 1 + (kernel_size - 1) Σ d_k."""
        return 1 + (self.kernel_size - 1) * sum(self.dilations)

    def forward(self, frames: Tensor, valid: Tensor) -> Tensor:
        padding = ~valid.unsqueeze(-1)
        hidden = self.project(frames)
        for layer in self.layers:
            real = layer["norm"](hidden).masked_fill(padding, 0.0)
            change = F.gelu(layer["conv"](real.transpose(1, 2))).transpose(1, 2)
            hidden = hidden + self.dropout(change)
        return hidden.masked_fill(padding, 0.0)


class BiLSTM(nn.Module):
    """Bidirectional LSTM whose padding is invisible without packed sequences (paper A, Eq. 3).

    A bias-free LSTM at zero state stays exactly at zero while its input is zero. So the bias is
    one more input channel, which is 1 at real steps and 0 in padding: the backward direction
    starts at the clip's last real step, as torch's LSTM does on every clip alone.

    audio : (B, T, D) float; valid : (B, T) bool, real steps first, padding after.
    Returns (B, T, 2 hidden), zero in padding. Raises ValueError for a real step after padding.
    """

    def __init__(self, dim: int, hidden: int = 128):
        super().__init__()
        self.lstm = nn.LSTM(dim + 1, hidden, bias=False, bidirectional=True)

    def forward(self, audio: Tensor, valid: Tensor) -> Tensor:
        check_prefix(valid)
        padding = ~valid.T.unsqueeze(-1)  # (T, B, 1)
        # One copy puts time first, as the recurrence reads it, and adds the channel.
        steps = audio.new_ones(*valid.T.shape, audio.shape[2] + 1)
        steps[..., :-1] = audio.transpose(0, 1)
        hidden, _ = self.lstm(steps.masked_fill_(padding, 0.0))
        return hidden.masked_fill(padding, 0.0).transpose(0, 1)


class DifferenceGate(nn.Module):
    """Gate from a state and its change: α = σ(W_g [h; Δh]), h̃ = α ⊙ h (paper A, Eq. 6).

    Δh^t = h^t - h^(t-1). Not stated in the paper: Δh of the first step, 0 here, and a bias in W_g.

    hidden_states : (B, T, D) float. Returns the same shape.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.gate = nn.Linear(2 * dim, dim)

    def forward(self, hidden_states: Tensor) -> Tensor:
        change = torch.diff(hidden_states, dim=1, prepend=hidden_states[:, :1])
        alpha = torch.sigmoid(self.gate(torch.cat([hidden_states, change], dim=-1)))
        return alpha * hidden_states


def pool_segments(frames: Tensor, valid: Tensor, segments: int | Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each of M equal segments over its real frames (paper A, Eq. 5).

    Frame t of a clip with L steps, up to its last real one, belongs to segment floor(t M / L).

    frames : (B, T, D) float
    valid : (B, T) bool, True where a frame is real
    segments : M, at least 1, or (B,) long, an M for each clip

    Returns (B, M, D) and (B, M) bool, of the largest M: a segment without a real frame (not in the
    paper), or past its clip's own M, is not valid and is zero.
    """
    counts = torch.as_tensor(segments, device=frames.device).reshape(-1, 1)  # (B or 1, 1)
    steps = torch.arange(valid.shape[1], device=valid.device)
    lengths = ((steps + 1) * valid).amax(1, keepdim=True).clamp(min=1)  # (B, 1)
    segment = (steps * counts) // lengths  # (B, T)
    inside = torch.arange(int(counts.max()), device=valid.device)[:, None] == segment[:, None]
    inside &= valid[:, None]  # (B, M, T)
    size = inside.sum(-1, keepdim=True)
    frames = frames.masked_fill(~valid.unsqueeze(-1), 0.0)  # a product with 0 would keep NaN
    # Zeros and ones are exact in half precision too; the division comes after the sum.
    total = inside.to(frames.dtype) @ frames
    return total / size.clamp(min=1), size.squeeze(-1) > 0


def transformer(width: int, heads: int, layers: int, dropout: float) -> nn.TransformerEncoder:
    """Pre-norm Transformer encoder, four times as wide between its two linear layers."""
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
    )
    # What attention gives is dropped out, not the attention: that is slower on a CPU.
    layer.self_attn.dropout = 0.0
    return nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)


def positions(x: Tensor) -> Tensor:
    """Sinusoidal position embedding of Vaswani et al. 2017, (T, D) for x (B, T, D), any T."""
    steps, width = x.shape[1:]
    rates = torch.exp(torch.arange(0, width, 2, device=x.device) * (-math.log(10000.0) / width))
    angles = torch.arange(steps, device=x.device)[:, None] * rates  # (T, ceil(D / 2))
    pairs = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return pairs[:, :width].to(x.dtype)


def check_prefix(valid: Tensor) -> None:
    """Refuse a mask (B, T) with a hole: real steps come first, then padding."""
    if (valid[:, 1:] & ~valid[:, :-1]).any():
        wanted = "expected a mask that is True up to a clip's length, then False"
        raise ValueError(f"{wanted}, got a real step after padding; pad on the right")


def last_step(sequence: Tensor, valid: Tensor) -> Tensor:
    """(B, T, D), (B, T) → (B, D): the state at each clip's last real step."""
    check_prefix(valid)
    last = valid.sum(dim=1).clamp_min(1) - 1
    return sequence[torch.arange(len(sequence), device=sequence.device), last]

"""What the baselines, the earlier solutions and the multimodal networks share."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from emilib import MODALITIES
from emilib.models.inputs import Output, check_at_least_one, check_inputs, check_prefix, stand_in
from emilib.models.taemi import TOKEN_STD
from emilib.models.temporal import pool_segments, positions

Sequences = dict[str, tuple[Tensor, Tensor]]  # by modality: (B, T, D) and its mask (B, T)


class Provenance(NamedTuple):
    """How much of a model its paper states: a sentence or two each, for the table."""

    specified: str
    inferred: str
    unknown: str


@dataclass
class AveragedOutput(Output):
    """`Output` with a term to add to the training loss; None outside training.

    auxiliary_loss : scalar. For models that average members it is the members' spread about
        their mean ŷ: with it, (ŷ - y)² + mean_k (ŷ_k - ŷ)² = mean_k (ŷ_k - y)², so the mean squared
        error of the average plus this term is the mean of the members' own errors (Krogh and
        Vedelsby 1995). For `MISA` it is the weighted sum of its three regularisers.
    """

    auxiliary_loss: Tensor | None = None


class Fusion(nn.Module, PyTorchModelHubMixin):
    """A model that reads each modality as a sequence; a subclass defines `combine`.

    dims : width of each modality it reads
    max_steps : longer sequences become the means of so many equal segments before anything else, a
        saving that no original has; None reads every step
    tokens : where not False, a learned vector of each modality's width stands as the only step of
        the sequence that a clip lacks. No original says what it does with such a clip.
    """

    provenance: Provenance

    def __init__(self, dims: dict[str, int], max_steps: int | None = None, tokens: bool = True):
        super().__init__()
        check_at_least_one(max_steps=max_steps)
        self.dims, self.max_steps = dims, max_steps
        if tokens:
            self.missing = modality_vectors(dims)

    def forward(
        self, frames, audio, text, frames_valid=None, audio_valid=None, present=None
    ) -> Output:
        """Six arguments as `check_inputs` takes them → `Output`."""
        dtype = next(self.parameters()).dtype
        inputs = check_inputs(
            *(frames, audio, text, frames_valid, audio_valid, present), dims=self.dims, dtype=dtype
        )
        sequences = {}
        for name in self.dims:
            x, valid = stand_in(
                *(inputs.sequences[name], inputs.valid[name]),
                *(inputs.present[:, MODALITIES.index(name)], self.token(name)),
            )
            if self.max_steps is not None and x.shape[1] > self.max_steps:
                check_prefix(f"{name}_valid", valid)
                counts = valid.sum(dim=1).clamp(max=self.max_steps)  # short clips stay as they are
                x, valid = pool_segments(x, valid, counts)
            sequences[name] = x, valid
        return self.combine(sequences, inputs.present)

    def token(self, name: str) -> Tensor:
        """(D,): what stands for a modality that a clip lacks."""
        return self.missing[name]

    def combine(self, sequences: Sequences, present: Tensor) -> Output:
        """Sequences with at least one real step a clip, and (B, 3) which of them the clip has."""
        raise NotImplementedError


def modality_vectors(dims: dict[str, int]) -> nn.ParameterDict:
    """A small random vector for each modality."""
    vectors = {name: nn.Parameter(torch.randn(dim) * TOKEN_STD) for name, dim in dims.items()}
    return nn.ParameterDict(vectors)


def average(predictions: list[Tensor], training: bool) -> AveragedOutput:
    """Mean of (B, E) predictions, with the members' spread as auxiliary loss in training."""
    members = torch.stack(predictions)  # (K, B, E)
    mean = members.mean(dim=0)
    spread = (members - mean).square().mean() if training else None
    return AveragedOutput(intensity=mean, auxiliary_loss=spread)


def last_step(sequence: Tensor, valid: Tensor) -> Tensor:
    """(B, T, D), (B, T) → (B, D): the state at each clip's last real step."""
    check_prefix("valid", valid)
    last = valid.sum(dim=1).clamp_min(1) - 1
    return sequence[torch.arange(len(sequence), device=sequence.device), last]


def transformer(width: int, heads: int, layers: int, dropout: float) -> nn.TransformerEncoder:
    """Pre-norm Transformer encoder."""
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)


def with_positions(x: Tensor) -> Tensor:
    """(B, T, D) plus sinusoidal positions."""
    return x + positions(*x.shape[1:], device=x.device, dtype=x.dtype)

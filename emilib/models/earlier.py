"""Official baselines and earlier solutions (paper B, Table 2), on this project's features.

None can be rebuilt to the letter from what is public: `provenance` of each class says what its
paper specifies, what is inferred here and what is unknown.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from emilib import MODALITIES
from emilib.models.dual_stage import DualStage
from emilib.models.fusion import (
    AveragedOutput,
    Fusion,
    Provenance,
    Sequences,
    average,
    last_step,
    modality_vectors,
    transformer,
    with_positions,
)
from emilib.models.inputs import (
    Output,
    check_at_least_one,
    check_choice,
    check_heads,
    masked_mean,
)
from emilib.models.temporal import TCN


class MeanLinear(Fusion):
    """Official Wav2Vec2 baseline (Table 2, 0.24): mean over time, then a linear layer.

    dim : width of the features; modality : which of the three inputs it reads
    """

    provenance = Provenance(
        "official Wav2Vec2 features, mean over time, linear layer", "none", "training recipe"
    )

    def __init__(self, dim: int = 768, modality: str = "audio", num_targets: int = 6):
        check_choice("modality", modality, MODALITIES)
        super().__init__({modality: dim})
        self.head = nn.Linear(dim, num_targets)

    def combine(self, sequences: Sequences, present: Tensor) -> Output:
        ((x, valid),) = sequences.values()
        return Output(intensity=self.head(masked_mean(x, valid)))


class LastStepGRU(Fusion):
    """Official ViT baseline (Table 2, 0.09): 3-layer GRU, its last real step, a linear layer.

    dim : width of the features; modality : which of the three inputs it reads
    hidden : width of the GRU
    """

    provenance = Provenance(
        "official ViT features; one model, frames only",
        "3-layer GRU, last step, linear layer",
        "GRU width (256 here), training recipe",
    )

    def __init__(
        self,
        dim: int = 384,
        modality: str = "frames",
        num_targets: int = 6,
        *,
        hidden: int = 256,
        layers: int = 3,
    ):
        check_choice("modality", modality, MODALITIES)
        check_at_least_one(hidden=hidden, layers=layers)
        super().__init__({modality: dim})
        self.gru = nn.GRU(dim, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, num_targets)

    def combine(self, sequences: Sequences, present: Tensor) -> Output:
        ((x, valid),) = sequences.values()
        # One direction only: padding lies after the last real step and is never seen by it.
        states, _ = self.gru(x)  # (B, T, hidden)
        return Output(intensity=self.head(last_step(states, valid)))


class LateAverage(Fusion):
    """Official ViT + Wav2Vec2 baseline (Table 2, 0.25): the mean of the two predictions.

    The original trains the two apart; with `auxiliary_loss` added to the loss so does this.
    """

    provenance = Provenance("mean of the two baselines' predictions", "none", "training recipe")

    def __init__(
        self,
        frames_dim: int = 384,
        audio_dim: int = 768,
        num_targets: int = 6,
        *,
        hidden: int = 256,
        layers: int = 3,
    ):
        super().__init__({"frames": frames_dim, "audio": audio_dim}, tokens=False)
        self.frames_model = LastStepGRU(
            frames_dim, "frames", num_targets, hidden=hidden, layers=layers
        )
        self.audio_model = MeanLinear(audio_dim, "audio", num_targets)

    def token(self, name: str) -> Tensor:
        return getattr(self, f"{name}_model").missing[name]

    def combine(self, sequences: Sequences, present: Tensor) -> AveragedOutput:
        members = {"frames": self.frames_model, "audio": self.audio_model}
        outputs = [m.combine({n: sequences[n]}, present) for n, m in members.items()]
        return average([out.intensity for out in outputs], self.training)


class Yu2024(Fusion):
    """Yu et al. 2024 [33] (Table 2, 0.32): a TCN and a Transformer for each of frames and audio.

    Each branch: TCN, Transformer encoder, mean over the real steps, linear layer; then their mean.
    """

    provenance = Provenance(
        "TCN, then a Transformer encoder, for each of vision and audio; mean of the predictions",
        "mean over time before the linear layer; the vision features here stand for ResNet18 and "
        "action-unit features",
        "widths, depths, kernel size, dropout (256, 2 layers, 3, 0.1 here)",
    )

    def __init__(
        self,
        frames_dim: int = 768,
        audio_dim: int = 1027,
        num_targets: int = 6,
        *,
        width: int = 256,
        heads: int = 4,
        layers: int = 2,
        dilations: tuple[int, ...] = (1, 2, 4, 8),
        dropout: float = 0.1,
        max_steps: int | None = None,
    ):
        check_heads(width, heads)
        super().__init__({"frames": frames_dim, "audio": audio_dim}, max_steps)
        self.temporal, self.encoder, self.head = (nn.ModuleDict() for _ in range(3))
        for name, dim in self.dims.items():
            self.temporal[name] = TCN(dim, width, dilations=dilations, dropout=dropout)
            self.encoder[name] = transformer(width, heads, layers, dropout)
            self.head[name] = nn.Linear(width, num_targets)

    def combine(self, sequences: Sequences, present: Tensor) -> AveragedOutput:
        predictions = []
        for name, (x, valid) in sequences.items():
            states = self.encoder[name](self.temporal[name](x, valid), src_key_padding_mask=~valid)
            predictions.append(self.head[name](masked_mean(states, valid)))
        return average(predictions, self.training)


class Hallmen2024(Fusion):
    """Hallmen et al. 2024 [3] (Table 2, 0.38): an LSTM over 1027-wide audio.

    2-layer LSTM of one direction, as wide as its input; concat(mean, last state), 2054;
    linear 2054 → 2054, tanh, linear → num_targets.
    """

    provenance = Provenance(
        "2-layer one-directional LSTM, 1027 wide, over 12 s of audio; concat(mean, last) 2054; "
        "linear 2054, tanh, linear 6; AdamW 1e-4, cosine, 1 warm-up epoch, 30 epochs, batch 32, "
        "MSE",
        "none",
        "what the fine-tuning of the audio network adds: the network is frozen here",
    )

    def __init__(self, audio_dim: int = 1027, num_targets: int = 6, *, layers: int = 2):
        check_at_least_one(layers=layers)
        super().__init__({"audio": audio_dim})
        self.lstm = nn.LSTM(audio_dim, audio_dim, layers, batch_first=True)
        self.head = nn.Sequential(
            nn.Linear(2 * audio_dim, 2 * audio_dim),
            nn.Tanh(),
            nn.Linear(2 * audio_dim, num_targets),
        )

    def combine(self, sequences: Sequences, present: Tensor) -> Output:
        x, valid = sequences["audio"]
        states, _ = self.lstm(x)
        pooled = torch.cat([masked_mean(states, valid), last_step(states, valid)], dim=-1)
        return Output(intensity=self.head(pooled))


def clip_statistics(sequence: Tensor, valid: Tensor) -> Tensor:
    """Mean, standard deviation, minimum and maximum over the real steps: (B, T, D) → (B, 4 D).

    The deviation divides by the number of steps. Each clip needs a real step.
    """
    real = valid.unsqueeze(-1)
    mean = masked_mean(sequence, valid)
    spread = masked_mean((sequence - mean.unsqueeze(1)).square(), valid)
    low = sequence.masked_fill(~real, torch.inf).amin(dim=1)
    high = sequence.masked_fill(~real, -torch.inf).amax(dim=1)
    # sqrt has no finite slope at 0, and a constant feature is at 0
    return torch.cat([mean, (spread + 1e-12).sqrt(), low, high], dim=-1)


class StatisticsMLP(Fusion):
    """One modality of Savchenko 2025 [28]: clip statistics → Dense 64 ReLU → Dense 6 sigmoid.

    Frames become mean, standard deviation, minimum and maximum, audio its mean, text is a vector
    already. Intensities lie in (0, 1). The original's loss is 1 - mean Pearson.
    """

    def __init__(self, dim: int, modality: str, num_targets: int = 6, *, hidden: int = 64):
        check_choice("modality", modality, MODALITIES)
        super().__init__({modality: dim})
        self.head = nn.Sequential(
            nn.Linear(4 * dim if modality == "frames" else dim, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_targets),
            nn.Sigmoid(),
        )

    def combine(self, sequences: Sequences, present: Tensor) -> Output:
        ((name, (x, valid)),) = sequences.items()
        pool = clip_statistics if name == "frames" else masked_mean
        return Output(intensity=self.head(pool(x, valid)))


class Savchenko2025(Fusion):
    """Savchenko 2025 [28] (Table 2, 0.44): three `StatisticsMLP`, weighted for each emotion.

    intensity_e = sum over modalities of fusion[m, e] prediction_m,e, the weights of an
    emotion summing to 1. They are equal until `fit_savchenko` has trained the members and searched
    the weights on held-out folds of the training clips.
    """

    provenance = StatisticsMLP.provenance = Provenance(
        "clip statistics, Dense 64 ReLU, Dense 6 sigmoid for each modality; loss 1 - mean Pearson, "
        "Adam 1e-3, batch 512; weights for each emotion in steps of 0.05",
        "weights searched on held-out training folds (the original: on validation, a leak)",
        "the features here stand for facial emotion scores, HuBERT states and sentence vectors",
    )

    def __init__(
        self,
        frames_dim: int = 768,
        audio_dim: int = 1027,
        text_dim: int = 768,
        num_targets: int = 6,
        *,
        hidden: int = 64,
    ):
        super().__init__({"frames": frames_dim, "audio": audio_dim, "text": text_dim}, tokens=False)
        self.members = nn.ModuleDict(
            {n: StatisticsMLP(d, n, num_targets, hidden=hidden) for n, d in self.dims.items()}
        )
        # A buffer: searched, saved with the model, never touched by an optimiser.
        self.register_buffer("fusion", torch.full((len(self.dims), num_targets), 1 / 3))

    def token(self, name: str) -> Tensor:
        return self.members[name].missing[name]

    def combine(self, sequences: Sequences, present: Tensor) -> Output:
        outputs = [m.combine({n: sequences[n]}, present) for n, m in self.members.items()]
        predictions = torch.stack([out.intensity for out in outputs])  # (3, B, E)
        return Output(intensity=(self.fusion[:, None] * predictions).sum(dim=0))


class Zhang2024(Fusion):
    """Zhang et al. 2024 [38] (Table 2, 0.46): an ensemble of Transformer fusions.

    A member: linear map of each modality to a common width, sinusoidal positions and a learned
    vector a modality, all steps of all modalities as one sequence through a Transformer encoder,
    mean over the real steps, linear layer. The intensity is the mean over the members.
    """

    provenance = Provenance(
        "face features, audio and transcripts, Transformer fusion, ensemble",
        "all modalities as one sequence; mean over time; 3 members that differ by initial weights",
        "widths, depths, what the members differ in; masked-autoencoder face features are replaced",
    )

    def __init__(
        self,
        frames_dim: int = 768,
        audio_dim: int = 1027,
        text_dim: int = 768,
        num_targets: int = 6,
        *,
        width: int = 256,
        heads: int = 4,
        layers: int = 2,
        members: int = 3,
        dropout: float = 0.1,
        max_steps: int | None = None,
    ):
        check_heads(width, heads)
        check_at_least_one(members=members)
        super().__init__({"frames": frames_dim, "audio": audio_dim, "text": text_dim}, max_steps)
        self.members = nn.ModuleList(
            TransformerMember(self.dims, num_targets, width, heads, layers, dropout)
            for _ in range(members)
        )

    def combine(self, sequences: Sequences, present: Tensor) -> AveragedOutput:
        return average([member(sequences) for member in self.members], self.training)


class TransformerMember(nn.Module):
    """One member of `Zhang2024`: {modality: (B, T, D), (B, T)} → (B, E)."""

    def __init__(self, dims, num_targets, width, heads, layers, dropout):
        super().__init__()
        self.project = nn.ModuleDict({name: nn.Linear(dim, width) for name, dim in dims.items()})
        self.kind = modality_vectors(dict.fromkeys(dims, width))
        self.encoder = transformer(width, heads, layers, dropout)
        self.head = nn.Linear(width, num_targets)

    def forward(self, sequences: Sequences) -> Tensor:
        steps = [
            with_positions(self.project[name](x) + self.kind[name])
            for name, (x, _) in sequences.items()
        ]
        valid = torch.cat([valid for _, valid in sequences.values()], dim=1)
        states = self.encoder(torch.cat(steps, dim=1), src_key_padding_mask=~valid)
        return self.head(masked_mean(states, valid))


class Yu2025(DualStage):
    """Yu et al. 2025 [34] (Table 2, 0.51): the full model of paper A, a `DualStage`.

    [34] is a later version of paper A; what it changed to rise from 0.3626 to 0.51 is unknown.
    """

    provenance = Provenance(
        "none beyond paper A", "paper A's full model", "what its later version changed"
    )

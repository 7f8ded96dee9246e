"""Official baselines and earlier solutions (paper B, Table 2), on this project's features.

None can be rebuilt to the letter from what is public: `emilib/study/provenance.csv` says how much.
"""

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from emilib import MODALITIES
from emilib.models.inputs import Output, check_inputs, masked_mean, stand_in, vectors
from emilib.models.temporal import TCN, last_step, pool_segments, positions, transformer

Sequences = dict[str, tuple[Tensor, Tensor]]  # by modality: (B, T, D) and its mask (B, T)


class Fusion(nn.Module, PyTorchModelHubMixin):
    """Base of models that read sequences: subclasses have combine(sequences, present) → `Output`.

    Each sequence has a real step; present (B, 3) says which modalities a clip has.

    dims : width of each modality it reads
    max_steps : longer sequences become the means of so many equal segments before anything else, a
        saving that no original has; None reads every step
    tokens : where not False, a learned vector of each modality's width stands as the only step of
        the sequence that a clip lacks. No original says what it does with such a clip.
    """

    def __init__(self, dims: dict[str, int], max_steps: int | None = None, tokens: bool = True):
        super().__init__()
        self.dims, self.max_steps = dims, max_steps
        if tokens:
            self.missing = vectors(dims)

    def forward(self, *features, **masks) -> Output:
        """Six arguments as `check_inputs` takes them → `Output`."""
        dtype, sequences = next(self.parameters()).dtype, {}
        inputs, masks, present = check_inputs(*features, **masks, dims=self.dims, dtype=dtype)
        for name, x in inputs.items():
            has = present[:, MODALITIES.index(name)]
            x, valid = stand_in(x, masks[name], has, self.missing[name])
            if self.max_steps is not None and x.shape[1] > self.max_steps:
                counts = valid.sum(dim=1).clamp(max=self.max_steps)  # short clips stay as they are
                x, valid = pool_segments(x, valid, counts)
            sequences[name] = x, valid
        return self.combine(sequences, present)


class Trimodal(Fusion):
    """A `Fusion` of the modalities in `reads`; `options` are its other arguments."""

    reads = MODALITIES

    def __init__(self, frames_dim=768, audio_dim=1027, text_dim=768, **options):
        dims = dict(zip(MODALITIES, (frames_dim, audio_dim, text_dim), strict=True))
        super().__init__({name: dims[name] for name in self.reads}, **options)


def average(predictions: list[Tensor], training: bool) -> Output:
    """Mean of K predictions (B, E); in training, their spread about it is the auxiliary loss.
    (ŷ - y)² + mean_k (ŷ_k - ŷ)² = mean_k (ŷ_k - y)²: with it, the error of the average becomes the
    mean of the members' own errors (Krogh and Vedelsby 1995)."""
    members = torch.stack(predictions)  # (K, B, E)
    mean = members.mean(dim=0)
    return Output(mean, auxiliary_loss=(members - mean).square().mean() if training else None)


class MeanLinear(Fusion):
    """Official Wav2Vec2 baseline (Table 2, 0.24): mean over time of one modality, linear layer."""

    def __init__(self, dim=768, modality="audio", num_targets=6):
        super().__init__({modality: dim})
        self.head = nn.Linear(dim, num_targets)

    def combine(self, sequences: Sequences, present: Tensor) -> Output:
        ((x, valid),) = sequences.values()
        return Output(self.head(masked_mean(x, valid)))


class LastStepGRU(Fusion):
    """Official ViT baseline (Table 2, 0.09): 3-layer GRU, its last real step, a linear layer."""

    def __init__(self, dim=384, modality="frames", num_targets=6, *, hidden=256, layers=3):
        super().__init__({modality: dim})
        self.gru = nn.GRU(dim, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, num_targets)

    def combine(self, sequences: Sequences, present: Tensor) -> Output:
        ((x, valid),) = sequences.values()
        # One direction only: padding lies after the last real step and is never seen by it.
        states, _ = self.gru(x)  # (B, T, hidden)
        return Output(self.head(last_step(states, valid)))


class Yu2024(Trimodal):
    """Yu et al. 2024 [33] (Table 2, 0.32), for each of frames and audio; then their mean:
    TCN, Transformer encoder, mean over the real steps, linear layer."""

    reads = ("frames", "audio")

    def __init__(self, num_targets=6, width=256, heads=4, layers=2, dilations=(1, 2, 4, 8), **dims):
        super().__init__(**dims)
        self.temporal, self.encoder, self.head = (nn.ModuleDict() for _ in range(3))
        for name, dim in self.dims.items():
            self.temporal[name] = TCN(dim, width, dilations=dilations)
            self.encoder[name] = transformer(width, heads, layers, 0.1)
            self.head[name] = nn.Linear(width, num_targets)

    def combine(self, sequences: Sequences, present: Tensor) -> Output:
        predictions = []
        for name, (x, valid) in sequences.items():
            states = self.encoder[name](self.temporal[name](x, valid), src_key_padding_mask=~valid)
            predictions.append(self.head[name](masked_mean(states, valid)))
        return average(predictions, self.training)


class Hallmen2024(Fusion):
    """Hallmen et al. 2024 [3] (Table 2, 0.38): an LSTM over 1027-wide audio, as wide as its input.
    concat(global vector, last state), 2054; linear 2054 → 2054, tanh, linear → num_targets. That
    the global vector is the mean over time is inferred, not specified."""

    def __init__(self, audio_dim: int = 1027, num_targets: int = 6, *, layers: int = 2):
        super().__init__({"audio": audio_dim})
        self.lstm = nn.LSTM(audio_dim, audio_dim, layers, batch_first=True)
        width = 2 * audio_dim
        self.head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, num_targets))

    def combine(self, sequences: Sequences, present: Tensor) -> Output:
        x, valid = sequences["audio"]
        states, _ = self.lstm(x)
        pooled = torch.cat([masked_mean(states, valid), last_step(states, valid)], dim=-1)
        return Output(self.head(pooled))


def clip_statistics(sequence: Tensor, valid: Tensor) -> Tensor:
    """Mean, standard deviation, minimum and maximum over the real steps: (B, T, D) → (B, 4 D)."""
    real = valid.unsqueeze(-1)
    mean = masked_mean(sequence, valid)
    spread = masked_mean((sequence - mean.unsqueeze(1)).square(), valid)
    low = sequence.masked_fill(~real, torch.inf).amin(dim=1)
    high = sequence.masked_fill(~real, -torch.inf).amax(dim=1)
    # sqrt has no finite slope at 0, and a constant feature is at 0
    return torch.cat([mean, (spread + 1e-12).sqrt(), low, high], dim=-1)


class StatisticsMLP(Fusion):
    """One modality of Savchenko 2025 [28]: clip statistics → Dense 64 ReLU → Dense 6 sigmoid.

    Frames become their `clip_statistics`, audio its mean. The original's loss is 1 - mean Pearson.
    """

    def __init__(self, dim=768, modality="frames", num_targets=6, *, hidden=64):
        super().__init__({modality: dim})
        pooled = 4 * dim if modality == "frames" else dim
        first, second = nn.Linear(pooled, hidden), nn.Linear(hidden, num_targets)
        self.head = nn.Sequential(first, nn.ReLU(), second, nn.Sigmoid())

    def combine(self, sequences: Sequences, present: Tensor) -> Output:
        ((name, (x, valid)),) = sequences.items()
        pool = clip_statistics if name == "frames" else masked_mean
        return Output(self.head(pool(x, valid)))


class Savchenko2025(Trimodal):
    """Savchenko 2025 [28] (Table 2, 0.44): three `StatisticsMLP`, weighted for each emotion.
    intensity_e = Σ_m fusion[m, e] prediction_m,e, the weights of an emotion summing to 1. They are
    equal until `fit_savchenko` has searched them on held-out folds of the training clips."""

    def __init__(self, num_targets=6, *, hidden=64, **dims):
        super().__init__(tokens=False, **dims)
        members = {n: StatisticsMLP(d, n, num_targets, hidden=hidden) for n, d in self.dims.items()}
        self.members = nn.ModuleDict(members)
        # A buffer: searched, saved with the model, never touched by an optimiser.
        self.register_buffer("fusion", torch.full((len(self.dims), num_targets), 1 / 3))
        self.missing = {n: member.missing[n] for n, member in self.members.items()}

    def combine(self, sequences: Sequences, present: Tensor) -> Output:
        outputs = [m.combine({n: sequences[n]}, present) for n, m in self.members.items()]
        predictions = torch.stack([out.intensity for out in outputs])  # (3, B, E)
        return Output((self.fusion[:, None] * predictions).sum(dim=0))


class Zhang2024(Trimodal):
    """Zhang et al. 2024 [38] (Table 2, 0.46): an ensemble of Transformer fusions.
    A member: linear map of each modality to a common width, sinusoidal positions and a learned
    vector a modality, all steps of all modalities as one sequence through a Transformer encoder,
    mean over the real steps, linear layer. The intensity is the mean over the members."""

    def __init__(self, num_targets=6, width=256, heads=4, layers=2, members=3, dropout=0.1, **dims):
        super().__init__(**dims)
        self.members = nn.ModuleList(nn.ModuleDict() for _ in range(members))
        for member in self.members:
            project = {name: nn.Linear(dim, width) for name, dim in self.dims.items()}
            member["project"] = nn.ModuleDict(project)
            member["kind"] = vectors(dict.fromkeys(self.dims, width))
            member["encoder"] = transformer(width, heads, layers, dropout)
            member["head"] = nn.Linear(width, num_targets)

    def combine(self, sequences: Sequences, present: Tensor) -> Output:
        valid, predictions = torch.cat([valid for _, valid in sequences.values()], dim=1), []
        for member in self.members:
            steps = [member["project"][n](x) + member["kind"][n] for n, (x, _) in sequences.items()]
            steps = torch.cat([x + positions(x) for x in steps], dim=1)
            states = member["encoder"](steps, src_key_padding_mask=~valid)
            predictions.append(member["head"](masked_mean(states, valid)))
        return average(predictions, self.training)

"""The solutions before the two papers (paper B, Table 2), and three models both papers discuss.

They take the same features, masks and `present` as every model here, so that their rows can be
trained on the same data with the same seeds. None of them can be rebuilt to the letter from what
is public: `MARKS` says, a model at a time, what is specified by its paper, what is inferred here
and what is unknown.

A clip that lacks a modality is met by a learned vector of that modality's width which stands as the
only step of the missing sequence. None of the originals says what it does with such a clip.

Models that average members return, in training, `auxiliary_loss` (see `AveragedOutput`): with the
mean squared error added to it, each member is trained as if it were alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from emilib.models.inputs import MODALITIES, Inputs, check_inputs, check_prefix
from emilib.models.output import Output
from emilib.models.taemi import TOKEN_STD, complete_inputs, masked_mean, stand_in
from emilib.models.temporal import TCN, BiLSTM, pool_steps, positions

FOLDS = 5  # held-out folds of the training clips for Savchenko's weights; not told


@dataclass
class AveragedOutput(Output):
    """`Output` with a term to add to the training loss; None outside training.

    auxiliary_loss : scalar. For models that average members it is the members' spread about
        their mean ŷ: with it, (ŷ - y)² + mean_k (ŷ_k - ŷ)² = mean_k (ŷ_k - y)², so the mean squared
        error of the average plus this term is the mean of the members' own errors (Krogh and
        Vedelsby 1995). For `MISA` it is the weighted sum of its three regularisers.
    """

    auxiliary_loss: Tensor | None = None


class Marks(NamedTuple):
    """How much of a model its paper tells: each a sentence or two for the table."""

    specified: str
    inferred: str
    unknown: str


def average(predictions: Sequence[Tensor], training: bool) -> AveragedOutput:
    """Mean of (B, E) predictions, with the members' spread as auxiliary loss in training."""
    members = torch.stack(list(predictions))  # (K, B, E)
    mean = members.mean(dim=0)
    spread = (members - mean).square().mean() if training else None
    return AveragedOutput(intensity=mean, auxiliary_loss=spread)


def _token(dim: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(dim) * TOKEN_STD)


def _tokens(dims: dict[str, int]) -> nn.ParameterDict:
    return nn.ParameterDict({name: _token(dim) for name, dim in dims.items()})


def _sequences(
    arguments: tuple, dims: dict[str, int], tokens, max_steps: int | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """The six arguments of a call → for each modality of `dims` (B, T, D) and its mask (B, T).

    Text is a sequence of length 1. Every clip has a real step in every modality: where it lacks
    one, the learned token is its only step. Clips longer than `max_steps` become the means of so
    many equal segments, shorter ones stay as they are.
    """
    given = check_inputs(
        *arguments, dims=dims, uses=tuple(dims), dtype=next(iter(tokens.values())).dtype
    )
    given = complete_inputs(given, dims)
    sequences = {name: _sequence(given, name, tokens[name]) for name in dims}
    if max_steps is None:
        return sequences
    return {name: _shorten(x, valid, max_steps) for name, (x, valid) in sequences.items()}


def _shorten(sequence: Tensor, valid: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    if sequence.shape[1] <= steps:
        return sequence, valid
    check_prefix("valid", valid)
    return pool_steps(sequence, valid, valid.sum(dim=1).clamp(1, steps), steps)


def _sequence(given: Inputs, name: str, token: Tensor) -> tuple[Tensor, Tensor]:
    here = given.present[:, MODALITIES.index(name)]
    if name == "text":
        return stand_in(given.text[:, None], here[:, None], here, token.to(given.text.dtype))
    x, valid = getattr(given, name), getattr(given, f"{name}_valid")
    return stand_in(x, valid, here, token.to(x.dtype))


def last_step(sequence: Tensor, valid: Tensor) -> Tensor:
    """(B, T, D), (B, T) → (B, D): the state at each clip's last real step."""
    check_prefix("valid", valid)
    last = valid.sum(dim=1).clamp_min(1) - 1
    return sequence[torch.arange(len(sequence), device=sequence.device), last]


def _check_modality(modality: str) -> None:
    if modality not in MODALITIES:
        raise ValueError(f"modality is {modality!r}: give one of {', '.join(MODALITIES)}.")


def _check_at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} is {number}: give at least 1.")


# ------------------------------------------------------------------ official baselines


class MeanLinear(nn.Module, PyTorchModelHubMixin):
    """Official Wav2Vec2 baseline (Table 2, 0.24): mean over time, then a linear layer.

    dim : width of the features; modality : which of the three inputs it reads
    A clip without the modality gets what the linear layer makes of a learned vector.
    """

    def __init__(self, dim: int = 768, modality: str = "audio", num_targets: int = 6):
        super().__init__()
        _check_modality(modality)
        self.dims = {modality: dim}
        self.missing = _tokens(self.dims)
        self.head = nn.Linear(dim, num_targets)

    def forward(
        self, frames, audio, text, frames_valid=None, audio_valid=None, present=None
    ) -> Output:
        call = (frames, audio, text, frames_valid, audio_valid, present)
        ((x, valid),) = _sequences(call, self.dims, self.missing).values()
        return Output(intensity=self.head(masked_mean(x, valid)))


class LastStepGRU(nn.Module, PyTorchModelHubMixin):
    """Official ViT baseline (Table 2, 0.09): 3-layer GRU, its last real step, a linear layer.

    dim : width of the features; modality : which of the three inputs it reads
    hidden : width of the GRU (unknown; 256 here)
    A clip without the modality gets what the model makes of a learned vector as its only step.
    """

    def __init__(
        self,
        dim: int = 384,
        modality: str = "frames",
        num_targets: int = 6,
        *,
        hidden: int = 256,
        layers: int = 3,
    ):
        super().__init__()
        _check_modality(modality)
        _check_at_least_one(hidden=hidden, layers=layers)
        self.dims = {modality: dim}
        self.missing = _tokens(self.dims)
        self.gru = nn.GRU(dim, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, num_targets)

    def forward(
        self, frames, audio, text, frames_valid=None, audio_valid=None, present=None
    ) -> Output:
        call = (frames, audio, text, frames_valid, audio_valid, present)
        ((x, valid),) = _sequences(call, self.dims, self.missing).values()
        # One direction only: padding lies after the last real step and is never seen by it.
        states, _ = self.gru(x)  # (B, T, hidden)
        return Output(intensity=self.head(last_step(states, valid)))


class LateAverage(nn.Module, PyTorchModelHubMixin):
    """Official ViT + Wav2Vec2 baseline (Table 2, 0.25): the mean of the two predictions.

    The original trains the two apart. Either train `frames_model` and `audio_model` apart and put
    them together with `LateAverage.of`, or train this module with its auxiliary loss added.
    """

    def __init__(
        self,
        frames_dim: int = 384,
        audio_dim: int = 768,
        num_targets: int = 6,
        *,
        hidden: int = 256,
        layers: int = 3,
    ):
        super().__init__()
        self.frames_model = LastStepGRU(
            frames_dim, "frames", num_targets, hidden=hidden, layers=layers
        )
        self.audio_model = MeanLinear(audio_dim, "audio", num_targets)

    @classmethod
    def of(cls, frames_model: LastStepGRU, audio_model: MeanLinear) -> LateAverage:
        """The average of two trained models; their weights are copied."""
        gru = frames_model.gru
        average_ = cls(
            gru.input_size,
            audio_model.head.in_features,
            audio_model.head.out_features,
            hidden=gru.hidden_size,
            layers=gru.num_layers,
        )
        average_.frames_model.load_state_dict(frames_model.state_dict())
        average_.audio_model.load_state_dict(audio_model.state_dict())
        return average_

    def forward(
        self, frames, audio, text, frames_valid=None, audio_valid=None, present=None
    ) -> AveragedOutput:
        call = complete_call(
            (frames, audio, text, frames_valid, audio_valid, present),
            self.frames_model.dims | self.audio_model.dims,
        )
        members = (self.frames_model, self.audio_model)
        return average([member(*call).intensity for member in members], self.training)


def complete_call(arguments: tuple, dims: dict[str, int]) -> tuple:
    """The six arguments of a call, checked, with an absent step for each modality that is None.

    For models that hand their call on to members, one of which may lack its only modality.
    """
    given = check_inputs(*arguments, dims=dims, uses=tuple(dims))
    given = complete_inputs(given, dims)
    return (
        *(given.frames, given.audio, given.text),
        *(given.frames_valid, given.audio_valid, given.present),
    )


# ------------------------------------------------------------------ earlier solutions


class Yu2024(nn.Module, PyTorchModelHubMixin):
    """Yu et al. 2024 [33] (Table 2, 0.32): a TCN and a Transformer for each of frames and audio.

    Each branch: TCN, Transformer encoder, mean over the real steps, linear layer. The intensity is
    the mean of the two predictions.

    max_steps : longer sequences become the means of so many equal segments before anything else; a
        saving that the original has not. None reads every step.
    """

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
        super().__init__()
        _check_width(width, heads)
        _check_at_least_one(max_steps=1 if max_steps is None else max_steps)
        self.max_steps = max_steps
        self.dims = {"frames": frames_dim, "audio": audio_dim}
        self.missing = _tokens(self.dims)
        self.temporal = nn.ModuleDict()
        self.encoder = nn.ModuleDict()
        self.head = nn.ModuleDict()
        for name, dim in self.dims.items():
            self.temporal[name] = TCN(dim, width, dilations=dilations, dropout=dropout)
            self.encoder[name] = _transformer(width, heads, layers, dropout)
            self.head[name] = nn.Linear(width, num_targets)

    def forward(
        self, frames, audio, text, frames_valid=None, audio_valid=None, present=None
    ) -> AveragedOutput:
        call = (frames, audio, text, frames_valid, audio_valid, present)
        predictions = []
        for name, (x, valid) in _sequences(call, self.dims, self.missing, self.max_steps).items():
            states = self.encoder[name](self.temporal[name](x, valid), src_key_padding_mask=~valid)
            predictions.append(self.head[name](masked_mean(states, valid)))
        return average(predictions, self.training)


class Hallmen2024(nn.Module, PyTorchModelHubMixin):
    """Hallmen et al. 2024 [3] (Table 2, 0.38): an LSTM over 1027-wide audio.

    2-layer LSTM of one direction, as wide as its input; concat(mean, last state), 2054;
    linear 2054 → 2054, tanh, linear → num_targets.
    """

    def __init__(self, audio_dim: int = 1027, num_targets: int = 6, *, layers: int = 2):
        super().__init__()
        _check_at_least_one(layers=layers)
        self.dims = {"audio": audio_dim}
        self.missing = _tokens(self.dims)
        self.lstm = nn.LSTM(audio_dim, audio_dim, layers, batch_first=True)
        self.head = nn.Sequential(
            nn.Linear(2 * audio_dim, 2 * audio_dim),
            nn.Tanh(),
            nn.Linear(2 * audio_dim, num_targets),
        )

    def forward(
        self, frames, audio, text, frames_valid=None, audio_valid=None, present=None
    ) -> Output:
        call = (frames, audio, text, frames_valid, audio_valid, present)
        x, valid = _sequences(call, self.dims, self.missing)["audio"]
        states, _ = self.lstm(x)
        pooled = torch.cat([masked_mean(states, valid), last_step(states, valid)], dim=-1)
        return Output(intensity=self.head(pooled))


def clip_statistics(sequence: Tensor, valid: Tensor) -> Tensor:
    """Mean, standard deviation, minimum and maximum over the real steps: (B, T, D) → (B, 4 D).

    The deviation divides by the number of steps, so a single step has (almost) 0. Each clip needs
    a real step: without one the extremes are infinite.
    """
    real = valid.unsqueeze(-1)
    mean = masked_mean(sequence, valid)
    spread = masked_mean((sequence - mean.unsqueeze(1)).square(), valid)
    low = sequence.masked_fill(~real, torch.inf).amin(dim=1)
    high = sequence.masked_fill(~real, -torch.inf).amax(dim=1)
    # sqrt has no finite slope at 0, and a constant feature is at 0
    return torch.cat([mean, (spread + 1e-12).sqrt(), low, high], dim=-1)


class StatisticsMLP(nn.Module, PyTorchModelHubMixin):
    """One modality of Savchenko 2025 [28]: clip statistics → Dense 64 ReLU → Dense 6 sigmoid.

    Frames are told by mean, standard deviation, minimum and maximum, audio by its mean, text is a
    vector already. Intensities lie in (0, 1). The original's loss is 1 - mean Pearson.
    """

    def __init__(self, dim: int, modality: str, num_targets: int = 6, *, hidden: int = 64):
        super().__init__()
        _check_modality(modality)
        self.dims = {modality: dim}
        self.missing = _tokens(self.dims)
        self.modality = modality
        self.head = nn.Sequential(
            nn.Linear(4 * dim if modality == "frames" else dim, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_targets),
            nn.Sigmoid(),
        )

    def forward(
        self, frames, audio, text, frames_valid=None, audio_valid=None, present=None
    ) -> Output:
        call = (frames, audio, text, frames_valid, audio_valid, present)
        ((x, valid),) = _sequences(call, self.dims, self.missing).values()
        pool = clip_statistics if self.modality == "frames" else masked_mean
        return Output(intensity=self.head(pool(x, valid)))


class Savchenko2025(nn.Module, PyTorchModelHubMixin):
    """Savchenko 2025 [28] (Table 2, 0.44): three `StatisticsMLP`, weighted for each emotion.

    intensity_e = sum over modalities of fusion[m, e] prediction_m,e, the weights of an
    emotion summing to 1. They are equal until `set_fusion`; `fit_savchenko` trains the members and
    finds the weights on held-out folds of the training clips.
    """

    def __init__(
        self,
        frames_dim: int = 768,
        audio_dim: int = 1027,
        text_dim: int = 768,
        num_targets: int = 6,
        *,
        hidden: int = 64,
    ):
        super().__init__()
        dims = {"frames": frames_dim, "audio": audio_dim, "text": text_dim}
        self.dims = dims
        self.members = nn.ModuleDict(
            {n: StatisticsMLP(d, n, num_targets, hidden=hidden) for n, d in dims.items()}
        )
        # A buffer: found by search, saved with the model, never touched by an optimiser.
        self.register_buffer("fusion", torch.full((len(dims), num_targets), 1 / len(dims)))

    def set_fusion(self, weights) -> None:
        """weights (3, E), order frames, audio, text; each column at least 0 and of sum 1."""
        weights = torch.as_tensor(weights, dtype=self.fusion.dtype, device=self.fusion.device)
        if weights.shape != self.fusion.shape:
            raise ValueError(
                f"expected weights {tuple(self.fusion.shape)}, came {tuple(weights.shape)}; "
                "rows are frames, audio, text and columns are emotions"
            )
        if (weights < 0).any() or not torch.allclose(weights.sum(0), torch.ones(()).to(weights)):
            raise ValueError("expected weights of at least 0 that sum to 1 for each emotion")
        self.fusion.copy_(weights)

    def forward(
        self, frames, audio, text, frames_valid=None, audio_valid=None, present=None
    ) -> Output:
        call = complete_call((frames, audio, text, frames_valid, audio_valid, present), self.dims)
        predictions = torch.stack([m(*call).intensity for m in self.members.values()])  # (3, B, E)
        return Output(intensity=(self.fusion[:, None] * predictions).sum(dim=0))


def weight_grid(members: int, step: float = 0.05) -> np.ndarray:
    """All weights of `members` that are multiples of `step` and sum to 1: (K, members)."""
    parts = round(1 / step) if step > 0 else 0
    if parts < 1 or abs(parts * step - 1) > 1e-9:
        raise ValueError(f"step is {step}: give a number that divides 1, as 0.05 does.")
    counts = [c for c in product(range(parts + 1), repeat=members - 1) if sum(c) <= parts]
    counts = np.array(counts, dtype=float).reshape(len(counts), members - 1)
    return np.column_stack([counts, parts - counts.sum(axis=1)]) / parts


def search_weights(predictions, target, step: float = 0.05) -> np.ndarray:
    """Weights (M, E) on the grid which give the highest Pearson correlation for each emotion.

    predictions (M, N, E) of M members, target (N, E). Of weights equally good, the first of
    `weight_grid` is taken. To search on the clips that are scored afterwards is a leak: give
    held-out predictions of training clips (`held_out_predictions`).
    """
    predictions, target = np.asarray(predictions, float), np.asarray(target, float)
    if predictions.ndim != 3 or predictions.shape[1:] != target.shape:
        raise ValueError(
            f"expected predictions (M, N, E) for a target (N, E), came {predictions.shape} and "
            f"{target.shape}"
        )
    grid = weight_grid(len(predictions), step)  # (K, M)
    p = predictions - predictions.mean(axis=1, keepdims=True)
    y = target - target.mean(axis=0)
    # Correlation of a weighted sum from the members' covariances: no sum is ever formed.
    with_target = np.einsum("mne,ne->me", p, y)
    among = np.einsum("mne,lne->mle", p, p)
    variance = np.einsum("km,mle,kl->ke", grid, among, grid)
    scale = np.sqrt(np.clip(variance, 0, None) * (y**2).sum(axis=0))
    rho = np.divide(grid @ with_target, scale, out=np.zeros_like(scale), where=scale > 0)
    return grid[rho.argmax(axis=0)].T


def held_out_predictions(
    data, train_and_predict: Callable, folds: int = FOLDS, seed: int = 0
) -> np.ndarray:
    """(N, E): each clip predicted by a model that has not seen it.

    data : FeatureSet; train_and_predict(train, held_out) → (len(held_out), E), a call a fold
    """
    if not 2 <= folds <= len(data):
        raise ValueError(f"folds is {folds}: give 2 to {len(data)}, the number of clips.")
    order = np.random.default_rng(seed).permutation(len(data))
    predictions = np.full(np.shape(data.target), np.nan)
    for held_out in np.array_split(order, folds):
        rest = np.setdiff1d(order, held_out)
        held_out = np.sort(held_out)
        predictions[held_out] = train_and_predict(data.select(rest), data.select(held_out))
    return predictions


@dataclass
class SavchenkoFit:
    """The two numbers of Savchenko's method: with honest weights, and with the original's leak.

    model : its fusion weights found on held-out folds of the training clips
    leaked : the same members with weights found on the validation clips: what the original
        reports, and too high by construction; None where no validation clips were given
    """

    model: Savchenko2025
    leaked: Savchenko2025 | None


def fit_savchenko(
    train,
    fit_one: Callable,
    valid=None,
    *,
    folds: int = FOLDS,
    seed: int = 0,
    step: float = 0.05,
    hidden: int = 64,
) -> SavchenkoFit:
    """Train the three members and find the fusion weights, without and with the leak.

    train, valid : FeatureSet with all three modalities and targets
    fit_one(model, data) → something with `.model` and `.predict(data)`, as `emilib.study.fit`
        gives; it is called folds + 1 times a modality and has no validation set
    Raises ValueError when the training clips lack a modality altogether.
    """
    lacking = [name for name in MODALITIES if name not in train.dims]
    if lacking:
        raise ValueError(
            f"Savchenko2025 has a member for each of {', '.join(MODALITIES)}, and no training clip "
            f"has {' or '.join(lacking)}; train another model, or a StatisticsMLP of one modality"
        )
    held_out, on_valid, members = [], [], {}
    dims = {name: train.dims[name] for name in MODALITIES}
    targets = np.shape(train.target)[1]
    for name, dim in dims.items():

        def one(data, name=name, dim=dim):
            return fit_one(StatisticsMLP(dim, name, targets, hidden=hidden), data)

        held_out.append(
            held_out_predictions(train, lambda a, b, one=one: one(a).predict(b), folds, seed)
        )
        result = one(train)
        members[name] = result.model
        if valid is not None:
            on_valid.append(result.predict(valid))
    honest = search_weights(held_out, train.target, step)
    model = _fused(dims, targets, hidden, members, honest)
    if valid is None:
        return SavchenkoFit(model, None)
    leak = search_weights(on_valid, valid.target, step)
    return SavchenkoFit(model, _fused(dims, targets, hidden, members, leak))


def _fused(dims, targets, hidden, members, weights) -> Savchenko2025:
    model = Savchenko2025(*dims.values(), targets, hidden=hidden)
    for name, member in members.items():
        model.members[name].load_state_dict(member.state_dict())
    model.set_fusion(weights)
    return model


class Zhang2024(nn.Module, PyTorchModelHubMixin):
    """Zhang et al. 2024 [38] (Table 2, 0.46): an ensemble of Transformer fusions.

    A member: linear map of each modality to a common width, sinusoidal positions and a learned
    vector a modality, all steps of all modalities as one sequence through a Transformer encoder,
    mean over the real steps, linear layer. The intensity is the mean over the members.

    max_steps : longer sequences become the means of so many equal segments before anything else; a
        saving that the original has not. None reads every step.
    """

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
        super().__init__()
        _check_width(width, heads)
        _check_at_least_one(max_steps=1 if max_steps is None else max_steps)
        self.max_steps = max_steps
        _check_at_least_one(members=members)
        self.dims = {"frames": frames_dim, "audio": audio_dim, "text": text_dim}
        self.missing = _tokens(self.dims)
        self.members = nn.ModuleList(
            _TransformerFusion(self.dims, num_targets, width, heads, layers, dropout)
            for _ in range(members)
        )

    def forward(
        self, frames, audio, text, frames_valid=None, audio_valid=None, present=None
    ) -> AveragedOutput:
        call = (frames, audio, text, frames_valid, audio_valid, present)
        sequences = _sequences(call, self.dims, self.missing, self.max_steps)
        return average([member(sequences) for member in self.members], self.training)


class _TransformerFusion(nn.Module):
    """One member of `Zhang2024`: {modality: (B, T, D), (B, T)} → (B, E)."""

    def __init__(self, dims, num_targets, width, heads, layers, dropout):
        super().__init__()
        self.project = nn.ModuleDict({name: nn.Linear(dim, width) for name, dim in dims.items()})
        self.kind = _tokens(dict.fromkeys(dims, width))
        self.encoder = _transformer(width, heads, layers, dropout)
        self.head = nn.Linear(width, num_targets)

    def forward(self, sequences) -> Tensor:
        steps = []
        for name, (x, _) in sequences.items():
            x = self.project[name](x)
            steps.append(x + self.kind[name] + _positions_like(x))
        valid = torch.cat([valid for _, valid in sequences.values()], dim=1)
        states = self.encoder(torch.cat(steps, dim=1), src_key_padding_mask=~valid)
        return self.head(masked_mean(states, valid))


def yu2025(
    frames_dim: int = 768,
    audio_dim: int = 1024,
    text_dim: int = 768,
    num_targets: int = 6,
    **settings,
):
    """Yu et al. 2025 [34] (Table 2, 0.51): the full model of paper A, a `DualStage`.

    [34] is a later version of paper A; what it changed to come from 0.3626 to 0.51 is unknown.
    """
    from emilib.models.dual_stage import DualStage

    return DualStage(frames_dim, audio_dim, text_dim, num_targets, **settings)


# ------------------------------------------------------------------ for comparison


class TFN(nn.Module, PyTorchModelHubMixin):
    """Tensor Fusion Network, Zadeh et al. 2017: the outer product of three embeddings.

    z = [z_text; 1] ⊗ [z_frames; 1] ⊗ [z_audio; 1], so that every one-, two- and three-way
    product is in it; then two layers of 128 ReLU and a linear layer.
    """

    def __init__(
        self,
        frames_dim: int = 768,
        audio_dim: int = 1027,
        text_dim: int = 768,
        num_targets: int = 6,
        *,
        width: int = 32,
        text_width: int = 128,
        hidden: int = 128,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.dims = {"frames": frames_dim, "audio": audio_dim, "text": text_dim}
        self.missing = _tokens(self.dims)
        self.embed = nn.ModuleDict(
            {
                "frames": _relu_stack([frames_dim, width, width, width], dropout),
                "audio": _relu_stack([audio_dim, width, width, width], dropout),
                "text": _relu_stack([text_dim, text_width, text_width], dropout),
            }
        )
        fused = (text_width + 1) * (width + 1) ** 2
        self.head = nn.Sequential(
            _relu_stack([fused, hidden, hidden], dropout), nn.Linear(hidden, num_targets)
        )

    def forward(
        self, frames, audio, text, frames_valid=None, audio_valid=None, present=None
    ) -> Output:
        call = (frames, audio, text, frames_valid, audio_valid, present)
        sequences = _sequences(call, self.dims, self.missing)
        z = {}
        for name, (x, valid) in sequences.items():
            embedded = self.embed[name](masked_mean(x, valid))
            z[name] = torch.cat([embedded, torch.ones_like(embedded[:, :1])], dim=-1)
        cube = torch.einsum("bi,bj,bk->bijk", z["text"], z["frames"], z["audio"])
        return Output(intensity=self.head(cube.flatten(1)))


class MulT(nn.Module, PyTorchModelHubMixin):
    """Multimodal Transformer, Tsai et al. 2019: each modality read through the two others.

    Temporal convolution to a common width, sinusoidal positions; six crossmodal transformers β → α;
    for each α a self-attention Transformer over [β → α; γ → α]; the last real steps of
    the three, concatenated, through a residual block and a linear layer.

    max_steps : longer sequences become the means of so many equal segments before anything else; a
        saving that the original has not. None reads every step.
    """

    def __init__(
        self,
        frames_dim: int = 768,
        audio_dim: int = 1027,
        text_dim: int = 768,
        num_targets: int = 6,
        *,
        width: int = 40,
        heads: int = 8,
        layers: int = 4,
        kernel_size: int = 3,
        dropout: float = 0.1,
        max_steps: int | None = None,
    ):
        super().__init__()
        _check_width(width, heads)
        _check_at_least_one(max_steps=1 if max_steps is None else max_steps)
        self.max_steps = max_steps
        _check_at_least_one(layers=layers)
        self.dims = {"frames": frames_dim, "audio": audio_dim, "text": text_dim}
        self.missing = _tokens(self.dims)
        kernels = {"frames": kernel_size, "audio": kernel_size, "text": 1}  # text is one step
        self.project = nn.ModuleDict(
            {n: nn.Conv1d(d, width, kernels[n], padding="same") for n, d in self.dims.items()}
        )
        self.crossmodal = nn.ModuleDict(
            {
                f"{source}_to_{target}": _Crossmodal(width, heads, layers, dropout)
                for target in MODALITIES
                for source in MODALITIES
                if source != target
            }
        )
        self.memory = nn.ModuleDict(
            {name: _transformer(2 * width, heads, layers, dropout) for name in MODALITIES}
        )
        self.residual = nn.Sequential(
            nn.Linear(6 * width, 6 * width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(6 * width, 6 * width),
        )
        self.head = nn.Linear(6 * width, num_targets)

    def forward(
        self, frames, audio, text, frames_valid=None, audio_valid=None, present=None
    ) -> Output:
        call = (frames, audio, text, frames_valid, audio_valid, present)
        low, masks = {}, {}
        for name, (x, valid) in _sequences(call, self.dims, self.missing, self.max_steps).items():
            x = self.project[name](x.transpose(1, 2)).transpose(1, 2)  # (B, T, width)
            low[name], masks[name] = x + _positions_like(x), valid
        last = []
        for target in MODALITIES:
            seen = [
                self.crossmodal[f"{source}_to_{target}"](low[target], low[source], masks[source])
                for source in MODALITIES
                if source != target
            ]
            states = self.memory[target](
                torch.cat(seen, dim=-1), src_key_padding_mask=~masks[target]
            )
            last.append(last_step(states, masks[target]))
        fused = torch.cat(last, dim=-1)  # (B, 6 width)
        return Output(intensity=self.head(fused + self.residual(fused)))


class _Crossmodal(nn.Module):
    """Crossmodal transformer β → α: the target's steps ask, the source's low-level steps answer.

    Block i: Y = CM_i(LN(Z_{i-1}), LN(Z_β)) + LN(Z_{i-1}), Z_i = f(LN(Y)) + LN(Y).
    """

    def __init__(self, width: int, heads: int, layers: int, dropout: float):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(width),
                    "source_norm": nn.LayerNorm(width),
                    "attention": nn.MultiheadAttention(width, heads, dropout, batch_first=True),
                    "forward_norm": nn.LayerNorm(width),
                    "feed_forward": nn.Sequential(
                        nn.Linear(width, 4 * width),
                        nn.ReLU(),
                        nn.Dropout(dropout),
                        nn.Linear(4 * width, width),
                    ),
                }
            )
            for _ in range(layers)
        )

    def forward(self, target: Tensor, source: Tensor, source_valid: Tensor) -> Tensor:
        """target (B, T_α, W), source (B, T_β, W), source_valid (B, T_β) → (B, T_α, W)."""
        for block in self.blocks:
            asking, answering = block["norm"](target), block["source_norm"](source)
            read, _ = block["attention"](
                *(asking, answering, answering),
                key_padding_mask=~source_valid,
                need_weights=False,
            )
            target = block["forward_norm"](read + asking)
            target = block["feed_forward"](target) + target
        return target


class MISA(nn.Module, PyTorchModelHubMixin):
    """Modality-invariant and -specific representations, Hazarika et al. 2020.

    u_m from two stacked bidirectional LSTMs (text: its vector); a shared and a private encoder,
    linear and sigmoid, give h_c and h_p; the six vectors through one Transformer layer,
    concatenated, and a linear layer. In training `auxiliary_loss` is
    similarity · L_sim + difference · L_diff + reconstruction · L_recon, over the clips that have
    all three modalities (`misa_losses`).

    max_steps : longer sequences become the means of so many equal segments before anything else; a
        saving that the original has not. None reads every step.
    """

    def __init__(
        self,
        frames_dim: int = 768,
        audio_dim: int = 1027,
        text_dim: int = 768,
        num_targets: int = 6,
        *,
        width: int = 128,
        heads: int = 2,
        dropout: float = 0.1,
        similarity: float = 1.0,
        difference: float = 0.3,
        reconstruction: float = 1.0,
        max_steps: int | None = None,
    ):
        super().__init__()
        _check_width(width, heads)
        _check_at_least_one(max_steps=1 if max_steps is None else max_steps)
        self.max_steps = max_steps
        self.dims = {"frames": frames_dim, "audio": audio_dim, "text": text_dim}
        self.loss_weights = (similarity, difference, reconstruction)
        self.missing = _tokens(self.dims)
        self.recurrent = nn.ModuleDict(
            {
                n: nn.ModuleList([BiLSTM(self.dims[n], width), BiLSTM(2 * width, width)])
                for n in ("frames", "audio")
            }
        )
        ends = {"frames": 2 * width, "audio": 2 * width, "text": text_dim}
        self.project = nn.ModuleDict(
            {
                n: nn.Sequential(nn.Linear(d, width), nn.ReLU(), nn.LayerNorm(width))
                for n, d in ends.items()
            }
        )
        self.shared = nn.Sequential(nn.Linear(width, width), nn.Sigmoid())
        self.private = nn.ModuleDict(
            {n: nn.Sequential(nn.Linear(width, width), nn.Sigmoid()) for n in MODALITIES}
        )
        self.decode = nn.ModuleDict({n: nn.Linear(width, width) for n in MODALITIES})
        self.fuse = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, batch_first=True)
        self.head = nn.Sequential(
            _relu_stack([6 * width, 3 * width], dropout), nn.Linear(3 * width, num_targets)
        )

    def forward(
        self, frames, audio, text, frames_valid=None, audio_valid=None, present=None
    ) -> AveragedOutput:
        call = complete_call((frames, audio, text, frames_valid, audio_valid, present), self.dims)
        sequences = _sequences(call, self.dims, self.missing, self.max_steps)
        u = {name: self.project[name](self._end(name, *sequences[name])) for name in MODALITIES}
        shared = {name: self.shared(x) for name, x in u.items()}
        private = {name: self.private[name](x) for name, x in u.items()}
        six = torch.stack([*shared.values(), *private.values()], dim=1)  # (B, 6, width)
        intensity = self.head(self.fuse(six).flatten(1))
        loss = None
        if self.training:
            rebuilt = {n: self.decode[n](shared[n] + private[n]) for n in MODALITIES}
            whole = call[-1].all(dim=1)
            parts = misa_losses(
                *({n: x[whole] for n, x in d.items()} for d in (u, shared, private, rebuilt))
            )
            loss = sum(w * part for w, part in zip(self.loss_weights, parts, strict=True))
        return AveragedOutput(intensity=intensity, auxiliary_loss=loss)

    def _end(self, name: str, x: Tensor, valid: Tensor) -> Tensor:
        """End states of both directions of the upper LSTM (B, 2 width); the text's vector."""
        if name == "text":
            return x[:, 0]
        for layer in self.recurrent[name]:
            x = layer(x, valid)
        forwards, backwards = x.chunk(2, dim=-1)
        return torch.cat([last_step(forwards, valid), backwards[:, 0]], dim=-1)


def misa_losses(u, shared, private, rebuilt) -> tuple[Tensor, Tensor, Tensor]:
    """Similarity, difference and reconstruction loss of MISA, for B clips.

    Each argument maps a modality to (B, D). Similarity: mean over pairs of modalities of the
    central moment discrepancy of the shared vectors. Difference: squared Frobenius norm, over the
    number of entries, of H_cᵀ H_p for each modality and H_pᵀ H_p' for each pair, of vectors of
    zero mean over the batch and then of length 1. Reconstruction: mean squared error of u. All 0
    for fewer than 2 clips.
    """
    names = list(u)
    if len(u[names[0]]) < 2:
        zero = u[names[0]].sum() * 0
        return zero, zero, zero
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    similarity = sum(central_moment_discrepancy(shared[a], shared[b]) for a, b in pairs) / 3
    s = {n: nn.functional.normalize(x - x.mean(0), dim=-1) for n, x in shared.items()}
    p = {n: nn.functional.normalize(x - x.mean(0), dim=-1) for n, x in private.items()}
    difference = sum((s[n].T @ p[n]).square().mean() for n in names)
    difference = difference + sum((p[a].T @ p[b]).square().mean() for a, b in pairs)
    reconstruction = sum((u[n] - rebuilt[n]).square().mean() for n in names) / 3
    return similarity, difference, reconstruction


def central_moment_discrepancy(x: Tensor, y: Tensor, moments: int = 5) -> Tensor:
    """CMD of two samples (B, D) with values in [0, 1] (Zellinger et al. 2017).

    ‖E x - E y‖ + sum over k = 2..K of ‖C_k(x) - C_k(y)‖ with C_k(x) = E (x - E x)^k.
    """
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    total = torch.linalg.vector_norm(x_mean - y_mean)
    for k in range(2, moments + 1):
        gap = (x - x_mean).pow(k).mean(dim=0) - (y - y_mean).pow(k).mean(dim=0)
        total = total + torch.linalg.vector_norm(gap)
    return total


# ------------------------------------------------------------------ parts they share


def _positions_like(x: Tensor) -> Tensor:
    return positions(*x.shape[1:], device=x.device, dtype=x.dtype)  # (T, D)


def _transformer(width: int, heads: int, layers: int, dropout: float) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)


def _relu_stack(widths: Sequence[int], dropout: float) -> nn.Sequential:
    layers = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def _check_width(width: int, heads: int) -> None:
    _check_at_least_one(width=width, heads=heads)
    if width % heads:
        raise ValueError(f"width {width} is no multiple of heads {heads}: change one of them.")


MARKS: dict[str, Marks] = {
    "LastStepGRU": Marks(
        "official ViT features; one model, frames only",
        "3-layer GRU, last step, linear layer",
        "GRU width (256 here), training recipe",
    ),
    "MeanLinear": Marks(
        "official Wav2Vec2 features, mean over time, linear layer", "none", "training recipe"
    ),
    "LateAverage": Marks("mean of the two baselines' predictions", "none", "training recipe"),
    "Yu2024": Marks(
        "TCN, then a Transformer encoder, for each of vision and audio; mean of the predictions",
        "mean over time before the linear layer; the vision features here stand for ResNet18 and "
        "action-unit features",
        "widths, depths, kernel size, dropout (256, 2 layers, 3, 0.1 here)",
    ),
    "Hallmen2024": Marks(
        "2-layer one-directional LSTM, 1027 wide, over 12 s of audio; concat(mean, last) 2054; "
        "linear 2054, tanh, linear 6; AdamW 1e-4, cosine, 1 warm-up epoch, 30 epochs, batch 32, "
        "MSE",
        "none",
        "what the fine-tuning of the audio network adds: the network is frozen here",
    ),
    "Savchenko2025": Marks(
        "clip statistics, Dense 64 ReLU, Dense 6 sigmoid for each modality; loss 1 - mean Pearson, "
        "Adam 1e-3, batch 512; weights for each emotion in steps of 0.05",
        "weights searched on held-out training folds (the original: on validation, a leak)",
        "the features here stand for facial emotion scores, HuBERT states and sentence vectors",
    ),
    "Zhang2024": Marks(
        "face features, audio and transcripts, Transformer fusion, ensemble",
        "all modalities as one sequence; mean over time; 3 members that differ by initial weights",
        "widths, depths, what the members differ in; masked-autoencoder face features are replaced",
    ),
    "yu2025": Marks(
        "none beyond paper A", "paper A's full model", "what its later version changed"
    ),
    "TFN": Marks(
        "outer product with ones; 32-wide frames and audio, 128-wide text, two layers of 128 ReLU",
        "text is one vector here: no LSTM over words",
        "dropout (0.1 here)",
    ),
    "MulT": Marks(
        "temporal convolution, sinusoidal positions, six crossmodal transformers, three "
        "self-attention Transformers, last steps concatenated, residual block",
        "text is one vector here: a sequence of length 1; width 40, 4 layers, 8 heads",
        "kernel size and dropout for this task (3 and 0.1 here)",
    ),
    "MISA": Marks(
        "stacked bidirectional LSTMs, shared and private sigmoid encoders, CMD, orthogonality "
        "and reconstruction losses, Transformer over six vectors",
        "text vector in place of BERT; losses over clips with all three modalities, the squared "
        "Frobenius norm divided by its number of entries",
        "width and loss weights for this task (128; 1, 0.3, 1 here)",
    ),
}


def _append_marks() -> None:
    """Show each model's marks in its docstring, from the one place where they are written."""
    for name, marks in MARKS.items():
        model = globals()[name]
        if model.__doc__:  # python -OO drops docstrings
            lines = [f"    {what}: {text}." for what, text in marks._asdict().items()]
            model.__doc__ += "\n" + "\n".join(lines) + "\n"


_append_marks()

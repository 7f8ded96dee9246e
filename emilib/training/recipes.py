"""Settings of everything that is trained, as plain data; importing this needs no torch."""

import dataclasses

_CHOICES = {
    "optimizer": ("adamw",),
    "schedule": ("constant", "warmup_cosine", "sgdr"),
    "clip_by": ("norm", "value"),
    "keep": ("best", "last"),
    "mixed_precision": (None, "bf16", "fp16"),
    "loss": ("mse", "1-pearson"),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is trained. Change a field with ``dataclasses.replace``.

    schedule : "constant"; "warmup_cosine", linear from 0 over `warmup_epochs`, then cosine to 0
        at the last step; "sgdr", Eq. 10 of paper A: cosine from `lr` to `min_lr` in cycles of
        `cycle_epochs`. All move at every optimiser step.
    clip, clip_by : the gradient's total norm, or each of its values, is held to `clip`; None: not
    patience : epochs without a better validation ρ before training stops; None: never
    keep : which epoch's weights the result has, of the best validation ρ or the last
    ema_decay : γ of Eq. 11 of paper A; validation and result use the averaged weights; None: off
    ema_warmup : γ at step t is min(ema_decay, (1 + t) / (10 + t)). With 0.999 the average
        remembers about 1,000 steps, more than a short run has.
    mixed_precision : autocast on a GPU, with gradient scaling for "fp16"; nothing on a CPU
    loss : "mse", or "1-pearson", one minus the batch's mean ρ
    accumulate : batches whose gradients make one step
    """

    epochs: int = 30
    batch_size: int = 32
    lr: float = 1e-4
    weight_decay: float = 0.01
    optimizer: str = "adamw"
    schedule: str = "constant"
    warmup_epochs: float = 1.0
    cycle_epochs: int = 10
    min_lr: float = 1e-7
    clip: float | None = None
    clip_by: str = "norm"
    patience: int | None = None
    keep: str = "best"
    ema_decay: float | None = None
    ema_warmup: bool = False
    mixed_precision: str | None = None
    loss: str = "mse"
    accumulate: int = 1

    def __post_init__(self):
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"Recipe.{name}: expected one of {choices}, got {value!r}")
        for name in ("epochs", "batch_size", "accumulate", "cycle_epochs"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"Recipe.{name}: expected a whole number from 1, got {value!r}")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"Recipe.{name}: expected a number above 0, got {value!r}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"Recipe.ema_decay: expected from 0 to below 1, got {self.ema_decay}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"Recipe.patience: expected at least 1 or None, got {self.patience}")

    @classmethod
    def dual_stage(cls) -> "Recipe":
        """Stage II of paper A: MSE (3.6), EMA with γ = 0.999 (Eq. 11).

        Optimiser, learning rate, schedule, batch size and number of epochs of Stage II are not
        stated in the paper.
        """
        return cls(
            epochs=30,  # not stated in the paper
            batch_size=32,  # not stated in the paper
            lr=1e-4,  # not stated in the paper
            schedule="constant",  # not stated in the paper
            ema_decay=0.999,
            ema_warmup=False,  # not stated in the paper
            keep="best",  # not stated in the paper
        )

    @classmethod
    def hallmen(cls) -> "Recipe":
        """Hallmen et al. 2024: the one earlier solution whose recipe is told, used for the others.

        Clipping and early stopping are not told; the epoch of the best validation ρ is kept.
        """
        return cls(
            epochs=30,
            batch_size=32,
            lr=1e-4,
            weight_decay=0.01,
            schedule="warmup_cosine",
            warmup_epochs=1.0,
        )

    @classmethod
    def savchenko(cls) -> "Recipe":
        """Savchenko 2025: 1 - mean Pearson, Adam 1e-3, batch 512."""
        return cls(
            epochs=30,  # not told
            batch_size=512,
            lr=1e-3,
            weight_decay=0.0,  # AdamW without decay is Adam
            loss="1-pearson",
        )

    @classmethod
    def taemi(cls) -> "Recipe":
        """Paper B, 3.5 and 4.1."""
        return cls(
            epochs=50,
            batch_size=32,
            lr=1e-4,
            weight_decay=0.01,
            schedule="warmup_cosine",
            warmup_epochs=1.0,
            clip=100.0,
            clip_by="norm",  # not stated in the paper; the release clips by value
            patience=5,
            mixed_precision="fp16",  # "mixed-precision via gradient scaling"
        )


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """How long and how large; learning rates rise over a tenth of the steps, then fall to 0."""

    vision_steps: int = 1000
    vision_batch: int = 64  # pairs of frames
    audio_steps: int = 250
    audio_batch: int = 16
    audio_seconds: float = 3.0  # a random cut of each clip
    text_steps: int = 100
    text_batch: int = 64
    lr: float = 2e-3  # of vision and audio
    text_lr: float = 1e-3
    change_size: int = 32  # pixels a side of the change that is reconstructed
    mel_bands: int = 64
    masked_share: float = 0.3  # of the steps of sound, and of the words


@dataclasses.dataclass(frozen=True)
class StageOne:
    """Settings of one contrastive run; the defaults are the paper's where it has any."""

    epochs: int = 50
    cycle_epochs: int = 10
    lr_max: float = 1e-5
    lr_min: float = 1e-7
    batch_size: int = 64  # not stated in the paper
    width: int = 256  # of the common space; not stated in the paper
    segments: int = 8  # of the segment-wise pooling; not stated in the paper
    audio_seconds: float = 12.0  # longest cut of the sound; not stated in the paper
    symmetric: bool = True  # False is Eq. 1 to the letter
    train_encoders: bool = True  # False trains the heads alone
    weight_decay: float = 0.01  # not stated in the paper
    # Clips whose activations are held at once; None: the whole batch, shared by the processes.
    chunk: int | None = None
    mixed_precision: str | None = None  # "bf16": autocast on a GPU; not stated in the paper
    text_from: str = "audio"  # whose text encoder Stage II takes; not stated in the paper

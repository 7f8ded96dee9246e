"""Settings of everything that is trained, as plain data; importing this needs no torch."""

import dataclasses
import math

_CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "schedule": ("constant", "warmup_cosine", "sgdr"),
    "clip_by": ("norm", "value"),
    "keep": ("best", "last"),
    "mixed_precision": (None, "bf16", "fp16"),
    "loss": ("mse", "1-pearson"),
    "decay": ("all", "matrices"),
}
_STAGE_ONE = {"optimizer": _CHOICES["optimizer"], "frame_reference": ("none", "first")}
_POSITIVE = ("epochs", "batch_size", "accumulate", "cycle_epochs", "judge_every")
_POSITIVE = (*_POSITIVE, "lr", "clip", "patience")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is trained. Change a field with ``dataclasses.replace``.

    schedule : of every step. "constant"; "warmup_cosine", linear from 0 over `warmup_epochs`, then
        cosine to 0; "sgdr", Eq. 10 of A: cosine from `lr` to `min_lr`, cycles of `cycle_epochs`
    """

    epochs: int = 30
    batch_size: int = 32
    lr: float = 1e-4
    optimizer: str = "adamw"  # or "sgd", with momentum 0.9
    weight_decay: float = 0.01
    decay: str = "all"  # what decays: all parameters, or "matrices", see `loop.parameter_groups`
    schedule: str = "constant"
    warmup_epochs: float = 1.0
    cycle_epochs: int = 10
    min_lr: float = 1e-7
    clip: float | None = None  # bound of the gradient; None: it is not clipped
    clip_by: str = "norm"  # what is bounded: its total norm, or "value", each of its values
    patience: int | None = None  # epochs without a better validation ρ before training stops
    judge_every: int = 1  # epochs between two looks at validation clips; the last has one too
    keep: str = "best"  # the result has the weights of the best validation ρ, or the "last"
    ema_decay: float | None = None  # γ of Eq. 11 of A; validation and result use the average
    ema_warmup: bool = False  # γ at step t is min(ema_decay, (1 + t) / (10 + t)), for short runs
    mixed_precision: str | None = None  # autocast on a GPU; "fp16" also scales gradients
    loss: str = "mse"  # or "1-pearson", one minus the batch's mean ρ
    accumulate: int = 1  # batches whose gradients make one step
    standardise: bool = False  # features by the training clips, where they are not standardised
    ridge: bool = False  # a ridge on clips' means has a share in predictions, see `MeansRidge`

    def __post_init__(self):
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"Recipe.{name}: expected one of {choices}, got {value!r}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"Recipe.{name}: expected a number above 0, got {value!r}")

    @property
    def selects(self) -> bool:
        """Whether validation clips decide which epoch the weights are of."""
        return self.keep == "best" or self.patience is not None

    @classmethod
    def auto(cls, data) -> "Recipe":
        """A recipe from the number of clips N of the FeatureSet `data` alone; nothing is searched.

        Batches of about N / 25 clips, a power of two from 16 to 128; as many epochs as make 300
        steps, at least 8; a cosine from 2e-3. Linear layers decay so that e^-3 of what they began
        with is left in the end, whatever the number of steps: weights that the clips do not bring
        back are noise, and with a text of 768 numbers for 1,300 clips that is most of them.
        Features are standardised. A ridge regression on the clips' means, which is hard to beat
        with few clips and a linear relation, has a share in the predictions. Validation clips, or
        a fifth of 20 and more clips in a training beforehand, choose it.
        """
        clips = max(1, len(data))
        batch = 2 ** round(math.log2(min(max(clips / 25, 16), 128)))
        batches = math.ceil(clips / batch)
        epochs, lr = max(8, round(300 / batches)), 2e-3
        decay = 3 / (lr / 2 * epochs * batches)  # a cosine's mean is half of where it begins
        about = {"decay": "matrices", "schedule": "warmup_cosine"}
        about |= {"standardise": True, "ridge": True}
        return cls(epochs=epochs, batch_size=batch, lr=lr, weight_decay=decay, **about)

    @classmethod
    def dual_stage(cls) -> "Recipe":
        """Stage II of paper A: MSE (3.6), EMA with γ = 0.999 (Eq. 11).

        Optimiser, rate, schedule, batches, epochs, which epoch is kept: not stated in the paper.
        """
        return cls(ema_decay=0.999)

    @classmethod
    def hallmen(cls) -> "Recipe":
        """Hallmen et al. 2024, the one earlier solution that states a recipe; others take it."""
        return cls(schedule="warmup_cosine")

    @classmethod
    def savchenko(cls) -> "Recipe":
        """Savchenko 2025: 1 - mean Pearson, Adam 1e-3, batch 512; the epochs are not told."""
        return cls(batch_size=512, lr=1e-3, weight_decay=0.0, loss="1-pearson")

    @classmethod
    def taemi(cls) -> "Recipe":
        """Paper B, 3.5 and 4.1: AdamW 1e-4 with decay 0.01, batches of 32.

        That gradients are clipped by norm is not stated in the paper; its release clips by value.
        """
        fp16 = {"mixed_precision": "fp16"}  # "mixed-precision via gradient scaling"
        return cls(epochs=50, schedule="warmup_cosine", clip=100.0, patience=5, **fp16)


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
    change_size: int = 32  # pixels a side of the picture that is moved; displacements have 1/4
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
    # Of the common space; None: no heads, for encoders of one width. Not stated in the paper.
    width: int | None = 256
    segments: int = 8  # of the segment-wise pooling; not stated in the paper
    # "first": a clip's vector is of the changes since its first frame. Not stated in the paper.
    frame_reference: str = "none"
    audio_seconds: float = 12.0  # longest cut of the sound; not stated in the paper
    # Eq. 1 to the letter: False for these four and width=None, which the paper's encoders, 1024 and
    # 768 wide, do not allow.
    symmetric: bool = True  # False: media → text only
    cosine: bool = True  # False: dot products of vectors of any length
    learn_temperature: bool = True  # False: it stays `temperature`
    mask_duplicates: bool = True  # False: clips with the same words are negatives of each other
    temperature: float = 0.07  # τ, in the beginning; not stated in the paper
    train_encoders: bool = True  # False trains the heads alone
    # One run of L_v2t + L_a2t (3.6) with one text encoder, on clips that have both; False: two
    # runs, each with a text encoder of its own ("independently", 2.3). The paper says both.
    joint: bool = False
    # "SGD with warm restarts" (4.3) is read as the schedule. "sgd": the letter, momentum 0.9; at
    # 1e-5 and `clip` 1 it moves all weights by 0.3 at most in 6,300 steps, and a head's norm is 9.
    optimizer: str = "adamw"
    weight_decay: float = 0.01  # not stated in the paper
    clip: float | None = 1.0  # bound of the gradient's norm; None: none. Not stated in the paper
    # Clips whose activations are held at once; None: the whole batch, shared by the processes.
    chunk: int | None = None
    mixed_precision: str | None = None  # "bf16": autocast on a GPU; not stated in the paper
    # Whose text encoder Stage II takes; the other modality was aligned to another, but in a joint
    # run. Not stated in the paper.
    text_from: str = "audio"

    def __post_init__(self):
        for name, choices in _STAGE_ONE.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"StageOne.{name}: expected one of {choices}, got {value!r}")

"""The three sizes at which everything runs: smoke, embedded and paper.

A profile fixes encoders, training and seeds; which corpus it runs on is another question.
"""

import dataclasses
import os

from emilib.training.recipes import Recipe, StageOne, WarmStart

# Sizes of the small encoders. They are members of the papers' families: ViT, wav2vec2, BERT.
SMALL_VISION = {
    "image_size": 64,
    "patch_size": 16,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 192,
}
SMALL_AUDIO = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    # 640 samples a step: 25 hidden states a second, half the published networks' 50.
    "conv_dim": (32, 64, 64),
    "conv_kernel": (40, 16, 8),
    "conv_stride": (20, 8, 4),
    "conv_bias": True,
    # Layer norm, because group norm makes a padded clip differ from the same clip alone.
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 15,
    "num_conv_pos_embedding_groups": 8,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}
SMALL_TEXT = {
    "vocab_size": 600,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 64,
}


@dataclasses.dataclass(frozen=True)
class Profile:
    """Sizes, encoders, training and seeds of one way to run everything.

    corpus_size : clips of the embedded corpus; None where a corpus has to be given
    vision, audio, text : a configuration of a small network, or {"checkpoint": name or folder} and
        with it what `emilib.features.loading.pretrained` takes, such as "pool" or "revision"
    visual : "faces", the corpus's face crops, or "video", whole frames by time stamp
    audio_every : hidden states of the sound that are averaged into one step of the store
    stored_frames : frames a clip kept decoded for Stage I; None keeps all at `fps`
    face_size : pixels at which face crops are kept; None is `image_size`. The encoder brings them
        to its own size, on its device.
    max_seconds : of a clip that are used, from its beginning; None is all of it
    taemi_encoders : as `vision`, `audio` and `text`, for the rows of TAEMI, by these names; None
        gives TAEMI the features of the others
    taemi_fine_tune : train the audio network and the text encoder of TAEMI with it, as we read
        paper B; False takes them frozen, from cached features
    dual_stage, taemi : settings of the fusion models beside the widths of their inputs
    earlier : of the other systems of Table B2, by class in `emilib.models.earlier`
    workers : processes for decoding and for training runs; None is one a core
    compile_vision : `torch.compile` for the pictures when features are made; for a GPU
    """

    name: str
    corpus_size: dict | None
    vision: dict
    audio: dict
    text: dict
    warm_start: WarmStart | None
    stage_one: dict  # of "frames" and "audio", a StageOne each
    dual_stage: dict
    taemi: dict
    baseline: dict  # settings of the GRU on the official visual features
    dual_stage_recipe: Recipe
    taemi_recipe: Recipe
    baseline_recipe: Recipe
    earlier: dict
    earlier_recipe: Recipe
    savchenko_recipe: Recipe
    seeds: tuple[int, ...] = (0, 1, 2)
    visual: str = "faces"
    fps: float = 5.0
    image_size: int = 64
    audio_every: int = 1
    stored_frames: int | None = None
    face_size: int | None = None
    max_seconds: float | None = None
    taemi_encoders: dict | None = None
    taemi_fine_tune: bool = False
    max_tokens: int = 64
    text_pool: str = "mean"  # over tokens; the paper does not say how BERT's states become f_s
    workers: int | None = None
    compile_vision: bool = False

    def encoder_configs(self, stage: str = "random") -> dict:
        """Configuration of the encoder of each role before any training here.

        Raises ValueError for the stage "paper_b" where the profile names no encoders of it.
        """
        if stage != "paper_b":
            return {"vision": self.vision, "audio": self.audio, "text": self.text}
        if self.taemi_encoders is None:
            raise ValueError(
                f"profile {self.name!r} names no encoders of paper B: its TAEMI takes the features "
                "of stage 'aligned'"
            )
        return self.taemi_encoders


def _small(name: str, **fields) -> Profile:
    # Without attention dropout, which takes a CPU's fused attention off its fast path.
    small = {"width": 32, "heads": 4, "attention_dropout": 0.0}
    settings = {
        "vision": SMALL_VISION,
        "audio": SMALL_AUDIO,
        "text": SMALL_TEXT,
        "dual_stage": {
            "width": 32,
            "segments": 6,
            "tcn_width": 32,
            "tcn_dilations": (1, 2, 4),
            "audio_hidden": 24,
            "layers": 1,
        },
        "baseline": {"hidden": 32},
        "audio_every": 2,  # halves the time of every model that reads sound
        "taemi": small,
        "stage_one": {side: StageOne() for side in ("frames", "audio")},
        "earlier": {
            "Yu2024": {"width": 32, "layers": 1, "dilations": (1, 2, 4), "max_steps": 32},
            "Zhang2024": {"width": 32, "layers": 1, "max_steps": 16},
            "TFN": {"width": 8, "text_width": 32, "hidden": 32},
            "MulT": {"width": 16, "heads": 4, "layers": 1, "max_steps": 16},
            "MISA": {"width": 32, "max_steps": 32},
            "Savchenko2025": {"folds": 3},
        },
    }
    return Profile(name=name, **{**settings, **fields})


def _contrast(epochs: int, **fields) -> dict:
    """Stage I of a small profile: the paper's schedule at a rate for networks this small."""
    plan = StageOne(epochs=epochs, lr_max=3e-4, lr_min=3e-6, width=48, audio_seconds=3.0, **fields)
    return {"frames": plan, "audio": plan}


def smoke() -> Profile:
    """For tests: everything happens, nothing is learnt. Under two minutes on two cores."""
    recipe = Recipe(epochs=2, batch_size=16, lr=1e-3)
    return _small(
        "smoke",
        corpus_size={"train": 40, "validation": 24, "test": 8},
        warm_start=WarmStart(vision_steps=8, audio_steps=8, text_steps=8, vision_batch=16),
        stage_one=_contrast(2, cycle_epochs=1, batch_size=16),
        dual_stage_recipe=dataclasses.replace(recipe, ema_decay=0.9),
        taemi_recipe=dataclasses.replace(recipe, schedule="warmup_cosine", clip=100.0, patience=5),
        baseline_recipe=recipe,
        earlier_recipe=dataclasses.replace(recipe, schedule="warmup_cosine"),
        savchenko_recipe=dataclasses.replace(Recipe.savchenko(), epochs=2),
        seeds=(0, 1),
    )


def embedded() -> Profile:
    """The default of `./run_all.sh`: two cores, no GPU, no network, at most ten minutes."""
    # 400 clips are 13 batches of 32, after 8 epochs of which the dual-stage network and TAEMI were
    # still rising. With 16 both (V+T, V+A+T) are within .01 of what 16 epochs of 32 give them;
    # simple concatenation is not (.363 and .378), nor are networks without words.
    short = {"epochs": 8, "lr": 3e-3, "batch_size": 16}
    return _small(
        "embedded",
        corpus_size={"train": 400, "validation": 240, "test": 60},
        warm_start=WarmStart(vision_steps=700),
        stage_one=_contrast(10, cycle_epochs=5),
        # γ of the paper averages over about 1,000 steps; a run here has 200.
        dual_stage_recipe=dataclasses.replace(Recipe.dual_stage(), **short, ema_decay=0.95),
        taemi_recipe=dataclasses.replace(Recipe.taemi(), **short, mixed_precision=None),
        baseline_recipe=Recipe(epochs=6, lr=2e-3, batch_size=16),
        earlier_recipe=dataclasses.replace(Recipe.hallmen(), **short),
        savchenko_recipe=dataclasses.replace(Recipe.savchenko(), epochs=30, lr=1e-2),
    )


def paper() -> Profile:
    """The papers' sizes, encoders, epochs and rates, for Hume-Vidmimic2 and a GPU."""
    plan = StageOne(chunk=16, mixed_precision="bf16")
    return Profile(
        name="paper",
        corpus_size=None,
        vision={"checkpoint": "openai/clip-vit-base-patch16"},
        audio={"checkpoint": "facebook/wav2vec2-large-lv60"},
        text={"checkpoint": "bert-base-uncased"},
        warm_start=None,
        stage_one={"frames": plan, "audio": plan},
        dual_stage={},
        taemi={},
        baseline={},
        dual_stage_recipe=Recipe.dual_stage(),
        taemi_recipe=Recipe.taemi(),
        baseline_recipe=Recipe(epochs=30, lr=1e-4, patience=5),
        earlier={},
        earlier_recipe=Recipe.hallmen(),
        savchenko_recipe=Recipe.savchenko(),
        visual="video",  # A 3.1: "video streams are sampled at 5 frames per second"
        image_size=224,
        stored_frames=8,
        face_size=160,  # that of the data set
        # Paper B cuts the sound at 12 s; of A it is not stated. 95 % of the clips are shorter, and
        # one lasts 1,249.92 s.
        max_seconds=12.0,
        taemi_encoders={
            "vision": {"checkpoint": "google/vit-base-patch16-224-in21k", "pool": "mean"},
            "audio": {"checkpoint": "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim"},
            "text": {"checkpoint": "alibaba-nlp-community/gte-base-en-v1.5"},
        },
        taemi_fine_tune=True,  # not stated in so many words: "loaded" for both
        max_tokens=128,
        text_pool="cls",  # as paper B
    )


def changed(profile: Profile, visual: str | None = None, seeds: int | str | None = None) -> Profile:
    """The profile with other pictures, or with so many seeds from 0 on; None changes nothing."""
    if visual not in (None, "faces", "video"):
        raise ValueError(f"visual: expected 'faces' or 'video', got {visual!r}")
    if seeds is not None and not (str(seeds).isdigit() and int(seeds) >= 1):
        raise ValueError(f"seeds: expected a whole number from 1, got {seeds!r}")
    return dataclasses.replace(
        profile,
        visual=visual or profile.visual,
        seeds=profile.seeds if seeds is None else tuple(range(int(seeds))),
    )


_PROFILES = {"smoke": smoke, "embedded": embedded, "paper": paper}
NAMES = tuple(_PROFILES)


def get(name: str | None = None) -> Profile:
    """The profile of this name; without one, that of ``EMI_PROFILE``, else smoke."""
    name = name or os.environ.get("EMI_PROFILE", "smoke")
    if name not in _PROFILES:
        raise ValueError(f"profile: expected one of {', '.join(_PROFILES)}, got {name!r}")
    return _PROFILES[name]()

"""The three sizes at which everything runs: smoke, embedded and paper.

A profile fixes encoders, training and seeds; which corpus it runs on is another question.
"""

import dataclasses
import os

from emilib.training.recipes import Recipe, StageOne, WarmStart


def _transformer(width: int, layers: int, inner: int) -> dict:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": inner}
    return {**sizes, "num_attention_heads": 4}


# The small encoders are members of the papers' families: ViT, wav2vec2, BERT.
SMALL_VISION = {"image_size": 64, "patch_size": 16} | _transformer(96, 3, 192)
SMALL_TEXT = {"vocab_size": 600, "max_position_embeddings": 64} | _transformer(128, 2, 256)
SMALL_AUDIO = {
    **_transformer(64, 2, 192),
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


@dataclasses.dataclass(frozen=True)
class Profile:
    """Sizes, encoders, training and seeds of one way to run everything.

    vision, audio, text : a configuration of a small network, the last with "pool" and "max_tokens";
        or {"checkpoint": name or folder} and what `emilib.features.loading.pretrained` takes
    dual_stage, taemi, baseline : settings of the fusion models, and of the GRU on the official
        visual features, beside the widths of their inputs
    earlier : of the other systems of Table B2, by class in `emilib.models.earlier`
    """

    name: str
    vision: dict
    audio: dict
    text: dict
    stage_one: dict  # of "frames" and "audio", a StageOne each
    dual_stage_recipe: Recipe
    taemi_recipe: Recipe
    baseline_recipe: Recipe
    earlier_recipe: Recipe
    savchenko_recipe: Recipe
    dual_stage: dict = dataclasses.field(default_factory=dict)
    taemi: dict = dataclasses.field(default_factory=dict)
    baseline: dict = dataclasses.field(default_factory=dict)
    earlier: dict = dataclasses.field(default_factory=dict)
    # Clips of the embedded corpus by split, perhaps its "seed"; None: a corpus has to be given.
    corpus_size: dict | None = None
    warm_start: WarmStart | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    more_seeds: bool = True  # where experiments.csv asks for more than these
    visual: str = "faces"  # face crops, or "video", whole frames by time stamp
    fps: float = 5.0
    image_size: int = 64
    frame_reference: str = "none"  # or "first", "mean", see `FeatureSet`; not stated in the papers
    text_pool: str = "mean"  # of a feature file's tokens, "cls" or "last"
    tuned: bool = False  # rows take rate, decay and epochs from emilib/study/tuning.csv
    audio_every: int = 1  # hidden states of the sound that are averaged into one step of the store
    stored_frames: int | None = None  # a clip, kept decoded for Stage I; None: all at `fps`
    face_size: int | None = None  # pixels at which face crops are kept; None: `image_size`
    max_seconds: float | None = None  # of a clip that are used, from its beginning; None: all
    taemi_encoders: dict | None = None  # of the rows of TAEMI, by role; None: those of the others
    taemi_fine_tune: bool = False  # train TAEMI's encoders of sound and words with it
    worlds: dict = dataclasses.field(default_factory=dict)  # of `emilib.study.worlds.Size`
    workers: int | None = None  # processes for decoding and for training runs; None: one a core
    compile_vision: bool = False  # `torch.compile` the ViT when features are made; for a GPU

    @property
    def suffix(self) -> str:
        """Ends the names of the folders that belong to another corpus seed than 0."""
        seed = (self.corpus_size or {}).get("seed", 0)
        return f"-{seed}" if seed else ""

    def encoder_configs(self, stage="random") -> dict:
        """Configuration of the encoder of each role before any training here.

        Raises ValueError for the stage "paper_b" where the profile names no encoders of it.
        """
        if stage != "paper_b":
            return {"vision": self.vision, "audio": self.audio, "text": self.text}
        if self.taemi_encoders is None:
            raise ValueError(f"profile {self.name!r} names no encoders of paper B: use 'aligned'")
        return self.taemi_encoders


def _small(name: str, stage_one: dict, **fields) -> Profile:
    plan = StageOne(lr_max=3e-4, lr_min=3e-6, width=48, audio_seconds=2.0, **stage_one)
    tcn = {"tcn_width": 32, "tcn_dilations": (1, 2, 4)}
    return Profile(
        name=name,
        vision=SMALL_VISION,
        audio=SMALL_AUDIO,
        # Over tokens; paper A does not say how BERT's states become f_s.
        text=SMALL_TEXT | {"pool": "mean", "max_tokens": 64},
        frame_reference="first",  # most of what a drawn face's features tell is whose face it is
        audio_every=4,  # six steps a second; models that read sound take time by the step
        stage_one={"frames": dataclasses.replace(plan, frame_reference="first"), "audio": plan},
        # Not the paper's letter: one Transformer layer ("multi-layer"; the class has 2), for the
        # time; scores of mapped features and one error a clip, with which these rows were tuned.
        dual_stage={
            **{"width": 32, "segments": 6, "audio_hidden": 24, "layers": 1, **tcn},
            **{"scored": "mapped", "step_loss": False},
        },
        # Without attention dropout, which takes a CPU's fused attention off its fast path.
        taemi={"width": 32, "heads": 4, "attention_dropout": 0.0},
        baseline={"hidden": 32},
        earlier={
            "Yu2024": {"width": 32, "layers": 1, "dilations": (1, 2, 4), "max_steps": 32},
            "Zhang2024": {"width": 32, "layers": 1, "max_steps": 16},
            "TFN": {"width": 8, "text_width": 32, "hidden": 32},
            "MulT": {"width": 16, "heads": 4, "layers": 1, "max_steps": 16},
            "MISA": {"width": 32, "max_steps": 32},
            "Savchenko2025": {"folds": 3},
        },
        **fields,
    )


def smoke() -> Profile:
    """For tests: everything happens, nothing is learnt. Under two minutes on two cores."""
    recipe = Recipe(epochs=2, batch_size=16, lr=1e-3, decay="matrices", keep="last")
    return _small(
        "smoke",
        {"epochs": 2, "cycle_epochs": 1, "batch_size": 16},
        corpus_size={"train": 40, "validation": 24, "test": 8},
        warm_start=WarmStart(vision_steps=8, audio_steps=8, text_steps=8, vision_batch=16),
        dual_stage_recipe=dataclasses.replace(recipe, ema_decay=0.9),
        taemi_recipe=dataclasses.replace(recipe, schedule="warmup_cosine", clip=100.0),
        baseline_recipe=recipe,
        earlier_recipe=dataclasses.replace(recipe, schedule="warmup_cosine"),
        savchenko_recipe=dataclasses.replace(Recipe.savchenko(), epochs=2),
        seeds=(0, 1),
        more_seeds=False,
        worlds={"train": 32, "labelled": 16, "test": 24, "batch_size": 16, "epochs": 1}
        | {"dials": (0.0, 1.0), "seeds": (0, 1)},
    )


def embedded() -> Profile:
    """The default of `./run_all.sh`: two cores, no GPU, no network; some 25 minutes."""
    # Rate, decay and epochs are those of tuning.csv, of each row its own. The last epoch is kept:
    # validation clips choose nothing.
    common = {"decay": "matrices", "keep": "last", "patience": None, "mixed_precision": None}
    common["judge_every"] = 4  # for the time
    larger = {**common, "batch_size": 64}  # for the time: paper B has 32
    return _small(
        "embedded",
        {"epochs": 4, "cycle_epochs": 2},  # 100 steps
        corpus_size={"train": 1600, "validation": 800, "test": 240},
        warm_start=WarmStart(vision_steps=700),
        # γ of the paper averages over about 1,000 steps; a run here has 200 or 400.
        dual_stage_recipe=dataclasses.replace(Recipe.dual_stage(), **larger, ema_decay=0.95),
        taemi_recipe=dataclasses.replace(Recipe.taemi(), **larger),
        baseline_recipe=Recipe(**larger),
        earlier_recipe=dataclasses.replace(Recipe.hallmen(), **common),
        # His batch of 512 would be a third of the clips.
        savchenko_recipe=dataclasses.replace(Recipe.savchenko(), **larger),
        tuned=True,
    )


def paper() -> Profile:
    """The papers' sizes, encoders, epochs and rates, for Hume-Vidmimic2 and a GPU."""
    plan = StageOne(chunk=16, mixed_precision="bf16")
    return Profile(
        name="paper",
        vision={"checkpoint": "openai/clip-vit-base-patch16"},
        audio={"checkpoint": "facebook/wav2vec2-large-lv60"},
        text={"checkpoint": "bert-base-uncased", "pool": "cls"},  # as paper B
        stage_one={"frames": plan, "audio": plan},
        dual_stage_recipe=Recipe.dual_stage(),
        taemi_recipe=Recipe.taemi(),
        baseline_recipe=Recipe(epochs=30, lr=1e-4, patience=5),
        earlier_recipe=Recipe.hallmen(),
        savchenko_recipe=Recipe.savchenko(),
        visual="video",  # A 3.1: "video streams are sampled at 5 frames per second"
        image_size=224,
        stored_frames=8,
        face_size=160,  # that of the data set
        max_seconds=12.0,  # paper B, of the sound; A does not say. 95 % of the clips are shorter
        taemi_encoders={
            "vision": {"checkpoint": "google/vit-base-patch16-224-in21k", "pool": "mean"},
            "audio": {"checkpoint": "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim"},
            "text": {"checkpoint": "alibaba-nlp-community/gte-base-en-v1.5"},
        },
        taemi_fine_tune=True,  # not stated in so many words: "loaded" for both
    )


_PROFILES = {"smoke": smoke, "embedded": embedded, "paper": paper}
NAMES = tuple(_PROFILES)


def get(name=None, visual=None, seeds=None, corpus_seed=None) -> Profile:
    """A profile by name, with other pictures ("faces", "video") and so many seeds from 0 on.

    corpus_seed : of the embedded corpus, where the profile has one
    Without them ``EMI_PROFILE`` (else smoke), ``EMI_VISUAL``, ``EMI_SEEDS``, ``EMI_CORPUS_SEED``
    and ``EMI_TEXT_POOL`` count.
    """
    name = name or os.environ.get("EMI_PROFILE") or "smoke"
    visual, seeds = visual or os.environ.get("EMI_VISUAL"), seeds or os.environ.get("EMI_SEEDS")
    if corpus_seed is None:
        corpus_seed = os.environ.get("EMI_CORPUS_SEED") or 0
    if name not in _PROFILES:
        raise ValueError(f"profile: expected one of {', '.join(NAMES)}, got {name!r}")
    if visual not in (None, "", "faces", "video"):
        raise ValueError(f"visual: expected 'faces' or 'video', got {visual!r}")
    if seeds and not (str(seeds).isdigit() and int(seeds) >= 1):
        raise ValueError(f"seeds: expected a whole number from 1, got {seeds!r}")
    if not str(corpus_seed).isdigit():
        raise ValueError(f"corpus seed: expected a whole number from 0, got {corpus_seed!r}")
    changes = {"text_pool": os.environ.get("EMI_TEXT_POOL") or "mean"}
    changes |= {"visual": visual} if visual else {}
    changes |= {"seeds": tuple(range(int(seeds))), "more_seeds": False} if seeds else {}
    profile = dataclasses.replace(_PROFILES[name](), **changes)
    if profile.corpus_size is None:
        return profile
    size = {**profile.corpus_size, "seed": int(corpus_seed)}
    return dataclasses.replace(profile, corpus_size=size)

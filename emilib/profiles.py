"""The three sizes at which everything runs: smoke, embedded and paper.
A profile fixes encoders, training and seeds, with reasons ("why") in profiles.json; no corpus."""

import dataclasses
import functools
import json
import os
from pathlib import Path

from emilib.training.recipes import Recipe, StageOne, WarmStart


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

    @property
    def suffix(self) -> str:
        """Ends the names of the folders that belong to another corpus seed than 0."""
        seed = (self.corpus_size or {}).get("seed", 0)
        return f"-{seed}" if seed else ""

    def encoder_configs(self, stage="random") -> dict:
        """Configuration of the encoder of each role before any training here."""
        if stage != "paper_b":
            return {"vision": self.vision, "audio": self.audio, "text": self.text}
        if self.taemi_encoders is None:
            raise ValueError(f"profile {self.name!r} names no encoders of paper B: use 'aligned'")
        return self.taemi_encoders


def _plain(value):
    """Without reasons, and with tuples for lists."""
    if isinstance(value, dict):
        return {name: _plain(own) for name, own in value.items() if not name.startswith("why")}
    return tuple(map(_plain, value)) if isinstance(value, list) else value


def _recipe(like: str | None = None, **changes) -> Recipe:
    return dataclasses.replace(getattr(Recipe, like)() if like else Recipe(), **changes)


def _profile(name: str) -> Profile:
    fields = {**(_DATA["small"] if name != "paper" else {}), **_DATA[name]}
    fields |= {f"{of}_recipe": _recipe(**own) for of, own in fields.pop("recipes").items()}
    fields["stage_one"] = {side: StageOne(**own) for side, own in fields["stage_one"].items()}
    warm = fields.get("warm_start")
    return Profile(name, **{**fields, "warm_start": warm and WarmStart(**warm)})


_DATA = _plain(json.loads(Path(__file__).with_name("profiles.json").read_text("utf-8")))
SMALL_VISION, SMALL_AUDIO = (_DATA["small"][role] for role in ("vision", "audio"))
SMALL_TEXT = {n: x for n, x in _DATA["small"]["text"].items() if n not in ("pool", "max_tokens")}
NAMES = ("smoke", "embedded", "paper")
smoke, embedded, paper = (functools.partial(_profile, name) for name in NAMES)


def get(name=None, visual=None, seeds=None, corpus_seed=None) -> Profile:
    """A profile by name, with other pictures ("faces", "video") and so many seeds from 0 on.
    Without them ``EMI_PROFILE`` (else smoke), ``EMI_VISUAL``, ``EMI_SEEDS``, ``EMI_CORPUS_SEED``
    (of the embedded corpus) and ``EMI_TEXT_POOL`` count."""
    name = name or os.environ.get("EMI_PROFILE") or "smoke"
    visual, seeds = visual or os.environ.get("EMI_VISUAL"), seeds or os.environ.get("EMI_SEEDS")
    if corpus_seed is None:
        corpus_seed = os.environ.get("EMI_CORPUS_SEED") or 0
    if name not in NAMES:
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
    profile = dataclasses.replace(_profile(name), **changes)
    if profile.corpus_size is None:
        return profile
    size = {**profile.corpus_size, "seed": int(corpus_seed)}
    return dataclasses.replace(profile, corpus_size=size)

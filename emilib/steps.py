"""The steps from a corpus to features, each with its key and its making side by side.

    for step in Steps(profile, reader, cache):
        print(step)

A step's key is made from its own settings and code and from the keys of the steps it needs.
Indivisible steps run on rank 0. All ranks share Stage I's batches and the shards of feature stores.
"""

import contextlib
import dataclasses
import functools
import json
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from emilib import MODALITIES, workers
from emilib.cache import Cache, code_version, key, world_size
from emilib.features import checkpoints, store
from emilib.features.extraction import Batching, extract
from emilib.features.store import Rows
from emilib.progress import Counter
from emilib.reader import CorpusReader
from emilib.training import contrastive_pretraining, self_supervised

ROLES = ("vision", "audio", "text")
STAGES = ("random", "start", "aligned", "paper_b")  # of the encoders
ENCODERS = ("features/encoders.py", "features/loading.py")
STAGE_ONE = "stage-one"  # the kind of its steps


@dataclasses.dataclass(frozen=True, repr=False)
class Step:
    """A result that is kept.

    settings : all that determines it, apart from the steps it needs
    make : ``make(step, folder)`` fills the finished folder; of a step that is made clip by clip,
        ``make(step, ids)`` yields a dict of arrays or None for each of its `ids`, by `columns`
    """

    name: str
    kind: str  # its folder in the cache
    settings: Mapping
    make: Callable
    cache: Cache
    needs: tuple["Step", ...] = ()
    ids: Sequence[str] = ()
    columns: tuple[str, ...] = ()

    @functools.cached_property
    def parts(self) -> dict:
        return {**self.settings, "needs": [step.key for step in self.needs]}

    @functools.cached_property
    def key(self) -> str:
        return key(**self.parts)

    def __repr__(self):
        return f"{self.name} ({self.kind}/{self.key[:8]}), from {[s.name for s in self.needs]}"

    def folder(self) -> Path:
        """The finished folder; made where it is missing.

        One torch thread on a CPU: a step made alone and made beside another have the same bits.
        """
        # All ranks work on Stage I together.
        run = self.cache.step if self.kind == STAGE_ONE else self.cache.shared_step
        with contextlib.nullcontext() if torch.cuda.is_available() else workers.one_thread():
            return run(self.kind, self.parts, functools.partial(self.make, self))

    @functools.cached_property
    def stores(self) -> dict:
        """Stores of its columns; made where they are missing, shards that are finished kept."""
        if not self.cache.has(self.kind, self.parts):
            finish(self.needs)
        make, progress = functools.partial(self.make, self), Counter(f"{self.name}: clips")
        settings = (self.kind, self.parts, self.ids, make, self.columns)
        return store.build(self.cache, *settings, progress=progress)


def finish(steps: Sequence[Step]) -> None:
    """Make the steps that are missing, two at once where there are no GPU and ranks to share."""
    missing = [step for step in steps if not step.cache.has(step.kind, step.parts)]
    for step in missing:
        finish(step.needs)
        if step.columns:
            step.stores  # noqa: B018 - made when asked for
    whole = [step for step in missing if not step.columns]
    shared = torch.cuda.is_available() or world_size() > 1
    processes = 1 if shared else min(2, len(whole), workers.count())
    list(workers.ordered_map(Step.folder, whole, processes))


class Steps:
    """All steps of a profile on a corpus, in order."""

    def __init__(self, profile, reader: CorpusReader, cache: Cache):
        self.profile, self.reader, self.cache = profile, reader, cache

    def __getstate__(self):  # what follows from these is not sent to a worker
        return {"profile": self.profile, "reader": self.reader, "cache": self.cache}

    def __iter__(self) -> Iterator[Step]:
        if self.reader.has_media:
            yield from (self.media, *self.starts.values(), *self.runs.values())
            yield from map(self.features, STAGES if self.profile.taemi_encoders else STAGES[:3])
        if self.reader.has_official:  # as a feature file always has
            yield self.official

    def _step(self, name, kind, make, needs=(), columns=(), split=None, **settings) -> Step:
        """A step of these settings; with `columns`, of the clips of a split, or of all."""
        settings, ids = {"corpus": self.reader.key, **settings}, self.reader.ids(split)
        return Step(name, kind, settings, make, self.cache, tuple(needs), ids, columns)

    @functools.cached_property
    def media(self) -> Step:
        """Stores "frames" (T, 3, S, S) uint8, "waveform" (S,) int16, and "seen" (T,) uint8.
        Frames are face crops or video frames, as `Profile.visual` says; see `reader.decode`."""
        if not self.reader.has_media:
            raise ValueError(f"{self.reader.source}: expected media, got features; give a corpus")
        p, columns = self.profile, ("frames", "waveform", "seen")
        frames = [p.visual, p.fps, p.stored_frames, p.image_size, p.face_size, p.max_seconds]
        code = code_version("reader.py", "corpus/media.py", "corpus/faces.py")

        def make(step: Step, ids: list[str]) -> Iterator[dict]:
            return self.reader.decoded(ids, profile=p, kept=p.stored_frames)

        return self._step("decoding", "media", make, (), columns, frames=frames, code=code)

    def clips(self) -> contrastive_pretraining.Clips:
        """What pretraining may see: the training clips, without their labels."""
        ids, stores = self.reader.ids("train"), self.media.stores
        frames = Rows(stores["frames"], ids, torch.from_numpy)
        sound = Rows(stores["waveform"], ids, lambda a: torch.from_numpy(a).float() / 32768)
        return contrastive_pretraining.Clips(ids, frames, sound, self.reader.texts(ids))

    @functools.cached_property
    def starts(self) -> dict[str, Step]:
        """Encoders after their self-supervised start by role, the longest first; {} without."""
        plan, starts = self.profile.warm_start, {}
        code = code_version("training/self_supervised.py", *ENCODERS)
        for role in ("audio", "vision", "text") if plan else ():
            needs = () if role == "text" else (self.media,)
            settings = {"config": self.identity(role), "role": role, "plan": plan, "code": code}
            name = f"self-supervised start, {role}"
            starts[role] = self._step(name, "start", self._start, needs, **settings)
        return starts

    def _start(self, step: Step, folder: Path) -> None:
        from emilib.features.loading import save_encoder

        role, plan, clips = step.settings["role"], step.settings["plan"], self.clips()
        encoder, progress = self.untrained(role), Counter(f"{step.name}: step")
        rows, warm, least = {
            "vision": (clips.frames, self_supervised.warm_vision, 2),
            "audio": (clips.audio, self_supervised.warm_audio, getattr(encoder, "shortest", 1)),
            "text": (clips.texts, self_supervised.warm_text, 1),
        }[role]
        usable = [row for row in rows if row is not None and len(row) >= least]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            losses = warm(encoder, usable, plan, 0, progress) if usable else []
        save_encoder(encoder, folder)
        (folder / "losses.json").write_text(json.dumps(losses))

    @functools.cached_property
    def runs(self) -> dict[tuple[str, ...], Step]:
        """Stage I by sides; raises ValueError for a joint run with different settings of these."""
        code = ("training/contrastive_pretraining.py", "models/contrastive.py", *ENCODERS)
        code, runs = code_version(*code), {}
        plans = self.profile.stage_one
        joint = any(plan.joint for plan in plans.values())
        if joint and plans["frames"] != plans["audio"]:
            raise ValueError(f"expected one StageOne for both sides of a joint run, got {plans}")
        groups = [("audio", "frames")] if joint else [("audio",), ("frames",)]
        for sides in groups:
            plan, roles = plans[sides[0]], [{"frames": "vision"}.get(s, s) for s in sides]
            settings = {"encoders": [self.identity(role) for role in (*roles, "text")]}
            settings |= {"roles": roles, "sides": sides, "plan": plan, "code": code}
            needs = [self.media, *(self.starts[r] for r in (*roles, "text") if self.starts)]
            name = f"Stage I, {' and '.join(sides)}-text"
            runs[sides] = self._step(name, STAGE_ONE, self._run, needs, **settings)
        return runs

    def _run(self, step: Step, folder: Path) -> None:
        from emilib.features.loading import save_encoder

        *media, text = self.encoders("start", (*step.settings["roles"], "text")).values()
        plan, sides = step.settings["plan"], step.settings["sides"]
        settings = {"seed": 0, "checkpoint": self.cache.scratch(step.kind, step.parts)}
        settings |= {"plan": plan, "progress": Counter(f"{step.name}: step")}
        clips = self.clips()
        if len(contrastive_pretraining.usable(clips, *media)) < 2:  # no words, or no such medium
            for side, encoder in zip(sides, media, strict=True):
                save_encoder(encoder, folder / side / "media")
                save_encoder(text, folder / side / "text")
            return
        media = media if plan.joint else media[0]
        result = contrastive_pretraining.pretrain(media, text, clips, **settings)
        for side, run in zip(sides, result if plan.joint else [result], strict=True):
            save_encoder(run.media, folder / side / "media")
            save_encoder(run.text, folder / side / "text")
            run.pair.save_pretrained(folder / side / "heads")
            pd.DataFrame(run.history).to_csv(folder / side / "history.csv", index=False)

    def align(self) -> dict[str, Path]:
        """Folders of Stage I's runs by side, made where they are missing."""
        finish(list(self.runs.values()))
        return {side: run.folder() / side for sides, run in self.runs.items() for side in sides}

    def encoders(self, stage="aligned", roles=ROLES) -> dict:
        """Encoders of `roles`, all of "vision", "audio" and "text", as they are at one of STAGES.
        "random", untrained; "start", pretrained checkpoints or the self-supervised start;
        "aligned", after Stage I (the text encoder of the run `StageOne.text_from`); "paper_b", the
        checkpoints of paper B. Raises ValueError for another stage."""
        from emilib.features.loading import load_encoder

        if stage not in STAGES:
            raise ValueError(f"stage: expected one of {', '.join(STAGES)}, got {stage!r}")
        if stage in ("random", "paper_b") or (stage == "start" and not self.starts):
            return {role: self.untrained(role, stage) for role in roles}
        if stage == "start":
            finish([self.starts[role] for role in roles])
            folders = {role: self.starts[role].folder() for role in roles}
        else:
            runs = self.align()
            folders = {"vision": runs["frames"] / "media", "audio": runs["audio"] / "media"}
            folders["text"] = runs[self.profile.stage_one["frames"].text_from] / "text"
        return {role: load_encoder(folders[role]) for role in roles}

    def untrained(self, role: str, stage="random"):
        """The encoder of a role from nothing, or from the checkpoint that the profile names."""
        from emilib.features import loading

        config = dict(self.profile.encoder_configs(stage)[role])
        if "checkpoint" in config:
            return loading.pretrained(role, config.pop("checkpoint"), **config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if role == "text":
                words = list(filter(None, self.reader.texts(self.reader.ids("train"))))
                words = words or list(string.ascii_lowercase)  # a vocabulary that nothing uses
                settings = {name: config.pop(name) for name in ("pool", "max_tokens")}
                return loading.small_text(config, words, **settings)
            return (loading.small_vision if role == "vision" else loading.small_audio)(config)

    def identity(self, role: str, stage="random") -> dict:
        """What determines an encoder before training; for a checkpoint, its very weights."""
        config = self.profile.encoder_configs(stage)[role]
        if "checkpoint" not in config:
            return config
        weights = checkpoints.identity(config["checkpoint"], config.get("revision"))
        return {**config, "weights": weights}

    @functools.lru_cache(maxsize=8)  # noqa: B019 - these steps live as long as their process
    def features(self, stage: str) -> Step:
        """Stores "frames", "audio" and "text" of all clips, by the encoders at a stage."""
        every = 1 if stage == "paper_b" else self.profile.audio_every
        settings = {"stage": stage, "every": every}
        settings["encoders"] = [self.identity(role, stage) for role in ROLES]
        settings["text_from"] = self.profile.stage_one["frames"].text_from
        settings["code"] = code_version("features/extraction.py", *ENCODERS)
        needs = {"start": self.starts.values(), "aligned": self.runs.values()}.get(stage, ())
        name, make = f"features, {stage}", self._encode
        return self._step(name, "features", make, (self.media, *needs), MODALITIES, **settings)

    def corrupted(self, stage: str, modality: str, corrupt: Callable, by: dict) -> store.Store:
        """Features of the validation clips, their media changed before the encoder; kept.

        stage : of the encoders, as in `encoders`; modality : "frames" or "audio"
        corrupt(id, medium) : a clip's frames (T, 3, S, S) uint8 or waveform (S,) int16, changed
        by : all that determines `corrupt`
        """
        clean, columns = self.features(stage), (modality,)
        make = functools.partial(self._encode, modality=modality, corrupt=corrupt)
        settings = (f"corrupted {modality}", "corrupted", make, clean.needs, columns, "validation")
        return self._step(*settings, **clean.settings, by=[modality, by]).stores[modality]

    def _encode(self, step: Step, ids, modality=None, corrupt=None) -> Iterator[dict]:
        """Features clip by clip; of one modality alone, corrupted, where it is named."""
        stores, words = self.media.stores, self.reader.texts(ids)
        media = {"frames": Rows(stores["frames"], ids), "audio": Rows(stores["waveform"], ids)}
        if self.profile.stored_frames is not None:  # encoders get all, the store keeps but a few
            decoded = self.reader.decoded(ids, profile=self.profile, kept=None, sound=False)
            media["frames"] = (row["frames"] for row in decoded)
        if modality is not None:
            pairs = zip(ids, media[modality], strict=True)
            changed = (None if medium is None else corrupt(i, medium) for i, medium in pairs)
            media = dict.fromkeys(media, [None] * len(ids)) | {modality: changed}
            words = [""] * len(ids)
        batching = Batching.on(workers.device())
        encoders, every = self.encoders(step.settings["stage"]), step.settings["every"]
        rows = extract(encoders, *media.values(), words, every, batching=batching)
        for id_, row in zip(ids, rows, strict=True):
            if not all(array is None or np.isfinite(array).all() for array in row.values()):
                wrong = "expected finite features, got NaN or infinity: an encoder is damaged"
                raise ValueError(f"clip {id_}: {wrong}")
            yield row

    @functools.cached_property
    def official(self) -> Step:
        """Stores "frames" and "audio" of the organisers' pickles; all that a feature file has."""
        code = code_version("reader.py", "corpus/feature_files.py")
        name = "official features" if self.reader.has_media else "features of the file"
        columns = self.reader.official_columns

        def make(step: Step, ids: list[str]) -> Iterator[dict]:
            return self.reader.official(ids)

        return self._step(name, "official", make, (), columns, code=code)

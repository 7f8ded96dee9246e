"""The steps from a corpus to features, each with its key and its making side by side.

    for step in Steps(profile, reader, cache):
        print(step)

A step's key is made from its own settings and code and from the keys of the steps it needs, so a
change makes anew what depends on it, and nothing else. Indivisible steps run on rank 0; the others
wait for the cached result. All ranks share Stage I's batches and the shards of feature stores.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from emilib import SAMPLE_RATE, workers
from emilib.cache import Cache, code_version, key, world_size
from emilib.corpus import defects
from emilib.features import checkpoints, store
from emilib.features.extraction import Batching, extract
from emilib.features.store import Rows
from emilib.models.taemi import MAX_AUDIO_SECONDS
from emilib.progress import Counter
from emilib.reader import decode, pickled
from emilib.training import contrastive_pretraining, self_supervised

ROLES = ("vision", "audio", "text")
STAGES = ("random", "start", "aligned", "one_way", "paper_b")  # of the encoders
ENDINGS = {"aligned": "", "one_way": "-one-way"}  # of the names of Stage I's runs
ENCODERS = ("features/encoders.py", "features/loading.py")
STAGE_ONE = ("training/contrastive_pretraining.py", "models/contrastive.py")
OFFICIAL = {"frames": "official_vision", "audio": "official_audio"}


@dataclasses.dataclass(frozen=True, repr=False)
class Step:
    """A result that is kept.

    settings : what determines it, apart from the steps it needs
    make : fills the finished folder, which it is called with
    together : whether all ranks make it, not the first alone
    """

    name: str
    kind: str  # its folder in the cache
    settings: Mapping
    make: Callable
    cache: Cache
    needs: tuple["Step", ...] = ()
    together: bool = False

    @property
    def parts(self) -> dict:
        return {**self.settings, "needs": [step.key for step in self.needs]}

    @functools.cached_property
    def key(self) -> str:
        return key(**self.parts)

    def __repr__(self):
        return f"{self.name} ({self.kind}/{self.key[:8]}), from {[s.name for s in self.needs]}"

    def exists(self) -> bool:
        """Whether it is finished, without reading its files."""
        return self.cache.exists(self.kind, self.parts)

    def folder(self) -> Path:
        """The finished folder; made where it is missing."""
        run = self.cache.step if self.together else self.cache.shared_step
        return run(self.kind, self.parts, self.make)


@dataclasses.dataclass(frozen=True, repr=False)
class ClipStep(Step):
    """A step that is made clip by clip: ``make(ids)`` yields a dict of arrays or None for each."""

    ids: Sequence[str] = ()
    columns: tuple[str, ...] = ()

    @functools.cached_property
    def stores(self) -> dict:
        """Stores of its columns; made where they are missing, shards that are finished kept."""
        if not self.cache.has(self.kind, self.parts):
            finish(self.needs)
        progress = Counter(f"{self.name}: clips")
        return store.build(
            self.cache, self.kind, self.parts, self.ids, self.make, self.columns, progress=progress
        )


def finish(steps: Sequence[Step]) -> None:
    """Make the steps that are missing, two at once where there is no GPU to share.

    The small networks hardly gain from a second thread: a process for each does. Several ranks
    share each of them instead.
    """
    missing = [step for step in steps if not step.cache.has(step.kind, step.parts)]
    for step in missing:
        finish(step.needs)
        if isinstance(step, ClipStep):
            step.stores  # noqa: B018 - made when asked for
    whole = [step for step in missing if not isinstance(step, ClipStep)]
    shared = torch.cuda.is_available() or world_size() > 1
    if shared or len(whole) < 2 or workers.count() < 2:
        for step in whole:
            step.folder()
    else:
        list(workers.ordered_map(_make, whole, 2))


def _make(step: Step) -> None:
    torch.set_num_threads(1)
    step.folder()


class Steps:
    """All steps of a profile on a corpus, in order.

    reader : the corpus, an `emilib.reader.CorpusReader`
    """

    def __init__(self, profile, reader, cache: Cache):
        self.profile, self.reader, self.cache = profile, reader, cache

    def __getstate__(self):  # what follows from these is not sent to a worker
        return {"profile": self.profile, "reader": self.reader, "cache": self.cache}

    def __iter__(self) -> Iterator[Step]:
        yield self.media
        yield from self.starts.values()
        yield from self.runs.values()
        for stage in STAGES:
            if stage != "paper_b" or self.profile.taemi_encoders is not None:
                yield self.features(stage)
        if self.reader.has_official:
            yield self.official

    def _step(self, name, kind, make, needs=(), **settings) -> Step:
        settings = {"corpus": self.reader.key, **settings}
        return Step(name, kind, settings, make, self.cache, tuple(needs))

    def _clip_step(self, name, kind, make, columns, needs=(), ids=None, **settings) -> ClipStep:
        settings = {"corpus": self.reader.key, **settings}
        ids = self.reader.table["id"].tolist() if ids is None else ids
        return ClipStep(name, kind, settings, make, self.cache, tuple(needs), False, ids, columns)

    @functools.cached_property
    def media(self) -> ClipStep:
        """Stores "frames" (T, 3, S, S) uint8 and "waveform" (S,) int16.

        Frames are face crops or video frames, as `Profile.visual` says. A clip has none where
        they can't be read, or where the corpus has face crops and none of this clip: a face was
        looked for and not found. Where the corpus has no face crops at all, video is taken.
        """
        p = self.profile
        return self._clip_step(
            "decoding",
            "media",
            functools.partial(self._decoded, kept=p.stored_frames),
            ("frames", "waveform"),
            ids=[*self.reader.table["id"], *self.reader.unlabelled["id"]],
            frames=[p.visual, p.fps, p.stored_frames, p.image_size, p.face_size],
            seconds=p.max_seconds,
            code=code_version("reader.py", "corpus/media.py", "corpus/streams.py"),
        )

    def _decoded(self, ids: Sequence[str], kept: int | None, sound=True) -> Iterator[dict]:
        """Frames and waveforms of clips, some clips ahead."""
        job = functools.partial(decode, profile=self.profile, kept=kept, sound=sound)
        yield from workers.ordered_map(job, self.reader.paths(ids), self.reader.workers)

    @functools.cached_property
    def starts(self) -> dict[str, Step]:
        """Encoders after their self-supervised start by role, the longest first; {} without."""
        if self.profile.warm_start is None:
            return {}
        return {role: self._start(role) for role in ("audio", "vision", "text")}

    def _start(self, role: str) -> Step:
        return self._step(
            f"self-supervised start, {role}",
            "start",
            functools.partial(self._make_start, role),
            () if role == "text" else (self.media,),
            config=getattr(self.profile, role),
            pool=self.profile.text_pool if role == "text" else None,
            plan=self.profile.warm_start,
            code=code_version("training/self_supervised.py", *ENCODERS),
        )

    def _make_start(self, role: str, folder: Path) -> None:
        from emilib.features.loading import save_encoder

        encoder, plan, clips = self.untrained(role), self.profile.warm_start, self.clips()
        progress = Counter(f"self-supervised start, {role}: step")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if role == "vision":
                frames = [f for f in clips.frames if f is not None and len(f) > 1]
                losses = self_supervised.warm_vision(encoder, frames, plan, 0, progress)
            elif role == "audio":
                shortest = encoder.shortest
                sounds = [w for w in clips.waveforms if w is not None and len(w) >= shortest]
                losses = self_supervised.warm_audio(encoder, sounds, plan, 0, progress)
            else:
                losses = self_supervised.warm_text(encoder, self.reader.texts, plan, 0, progress)
        save_encoder(encoder, folder)
        (folder / "losses.json").write_text(json.dumps(losses))

    def clips(self) -> contrastive_pretraining.Clips:
        """What pretraining may see: training and unlabelled clips, without their labels."""
        clips = self.reader.pretraining
        ids, stores = clips["id"].tolist(), self.media.stores
        return contrastive_pretraining.Clips(
            ids,
            Rows(stores["frames"], ids, torch.from_numpy),
            Rows(stores["waveform"], ids, lambda a: torch.from_numpy(a).float() / 32768),
            [t if isinstance(t, str) else "" for t in clips["transcript"]],
        )

    @functools.cached_property
    def runs(self) -> dict[str, Step]:
        """Stage I: "audio" and "frames", and both "-one-way", by Eq. 1 to the letter."""
        return {
            f"{side}{ending}": self._run(side, one_way=bool(ending))
            for ending in ENDINGS.values()
            for side in ("audio", "frames")
        }

    def _run(self, side: str, one_way: bool) -> Step:
        role = "vision" if side == "frames" else "audio"
        plan = self.profile.stage_one[side]
        if one_way:
            plan = dataclasses.replace(plan, symmetric=False)
        code = code_version(
            "training/contrastive_pretraining.py", "models/contrastive.py", *ENCODERS
        )
        name = f"Stage I, {side}-text{', Eq. 1' if one_way else ''}"
        needs = [self.media, *(self.starts[r] for r in (role, "text") if self.starts)]
        encoders = [self.identity(role), self.identity("text"), self.profile.text_pool]
        step = self._step(name, "stage-one", None, needs, encoders=encoders, plan=plan, code=code)
        make = functools.partial(self._make_run, role, plan, name, step.parts)
        return dataclasses.replace(step, make=make, together=True)

    def _make_run(self, role, plan, name: str, parts: dict, folder: Path) -> None:
        from emilib.features.loading import save_encoder

        result = contrastive_pretraining.pretrain(
            self.started(role),
            self.started("text"),
            self.clips(),
            plan,
            seed=0,
            checkpoint=self.cache.scratch("stage-one", parts),
            progress=Counter(f"{name}: step"),
        )
        save_encoder(result.media, folder / "media")
        save_encoder(result.text, folder / "text")
        result.pair.save_pretrained(folder / "heads")
        pd.DataFrame(result.history).to_csv(folder / "history.csv", index=False)

    def align(self, stage="aligned") -> dict[str, Path]:
        """Folders of Stage I's runs by side, made where they are missing.

        stage : "aligned" or "one_way"
        """
        runs = {side: self.runs[f"{side}{ENDINGS[stage]}"] for side in ("audio", "frames")}
        finish(list(runs.values()))
        return {side: run.folder() for side, run in runs.items()}

    def encoders(self, stage="aligned") -> dict:
        """Encoders "vision", "audio" and "text" as they are at one of STAGES.

        Raises ValueError for another stage, or "paper_b" where the profile has none.
        """
        from emilib.features.loading import load_encoder

        if stage not in STAGES:
            raise ValueError(f"stage: expected one of {', '.join(STAGES)}, got {stage!r}")
        if stage in ("random", "paper_b"):
            return {role: self.untrained(role, stage) for role in ROLES}
        if stage == "start":
            finish(list(self.starts.values()))
            return {role: self.started(role) for role in ROLES}
        folders = self.align(stage)
        return {
            "vision": load_encoder(folders["frames"] / "media"),
            "audio": load_encoder(folders["audio"] / "media"),
            "text": load_encoder(folders[self.profile.stage_one["frames"].text_from] / "text"),
        }

    def untrained(self, role: str, stage="random"):
        """The encoder of a role from nothing, or from the checkpoint that the profile names."""
        from emilib.features import loading

        config = self.profile.encoder_configs(stage)[role]
        if "checkpoint" in config:
            settings = self.loading_settings(role, config)
            return loading.pretrained(role, settings.pop("checkpoint"), **settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if role == "vision":
                return loading.small_vision(config)
            if role == "audio":
                return loading.small_audio(config)
            pool, longest = self.profile.text_pool, self.profile.max_tokens
            return loading.small_text(config, self.reader.texts, pool, longest)

    def started(self, role: str):
        """The encoder of a role as Stage I begins with it."""
        from emilib.features.loading import load_encoder

        return load_encoder(self.starts[role].folder()) if self.starts else self.untrained(role)

    def loading_settings(self, role: str, config: dict) -> dict:
        """The configuration of a checkpoint, of a text encoder with what the profile says of it."""
        if role != "text":
            return dict(config)
        return {"pool": self.profile.text_pool, **config, "max_tokens": self.profile.max_tokens}

    def identity(self, role: str, stage="random") -> dict:
        """What determines an encoder before training; for a checkpoint, its very weights."""
        config = self.profile.encoder_configs(stage)[role]
        if "checkpoint" not in config:
            return config
        weights = checkpoints.identity(config["checkpoint"], config.get("revision"))
        return {**config, "weights": weights}

    @functools.lru_cache(maxsize=8)  # noqa: B019 - these steps live as long as their process
    def features(self, stage: str) -> ClipStep:
        """Stores "frames", "audio" and "text" of all clips, by the encoders at a stage."""
        if stage in ENDINGS:
            needs = [self.runs[f"{side}{ENDINGS[stage]}"] for side in ("audio", "frames")]
        else:
            needs = list(self.starts.values()) if stage == "start" else []
        return self._clip_step(
            f"features, {stage}",
            "features",
            functools.partial(self._encoded, stage),
            ("frames", "audio", "text"),
            (self.media, *needs),
            stage=stage,
            encoders=[self.identity(role, stage) for role in ROLES],
            text_from=self.profile.stage_one["frames"].text_from,
            sampling=self.sampling(stage),
            words=[self.profile.text_pool, self.profile.max_tokens],
            code=code_version("features/extraction.py", *ENCODERS),
        )

    def _encoded(self, stage: str, ids: Sequence[str]) -> Iterator[dict]:
        words = self.reader.clips.set_index("id")["transcript"].loc[list(ids)]
        words = [w if isinstance(w, str) else "" for w in words]
        yield from self._extract(stage, ids, self._frames(ids), self._sounds(ids), words)

    def corrupted(self, stage: str, modality: str, corrupt: Callable, by: dict) -> ClipStep:
        """As `features` of the validation clips alone, their media changed before the encoder."""

        def make(ids):
            media = self._sounds(ids) if modality == "audio" else self._frames(ids)
            changed = (
                None if m is None else corrupt(i, m) for i, m in zip(ids, media, strict=True)
            )
            nothing = [None] * len(ids)
            inputs = {"frames": nothing, "audio": nothing, modality: changed}
            yield from self._extract(stage, ids, *inputs.values(), [""] * len(ids))

        clean, table = self.features(stage), self.reader.table
        ids = table.loc[table["split"] == "validation", "id"].tolist()
        settings, name = {"features": clean.key, "by": [modality, by]}, f"corrupted {modality}"
        return self._clip_step(name, "corrupted", make, (modality,), clean.needs, ids, **settings)

    def _extract(self, stage: str, ids, frames, sounds, words) -> Iterator[dict]:
        """Features clip by clip; ValueError where an encoder gives what no model can take."""
        longest, every = self.sampling(stage)
        batching = Batching.on(workers.device(), compile=self.profile.compile_vision)
        sounds = (None if sound is None else sound[:longest] for sound in sounds)
        rows = extract(self.encoders(stage), frames, sounds, words, every, batching=batching)
        for id_, row in zip(ids, rows, strict=True):
            for name, array in row.items():
                if array is not None and not np.isfinite(array).all():
                    raise ValueError(
                        f"clip {id_}: expected finite features, got NaN or infinity from the "
                        f"encoder of {name} in half precision; its weights do not fit the network "
                        "or are damaged"
                    )
            yield row

    def _frames(self, ids) -> Iterator:
        """Every clip's frames as the encoder gets them: all, where the store keeps but a few."""
        if self.profile.stored_frames is not None:
            return (row["frames"] for row in self._decoded(ids, None, sound=False))
        return (self.media.stores["frames"][i] for i in ids)

    def _sounds(self, ids) -> Iterator:
        return (self.media.stores["waveform"][i] for i in ids)

    def sampling(self, stage: str) -> tuple[int | None, int]:
        """Samples of a waveform that are encoded (None: all of them), and `audio_every`."""
        if stage != "paper_b":
            return None, self.profile.audio_every
        return round(MAX_AUDIO_SECONDS * SAMPLE_RATE), 1

    @functools.cached_property
    def official(self) -> ClipStep:
        """Stores "frames" and "audio" of the organisers' pickles."""
        code = code_version("corpus/feature_files.py")
        name, columns = "official features", tuple(OFFICIAL)
        return self._clip_step(name, "official", self._read_official, columns, code=code)

    def _read_official(self, ids: Sequence[str]) -> Iterator[dict]:
        defects.check_official(self.reader.table)  # one sentence now, not an odd shape later
        rows = self.reader.table.set_index("id").loc[list(ids)]
        for row in rows.itertuples():
            yield {name: pickled(getattr(row, column)) for name, column in OFFICIAL.items()}

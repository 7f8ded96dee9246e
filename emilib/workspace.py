"""A profile at work on a corpus: clips, media, encoders, features and results, each made once.

The notebooks and the command line ask a `Workspace` for what they show; what is not there yet is
made, and kept in the cache below ``runs/`` (or ``EMI_HOME``).
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from . import processes, profiles
from .cache import Cache, source_sum
from .corpus import layout, media
from .progress import Counter, quietly

# No progress bars of libraries: they would be saved into notebooks. Read when these are imported.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("random", "start", "aligned", "one_way")  # of the encoders
_RUNS = {"aligned": "", "one_way": "-one-way"}  # how the runs of Stage I are told apart
SYNTHETIC = "embedded corpus: drawn faces, synthetic voices"


class Workspace:
    """Everything of one profile on one corpus.

    profile : name, Profile, or None for that of ``EMI_PROFILE`` (else smoke)
    corpus : folder in the layout of Hume-Vidmimic2; None for the embedded corpus
    home : where generated things go; None for ``EMI_HOME``, else ``runs/`` of the checkout

    Raises ValueError when the profile has no embedded corpus and no folder is given.
    """

    def __init__(self, profile=None, corpus=None, home=None):
        if isinstance(profile, profiles.Profile):
            self.profile = profile
        else:
            self.profile = profiles.get(profile)
        self.home = Path(home or os.environ.get("EMI_HOME") or ROOT / "runs").resolve()
        corpus = corpus or os.environ.get("EMI_CORPUS") or None
        if corpus is None and self.profile.corpus_size is None:
            raise ValueError(
                f"profile {self.profile.name!r} needs a corpus folder with train_split.csv and "
                "valid_split.csv; give it with --corpus DIR"
            )
        self.embedded = corpus is None
        self._folder = None if corpus is None else Path(corpus).resolve()
        # A cache for each profile, so that --fresh can remove one without the others.
        self.cache = Cache(self.home / self.profile.name / "cache")

    def __repr__(self):
        return f"Workspace({self.profile.name!r}, {self.corpus_name!r})"

    # ------------------------------------------------------------------------------ the corpus

    @property
    def corpus_name(self) -> str:
        """What every number from here has to be labelled with."""
        if self.embedded:
            return SYNTHETIC
        kind = json.loads((self.folder / "synthetic.json").read_text()) if self._synthetic else None
        return SYNTHETIC if kind else f"corpus {self.folder.name}"

    @property
    def _synthetic(self) -> bool:
        return (self.folder / "synthetic.json").exists()

    @functools.cached_property
    def folder(self) -> Path:
        """The corpus folder; the embedded corpus is made, or finished, when first asked for."""
        if self._folder is not None:
            return self._folder
        from .corpus import synthetic

        return synthetic.make(
            self.home / self.profile.name / "corpus",
            **self.profile.corpus_size,
            workers=self.workers,
            progress=Counter("embedded corpus: clips made"),
        )

    @functools.cached_property
    def clips(self) -> pd.DataFrame:
        """`corpus.read` of the folder, with transcripts as `transcript_source` says."""
        transcripts, source = self._transcripts
        clips = self._listed.copy()
        clips["transcript"] = transcripts.reindex(clips["id"]).to_numpy()
        clips.attrs["transcript_source"] = source
        return clips

    @functools.cached_property
    def _listed(self) -> pd.DataFrame:
        return layout.read(self.folder)

    @property
    def transcript_source(self) -> str:
        """One line: text files, Whisper, or no words at all."""
        return self._transcripts[1]

    @functools.cached_property
    def _transcripts(self):
        from .features import speech

        return speech.transcripts(self._listed, workers=self.workers)

    @functools.cached_property
    def unlabelled(self) -> pd.DataFrame:
        """Clips without labels that only pretraining sees; none for most corpora."""
        base = self.folder / "unlabelled"
        rows = [
            {"id": f"unlabelled-{p.stem}", "split": "unlabelled", "video": str(p), "faces": None}
            for p in sorted(base.glob("raw/*.mp4"))
        ]
        clips = pd.DataFrame(rows, columns=["id", "split", "video", "faces"])
        texts = [base / "text" / f"{Path(v).stem}.txt" for v in clips["video"]]
        clips["transcript"] = [t.read_text("utf-8").strip() if t.exists() else "" for t in texts]
        return clips

    @functools.cached_property
    def corpus_key(self) -> str:
        """Hex digest that changes when a CSV, a transcript, or a file's name or size does.

        The embedded corpus is known by its parameters: its files may differ in bytes while the
        decoded frames do not.
        """
        if self._synthetic:
            return hashlib.sha256((self.folder / "synthetic.json").read_bytes()).hexdigest()[:32]
        digest = hashlib.sha256()
        for path in sorted(self.folder.glob("*.csv")) + sorted(self.folder.rglob("text/*.txt")):
            digest.update(path.relative_to(self.folder).as_posix().encode() + path.read_bytes())
        for row in self.clips[["id", "video", "audio", "official_vision"]].itertuples(index=False):
            for path in row[1:]:
                size = os.path.getsize(path) if isinstance(path, str) else -1
                digest.update(f"{row.id}:{size}".encode())
        return digest.hexdigest()[:32]

    @functools.cached_property
    def seconds(self) -> pd.Series:
        """Length of each clip in seconds, by id; NaN where neither picture nor sound opens."""
        from .corpus.audit import durations

        def make(folder: Path) -> None:
            durations(self.clips, self.workers).to_json(folder / "seconds.json", orient="index")

        parts = {"corpus": self.corpus_key, "code": source_sum("corpus/audit.py")}
        found = json.loads((self.cache.step("durations", parts, make) / "seconds.json").read_text())
        return pd.Series({id_: found[id_] for id_ in self.clips["id"]}, dtype=float)

    @property
    def partitions(self) -> pd.DataFrame:
        """`split`, `clips` and `seconds` of each partition: Tables A1 and B1."""
        lengths = self.clips.assign(seconds=self.seconds.to_numpy())
        grouped = lengths.groupby("split", sort=False)["seconds"]
        return grouped.agg(clips="size", seconds="sum").reset_index()

    @property
    def workers(self) -> int:
        """Processes for decoding and training."""
        return self.profile.workers or len(os.sched_getaffinity(0))

    @property
    def figures(self) -> Path:
        """Where figures and tables go: the project's own folder for the default run alone."""
        if self.profile.name == "embedded" and self.embedded and self.home == ROOT / "runs":
            return ROOT / "figures"
        return self.home / self.profile.name / "figures"

    # ----------------------------------------------------------------------------- decoded media

    @functools.cached_property
    def media(self) -> dict:
        """Stores "frames" (T, 3, S, S) uint8 and "waveform" (S,) int16, one slot a clip.

        Frames are face crops or video frames, as `Profile.visual` says. A clip has none where
        they can't be read, or where the corpus has face crops and none of this clip: a face was
        looked for and not found. Where the corpus has no face crops at all, video is taken.
        """
        from .features import store

        clips = pd.concat([self.clips, self.unlabelled], ignore_index=True)
        kept = self.profile.stored_frames
        parts = {
            "corpus": self.corpus_key,
            "visual": self.profile.visual,
            "fps": self.profile.fps,
            "size": self.profile.image_size,
            "stored_frames": kept,
            "clips": len(clips),
            "code": source_sum("corpus/media.py"),
        }
        jobs = {row.id: self._job(row, kept) for row in clips.itertuples()}

        def produce(ids: Sequence[str]) -> Iterator[dict]:
            with processes.pool(self.workers) as pool:
                yield from pool.map(_decode, [jobs[id_] for id_ in ids], chunksize=4)

        return store.build(
            self.cache,
            "media",
            parts,
            list(jobs),
            produce,
            ("frames", "waveform"),
            progress=Counter("decoding: clips"),
        )

    @functools.cached_property
    def _has_faces(self) -> bool:
        return bool(self.clips["faces"].notna().any())

    def _job(self, row, kept: int | None, sound=True) -> "_Job":
        crops = self._has_faces and row.split != "unlabelled"
        return _Job(
            row.video if isinstance(row.video, str) else None,
            row.audio if isinstance(row.audio, str) else None,
            row.faces if isinstance(row.faces, str) else None,
            from_crops=crops and self.profile.visual == "faces",
            faces_known=crops,
            size=self.profile.image_size,
            fps=self.profile.fps,
            kept=kept,
            sound=sound,
        )

    # -------------------------------------------------------------------------------- encoders

    def encoders(self, stage="aligned") -> dict:
        """Encoders "vision", "audio" and "text" as they are at a stage.

        stage : "random", untrained; "start", pretrained checkpoints or the self-supervised
            start; "aligned", after Stage I (the text encoder of the run `StageOne.text_from`);
            "one_way", after Stage I with the loss of Eq. 1 to the letter
        """
        from .features.encoders import load_encoder

        if stage not in STAGES:
            raise ValueError(f"stage: expected one of {', '.join(STAGES)}, came {stage!r}")
        if stage == "random":
            return {role: self._untrained(role) for role in ("vision", "audio", "text")}
        if stage == "start":
            self._warm_up()
            return {role: self._start(role) for role in ("vision", "audio", "text")}
        self.align(stage)
        ending = _RUNS[stage]
        text_from = self.profile.stage_one["frames"].text_from
        return {
            "vision": load_encoder(self._contrast_folder(f"frames{ending}") / "media"),
            "audio": load_encoder(self._contrast_folder(f"audio{ending}") / "media"),
            "text": load_encoder(self._contrast_folder(f"{text_from}{ending}") / "text"),
        }

    def align(self, stage="aligned") -> None:
        """Run Stage I where it has not been: both sides at once where there is no GPU.

        stage : "aligned" or "one_way", as in `encoders`
        """
        runs = [f"{side}{_RUNS[stage]}" for side in ("audio", "frames")]
        missing = [r for r in runs if not self.cache.has("stage-one", self._contrast_parts(r))]
        if missing:
            self._warm_up()
            self._at_once("_contrast_folder", missing)

    def contrast(self, side: str):
        """Stage I of one side, "frames" or "audio": encoders, heads and history."""
        from .features.encoders import load_encoder
        from .models.contrastive import ContrastivePair
        from .study.stage_one import Contrast

        self.align()
        folder = self._contrast_folder(side)
        return Contrast(
            load_encoder(folder / "media").eval(),
            load_encoder(folder / "text").eval(),
            quietly(ContrastivePair.from_pretrained, folder / "heads").eval(),
            pd.read_csv(folder / "history.csv").to_dict("records"),
        )

    def start_history(self, role: str) -> list[float]:
        """Losses of the self-supervised start of an encoder, one a step."""
        self._warm_up()
        return json.loads((self._start_folder(role) / "losses.json").read_text())

    def _untrained(self, role: str):
        import torch

        from .features import encoders

        config = getattr(self.profile, role)
        if "checkpoint" in config:
            settings = dict(config)
            source = settings.pop("checkpoint")
            if role == "text":
                settings["pool"] = self.profile.text_pool
                settings["max_tokens"] = self.profile.max_tokens
            return encoders.pretrained(role, source, **settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if role == "vision":
                return encoders.small_vision(config)
            if role == "audio":
                return encoders.small_audio(config)
            pool, longest = self.profile.text_pool, self.profile.max_tokens
            return encoders.small_text(config, self._texts(), pool, longest)

    def _encoder_config(self, role: str) -> dict:
        """What determines an encoder before training; for a checkpoint, its very weights."""
        config = getattr(self.profile, role)
        if "checkpoint" not in config:
            return config
        from .features import manifest

        weights = manifest.identity(config["checkpoint"], config.get("revision"))
        return {**config, "weights": weights}

    def _start(self, role: str):
        from .features.encoders import load_encoder

        if self.profile.warm_start is None:
            return self._untrained(role)
        return load_encoder(self._start_folder(role))

    def _warm_up(self) -> None:
        """Make the starts that are missing, vision and audio at once."""
        if self.profile.warm_start is None:
            return
        roles = ("audio", "vision", "text")  # the longest first
        missing = [r for r in roles if not self.cache.has("start", self._start_parts(r))]
        self._at_once("_start_folder", missing)

    def _at_once(self, method: str, arguments: Sequence[str]) -> None:
        """Call a method with each argument, in two processes where there is no GPU to share.

        The small networks hardly gain from a second thread: a process for each does.
        """
        import torch

        if len(arguments) < 2 or self.workers < 2 or torch.cuda.is_available():
            for argument in arguments:
                getattr(self, method)(argument)
            return
        self.media  # noqa: B018 - decoded once here, not twice by the two processes
        # The folder is named, so that the processes do not both see to the embedded corpus.
        work = [(self.profile, self.folder, self.home, method, a) for a in arguments]
        with processes.pool(2) as pool:
            list(pool.map(_call, work))

    def _start_parts(self, role: str) -> dict:
        plan = self.profile.warm_start
        return {
            "corpus": self.corpus_key,
            "role": role,
            "config": getattr(self.profile, role),
            "pool": self.profile.text_pool if role == "text" else None,
            "plan": plan,
            "code": source_sum("study/pretraining.py", "features/encoders.py"),
        }

    def _start_folder(self, role: str) -> Path:
        make = functools.partial(self._make_start, role)
        return self.cache.step("start", self._start_parts(role), make)

    def _make_start(self, role: str, folder: Path) -> None:
        import torch

        from .features.encoders import save_encoder
        from .study import pretraining

        encoder, plan = self._untrained(role), self.profile.warm_start
        progress = Counter(f"self-supervised start, {role}: step")
        clips = self.pretraining_clips()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if role == "vision":
                media = [f for f in clips.frames if f is not None and len(f) > 1]
                losses = pretraining.warm_vision(encoder, media, plan, 0, progress)
            elif role == "audio":
                shortest = encoder.shortest
                media = [w for w in clips.waveforms if w is not None and len(w) >= shortest]
                losses = pretraining.warm_audio(encoder, media, plan, 0, progress)
            else:
                losses = pretraining.warm_text(encoder, self._texts(), plan, 0, progress)
        save_encoder(encoder, folder)
        (folder / "losses.json").write_text(json.dumps(losses))

    def pretraining_clips(self):
        """What pretraining may see: training and unlabelled clips, without their labels."""
        import torch

        from .study.stage_one import Clips

        clips = pd.concat([self.clips[self.clips["split"] == "train"], self.unlabelled])
        frames, waveforms = self.media["frames"], self.media["waveform"]

        def tensor(array):
            return None if array is None else torch.from_numpy(array)

        ids = clips["id"].tolist()
        sounds = (tensor(waveforms[i]) for i in ids)
        return Clips(
            ids,
            [tensor(frames[i]) for i in ids],
            [None if s is None else s.float() / 32768 for s in sounds],
            [t if isinstance(t, str) else "" for t in clips["transcript"]],
        )

    def _texts(self) -> list[str]:
        words = pd.concat([self.clips.query("split == 'train'"), self.unlabelled])["transcript"]
        return [t for t in words if isinstance(t, str) and t]

    def _contrast_plan(self, run: str):
        """Side and settings of a run of Stage I: "frames", "audio", or one of these "-one-way"."""
        side = run.removesuffix(_RUNS["one_way"])
        plan = self.profile.stage_one[side]
        return side, plan if side == run else dataclasses.replace(plan, symmetric=False)

    def _contrast_parts(self, run: str) -> dict:
        side, plan = self._contrast_plan(run)
        return {
            "corpus": self.corpus_key,
            "side": side,
            "media": self._encoder_config("vision" if side == "frames" else "audio"),
            "text": [self._encoder_config("text"), self.profile.text_pool],
            "warm_start": self.profile.warm_start,
            "plan": plan,
            "code": source_sum(
                "study/pretraining.py",
                "study/stage_one.py",
                "models/contrastive.py",
                "features/encoders.py",
            ),
        }

    def _contrast_folder(self, run: str) -> Path:
        parts = self._contrast_parts(run)
        make = functools.partial(self._make_contrast, run)
        return self.cache.step("stage-one", parts, make)

    def _make_contrast(self, run: str, folder: Path) -> None:
        from .features.encoders import save_encoder
        from .study import stage_one

        side, plan = self._contrast_plan(run)
        media = self._start("vision" if side == "frames" else "audio")
        done = stage_one.pretrain(
            media,
            self._start("text"),
            self.pretraining_clips(),
            plan,
            seed=0,
            checkpoint=self.cache.scratch("stage-one", self._contrast_parts(run)),
            progress=Counter(f"Stage I, {side}-text{'' if run == side else ', Eq. 1'}: step"),
        )
        save_encoder(done.media, folder / "media")
        save_encoder(done.text, folder / "text")
        done.pair.save_pretrained(folder / "heads")
        pd.DataFrame(done.history).to_csv(folder / "history.csv", index=False)

    # -------------------------------------------------------------------------------- features

    def features(self, kind="ours", stage="aligned", standardised=True):
        """FeatureSplits of the corpus.

        kind : "ours", of the encoders at `stage`; "official", the organisers' pickles
        standardised : by the training clips, as fusion models get them; False as encoders give them
        """
        if kind not in ("ours", "official"):
            raise ValueError(f"features: expected ours or official, came {kind!r}")
        return self._features(kind, stage if kind == "ours" else None, standardised)

    @functools.lru_cache(maxsize=8)  # noqa: B019 - a workspace lives as long as its process
    def _features(self, kind: str, stage: str | None, standardised: bool):
        if kind == "official":
            stores = self._official()
            parts = {}
        else:
            stores, parts = self._ours(stage), {"stage": stage}
        from .features.batches import FeatureSplits

        splits = {
            split: self._feature_set(self.clips[self.clips["split"] == split], stores)
            for split in ("train", "validation", "test")
        }
        moments = splits["train"].moments() if standardised else None
        if standardised:
            splits = {name: data.standardised(moments) for name, data in splits.items()}
        digest = hashlib.sha256("".join(s.fingerprint() for s in splits.values()).encode())
        digest.update(json.dumps(parts).encode())
        return FeatureSplits(
            **splits, fingerprint=digest.hexdigest()[:32], name=kind, moments=moments
        )

    def _feature_set(self, clips: pd.DataFrame, stores: dict):
        from .features.batches import FeatureSet

        ids = clips["id"].tolist()
        target = None
        if clips["split"].iloc[0] != "test" if len(clips) else False:
            target = clips[list(layout.EMOTIONS)].to_numpy(float)
        columns = {name: [stores[name][i] for i in ids] for name in stores if name != "text"}
        text = None
        if "text" in stores:
            rows = [stores["text"][i] for i in ids]
            width = next((r.shape[1] for r in rows if r is not None), 1)
            text = np.full((len(ids), width), np.nan, np.float32)
            for row, vector in enumerate(rows):
                if vector is not None:
                    text[row] = vector[0]
        return FeatureSet.from_arrays(ids, text=text, target=target, **columns)

    def _official(self) -> dict:
        from .features import store

        columns = {"frames": "official_vision", "audio": "official_audio"}
        paths = self.clips.set_index("id")[list(columns.values())]
        parts = {"corpus": self.corpus_key, "code": source_sum("corpus/media.py")}

        def produce(ids):
            for id_ in ids:
                row = paths.loc[id_]
                yield {name: _official_array(row[column]) for name, column in columns.items()}

        ids = self.clips["id"].tolist()
        return store.build(self.cache, "official", parts, ids, produce, tuple(columns))

    def _ours(self, stage: str) -> dict:
        texts = dict(zip(self.clips["id"], self.clips["transcript"], strict=True))

        def produce(ids):
            words = [texts[i] if isinstance(texts[i], str) else "" for i in ids]
            sounds = (self.media["waveform"][i] for i in ids)
            yield from self._extract(stage, self._frames(ids), sounds, words)

        ids, names = self.clips["id"].tolist(), ("frames", "audio", "text")
        return self._encoded("features", self._feature_parts(stage), ids, produce, names)

    def spoilt_features(self, modality: str, spoil: Callable, parts: dict):
        """A store of the validation clips' features, their media changed before the encoder; kept.

        modality : "frames" or "audio"
        spoil(id, medium) : a clip's frames (T, 3, S, S) uint8 or waveform (S,) int16, changed
        parts : all that determines `spoil`

        Features are as encoders give them, not standardised. A clip without the modality has None.
        """
        if modality not in ("frames", "audio"):
            raise ValueError(f"modality: expected frames or audio, came {modality!r}")

        def produce(ids):
            stored = (self.media["waveform"][i] for i in ids)
            media = stored if modality == "audio" else self._frames(ids)
            spoilt = (None if m is None else spoil(i, m) for i, m in zip(ids, media, strict=True))
            columns = {"frames": [None] * len(ids), "audio": [None] * len(ids), modality: spoilt}
            yield from self._extract("aligned", *columns.values(), [""] * len(ids))

        parts = self._feature_parts("aligned") | {"spoilt": modality, "by": parts}
        ids = self.clips.loc[self.clips["split"] == "validation", "id"].tolist()
        return self._encoded("spoilt", parts, ids, produce, (modality,))[modality]

    def _encoded(self, kind: str, parts: dict, ids: list[str], produce, names: tuple) -> dict:
        from .features import store

        progress = Counter(f"{kind}: clips")
        return store.build(self.cache, kind, parts, ids, produce, names, progress=progress)

    def _extract(self, stage: str, frames, sounds, words) -> Iterator[dict]:
        from .study.extraction import extract

        return extract(self.encoders(stage), frames, sounds, words, self.profile.audio_every)

    def _feature_parts(self, stage: str) -> dict:
        return {
            "corpus": self.corpus_key,
            "stage": stage,
            "encoders": self._encoder_parts(stage),
            "media": [self.profile.visual, self.profile.fps, self.profile.image_size],
            "audio_every": self.profile.audio_every,
            "code": source_sum("study/extraction.py", "features/encoders.py", "corpus/media.py"),
        }

    def _frames(self, ids) -> Iterator:
        """Every clip's frames as the encoder gets them: all, where the store keeps but a few."""
        if self.profile.stored_frames is not None:
            return self._decoded_frames(ids)
        return (self.media["frames"][i] for i in ids)

    def _decoded_frames(self, ids):
        rows = self.clips.set_index("id").loc[list(ids)].reset_index()
        work = [self._job(row, None, sound=False) for row in rows.itertuples()]
        with processes.pool(self.workers) as pool:
            for decoded in pool.map(_decode, work, chunksize=2):
                yield decoded["frames"]

    def _encoder_parts(self, stage: str):
        if stage in _RUNS:
            return [self._contrast_parts(f"{side}{_RUNS[stage]}") for side in ("frames", "audio")]
        configs = [self._encoder_config(role) for role in ("vision", "audio", "text")]
        return [*configs, self.profile.warm_start]

    # --------------------------------------------------------------------------------- results

    def experiments(self) -> dict:
        """Every experiment of this profile, by name."""
        from .study.experiments import experiments

        return experiments(self.profile)

    def results(self, names: Sequence[str] | None = None):
        """Results of these experiments (all that are built, by default), trained where missing."""
        from .study.experiments import run

        listed = self.experiments()
        chosen = list(listed) if names is None else list(names)
        unknown = [n for n in chosen if n not in listed]
        if unknown:
            raise ValueError(f"no experiment {unknown}; there are {', '.join(listed)}")
        for name in list(chosen):  # a mean of members needs these
            chosen += [m for m in listed[name].members if m not in chosen]
        features = {
            kind: self.features(*kind.split(", "))
            for kind in sorted({listed[n].features for n in chosen})
        }
        return run(
            {n: listed[n] for n in chosen},
            self.profile.seeds,
            features,
            self.cache,
            workers=self.workers,
            progress=Counter("training runs"),
        )

    def tables(self) -> dict:
        """Every table of both papers as DataFrames, by name; trains what is missing."""
        from .study.tables import tables

        return tables(self.results(), self.partitions, self.corpus_name)


@dataclasses.dataclass(frozen=True)
class _Job:
    """One clip to decode: paths or None, and what is wanted of it."""

    video: str | None
    audio: str | None
    faces: str | None
    from_crops: bool  # frames are the face crops
    faces_known: bool  # the corpus has face crops, so a clip without them has no face
    size: int
    fps: float
    kept: int | None
    sound: bool


def _decode(job: _Job) -> dict:
    """Frames (T, 3, S, S) uint8 and waveform (S,) int16 of a clip; None for what can't be had."""
    frames = waveform = None
    faceless = job.faces_known and not layout.face_paths(job.faces)
    wants_video = not (job.from_crops or faceless)
    wants_sound = job.sound and job.audio is None
    if job.video is not None and (wants_video or wants_sound):
        found = _readable(
            job.video, fps=job.fps, size=job.size, frames=wants_video, sound=wants_sound
        )
        if found is not None:
            frames, waveform = found.images, found.waveform
    if job.sound and job.audio is not None:
        found = _readable(job.audio, frames=False)
        waveform = None if found is None else found.waveform
    if job.from_crops and not faceless:
        frames = media.face_frames(job.faces, _seconds(job), job.fps, job.size)
    if frames is not None:
        if job.kept is not None and len(frames) > job.kept:
            frames = frames[np.linspace(0, len(frames) - 1, job.kept).round().astype(int)]
        frames = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))
    if waveform is not None:
        waveform = np.clip(waveform * 32768, -32768, 32767).astype(np.int16)
    return {"frames": frames, "waveform": waveform}


def _readable(path: str, **options):
    """`media.decode`, or None for a file that can't be; the audit says which files these are."""
    try:
        return media.decode(path, **options)
    except media.MediaError:
        return None


def _official_array(path) -> np.ndarray | None:
    """(T, D) of an official pickle; None without one, and for one that can't be used.

    The audit lists them as "bad features"; a test clip gets its prediction all the same.
    """
    if not isinstance(path, str):
        return None
    try:
        array = media.load_features(path)
    except media.MediaError:
        return None
    return array.astype(np.float16) if array.size and np.isfinite(array).all() else None


def _seconds(job: _Job) -> float:
    for path in (job.video, job.audio):
        if path is not None:
            try:
                return media.probe(path).duration
            except media.MediaError:
                continue
    return float("nan")


def _call(work) -> None:
    """A method of a workspace in a process of its own, with one thread."""
    import torch

    torch.set_num_threads(1)
    profile, folder, home, method, argument = work
    getattr(Workspace(profile, folder, home), method)(argument)

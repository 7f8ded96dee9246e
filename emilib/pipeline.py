"""A profile at work on a corpus: clips, media, encoders, features and results, each made once.

The notebooks and the command line ask a `Workspace` for what they show; what is not there yet is
made, and kept in the cache below ``runs/`` (or ``EMI_HOME``).
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from emilib import profiles
from emilib import workers as processes
from emilib.cache import Cache, code_version, key, rank, wait_until, world_size
from emilib.corpus import defects, feature_files, layout, media, read
from emilib.corpus import user_dataset as own
from emilib.progress import Counter, quietly

# No progress bars of libraries: they would be saved into notebooks. Read when these are imported.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("random", "start", "aligned", "one_way", "paper_b")  # of the encoders
_RUNS = {"aligned": "", "one_way": "-one-way"}  # how the runs of Stage I are told apart
_STEP_COLUMNS = ("step", "there", "all")
SYNTHETIC = "embedded corpus: drawn faces, synthetic voices"


class Workspace:
    """Everything of one profile on one corpus.

    profile : name, Profile, or None for that of ``EMI_PROFILE`` (else smoke)
    corpus : folder in the layout of Hume-Vidmimic2, or one of your own with a CSV (see
        `emilib.corpus.user_dataset`), or that CSV; None for the embedded corpus
    home : where generated things go; None for ``EMI_HOME``, else ``runs/`` of the checkout
    visual : "faces" or "video" in place of what the profile says; None for ``EMI_VISUAL``
    seeds : how many, in place of the profile's; None for ``EMI_SEEDS``

    Raises ValueError when the profile has no embedded corpus and no folder is given.
    """

    def __init__(self, profile=None, corpus=None, home=None, visual=None, seeds=None):
        if not isinstance(profile, profiles.Profile):
            profile = profiles.get(profile)
            visual = visual or os.environ.get("EMI_VISUAL")
            seeds = seeds or os.environ.get("EMI_SEEDS")
        self.profile = profiles.changed(profile, visual, seeds)
        self.home = Path(home or os.environ.get("EMI_HOME") or ROOT / "runs").resolve()
        corpus = corpus or os.environ.get("EMI_CORPUS") or None
        if corpus is None and self.profile.corpus_size is None:
            raise ValueError(
                f"profile {self.profile.name!r} needs a corpus folder with train_split.csv and "
                "valid_split.csv; give it with --corpus DIR"
            )
        self.embedded = corpus is None
        self._source = None if corpus is None else Path(corpus).resolve()
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
    def place(self) -> str:
        """The corpus folder that was given, or what stands for it; nothing is made."""
        return SYNTHETIC if self.embedded else str(self._source)

    @property
    def _synthetic(self) -> bool:
        marked = (self.folder / "synthetic.json").exists()
        return marked and own.table_of(self.source) is None  # a CSV of one's own beside it counts

    @property
    def source(self) -> Path:
        """What the clips are read from: the folder, or the CSV in it that was named."""
        return self.folder if self._source is None else self._source

    @functools.cached_property
    def folder(self) -> Path:
        """The corpus folder; the embedded corpus is made, or finished, when first asked for."""
        if self._source is not None:
            return self._source.parent if self._source.is_file() else self._source
        from emilib.synthetic import film as synthetic

        folder, parts = self.home / self.profile.name / "corpus", self.profile.corpus_size
        if rank() == 0:
            synthetic.make(
                folder,
                **self.profile.corpus_size,
                workers=self.workers,
                progress=Counter("embedded corpus: clips made"),
            )
            self.cache.step("corpus", parts, lambda note: None)
        wait_until(lambda: self.cache.exists("corpus", parts))
        return folder

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
        return read(self.source)

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of what is predicted: the six emotions, or the columns of your own CSV."""
        return tuple(self._listed.attrs["targets"])

    @property
    def has_official(self) -> bool:
        """Some training clip has features of the organisers, so their baselines can be trained."""
        train = self._listed[self._listed["split"] == "train"]
        return bool(train[["official_vision", "official_audio"]].notna().any(axis=None))

    @property
    def transcript_source(self) -> str:
        """One line: text files, Whisper, or no words at all."""
        return self._transcripts[1]

    @functools.cached_property
    def _transcripts(self):
        from emilib.features import transcripts as speech

        heard = Counter("words by Whisper: clips")
        return speech.transcripts(
            self._listed, media.sound_of, self.cache, workers=self.workers, progress=heard
        )

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

        Of face crops, millions of files, it only counts which clips have a folder of them: for
        new crops in old folders take a new folder for results.
        Transcripts are those of the text files, and those that Whisper made where there is none.
        The embedded corpus is known by its parameters: its files may differ in bytes while the
        decoded frames do not.
        """
        from emilib.features import transcripts as speech

        digest = hashlib.sha256(speech.heard_key(self._listed).encode())
        if self._synthetic:
            digest.update((self.folder / "synthetic.json").read_bytes())
            return digest.hexdigest()[:32]
        table = own.table_of(self.source)
        digest.update(b"" if table is None else table.name.encode())
        for path in sorted(self.folder.glob("*.csv")) + sorted(self.folder.rglob("text/*.txt")):
            digest.update(path.relative_to(self.folder).as_posix().encode() + path.read_bytes())
        files = ["id", "video", "audio", "official_vision", "official_audio"]
        for row in self._listed[files].itertuples(index=False):
            for path in row[1:]:
                size = os.path.getsize(path) if isinstance(path, str) else -1
                digest.update(f"{row.id}:{size}".encode())
        digest.update(str(self._listed["faces"].notna().tolist()).encode())
        return digest.hexdigest()[:32]

    @functools.cached_property
    def seconds(self) -> pd.Series:
        """Length of each clip in seconds, by id; NaN where neither picture nor sound opens."""

        def make(folder: Path) -> None:
            defects.durations(self._listed, self.workers).to_json(
                folder / "seconds.json", orient="index"
            )

        parts = {"corpus": self.corpus_key, "code": code_version("corpus/defects.py")}
        folder = self.cache.shared_step("durations", parts, make)
        found = json.loads((folder / "seconds.json").read_text())
        return pd.Series({id_: found[id_] for id_ in self._listed["id"]}, dtype=float)

    @property
    def partitions(self) -> pd.DataFrame:
        """`split`, `clips` and `seconds` of each partition: Tables A1 and B1."""
        return self._partitions(self.seconds)

    def _partitions(self, seconds: pd.Series) -> pd.DataFrame:
        lengths = self._listed.assign(seconds=seconds.to_numpy())
        grouped = lengths.groupby("split", sort=False)["seconds"]
        found = grouped.agg(clips="size", seconds="sum")
        return found.reindex(layout.SPLITS, fill_value=0).rename_axis("split").reset_index()

    def require(self) -> None:
        """Look for what a long run would miss in the end: words, weights of the right kind, room.

        Raises ValueError or OSError, one sentence.
        """
        if not self.embedded:
            self._require_words()
        stages = ["random"] + ([] if self.profile.taemi_encoders is None else ["paper_b"])
        for stage in stages:
            for role, config in self._configs(stage).items():
                if "checkpoint" in config:
                    from emilib.features import loading

                    loading.check(role, config["checkpoint"], config.get("revision"))
        if self.profile.corpus_size is None:
            from emilib import environment
            from emilib.study import needs

            room = needs.needs(self.profile, self._used())["disk"].sum()
            done = self.cache.size_gb()
            environment.require_room(self.home, max(0.0, room - done), "what is left of the run")

    def _require_words(self) -> None:
        """Stage I has nothing to align sound and frames with where no clip has words."""
        from emilib.features import transcripts as speech
        from emilib.features.checkpoints import how_to_get

        given = self._listed.loc[self._listed["split"] == "train", "transcript"]
        count = int(given.fillna("").str.strip().ne("").sum())
        heard = given.isna().any() and speech.find_weights() is not None
        if count < 2 and not heard:
            raise ValueError(
                f"{self.source}: expected words of at least two training clips, came {count}: "
                "Stage I aligns sound and frames with words; give files in text/, in your CSV a "
                f"column text, or Whisper's weights ({how_to_get(speech.DEFAULT_MODEL)})"
            )

    def needs(self) -> str:
        """What a run takes, as text: operations, hours, disk and GPU memory by stage."""
        from emilib.features import transcripts as speech
        from emilib.study import needs

        silent = int(self._listed["transcript"].isna().sum())
        heard = silent if silent and speech.find_weights() is not None else 0
        return needs.text(needs.needs(self.profile, self._used(), heard, self.workers))

    def _used(self) -> pd.DataFrame:
        """`partitions` with clips no longer than is used of them."""
        return self._partitions(self.seconds.clip(upper=self.profile.max_seconds))

    @property
    def workers(self) -> int:
        """Processes for decoding and training: one a core, shared by the ranks of this machine."""
        return self.profile.workers or processes.count()

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
        from emilib.features import store

        clips = pd.concat([self.clips, self.unlabelled], ignore_index=True)
        kept = self.profile.stored_frames
        jobs = {row.id: self._job(row, kept) for row in clips.itertuples()}

        def produce(ids: Sequence[str]) -> Iterator[dict]:
            work = (jobs[id_] for id_ in ids)
            yield from processes.ordered_map(_decode, work, self.workers)

        return store.build(
            self.cache,
            "media",
            self._media_parts(),
            list(jobs),
            produce,
            ("frames", "waveform"),
            progress=Counter("decoding: clips"),
        )

    def _media_parts(self) -> dict:
        return {
            "corpus": self.corpus_key,
            "frames": self._seen("vision"),
            "sound": self._seen("audio"),
            "code": code_version("corpus/media.py", "corpus/streams.py"),
        }

    def _seen(self, role: str) -> list | None:
        """What determines the frames or the sound that is decoded."""
        profile = self.profile
        if role in ("vision", "frames"):
            size = profile.image_size if profile.face_size is None else profile.face_size
            sizes = [profile.image_size, size, profile.max_seconds]
            return [profile.visual, profile.fps, profile.stored_frames, *sizes]
        return [profile.max_seconds] if role == "audio" else None

    @functools.cached_property
    def _has_faces(self) -> bool:
        return bool(self.clips["faces"].notna().any())

    def _job(self, row, kept: int | None, sound=True) -> "_Job":
        crops = self._has_faces and row.split != "unlabelled"
        from_crops = crops and self.profile.visual == "faces"
        size = self.profile.image_size
        if from_crops and self.profile.face_size is not None:
            size = self.profile.face_size
        return _Job(
            row.video if isinstance(row.video, str) else None,
            row.audio if isinstance(row.audio, str) else None,
            row.faces if isinstance(row.faces, str) else None,
            from_crops=from_crops,
            faces_known=crops,
            size=size,
            fps=self.profile.fps,
            seconds=self.profile.max_seconds,
            kept=kept,
            sound=sound,
        )

    # -------------------------------------------------------------------------------- encoders

    def encoders(self, stage="aligned") -> dict:
        """Encoders "vision", "audio" and "text" as they are at a stage.

        stage : "random", untrained; "start", pretrained checkpoints or the self-supervised
            start; "aligned", after Stage I (the text encoder of the run `StageOne.text_from`);
            "one_way", after Stage I with the loss of Eq. 1 to the letter; "paper_b", the
            checkpoints of paper B as they are, in a profile that names them

        Raises ValueError for another stage, or "paper_b" where the profile has none.
        """
        from emilib.features.loading import load_encoder

        if stage not in STAGES:
            raise ValueError(f"stage: expected one of {', '.join(STAGES)}, came {stage!r}")
        if stage in ("random", "paper_b"):
            configs = self._configs(stage)
            return {role: self._untrained(role, config) for role, config in configs.items()}
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
        from emilib.features.loading import load_encoder
        from emilib.models.contrastive import ContrastivePair
        from emilib.training.contrastive_pretraining import Contrast

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

    def _configs(self, stage: str = "random") -> dict:
        """Configuration of the encoder of each role before any training here."""
        if stage != "paper_b":
            return {role: getattr(self.profile, role) for role in ("vision", "audio", "text")}
        if self.profile.taemi_encoders is None:
            raise ValueError(
                f"profile {self.profile.name!r} names no encoders of paper B: its TAEMI takes the "
                "features of stage 'aligned'"
            )
        return self.profile.taemi_encoders

    def _untrained(self, role: str, config: dict):
        import torch

        from emilib.features import loading

        if "checkpoint" in config:
            settings = self._text_settings(role, config)
            source = settings.pop("checkpoint")
            return loading.pretrained(role, source, **settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if role == "vision":
                return loading.small_vision(config)
            if role == "audio":
                return loading.small_audio(config)
            pool, longest = self.profile.text_pool, self.profile.max_tokens
            return loading.small_text(config, self._texts(), pool, longest)

    def _text_settings(self, role: str, config: dict) -> dict:
        """The configuration of a checkpoint, of a text encoder with what the profile says of it."""
        if role != "text":
            return dict(config)
        return {"pool": self.profile.text_pool, **config, "max_tokens": self.profile.max_tokens}

    def _encoder_config(self, role: str, stage: str = "random") -> dict:
        """What determines an encoder before training; for a checkpoint, its very weights."""
        config = self._configs(stage)[role]
        if "checkpoint" not in config:
            return config
        from emilib.features import checkpoints as manifest

        weights = manifest.identity(config["checkpoint"], config.get("revision"))
        return {**config, "weights": weights}

    def _start(self, role: str):
        from emilib.features.loading import load_encoder

        if self.profile.warm_start is None:
            return self._untrained(role, self._configs()[role])
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

        The small networks hardly gain from a second thread: a process for each does. Several
        ranks share each of them instead.
        """
        import torch

        few = len(arguments) < 2 or self.workers < 2
        if few or torch.cuda.is_available() or world_size() > 1:
            for argument in arguments:
                getattr(self, method)(argument)
            return
        self.media  # noqa: B018 - decoded once here, not twice by the two processes
        # The folder is named, so that the processes do not both see to the embedded corpus.
        work = [(self.profile, self.source, self.home, method, a) for a in arguments]
        list(processes.ordered_map(_call, work, 2))

    def _start_parts(self, role: str) -> dict:
        plan = self.profile.warm_start
        return {
            "corpus": self.corpus_key,
            "role": role,
            "config": getattr(self.profile, role),
            "pool": self.profile.text_pool if role == "text" else None,
            "clips": self._seen(role),
            "plan": plan,
            "code": code_version(
                "training/self_supervised.py", "features/encoders.py", "features/loading.py"
            ),
        }

    def _start_folder(self, role: str) -> Path:
        make = functools.partial(self._make_start, role)
        return self.cache.shared_step("start", self._start_parts(role), make)

    def _make_start(self, role: str, folder: Path) -> None:
        import torch

        from emilib.features.loading import save_encoder
        from emilib.training import self_supervised as pretraining

        encoder, plan = self._untrained(role, self._configs()[role]), self.profile.warm_start
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

        from emilib.features.store import Rows
        from emilib.training.contrastive_pretraining import Clips

        clips = pd.concat([self.clips[self.clips["split"] == "train"], self.unlabelled])
        ids = clips["id"].tolist()
        return Clips(
            ids,
            Rows(self.media["frames"], ids, torch.from_numpy),
            Rows(self.media["waveform"], ids, lambda a: torch.from_numpy(a).float() / 32768),
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
            "clips": self._seen(side),
            "warm_start": self.profile.warm_start,
            "plan": plan,
            "code": code_version(
                "training/self_supervised.py",
                "training/contrastive_pretraining.py",
                "models/contrastive.py",
                "features/encoders.py",
                "features/loading.py",
            ),
        }

    def _contrast_folder(self, run: str) -> Path:
        parts = self._contrast_parts(run)
        make = functools.partial(self._make_contrast, run)
        return self.cache.step("stage-one", parts, make)

    def _make_contrast(self, run: str, folder: Path) -> None:
        from emilib.features.loading import save_encoder
        from emilib.training import contrastive_pretraining as stage_one

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
        from emilib.features.feature_set import FeatureSplits

        moments = None
        if standardised:
            plain = self._features(kind, stage, False)
            moments = self._moments(kind, stage)
            splits = {s: getattr(plain, s).standardised(moments) for s in layout.SPLITS}
        else:
            stores = self._official() if kind == "official" else self._ours(stage)
            splits, dims = {}, None
            for split in layout.SPLITS:
                splits[split] = self._feature_set(split, stores, dims)
                dims = splits["train"].dims  # a test clip may lack what the others have
        # Standardised or not, these are other features: the digest says which.
        digest = hashlib.sha256(self._digest(kind, stage).encode() + bytes([standardised]))
        fingerprint = digest.hexdigest()[:32]
        for split, data in splits.items():
            data.known_as(f"{fingerprint} {split}")
        return FeatureSplits(**splits, fingerprint=fingerprint, name=kind, moments=moments)

    def _feature_set(self, split: str, stores: dict, dims: dict | None):
        from emilib.features.feature_set import FeatureSet
        from emilib.features.store import Rows

        clips = self.clips[self.clips["split"] == split]
        ids = clips["id"].tolist()
        target = None if split == "test" else clips[list(self.targets)].to_numpy(float)
        columns = {
            name: Rows(stores[name], ids)
            for name in stores
            if name != "text" and (dims is None or name in dims)
        }
        text = None
        if "text" in stores and ids:
            rows = [stores["text"][i] for i in ids]
            width = next((r.shape[1] for r in rows if r is not None), (dims or {}).get("text", 1))
            text = np.full((len(ids), width), np.nan, np.float32)
            for row, vector in enumerate(rows):
                if vector is not None:
                    text[row] = vector[0]
        names = None if target is None else self.targets
        return FeatureSet.from_arrays(
            ids, text=text, target=target, names=names, dims=dims, **columns
        )

    def _moments(self, kind: str, stage: str | None) -> dict:
        """Moments of the training clips: read from all of their features once."""

        def make(folder: Path) -> None:
            found = self._features(kind, stage, False).train.moments()
            flat = {f"{m} {n}": v for m, pair in found.items() for n, v in enumerate(pair)}
            np.savez(folder / "moments.npz", **flat)

        parts = {
            "features": self._digest(kind, stage),
            "code": code_version("features/feature_set.py"),
        }
        folder = self.cache.shared_step("moments", parts, make)
        with np.load(folder / "moments.npz") as found:
            names = dict.fromkeys(name.split()[0] for name in found.files)
            return {m: (found[f"{m} 0"], found[f"{m} 1"]) for m in names}

    def _digest(self, kind: str, stage: str | None) -> str:
        """Of all that determines the features of a kind, the targets with them."""
        parts = self._official_parts() if kind == "official" else self._feature_parts(stage)
        return key(kind=kind, parts=parts, targets=self.corpus_key)

    def _official(self) -> dict:
        from emilib.features import store

        defects.check_official(self.clips)  # one sentence now, not an odd shape later
        columns = {"frames": "official_vision", "audio": "official_audio"}
        paths = self.clips.set_index("id")[list(columns.values())]

        def produce(ids):
            for id_ in ids:
                row = paths.loc[id_]
                yield {name: _official_array(row[column]) for name, column in columns.items()}

        ids = self.clips["id"].tolist()
        parts = self._official_parts()
        return store.build(self.cache, "official", parts, ids, produce, tuple(columns))

    def _official_parts(self) -> dict:
        return {"corpus": self.corpus_key, "code": code_version("corpus/feature_files.py")}

    def _ours(self, stage: str) -> dict:
        texts = dict(zip(self.clips["id"], self.clips["transcript"], strict=True))

        def produce(ids):
            words = [texts[i] if isinstance(texts[i], str) else "" for i in ids]
            yield from self._extract(stage, ids, self._frames(ids), self._sounds(ids), words)

        parts, ids = self._feature_parts(stage), self.clips["id"].tolist()
        return self._encoded("features", stage, parts, ids, produce, ("frames", "audio", "text"))

    def spoilt_features(self, stage: str, modality: str, spoil: Callable, parts: dict):
        """A store of the validation clips' features, their media changed before the encoder; kept.

        stage : of the encoders, as in `encoders`; modality : "frames" or "audio"
        spoil(id, medium) : a clip's frames (T, 3, S, S) uint8 or waveform (S,) int16, changed
        parts : all that determines `spoil`

        Features are as encoders give them, not standardised. A clip without the modality has None.
        """
        if modality not in ("frames", "audio"):
            raise ValueError(f"modality: expected frames or audio, came {modality!r}")

        def produce(ids):
            media = self._sounds(ids) if modality == "audio" else self._frames(ids)
            spoilt = (None if m is None else spoil(i, m) for i, m in zip(ids, media, strict=True))
            nothing = [None] * len(ids)
            columns = {"frames": nothing, "audio": nothing, modality: spoilt}
            yield from self._extract(stage, ids, *columns.values(), [""] * len(ids))

        parts = {"features": self._feature_parts(stage), "spoilt": modality, "by": parts}
        ids = self.clips.loc[self.clips["split"] == "validation", "id"].tolist()
        return self._encoded("spoilt", stage, parts, ids, produce, (modality,))[modality]

    def _encoded(self, kind: str, stage: str, parts: dict, ids, produce, names: tuple) -> dict:
        from emilib.features import store

        if stage in _RUNS:
            self.align(stage)  # all ranks together, whichever shards each has to make
        progress = Counter(f"{kind}: clips")
        return store.build(self.cache, kind, parts, ids, produce, names, progress=progress)

    def _extract(self, stage: str, ids, frames, sounds, words) -> Iterator[dict]:
        from emilib.features.extraction import Batching, extract

        longest, every = self._sampling(stage)
        batching = Batching.on(processes.device(), compile=self.profile.compile_vision)
        sounds = (None if sound is None else sound[:longest] for sound in sounds)
        made = extract(self.encoders(stage), frames, sounds, words, every, batching=batching)
        for id_, row in zip(ids, made, strict=True):
            yield _finite(id_, row)

    def _frames(self, ids) -> Iterator:
        """Every clip's frames as the encoder gets them: all, where the store keeps but a few."""
        if self.profile.stored_frames is not None:
            return self._decoded_frames(ids)
        return (self.media["frames"][i] for i in ids)

    def _sounds(self, ids) -> Iterator:
        return (self.media["waveform"][i] for i in ids)

    def _feature_parts(self, stage: str) -> dict:
        return {
            "corpus": self.corpus_key,
            "stage": stage,
            "encoders": self._encoder_parts(stage),
            "media": self._media_parts(),
            "sampling": self._sampling(stage),
            "words": [self.profile.text_pool, self.profile.max_tokens],
            "code": code_version(
                "features/extraction.py", "features/encoders.py", "features/loading.py"
            ),
        }

    def _sampling(self, stage: str) -> tuple[int | None, int]:
        """Samples of a waveform that are encoded (None: all of them), and `audio_every`."""
        if stage != "paper_b":
            return None, self.profile.audio_every
        from emilib.features.encoders import SAMPLE_RATE
        from emilib.models.taemi import MAX_AUDIO_SECONDS

        return round(MAX_AUDIO_SECONDS * SAMPLE_RATE), 1

    def features_of(self, experiment: str):
        """The features, or the media, that an experiment of `experiments` is trained on."""
        return self._features_of_kind(self.experiments()[experiment].features)

    def _features_of_kind(self, kind: str):
        return self._media_features() if kind == "media" else self.features(*kind.split(", "))

    def stage_of(self, experiment: str) -> str:
        """The stage of the encoders whose features an experiment is trained on.

        Raises ValueError where it takes the organisers' features, or trains its own encoders.
        """
        kind, _, stage = self.experiments()[experiment].features.partition(", ")
        if kind != "ours":
            what = "the organisers' features" if kind == "official" else "encoders of its own"
            raise ValueError(f"{experiment} has no stage of our encoders: it is trained on {what}")
        return stage or "aligned"

    def _media_features(self):
        """Waveforms and tokens for encoders that are trained, with features of the frames."""
        from emilib.features.feature_set import FeatureSplits

        cached = self.features("ours", "paper_b")
        splits = {
            split: self._media_set(getattr(cached, split), cached.moments)
            for split in layout.SPLITS
        }
        return FeatureSplits(
            **splits,
            fingerprint=f"{cached.fingerprint} media",
            name="media",
            moments=cached.moments,
        )

    def _media_set(self, features, moments):
        from emilib.features.media_set import MediaSet
        from emilib.features.store import Rows

        tokenizer = self._tokens_of_paper_b
        texts = self.clips.set_index("id")["transcript"]
        words = [t if isinstance(t, str) else "" for t in texts.reindex(features.ids)]
        return MediaSet(
            features,
            Rows(self.media["waveform"], features.ids),
            {name: ids.numpy() for name, ids in tokenizer(words).items()},
            self._sampling("paper_b")[0],
            {
                role: self._text_settings(role, self._configs("paper_b")[role])
                for role in ("audio", "text")
            },
            moments,
        )

    @functools.cached_property
    def _tokens_of_paper_b(self):
        return self._untrained("text", self._configs("paper_b")["text"]).tokens

    def _decoded_frames(self, ids):
        rows = self.clips.set_index("id").loc[list(ids)].reset_index()
        work = (self._job(row, None, sound=False) for row in rows.itertuples())
        for decoded in processes.ordered_map(_decode, work, self.workers):
            yield decoded["frames"]

    def _encoder_parts(self, stage: str):
        if stage in _RUNS:
            return [self._contrast_parts(f"{side}{_RUNS[stage]}") for side in ("frames", "audio")]
        configs = [self._encoder_config(role, stage) for role in ("vision", "audio", "text")]
        return [*configs, None if stage == "paper_b" else self.profile.warm_start]

    # --------------------------------------------------------------------------------- results

    def experiments(self) -> dict:
        """Every experiment of this profile, by name."""
        from emilib.study.experiments import all_experiments

        return all_experiments(self.profile)

    def results(self, names: Sequence[str] | None = None):
        """Results of these experiments (all that are built, by default), trained where missing."""
        from emilib.study.results import Results
        from emilib.study.runs import run, untrainable

        listed = self.experiments()
        chosen = list(listed) if names is None else list(names)
        unknown = [n for n in chosen if n not in listed]
        if unknown:
            raise ValueError(f"no experiment {unknown}; there are {', '.join(listed)}")
        for name in list(chosen):  # a mean of members needs these
            chosen += [m for m in listed[name].members if m not in chosen]
        features = {
            kind: self._features_of_kind(kind)
            for kind in sorted({listed[n].features for n in chosen})
            if kind != "official" or self.has_official
        }
        wanted = {n: listed[n] for n in chosen}
        without = untrainable(wanted, features)
        found = run(
            {n: e for n, e in wanted.items() if n not in without},
            self.profile.seeds,
            features,
            self.cache,
            workers=self.workers,
            progress=Counter("training runs"),
        )
        return Results(wanted, found.outcomes, without)

    def steps(self) -> pd.DataFrame:
        """What `results` goes through, in order, and how much of it is kept; makes nothing.

        Columns step, there, all: numbers of parts. An embedded corpus that is not made yet has
        nothing.
        """
        if self.embedded and not self.cache.exists("corpus", self.profile.corpus_size):
            clips = sum(self.profile.corpus_size.values())
            return pd.DataFrame([("embedded corpus, clips", 0, clips)], columns=_STEP_COLUMNS)
        rows = [("decoded media", self.cache.exists("media", self._media_parts()), 1)]
        if self.profile.warm_start is not None:
            parts = [self._start_parts(role) for role in ("audio", "vision", "text")]
            rows.append(("self-supervised starts", self._count("start", parts), 3))
        runs = [f"{side}{ending}" for ending in _RUNS.values() for side in ("audio", "frames")]
        parts = [self._contrast_parts(run) for run in runs]
        rows.append(("Stage I, runs", self._count("stage-one", parts), len(runs)))
        listed = [e for e in self.experiments().values() if e.model is not None]
        complete = set()
        for kind in sorted({e.features for e in listed}):
            name, _, stage = ("ours, paper_b" if kind == "media" else kind).partition(", ")
            official = name == "official"
            parts = self._official_parts() if official else self._feature_parts(stage or "aligned")
            if there := self.cache.exists("official" if official else "features", parts):
                complete.add(kind)
            rows.append((f"features, {kind}", there, 1))
        done = len(self._kept([e for e in listed if e.features in complete]))
        rows.append(("training runs", done, len(listed) * len(self.profile.seeds)))
        return pd.DataFrame(rows, columns=_STEP_COLUMNS).astype({"there": int})

    def _count(self, kind: str, parts: list[dict]) -> int:
        return sum(self.cache.exists(kind, p) for p in parts)

    def _kept(self, experiments: Sequence) -> list:
        """(name, seed) of the results that are there."""
        from emilib.study.results import KIND, result_parts

        found = []
        for experiment in experiments:
            splits = self._features_of_kind(experiment.features)
            for seed in self.profile.seeds:
                if self.cache.exists(KIND, result_parts(experiment, seed, splits)):
                    found.append((experiment.name, seed))
        return found

    def tables(self) -> dict:
        """Every table of both papers as DataFrames, by name; trains what is missing."""
        from emilib.study.tables import tables

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
    seconds: float | None  # of the clip, from its beginning; None is all of it
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
            job.video,
            fps=job.fps,
            size=job.size,
            frames=wants_video,
            sound=wants_sound,
            max_seconds=job.seconds,
            sparse=True,
        )
        if found is not None:
            frames, waveform = found.images, found.waveform
    if job.sound and job.audio is not None:
        found = _readable(job.audio, frames=False, max_seconds=job.seconds)
        waveform = None if found is None else found.waveform
    if job.from_crops and not faceless:
        frames = media.face_frames(job.faces, _seconds(job), job.fps, job.size)
        if frames is not None and job.seconds is not None:
            frames = frames[: math.ceil(job.seconds * job.fps)]
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


def _finite(id_: str, row: dict) -> dict:
    """A clip's features, unless an encoder gave what no model can take."""
    for name, array in row.items():
        if array is not None and not np.isfinite(array).all():
            raise ValueError(
                f"clip {id_}: the encoder of {name} gave NaN or infinity in half precision; "
                "expected finite features, so its weights do not fit the network or are damaged"
            )
    return row


def _official_array(path) -> np.ndarray | None:
    """(T, D) of an official pickle; None without one, and for one that can't be used.

    The audit lists them as "bad features"; a test clip gets its prediction all the same.
    """
    if not isinstance(path, str):
        return None
    try:
        array = feature_files.load_features(path)
    except media.MediaError:
        return None
    return array.astype(np.float16) if array.size and np.isfinite(array).all() else None


def _seconds(job: _Job) -> float:
    for path in (job.video, job.audio):
        if path is not None:
            try:
                return media.stated_seconds(path)
            except media.MediaError:
                continue
    return float("nan")


def _call(work) -> None:
    """A method of a workspace in a process of its own, with one thread."""
    import torch

    torch.set_num_threads(1)
    profile, source, home, method, argument = work
    getattr(Workspace(profile, source, home), method)(argument)

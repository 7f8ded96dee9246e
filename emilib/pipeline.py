"""A profile at work on a corpus: `Workspace` hands out what each step makes, and keeps it.

What is not there yet is made, and kept in the cache below ``runs/`` (or ``EMI_HOME``).
"""

import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from emilib import environment, profiles, workers
from emilib.cache import Cache, code_version, key, rank, wait_until
from emilib.corpus import layout
from emilib.features import transcripts as speech
from emilib.features.feature_set import FeatureSet, FeatureSplits
from emilib.features.media_set import MediaSet
from emilib.features.store import Rows
from emilib.models.contrastive import ContrastivePair
from emilib.progress import Counter, quietly
from emilib.reader import CorpusReader
from emilib.steps import Steps, finish
from emilib.study import resources
from emilib.study.experiments import all_experiments
from emilib.study.results import KIND, Results, result_parts
from emilib.study.runs import run, untrainable
from emilib.study.tables import tables
from emilib.synthetic import film
from emilib.training.contrastive_pretraining import Contrast

# No progress bars of libraries: they would be saved into notebooks. Read when these are imported.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

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
        self.home = Path(home).resolve() if home else environment.home()
        corpus = corpus or os.environ.get("EMI_CORPUS") or None
        if corpus is None and self.profile.corpus_size is None:
            raise ValueError(
                f"profile {self.profile.name!r} needs a corpus folder with train_split.csv and "
                "valid_split.csv; give it with --corpus DIR"
            )
        self.embedded = corpus is None
        self._corpus = self.home / self.profile.name / "corpus"
        self.source = self._corpus if corpus is None else Path(corpus).resolve()
        # A cache for each profile, so that --fresh can remove one without the others.
        self.cache = Cache(self.home / self.profile.name / "cache")
        self.figures = environment.figures(self.profile.name, self.embedded, self.home)
        self.workers = self.profile.workers or workers.count()

    def __repr__(self):
        return f"Workspace({self.profile.name!r}, {self.corpus_name!r})"

    # ------------------------------------------------------------------------------ the corpus

    @functools.cached_property
    def reader(self) -> CorpusReader:
        """The clips; the embedded corpus is made, or finished, when first asked for."""
        if self.embedded:
            size = self.profile.corpus_size
            if rank() == 0:
                film.make(
                    self.source,
                    **size,
                    workers=self.workers,
                    progress=Counter("embedded corpus: clips made"),
                )
                self.cache.step("corpus", size, lambda note: None)
            wait_until(lambda: self.cache.exists("corpus", size))
        return CorpusReader(self.source, self.cache, self.workers)

    @property
    def place(self) -> str:
        """The corpus folder that was given, or what stands for it; nothing is made."""
        return SYNTHETIC if self.embedded else str(self.source)

    @property
    def folder(self) -> Path:
        return self.reader.folder

    @property
    def is_synthetic(self) -> bool:
        return self.embedded or self.reader.is_synthetic

    @property
    def corpus_name(self) -> str:
        """What every number from here has to be labelled with."""
        return SYNTHETIC if self.is_synthetic else f"corpus {self.folder.name}"

    @property
    def clips(self) -> pd.DataFrame:
        """`corpus.read` of the folder, with transcripts as `transcript_source` says."""
        return self.reader.clips

    @property
    def unlabelled(self) -> pd.DataFrame:
        return self.reader.unlabelled

    @property
    def transcript_source(self) -> str:
        """One line: text files, Whisper, or no words at all."""
        return self.clips.attrs["transcript_source"]

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of what is predicted: the six emotions, or the columns of your own CSV."""
        return tuple(self.reader.table.attrs["targets"])

    @property
    def has_official(self) -> bool:
        return self.reader.has_official

    @property
    def seconds(self) -> pd.Series:
        return self.reader.seconds

    @property
    def partitions(self) -> pd.DataFrame:
        """`split`, `clips` and `seconds` of each partition: Tables A1 and B1."""
        return self.reader.partitions()

    def require(self) -> None:
        """Look for what a long run would miss in the end: words, weights of the right kind, room.

        Raises ValueError or OSError, one sentence.
        """
        from emilib.features import loading

        if not self.embedded:
            self.reader.require_words()
        for stage in ("random", "paper_b")[: 1 if self.profile.taemi_encoders is None else 2]:
            for role, config in self.profile.encoder_configs(stage).items():
                if "checkpoint" in config:
                    loading.check(role, config["checkpoint"], config.get("revision"))
        if self.profile.corpus_size is None:
            room = self._estimate()["disk"].sum() - self.cache.size_gb()
            environment.require_room(self.home, max(0.0, room), "what is left of the run")

    def needs(self) -> str:
        """What a run takes, as text: operations, hours, disk and GPU memory by stage."""
        silent = int(self.reader.table["transcript"].isna().sum())
        heard = silent if silent and speech.find_weights() is not None else 0
        return resources.text(self._estimate(heard, self.workers))

    def _estimate(self, *more) -> pd.DataFrame:
        used = self.reader.partitions(self.profile.max_seconds)
        return resources.estimate(self.profile, used, *more)

    # ---------------------------------------------------------------------- media and encoders

    @functools.cached_property
    def all_steps(self) -> Steps:
        """The steps from the corpus to features, in order."""
        return Steps(self.profile, self.reader, self.cache)

    @property
    def media(self) -> dict:
        """Stores "frames" (T, 3, S, S) uint8 and "waveform" (S,) int16, one slot a clip."""
        return self.all_steps.media.stores

    def encoders(self, stage="aligned") -> dict:
        """Encoders "vision", "audio" and "text" as they are at a stage.

        stage : "random", untrained; "start", pretrained checkpoints or the self-supervised
            start; "aligned", after Stage I (the text encoder of the run `StageOne.text_from`);
            "one_way", after Stage I with the loss of Eq. 1 to the letter; "paper_b", the
            checkpoints of paper B as they are, in a profile that names them

        Raises ValueError for another stage, or "paper_b" where the profile has none.
        """
        return self.all_steps.encoders(stage)

    def contrast(self, side: str) -> Contrast:
        """Stage I of one side, "frames" or "audio": encoders, heads and history."""
        from emilib.features.loading import load_encoder

        folder = self.all_steps.align()[side]
        return Contrast(
            load_encoder(folder / "media").eval(),
            load_encoder(folder / "text").eval(),
            quietly(ContrastivePair.from_pretrained, folder / "heads").eval(),
            pd.read_csv(folder / "history.csv").to_dict("records"),
        )

    def start_history(self, role: str) -> list[float]:
        """Losses of the self-supervised start of an encoder, one a step."""
        starts = self.all_steps.starts
        finish(list(starts.values()))
        return json.loads((starts[role].folder() / "losses.json").read_text())

    def pretraining_clips(self):
        """What pretraining may see: training and unlabelled clips, without their labels."""
        return self.all_steps.clips()

    # -------------------------------------------------------------------------------- features

    def features(self, kind="ours", stage="aligned", standardised=True) -> FeatureSplits:
        """FeatureSplits of the corpus.

        kind : "ours", of the encoders at `stage`; "official", the organisers' pickles
        standardised : by the training clips, as fusion models get them; False as encoders give them
        """
        if kind not in ("ours", "official"):
            raise ValueError(f"features: expected ours or official, got {kind!r}")
        return self._features(kind, stage if kind == "ours" else None, standardised)

    @functools.lru_cache(maxsize=8)  # noqa: B019 - a workspace lives as long as its process
    def _features(self, kind: str, stage: str | None, standardised: bool) -> FeatureSplits:
        step = self._feature_step(kind, stage)
        splits, dims, moments = {}, None, None
        if standardised:
            plain = self._features(kind, stage, False)
            moments = self._moments(step, plain.train)
            splits = {s: getattr(plain, s).standardised(moments) for s in layout.SPLITS}
        else:
            for split in layout.SPLITS:
                splits[split] = self._feature_set(split, step.stores, dims)
                dims = splits["train"].dims  # a test clip may lack what the others have
        # Standardised or not, these are other features.
        fingerprint = key(features=step.key, standardised=standardised)
        for split, data in splits.items():
            data.known_as(f"{fingerprint} {split}")
        return FeatureSplits(**splits, fingerprint=fingerprint, name=kind, moments=moments)

    def _feature_step(self, kind: str, stage: str | None):
        return self.all_steps.official if kind == "official" else self.all_steps.features(stage)

    def _feature_set(self, split: str, stores: dict, dims: dict | None) -> FeatureSet:
        clips = self.clips[self.clips["split"] == split]
        ids = clips["id"].tolist()
        columns = {n: Rows(stores[n], ids) for n in stores if dims is None or n in dims}
        rows = list(columns.pop("text", ()))
        if rows:
            width = next((r.shape[1] for r in rows if r is not None), (dims or {}).get("text", 1))
            empty = np.full((1, width), np.nan, np.float32)
            columns["text"] = np.concatenate([empty if r is None else r[:1] for r in rows], 0)
        labels = {}
        if split != "test":
            labels = {"target": clips[list(self.targets)].to_numpy(float), "names": self.targets}
        return FeatureSet.from_arrays(ids, dims=dims, **columns, **labels)

    def _moments(self, step, train: FeatureSet) -> dict:
        """Moments of the training clips: read from all of their features once."""

        def make(folder: Path) -> None:
            flat = {
                f"{m} {n}": v for m, pair in train.moments().items() for n, v in enumerate(pair)
            }
            np.savez(folder / "moments.npz", **flat)

        parts = {"features": step.key, "code": code_version("features/feature_set.py")}
        folder = self.cache.shared_step("moments", parts, make)
        with np.load(folder / "moments.npz") as arrays:
            names = dict.fromkeys(name.split()[0] for name in arrays.files)
            return {m: (arrays[f"{m} 0"], arrays[f"{m} 1"]) for m in names}

    def spoilt_features(self, stage: str, modality: str, spoil: Callable, parts: dict):
        """A store of the validation clips' features, their media changed before the encoder; kept.

        stage : of the encoders, as in `encoders`; modality : "frames" or "audio"
        spoil(id, medium) : a clip's frames (T, 3, S, S) uint8 or waveform (S,) int16, changed
        parts : all that determines `spoil`

        Features are as encoders give them, not standardised. A clip without the modality has None.
        """
        if modality not in ("frames", "audio"):
            raise ValueError(f"modality: expected frames or audio, got {modality!r}")
        return self.all_steps.corrupted(stage, modality, spoil, parts).stores[modality]

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

    def _media_features(self) -> FeatureSplits:
        """Waveforms and tokens for encoders that are trained, with features of the frames."""
        cached, steps = self.features("ours", "paper_b"), self.all_steps
        tokenizer = steps.untrained("text", "paper_b").tokens
        configs = self.profile.encoder_configs("paper_b")
        settings = {r: steps.loading_settings(r, configs[r]) for r in ("audio", "text")}
        texts = self.clips.set_index("id")["transcript"]
        splits = {}
        for split in layout.SPLITS:
            features = getattr(cached, split)
            words = [t if isinstance(t, str) else "" for t in texts.reindex(features.ids)]
            splits[split] = MediaSet(
                features,
                Rows(self.media["waveform"], features.ids),
                {name: ids.numpy() for name, ids in tokenizer(words).items()},
                steps.sampling("paper_b")[0],
                settings,
                cached.moments,
            )
        fingerprint = f"{cached.fingerprint} media"
        return FeatureSplits(
            **splits, fingerprint=fingerprint, name="media", moments=cached.moments
        )

    # --------------------------------------------------------------------------------- results

    def experiments(self) -> dict:
        """Every experiment of this profile, by name."""
        return all_experiments(self.profile)

    def results(self, names: Sequence[str] | None = None) -> Results:
        """Results of these experiments (all that are built, by default), trained where missing."""
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
        trained = run(
            {n: e for n, e in wanted.items() if n not in without},
            self.profile.seeds,
            features,
            self.cache,
            workers=self.workers,
            progress=Counter("training runs"),
        )
        return Results(wanted, trained.outcomes, without)

    def steps(self) -> pd.DataFrame:
        """What `results` goes through, in order, and how much of it is kept; makes nothing.

        Columns step, needs (names of the steps before it), key, done, all: numbers of parts. An
        embedded corpus that is not made yet has nothing.
        """
        columns = ["step", "needs", "key", "done", "all"]
        size = self.profile.corpus_size
        if self.embedded and not self.cache.exists("corpus", size):
            row = ("embedded corpus, clips", "", key(**size), 0, sum(size.values()))
            return pd.DataFrame([row], columns=columns)
        rows = [
            (s.name, "; ".join(n.name for n in s.needs), s.key, int(s.exists()), 1)
            for s in self.all_steps
        ]
        trained = [e for e in self.experiments().values() if e.model is not None]
        for kind in sorted({e.features for e in trained}):
            listed = [e for e in trained if e.features == kind]
            name, _, stage = ("ours, paper_b" if kind == "media" else kind).partition(", ")
            step, done = self._feature_step(name, stage or "aligned"), 0
            if step.exists():
                splits = self._features_of_kind(kind)
                parts = [result_parts(e, s, splits) for e in listed for s in self.profile.seeds]
                done = sum(self.cache.exists(KIND, part) for part in parts)
            total = len(listed) * len(self.profile.seeds)
            rows.append((f"training runs, {kind}", step.name, step.key, done, total))
        return pd.DataFrame(rows, columns=columns)

    def tables(self) -> dict:
        """Every table of both papers as DataFrames, by name; trains what is missing."""
        return tables(self.results(), self.partitions, self.corpus_name)

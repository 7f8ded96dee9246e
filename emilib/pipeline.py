"""A profile at work on a corpus: `Workspace` hands out what each step makes, and keeps it."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from emilib import MODALITIES, environment, profiles, workers
from emilib.cache import Cache, code_version, key, rank, wait_until
from emilib.corpus.feature_files import holds_features
from emilib.features.checkpoints import whisper_file
from emilib.features.feature_set import FeatureSet, FeatureSplits, MediaSet
from emilib.features.store import Rows
from emilib.models.contrastive import ContrastivePair
from emilib.progress import Counter, quietly
from emilib.reader import CorpusReader, FeatureReader
from emilib.steps import Step, Steps
from emilib.study import representation, resources, tuning, worlds
from emilib.study.experiments import all_experiments, best_points
from emilib.study.runs import KIND, TRAINED_BY, Results, result_parts, run, untrainable
from emilib.study.tables import tables
from emilib.training.contrastive_pretraining import Contrast

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when it is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

OF_A_FILE = {"ours", "official"}  # kinds of features that a feature file stands for
SYNTHETIC = "embedded corpus: drawn faces, synthetic voices"


class Workspace:
    """Everything of one profile on one corpus.

    profile : a Profile, or its name as of `profiles.get`
    corpus : folder in the layout of Hume-Vidmimic2, or your own videos with a CSV (or the CSV, see
        `corpus.user_dataset`); features (see `corpus.feature_files`); None for the embedded corpus
    home : where generated things go; None for ``EMI_HOME``, else ``runs/`` of the checkout

    Raises ValueError when the profile has no embedded corpus and no folder is given.
    """

    def __init__(self, profile=None, corpus=None, home=None):
        self.profile = profile if isinstance(profile, profiles.Profile) else profiles.get(profile)
        self.home = Path(home).resolve() if home else environment.home()
        corpus = corpus or os.environ.get("EMI_CORPUS")
        if not corpus and self.profile.corpus_size is None:
            wanted = "a corpus folder with train_split.csv and valid_split.csv"
            raise ValueError(f"profile {self.profile.name!r} needs {wanted}; give --corpus DIR")
        self.embedded = not corpus
        self.has_media = self.embedded or not holds_features(corpus)
        if not self.has_media:  # the features of every row are those of the file, as they are
            plain = {"frame_reference": "none", "taemi_encoders": None, "taemi_fine_tune": False}
            self.profile = dataclasses.replace(self.profile, **plain)
        # All of a profile in one folder, so that --fresh can remove one without the others.
        folder = self.home / self.profile.name
        self.source = Path(corpus).resolve() if corpus else folder / f"corpus{self.profile.suffix}"
        self.cache = Cache(folder / "cache")
        self.figures = folder / f"figures{self.profile.suffix}"
        self.workers = self.profile.workers or workers.count()
        self._note = {"size": self.profile.corpus_size, "code": code_version("synthetic")}

    def __repr__(self):
        return f"Workspace({self.profile.name!r}, {self.corpus_name!r})"

    @functools.cached_property
    def reader(self) -> CorpusReader:
        """The clips; the embedded corpus is made, or finished, when first asked for."""
        if rank() == 0 and not self._is_made():
            self.film()
        wait_until(self._is_made)
        if not self.has_media:
            return FeatureReader(self.source, self.cache, self.profile.text_pool)
        return CorpusReader(self.source, self.cache, self.workers)

    def film(self) -> None:
        """Make the embedded corpus; where it is made, only what is damaged."""
        from emilib.synthetic import film  # its drawing and sound take seconds to import

        size, progress = self.profile.corpus_size, Counter("embedded corpus: clips made")
        film.make(self.source, **size, workers=self.workers, progress=progress)
        self.cache.step("corpus", self._note, lambda folder: None)

    def _is_made(self) -> bool:
        noted = self.source.exists() and self.cache.exists("corpus", self._note)
        return noted or not self.embedded

    folder = property(lambda self: self.reader.folder)
    clips = property(lambda self: self.reader.clips)
    seconds = property(lambda self: self.reader.seconds)
    has_official = property(lambda self: self.reader.has_official)
    is_synthetic = property(lambda self: self.embedded or self.reader.is_synthetic)
    partitions = property(lambda self: self.reader.partitions())  # Tables A1 and B1
    # One line: text files, Whisper, or no words at all.
    transcript_source = property(lambda self: self.clips.attrs["transcript_source"])
    # Names of what is predicted: the six emotions, or the columns of your own CSV.
    targets = property(lambda self: tuple(self.reader.table.attrs["targets"]))

    @property
    def frame_source(self) -> str:
        """One line: what the frames are and, of own videos, how much of them shows a face."""
        if self.profile.visual == "video":
            return "The middle square of whole frames."
        if self.reader.table["faces"].notna().any():
            return "Face crops of the corpus; a clip without any has no frames."
        seen = {i: s for i, s in self.media["seen"].items() if s is not None}
        none = [i for i, s in seen.items() if not s.any()]
        if not seen:
            return "No clip has a picture: models are trained without frames."
        if len(none) == len(seen):
            return f"No face was found in {len(seen)} videos; --visual video takes whole frames."
        share = np.concatenate(list(seen.values())).mean()
        without = f"; none in {', '.join(none[:5])}{', …' * (len(none) > 5)}" if none else ""
        return f"Faces were found in {share:.0%} of the frames of {len(seen)} videos{without}."

    @property
    def corpus_name(self) -> str:
        """What every number from here has to be labelled with; nothing is made."""
        what = "corpus" if self.has_media else "features"
        return SYNTHETIC if self.is_synthetic else f"{what} {self.folder.name}"

    def require(self) -> None:
        """ValueError or OSError for what a long run would miss in the end: words, weights, room.
        What is damaged of the embedded corpus is made again."""
        from emilib.features import loading

        if self.embedded and self._is_made():
            self.film()
        if not self.embedded:
            self.reader.table  # noqa: B018 - refuses too few clips
        if not self.has_media:
            return
        configs = [self.profile.encoder_configs(), self.profile.taemi_encoders or {}]
        for role, config in (item for encoders in configs for item in encoders.items()):
            if "checkpoint" in config:
                loading.check(role, config["checkpoint"], config.get("revision"))
        if self.profile.corpus_size is None:
            cached = sum(p.stat().st_size for p in self.cache.root.rglob("*") if p.is_file()) / 1e9
            room = max(0.0, self.estimate()["disk"].sum() - cached)
            environment.require_room(self.home, room, "what is left of the run")

    def estimate(self) -> pd.DataFrame:
        """What a run takes, by stage; see `emilib.study.resources`."""
        silent = int(self.reader.table["transcript"].isna().sum())
        heard = silent if silent and whisper_file() is not None else 0
        used = self.reader.partitions(self.profile.max_seconds)
        return resources.estimate(self.profile, used, heard, self.workers)

    @functools.cached_property
    def steps(self) -> Steps:
        """The steps from the corpus to features, in order."""
        return Steps(self.profile, self.reader, self.cache)

    media = property(lambda self: self.steps.media.stores)  # "frames", "waveform" and "seen"
    encoders = property(lambda self: self.steps.encoders)

    def contrast(self, side: str) -> Contrast:
        """Stage I of one side, "frames" or "audio": encoders, heads and history.
        Without two clips to contrast the encoders are as they were; no heads, and no history."""
        from emilib.features.loading import load_encoder

        folder = self.steps.align()[side]
        encoders = [load_encoder(folder / name).eval() for name in ("media", "text")]
        if not (folder / "heads").exists():
            return Contrast(*encoders, None, [])
        pair = quietly(ContrastivePair.from_pretrained, folder / "heads").eval()
        return Contrast(*encoders, pair, pd.read_csv(folder / "history.csv").to_dict("records"))

    def _step(self, kind: str, stage="aligned") -> Step:
        if kind not in ("ours", "official", "media"):
            raise ValueError(f"features: expected ours, official or media, got {kind!r}")
        if kind == "official" or not self.has_media:
            return self.steps.official
        return self.steps.features("paper_b" if kind == "media" else stage)

    @functools.lru_cache(maxsize=8)  # noqa: B019 - a workspace lives as long as its process
    def features(self, kind="ours", stage="aligned", standardised=True) -> FeatureSplits:
        """FeatureSplits of the corpus.

        kind : "ours", of the encoders at `stage`; "official", the organisers' pickles; "media",
            waveforms and tokens for encoders that are trained, with features of the frames
        standardised : as fusion models get them; False as encoders give them
        """
        step = self._step(kind, stage)
        if kind == "media":
            cached, splits = self.features("ours", "paper_b"), []
            tokenizer = self.steps.untrained("text", "paper_b").tokens
            encoders = {r: self.profile.taemi_encoders[r] for r in ("audio", "text")}
            for data in (cached.train, cached.validation, cached.test):
                tokens = tokenizer(self.reader.texts(data.ids))
                waveforms = Rows(self.media["waveform"], data.ids)
                splits.append(MediaSet.of(data, waveforms, tokens, encoders))
            return FeatureSplits(*splits, f"{cached.fingerprint} media")
        sets = [self._feature_set("train", step.stores)]
        # A test clip may lack what the others have.
        sets += [self._feature_set(s, step.stores, sets[0].dims) for s in ("validation", "test")]
        reference = self.profile.frame_reference if standardised else "none"
        if standardised:
            sets = [dataclasses.replace(data, frame_reference=reference) for data in sets]
            moments = sets[0].moments()
            sets = [data.standardised(moments) for data in sets]
        parts = {"features": step.key, "standardised": standardised, "reference": reference}
        return FeatureSplits(*sets, fingerprint=key(**parts))

    def _feature_set(self, split: str, stores: dict, dims: dict | None = None) -> FeatureSet:
        clips = self.clips[self.clips["split"] == split]
        ids = clips["id"].tolist()
        columns = {n: Rows(stores[n], ids) for n in stores if dims is None or n in dims}
        rows = list(columns.pop("text", ()))
        width = next((r.shape[1] for r in rows if r is not None), (dims or {}).get("text"))
        if rows and width:  # else no clip has words
            empty = np.full((1, width), np.nan, np.float32)
            columns["text"] = np.concatenate([empty if r is None else r[:1] for r in rows], 0)
        labels = {}
        if split != "test":
            labels = {"target": clips[list(self.targets)].to_numpy(float), "names": self.targets}
        return FeatureSet.from_arrays(ids, dims=dims, **columns, **labels)

    def features_of(self, experiment: str) -> FeatureSplits:
        """The features, or the media, that an experiment of `experiments` is trained on."""
        return self.features(*self.experiments()[experiment].features.split(", "))

    def experiments(self) -> dict:
        """Every experiment of this profile, by name.
        Of a feature file in a profile that is tuned: at the best points of `tune` on that file."""
        if self._tuning is None:
            return all_experiments(self.profile)
        listed = all_experiments(dataclasses.replace(self.profile, tuned=False))
        if not self.cache.has("tuning", self._tuning):
            scores, about = self.tune(), self.corpus_name  # all ranks share its runs
            write = lambda folder: tuning.write(scores, about, folder / "tuning.csv")  # noqa: E731
            self.cache.shared_step("tuning", self._tuning, write)
        points = best_points(self.cache.folder("tuning", self._tuning) / "tuning.csv")
        for name, point in points.items():
            recipe = dataclasses.replace(listed[name].recipe, **point)
            listed[name] = dataclasses.replace(listed[name], recipe=recipe)
        return listed

    @functools.cached_property
    def _tuning(self) -> dict | None:
        """All that determines the scores of `tune` on a feature file; None where others count."""
        if self.has_media or not self.profile.tuned:
            return None
        code = code_version("study/tuning.py", "study/runs.py", *TRAINED_BY)
        return {"features": self.steps.official.key, "profile": self.profile, "code": code}

    def _available(self, experiments: dict) -> tuple[dict[str, FeatureSplits], dict]:
        """The features of experiments by kind, but for those not to be had; `untrainable`."""
        kinds = {e.features for e in experiments.values()}
        if not self.has_media:
            kinds &= OF_A_FILE
        elif not self.has_official:
            kinds -= {"official"}
        features = {kind: self.features(*kind.split(", ")) for kind in sorted(kinds)}
        return features, untrainable(experiments, features)

    def results(self, names: Sequence[str] | None = None) -> Results:
        """Results of these experiments (all that are built, by default), trained where missing."""
        listed = self.experiments()
        chosen = list(listed if names is None else names)
        if unknown := [n for n in chosen if n not in listed]:
            raise ValueError(f"no experiment {unknown}; there are {', '.join(listed)}")
        members = [m for n in chosen for m in listed[n].members]  # a mean of members needs these
        wanted = {n: listed[n] for n in [*chosen, *members]}
        features, without = self._available(wanted)
        trained = [e for n, e in wanted.items() if n not in without]
        settings = {"workers": self.workers, "progress": Counter("training runs")}
        done = run(trained, self.profile.seeds, features, self.cache, **settings)
        sets = [s.train.dims for kind, s in features.items() if kind.startswith("ours")]
        absent = [m for m in MODALITIES if sets and m not in sets[0]]
        return Results(wanted, done, without, self.lines, self.reader.test_labels, absent)

    def lines(self) -> dict[str, np.ndarray]:
        """The lines to beat on our features, as `emilib.study.representation.lines`; kept."""
        splits, signals, name = self.features(), self.reader.signals, "predictions.npz"
        parts = {"features": splits.fingerprint, "clean": signals is not None}
        parts["code"] = code_version("study/representation.py", "training/ridge.py")

        def make(folder: Path) -> None:
            np.savez(folder / name, **representation.lines(splits, signals, self.has_media))

        return dict(np.load(self.cache.shared_step("lines", parts, make) / name))

    def worlds(self) -> pd.DataFrame:
        """When each mechanism pays, see `study.worlds.measure`; needs no corpus."""
        return worlds.measure(self.cache, worlds.Size(**self.profile.worlds), self.workers)

    def tune(self) -> pd.DataFrame:
        """Scores of every trained experiment on held-out training people, see `study.tuning`."""
        if (people := self.reader.people) is None:
            raise ValueError("expected a corpus that says whose clip each is, got none")
        plain = dataclasses.replace(self.profile, tuned=False, more_seeds=False)
        listed = {n: e for n, e in all_experiments(plain).items() if e.recipe is not None}
        features, without = self._available(listed)
        listed = [e for name, e in listed.items() if name not in without]
        settings = {"workers": self.workers, "progress": Counter("tuning runs")}
        return tuning.tune(listed, features, people, self.cache, **settings)

    def plan(self) -> pd.DataFrame:
        """How much of what `results` goes through is kept: columns step, done, all."""
        columns = ["step", "done", "all"]
        if not self._is_made():
            size = sum(n for name, n in self.profile.corpus_size.items() if name != "seed")
            return pd.DataFrame([("embedded corpus", 0, size)], columns=columns)
        rows = [(s.name, int(self.cache.exists(s.kind, s.parts)), 1) for s in self.steps]
        tuned = self._tuning is None or self.cache.exists("tuning", self._tuning)
        if not tuned:
            rows.append(("tuning", 0, 1))
        listed = self.experiments() if tuned else all_experiments(self.profile)
        trained = [e for e in listed.values() if e.model is not None]
        trained = [e for e in trained if self.has_media or e.features in OF_A_FILE]
        runs = [(e, seed) for e in trained for seed in e.seeds_of(self.profile.seeds)]
        steps = {e.features: self._step(*e.features.split(", ")) for e in trained}
        made = {kind for kind, s in steps.items() if self.cache.exists(s.kind, s.parts)}
        splits = {kind: self.features(*kind.split(", ")) for kind in made}
        known = (result_parts(*r, splits[r[0].features]) for r in runs if r[0].features in made)
        rows.append(("training runs", sum(self.cache.exists(KIND, p) for p in known), len(runs)))
        return pd.DataFrame(rows, columns=columns)

    def tables(self) -> dict:
        """Every table of both papers as DataFrames, by name; trains what is missing."""
        return tables(self.results(), self.partitions, self.corpus_name)

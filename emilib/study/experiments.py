"""A row of a table is an `Experiment`; `run` trains what is missing and keeps every result.

Nothing but `run` trains for a table. A result is kept under a key made from all that determines
it: the model's and the recipe's settings, the features, the seed and the source code that trains.
One experiment may serve several rows (the full TAEMI stands in B2, B3 and B4) and is trained once.
"""

import contextlib
import dataclasses
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from emilib import metrics, models
from emilib import workers as processes
from emilib.cache import Cache, code_version, key, share, single_process, wait_until
from emilib.corpus.layout import EMOTIONS
from emilib.features.feature_set import FeatureSet, FeatureSplits
from emilib.features.media_set import MediaSet
from emilib.models import for_features, taemi
from emilib.progress import quietly
from emilib.study import claims
from emilib.training import loop as training
from emilib.training.loop import Recipe, one_thread

KIND = "result"
MEDIA = "media"  # the features of an experiment that trains its encoders
LEAKED = "leaked.npz"  # in the folder of a Savchenko2025 run
_LETTERS = {"V": "frames", "A": "audio", "T": "text"}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is trained for one or more rows.

    model : name of a class in `emilib.models`; None where nothing is trained, only `members` read
    model_args : its settings beside the widths, which come from the features
    modalities : among "frames", "audio", "text": all the model is given
    features : "ours", of the Stage I encoders; "ours, start", "ours, one_way" and "ours, paper_b"
        of encoders at another stage; "official", the organisers'; or "media", waveforms and words
        for encoders that are trained with the model
    rows : (table, row) it serves, rows as in `claims`
    members : names of experiments whose predictions are averaged
    leaked : the predictions of its one member with fusion weights from the validation clips
    """

    name: str
    model: str | None = None
    model_args: Mapping = dataclasses.field(default_factory=dict)
    modalities: tuple[str, ...] = ("frames", "audio", "text")
    features: str = "ours"
    recipe: Recipe | None = None
    rows: tuple[tuple[str, str], ...] = ()
    members: tuple[str, ...] = ()
    leaked: bool = False

    @property
    def claims(self) -> tuple[claims.Claim, ...]:
        """What the papers report for its rows."""
        return tuple(claims.reported(table, row) for table, row in self.rows)


def experiments(profile) -> dict[str, Experiment]:
    """Every row of A2, A3, A4, B2, B3 and B4, by name of experiment.

    profile : gives settings of the models, `dual_stage`, `taemi`, `baseline` and `earlier`, and
        recipes, `dual_stage_recipe`, `taemi_recipe`, `baseline_recipe`, `earlier_recipe` and
        `savchenko_recipe`
    """
    listed = [
        *_baselines(profile),
        *_dual_stage(profile),
        *_parts_of_dual_stage(profile),
        *_taemi(profile),
        *_earlier(profile),
    ]
    return {experiment.name: experiment for experiment in listed}


def _baselines(profile) -> list[Experiment]:
    """The organisers' models on the organisers' features."""
    recipe = profile.baseline_recipe
    return [
        Experiment(
            "vit_baseline",
            "LastStepGRU",
            {"modality": "frames", **profile.baseline},
            ("frames",),
            "official",
            recipe,
            rows=(("A2", "ViT (baseline)"), ("B2", "ViT (baseline)")),
        ),
        Experiment(
            "wav2vec2_baseline",
            "MeanLinear",
            {"modality": "audio"},
            ("audio",),
            "official",
            recipe,
            rows=(("A2", "Wav2Vec2 (baseline)"), ("B2", "Wav2Vec2 (baseline)")),
        ),
        Experiment(
            "baseline_average",
            modalities=("frames", "audio"),
            features="official",
            rows=(("B2", "ViT + Wav2Vec2 (baseline)"),),
            members=("vit_baseline", "wav2vec2_baseline"),
        ),
    ]


def _dual_stage(profile) -> list[Experiment]:
    rows = {
        "V": (("A2", "ViT (ours)"),),
        "A": (("A2", "Wav2Vec2 (ours)"),),
        "V+A": (("A3", "V+A"),),
        "V+T": (("A3", "V+T"),),
        "A+T": (("A3", "A+T"),),
        # Nothing is known of Yu 2025 beyond that it is a later version of paper A.
        "V+A+T": (("A3", "V+A+T"), ("A4", "Full model"), ("B2", "Yu 2025")),
    }
    listed = []
    for letters, served in rows.items():
        modalities = tuple(_LETTERS[letter] for letter in letters.split("+"))
        listed.append(
            Experiment(
                f"dual_stage_{letters.replace('+', '').lower()}",
                "DualStage",
                {**profile.dual_stage, "modalities": modalities},
                modalities,
                recipe=profile.dual_stage_recipe,
                rows=served,
            )
        )
    return listed


def _parts_of_dual_stage(profile) -> list[Experiment]:
    """Table A4: one part of the full model left out or exchanged at a time."""
    recipe = profile.dual_stage_recipe
    changes = {
        "no_stage_one": ("w/o Stage I", {}, "ours, start", recipe),
        "one_way": ("Eq. 1 in place of symmetric", {}, "ours, one_way", recipe),
        "uniform": ("Uniform weights", {"quality": False}, "ours", recipe),
        "concat": ("Concat in place of sum", {"fusion": "concat"}, "ours", recipe),
        "no_gate": ("w/o difference gate", {"gate": False}, "ours", recipe),
        "no_segments": ("w/o segment pooling", {"segment_pooling": False}, "ours", recipe),
        "no_ema": ("w/o EMA", {}, "ours", dataclasses.replace(recipe, ema_decay=None)),
    }
    modalities = tuple(_LETTERS.values())
    return [
        Experiment(
            f"dual_stage_{name}",
            "DualStage",
            {**profile.dual_stage, "modalities": modalities, **change},
            modalities,
            features,
            recipe,
            rows=(("A4", row),),
        )
        for name, (row, change, features, recipe) in changes.items()
    ]


def _taemi(profile) -> list[Experiment]:
    full = "TAEMI (full)"
    features = "ours" if profile.taemi_encoders is None else "ours, paper_b"
    changes = {
        "taemi": ({}, (("B2", "TAEMI"), ("B3", full), ("B4", "Text-anchored"))),
        "taemi_concat": ({"fusion": "concat"}, (("B3", "Simple feature concat"),)),
        "taemi_self_attention": (
            {"fusion": "self_attention"},
            (("B3", "w/o text-anchored cross-attention"),),
        ),
        "taemi_no_tokens": ({"missing_tokens": False}, (("B3", "w/o learnable missing tokens"),)),
        "taemi_no_dropout": ({"modality_dropout": 0.0}, (("B3", "w/o modality dropout"),)),
        "taemi_vision_anchor": ({"anchor": "frames"}, (("B4", "Vision-anchored"),)),
        "taemi_audio_anchor": ({"anchor": "audio"}, (("B4", "Audio-anchored"),)),
    }
    listed = [
        Experiment(
            name,
            "TAEMI",
            {**profile.taemi, **change},
            features=features,
            recipe=profile.taemi_recipe,
            rows=rows,
        )
        for name, (change, rows) in changes.items()
    ]
    form = {k: v for k, v in taemi.RELEASE.items() if v != taemi.PAPER[k]}
    release = Experiment(
        "taemi_release",
        "TAEMI",
        {**profile.taemi, **form},
        features=features,
        recipe=dataclasses.replace(profile.taemi_recipe, clip_by="value"),
        rows=(("B2", "TAEMI, as released"),),
    )
    frozen = [*listed, release]
    if not profile.taemi_fine_tune:
        return frozen
    # Encoders of their own serve the tables. The same with frozen encoders are there to be looked
    # into and used: all of them, and all seeds, take one and the same features.
    tuned = [dataclasses.replace(e, name=f"{e.name}_tuned", features=MEDIA) for e in frozen]
    return [*(dataclasses.replace(e, rows=()) for e in frozen), *tuned]


def _earlier(profile) -> list[Experiment]:
    """The earlier solutions of B2, and the fusion models both papers discuss."""
    classes = {
        "Yu 2024": "Yu2024",
        "Hallmen 2024": "Hallmen2024",
        "Savchenko 2025": "Savchenko2025",
        "Zhang 2024": "Zhang2024",
        "TFN": "TFN",
        "MulT": "MulT",
        "MISA": "MISA",
    }
    listed = []
    for row, model in classes.items():
        letters = claims.reported("B2", row).modality.split("+")
        recipe = profile.earlier_recipe if row != "Savchenko 2025" else profile.savchenko_recipe
        listed.append(
            Experiment(
                row.lower().replace(" ", "_"),
                model,
                dict(profile.earlier.get(model, {})),
                tuple(_LETTERS[letter] for letter in letters),
                recipe=recipe,
                rows=(("B2", row),),
            )
        )
    leak = Experiment(
        "savchenko_2025_leaked",
        rows=(("B2", "Savchenko 2025, leaked"),),
        members=("savchenko_2025",),
        leaked=True,
    )
    return [*listed, leak]


def with_encoders(fusion: torch.nn.Module, data: MediaSet) -> torch.nn.Module:
    """A TAEMI with published encoders of sound and words inside, to be trained with it."""
    from emilib.features import loading
    from emilib.models.end_to_end import EndToEnd

    made = []
    for role in ("audio", "text"):
        settings = dict(data.encoders[role])
        made.append(loading.pretrained(role, settings.pop("checkpoint"), **settings))
    return EndToEnd(*made, fusion, moments=data.moments)


class ExperimentError(RuntimeError):
    """Some runs failed; the others are kept. `failures` maps (name, seed) to what happened."""

    def __init__(self, failures: Mapping[tuple[str, int], str], total: int):
        self.failures = dict(failures)
        listed = "; ".join(
            f"{name} with seed {seed}: {what}" for (name, seed), what in failures.items()
        )
        super().__init__(
            f"{len(failures)} of {total} runs failed, the others are kept and will not be trained "
            f"again: {listed}"
        )


@dataclasses.dataclass
class Outcome:
    """What an experiment came to, over S seeds, on N validation clips.

    ids : N names; target (N, E); predictions (S, N, E), not clipped
    test_ids, test_predictions : the same for the test clips, whose labels nobody has
    histories : a DataFrame a seed, see `training.Result`
    parameters : number of trained parameters; seconds, epochs : (S,) training time and best epoch
    folders : where each seed's result lies; empty for a mean of members
    targets : E names
    scale : what turns outputs of the models into targets, see `training.TargetScale`; None where
        they are targets. `predictions` are in the targets' range already
    """

    experiment: Experiment
    seeds: tuple[int, ...]
    ids: list[str]
    target: np.ndarray
    predictions: np.ndarray
    test_ids: list[str]
    test_predictions: np.ndarray
    histories: list[pd.DataFrame]
    parameters: int
    seconds: np.ndarray
    epochs: np.ndarray
    folders: list[Path]
    targets: tuple[str, ...] = EMOTIONS
    scale: training.TargetScale | None = None


class Results:
    """Outcomes by name of experiment. `names` are those that have one.

    lacking : why an experiment can't be trained on this corpus, by name
    """

    def __init__(
        self,
        experiments: Mapping[str, Experiment],
        outcomes: Mapping[str, Outcome],
        lacking: Mapping[str, str] | None = None,
    ):
        self.experiments = dict(experiments)
        self.outcomes = dict(outcomes)
        self.lacking = dict(lacking or {})
        self._estimates: dict = {}

    @property
    def names(self) -> list[str]:
        return list(self.outcomes)

    def __contains__(self, name: str) -> bool:
        return name in self.outcomes

    def __getitem__(self, name: str) -> Outcome:
        if name in self.lacking:
            raise ValueError(f"{name!r} can't be trained on this corpus: {self.lacking[name]}")
        if name not in self.outcomes:
            raise ValueError(f"no result for {name!r}; there are: {', '.join(self.outcomes)}")
        return self.outcomes[name]

    def rho(self, name: str) -> np.ndarray:
        """(S,) mean ρ of each seed."""
        outcome = self[name]
        return np.array([metrics.mean_pearson(outcome.target, p) for p in outcome.predictions])

    def summary(self, name: str) -> metrics.Estimate:
        """Mean ρ with its spread over seeds and its interval over clips."""
        if name not in self._estimates:
            outcome = self[name]
            self._estimates[name] = metrics.estimate(outcome.target, outcome.predictions)
        return self._estimates[name]

    def difference(self, first: str, second: str) -> metrics.Estimate:
        """ρ of `first` minus ρ of `second`, paired over seeds and clips."""
        pair = (first, second)
        if pair not in self._estimates:
            a, b = self[first], self[second]
            _check_same_clips(a, b)
            self._estimates[pair] = metrics.difference(a.target, a.predictions, b.predictions)
        return self._estimates[pair]

    def experiment_for(self, table: str, row: str) -> Experiment | None:
        """The experiment that serves a row of a table."""
        served = (e for e in self.experiments.values() if (table, row) in e.rows)
        return next(served, None)

    def model(self, name: str, seed: int | None = None) -> torch.nn.Module:
        """The trained model of a seed (the first where none is named), on the CPU."""
        outcome = self[name]
        if not outcome.folders:
            raise ValueError(f"{name!r} is a mean of {outcome.experiment.members}: load these")
        position = 0 if seed is None else outcome.seeds.index(seed)
        cls = getattr(models, outcome.experiment.model)
        if outcome.experiment.features == MEDIA:
            from emilib.models.end_to_end import EndToEnd as cls
        return quietly(cls.from_pretrained, str(outcome.folders[position] / "model")).eval()


def _check_same_clips(first: Outcome, second: Outcome) -> None:
    if first.ids != second.ids or first.seeds != second.seeds:
        raise ValueError(
            f"{first.experiment.name} and {second.experiment.name} are not of the same clips and "
            f"seeds ({len(first.ids)} and {len(second.ids)} clips, seeds {first.seeds} and "
            f"{second.seeds}): run them together"
        )


_CALLED = {"frames": "picture", "audio": "sound", "text": "words"}


def lacking(
    experiments: Mapping[str, Experiment], features: Mapping[str, FeatureSplits]
) -> dict[str, str]:
    """Why some experiments can't be trained on these features, by name: "no official features"."""
    found = {}
    for name, experiment in experiments.items():
        if experiment.model is None:
            continue
        kind = experiment.features.split(",")[0]
        dims = features[experiment.features].train.dims if experiment.features in features else None
        without = [_CALLED[m] for m in experiment.modalities if m not in (dims or ())]
        if dims is None:
            found[name] = f"no {kind} features"
        elif without:
            official = " in the official features" if kind == "official" else ""
            found[name] = f"no {' and no '.join(without)}{official}"
    for name, experiment in experiments.items():
        reasons = [found[member] for member in experiment.members if member in found]
        if reasons:
            found[name] = reasons[0]
    return found


def run(
    experiments: Mapping[str, Experiment] | Iterable[Experiment],
    seeds: Sequence[int],
    features: Mapping[str, FeatureSplits],
    cache: Cache,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    device=None,
) -> Results:
    """Train each experiment with each seed where `cache` has no result yet; return all results.

    features : "ours" and "official", those that are needed
    workers : processes, each with one thread; None is one a core, and one where there is a GPU.
        One worker is this process. The number changes no bit of the result on a CPU.
    progress : called with (runs done, runs in all), results that were there included

    Several ranks (see `emilib.training.distributed`) deal the runs out among them.

    A run that was killed goes on from its last epoch. Where runs fail the others are finished
    first; then ExperimentError names the failures. Raises ValueError for missing features.
    """
    if not isinstance(experiments, Mapping):
        experiments = {experiment.name: experiment for experiment in experiments}
    seeds = tuple(int(seed) for seed in seeds)
    jobs = _jobs(experiments, seeds, features)
    mine = dict(share(list(jobs.items())))
    done = {k for k, job in mine.items() if cache.has(KIND, job.parts)}
    missing = [job for k, job in mine.items() if k not in done]
    count = len(done)

    def finished():
        nonlocal count
        count += 1
        if progress is not None:
            progress(count, len(mine))

    if progress is not None:
        progress(count, len(mine))
    with single_process():  # a run is one rank's, not all of theirs
        failures = _train_all(missing, features, cache, workers, device, finished)
    if failures:
        raise ExperimentError(failures, len(mine))
    for job in jobs.values():
        wait_until(lambda parts=job.parts: cache.has(KIND, parts))
    return collect(experiments, seeds, features, cache)


def collect(
    experiments: Mapping[str, Experiment],
    seeds: Sequence[int],
    features: Mapping[str, FeatureSplits],
    cache: Cache,
) -> Results:
    """The results that are there, without training: experiments that lack a seed are left out."""
    outcomes = {}
    for name, experiment in experiments.items():
        if experiment.model is None or experiment.features not in features:
            continue
        parts = [result_parts(experiment, seed, features[experiment.features]) for seed in seeds]
        if all(cache.has(KIND, part) for part in parts):
            folders = [cache.folder(KIND, key(**part)) for part in parts]
            outcomes[name] = _read(experiment, tuple(seeds), folders)
    for name, experiment in experiments.items():
        if experiment.members and all(member in outcomes for member in experiment.members):
            members = [outcomes[m] for m in experiment.members]
            outcomes[name] = (_leaked if experiment.leaked else _mean)(experiment, *members)
    return Results(experiments, {n: outcomes[n] for n in experiments if n in outcomes})


@dataclasses.dataclass(frozen=True)
class _Job:
    experiment: Experiment
    seed: int
    parts: dict


def _jobs(experiments, seeds, features) -> dict[str, _Job]:
    """What is to be trained, by key: equal settings under two names are one job."""
    jobs = {}
    for experiment in experiments.values():
        for member in experiment.members:
            if member not in experiments:
                raise ValueError(f"{experiment.name} needs {member!r}: run it as well")
        if experiment.model is None:
            continue
        splits = _splits(experiment, features)
        for seed in seeds:
            parts = result_parts(experiment, seed, splits)
            jobs.setdefault(key(**parts), _Job(experiment, seed, parts))
    return jobs


def _splits(experiment: Experiment, features: Mapping[str, FeatureSplits]) -> FeatureSplits:
    if experiment.features not in features:
        raise ValueError(
            f"{experiment.name} needs features {experiment.features!r}, came {sorted(features)}"
        )
    splits = features[experiment.features]
    lacking = [m for m in experiment.modalities if m not in splits.train.dims]
    if lacking:
        raise ValueError(
            f"{experiment.name} needs {', '.join(lacking)}, which the {splits.name} features of "
            "this corpus lack"
        )
    return splits


def result_parts(experiment: Experiment, seed: int, splits: FeatureSplits) -> dict:
    """All that determines a result. Name and rows do not."""
    return {
        "model": experiment.model,
        "model_args": dict(experiment.model_args),
        "modalities": list(experiment.modalities),
        "recipe": experiment.recipe,
        "seed": seed,
        "features": splits.fingerprint,
        "code": _code(experiment),
    }


def _code(experiment: Experiment) -> str:
    """Version of the source code behind a result: the model's module, those it uses, the loop."""
    found: set[str] = set()
    _uses(getattr(models, experiment.model).__module__, found)
    files = [name.removeprefix("emilib.").replace(".", "/") + ".py" for name in sorted(found)]
    if experiment.features == MEDIA:
        files += ["models/end_to_end.py", "features/media_set.py"]
    shared = ("training/loop.py", "metrics.py", "features/feature_set.py", "models/build.py")
    sources = code_version(*shared, *files)
    trained_by = [inspect.getsource(f) for f in (_train, _train_savchenko, with_encoders)]
    return key(files=sources, train=trained_by)


def _uses(module: str, found: set[str]) -> None:
    """Add the module and every module of `emilib.models` that it takes a class or function from."""
    if module in found or not module.startswith("emilib.models."):
        return
    found.add(module)
    for value in list(vars(sys.modules[module]).values()):
        _uses(value.__name__ if inspect.ismodule(value) else _home(value), found)


def _home(value) -> str:
    home = getattr(value, "__module__", None)
    return home if isinstance(home, str) else ""


def _train(job: _Job, splits: FeatureSplits, cache: Cache, device) -> None:
    """Train one experiment with one seed into the cache, unless it is there."""
    experiment = job.experiment

    def make(folder: Path) -> None:
        train, valid, test = (
            part.only(*experiment.modalities)
            for part in (splits.train, splits.validation, splits.test)
        )
        if experiment.model == "Savchenko2025":
            _train_savchenko(folder, job, train, valid, test, device)
            return
        with torch.random.fork_rng([]):
            torch.manual_seed(job.seed)
            model = for_features(experiment.model, train, **experiment.model_args)
        if isinstance(train, MediaSet):
            model = with_encoders(model, train)
        result = training.fit(
            model,
            train,
            valid,
            experiment.recipe,
            job.seed,
            checkpoint=cache.scratch(KIND, job.parts),
            device=device,
        )
        _write(folder, job, result, valid, test)

    cache.step(KIND, job.parts, make)


def _train_savchenko(folder, job, train, valid, test, device) -> None:
    recipe, settings = job.experiment.recipe, job.experiment.model_args
    fitted = training.fit_savchenko(train, valid, recipe, job.seed, device=device, **settings)
    _write(folder, job, fitted.honest, valid, test)
    np.savez(folder / LEAKED, **_predictions(fitted.leaked, valid, test))


def _predictions(result, valid: FeatureSet, test: FeatureSet) -> dict[str, np.ndarray]:
    return {
        "prediction": result.predict(valid),
        "test_prediction": (
            result.predict(test) if len(test) else np.zeros((0, valid.num_targets))
        ),
    }


def _write(folder: Path, job: _Job, result, valid: FeatureSet, test: FeatureSet) -> None:
    np.savez(
        folder / "predictions.npz",
        ids=np.array(valid.ids, dtype=str),
        target=valid.target,
        test_ids=np.array(test.ids, dtype=str),
        targets=np.array(valid.targets, dtype=str),
        **_predictions(result, valid, test),
    )
    result.history.to_csv(folder / "history.csv", index=False)
    meta = {
        "experiment": job.experiment.name,
        "seed": job.seed,
        "parameters": result.parameters,
        "seconds": result.seconds,
        "epoch": result.epoch,
        "epochs": len(result.history),
        "device": next(result.model.parameters()).device.type,
        "torch": torch.__version__,
        "scale": None if result.scale is None else result.scale.plain(),
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    result.model.cpu().save_pretrained(folder / "model")


def _read(experiment: Experiment, seeds: tuple[int, ...], folders: list[Path]) -> Outcome:
    stored = []
    for folder in folders:
        with np.load(folder / "predictions.npz", allow_pickle=False) as arrays:
            stored.append(dict(arrays))
    metas = [json.loads((folder / "meta.json").read_text(encoding="utf-8")) for folder in folders]
    return Outcome(
        experiment=experiment,
        seeds=seeds,
        ids=stored[0]["ids"].tolist(),
        target=stored[0]["target"],
        predictions=np.stack([s["prediction"] for s in stored]),
        test_ids=stored[0]["test_ids"].tolist(),
        test_predictions=np.stack([s["test_prediction"] for s in stored]),
        histories=[pd.read_csv(folder / "history.csv") for folder in folders],
        parameters=metas[0]["parameters"],
        seconds=np.array([meta["seconds"] for meta in metas]),
        epochs=np.array([meta["epoch"] for meta in metas]),
        folders=folders,
        targets=tuple(stored[0]["targets"].tolist()),
        scale=training.TargetScale.read(metas[0]["scale"]),
    )


def _leaked(experiment: Experiment, member: Outcome) -> Outcome:
    """What the member's runs give with the fusion weights that fit the validation clips best."""
    stored = []
    for folder in member.folders:
        with np.load(folder / LEAKED, allow_pickle=False) as arrays:
            stored.append(dict(arrays))
    return dataclasses.replace(
        member,
        experiment=experiment,
        predictions=np.stack([s["prediction"] for s in stored]),
        test_predictions=np.stack([s["test_prediction"] for s in stored]),
        folders=[],
    )


def _mean(experiment: Experiment, *members: Outcome) -> Outcome:
    """Mean of the members' predictions, seed by seed."""
    for member in members[1:]:
        _check_same_clips(members[0], member)
    return dataclasses.replace(
        members[0],
        experiment=experiment,
        predictions=np.mean([m.predictions for m in members], axis=0),
        test_predictions=np.mean([m.test_predictions for m in members], axis=0),
        histories=[],
        parameters=sum(m.parameters for m in members),
        seconds=np.sum([m.seconds for m in members], axis=0),
        epochs=np.max([m.epochs for m in members], axis=0),
        folders=[],
    )


def _train_all(jobs, features, cache, workers, device, finished) -> dict[tuple[str, int], str]:
    """Train all jobs; returns what failed."""
    if not jobs:
        return {}
    on_gpu = torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"
    if workers is None:
        workers = 1 if on_gpu else len(os.sched_getaffinity(0))
    workers = min(workers, len(jobs))
    if workers > 1:
        return _train_in_processes(jobs, features, cache, workers, device, finished)
    failures = {}
    with contextlib.nullcontext() if on_gpu else one_thread():
        for job in jobs:
            try:
                _train(job, features[job.experiment.features], cache, device)
            except Exception as error:
                failures[job.experiment.name, job.seed] = _sentence(error)
            else:
                finished()
    return failures


def _sentence(error: BaseException) -> str:
    lines = traceback.format_exception_only(error)
    return lines[-1].strip()


def _train_in_processes(jobs, features, cache, workers, device, finished) -> dict:
    needed = {job.experiment.features for job in jobs}
    state = ({name: features[name] for name in needed}, cache.root, device)
    failures, broken = _pooled(jobs, state, workers, finished)
    for job in broken:
        # A worker that dies takes the pool with it: each job that was lost gets a pool of its own.
        failed, lost = _pooled([job], state, 1, finished)
        failures.update(failed)
        if lost:
            failures[job.experiment.name, job.seed] = (
                "its process died (out of memory, perhaps: use fewer workers)"
            )
    return failures


def _pooled(jobs, state, workers, finished) -> tuple[dict, list[_Job]]:
    failures, broken = {}, []
    pool, (features, root, device) = processes.pool(workers), state
    try:
        futures: dict[Future, _Job] = {
            pool.submit(_work, job, features[job.experiment.features], root, device): job
            for job in jobs
        }
        for future in as_completed(futures):
            job = futures[future]
            error = future.exception()
            if error is None:
                finished()
            elif isinstance(error, BrokenProcessPool):
                broken.append(job)
            else:
                failures[job.experiment.name, job.seed] = _sentence(error)
    except BaseException:
        pool.shutdown(wait=False, kill_workers=True)
        raise
    return failures, broken


def _work(job: _Job, features: FeatureSplits, root: Path, device) -> None:
    torch.set_num_threads(1)
    _train(job, features, Cache(root), device)

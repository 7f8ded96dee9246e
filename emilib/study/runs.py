"""Trains experiments, keeps and reads their results: nothing but `run_one` trains for a table."""

import contextlib
import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from emilib import EMOTIONS, MODALITIES, metrics, models
from emilib.cache import Cache, code_version, key, share, single_process, wait_until
from emilib.features.feature_set import FeatureSplits, MediaSet
from emilib.progress import quietly
from emilib.study.experiments import MEDIA, Experiment
from emilib.training.loop import Result, TargetScale, fit
from emilib.workers import count, one_thread, ordered_map

KIND = "result"  # of a step in the cache
TRAINED_BY = ("models", "training", "metrics.py", "features/feature_set.py")
_MISSING = {"frames": "picture", "audio": "sound", "text": "words"}


class ExperimentError(RuntimeError):
    """Some runs failed; the others are kept."""


@dataclasses.dataclass
class Outcome:
    """What an experiment came to, over S seeds, on N validation clips."""

    experiment: Experiment
    seeds: tuple[int, ...]
    ids: list[str]  # N names
    target: np.ndarray  # (N, E)
    predictions: np.ndarray  # (S, N, E), not clipped
    test_ids: list[str]
    test_predictions: np.ndarray  # the same for the test clips, whose labels nobody has
    histories: list[pd.DataFrame]  # one a seed, see `emilib.training.loop.Result`
    parameters: int  # number of those that are trained
    seconds: np.ndarray  # (S,) of training
    folders: list[Path]  # where each seed's result lies; empty for a mean of members
    targets: tuple[str, ...] = EMOTIONS
    scale: TargetScale | None = None  # made predictions of the models' outputs


class Results(dict):
    """Outcomes by name of experiment.

    lacking : why others can't be trained on this corpus, by name
    lines : returns the lines to beat, as `representation.lines` does, on the same clips
    test_labels : DataFrame by id of the test clips' labels; None where nobody has them
    absent : modalities that no training clip has
    """

    def __init__(
        self, experiments: Mapping, outcomes, lacking=(), lines=dict, test_labels=None, absent=()
    ):
        super().__init__(outcomes)
        self.experiments, self.lacking, self.absent = experiments, dict(lacking), absent
        self.lines, self.test_labels = lines, test_labels

    def __missing__(self, name: str):
        reason = self.lacking.get(name, f"results: {', '.join(self)}")
        raise ValueError(f"no result for {name!r}; {reason}")

    @functools.cached_property
    def _measure(self) -> Callable:
        return functools.cache(lambda n: metrics.measure(self[n].target, self[n].predictions))

    def summary(self, name: str) -> metrics.Estimate:
        """Mean ρ with its spread over seeds and its interval."""
        per_seed, drawn = self._measure(name)
        return metrics.summarise(per_seed, drawn.mean(axis=1), bound=1)

    def difference(self, first: str, second: str) -> metrics.Estimate:
        """ρ of `first` minus ρ of `second`, paired over the seeds that both have and over clips."""
        return metrics.summarise(*self.gap(first, second), bound=2)

    def gap(self, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
        """The same of each common seed (S,), and the mean over these on drawn clips (R,)."""
        pair = [self[name].seeds for name in (first, second)]
        both = [seed for seed in pair[0] if seed in pair[1]]
        if not both:
            raise ValueError(f"expected a seed that {first} and {second} both have, got none")
        (a, a_drawn), (b, b_drawn) = map(self._measure, (first, second))
        i, j = ([seeds.index(seed) for seed in both] for seeds in pair)
        return a[i] - b[j], (a_drawn[:, i] - b_drawn[:, j]).mean(axis=1)

    def test_rho(self, predictions: np.ndarray) -> float:
        """Mean ρ over seeds of predictions (S, M, E) of test clips; NaN without their labels."""
        clips = next(iter(self.values()))
        if self.test_labels is None or len(clips.test_ids) < 2:
            return np.nan
        target = self.test_labels.loc[clips.test_ids, list(clips.targets)]
        return float(np.mean([metrics.mean_pearson(target, p) for p in predictions]))

    def experiment_for(self, table: str, row: str) -> Experiment | None:
        """The experiment that serves a row of a table."""
        return next((e for e in self.experiments.values() if (table, row) in e.rows), None)

    def model(self, name: str, seed: int | None = None) -> torch.nn.Module:
        """The trained model of a seed (the first where none is named), on the CPU."""
        outcome = self[name]
        if not outcome.folders:
            raise ValueError(f"{name!r} is a mean of {outcome.experiment.members}: load these")
        position = 0 if seed is None else outcome.seeds.index(seed)
        folder = str(outcome.folders[position] / "model")
        if outcome.experiment.features == MEDIA:
            from emilib.features.loading import load_encoder

            return quietly(models.EndToEnd.from_pretrained, folder, load_encoder).eval()
        return quietly(models.MODELS[outcome.experiment.model].from_pretrained, folder).eval()


def result_parts(experiment: Experiment, seed: int, splits: FeatureSplits) -> dict:
    """All that determines a result. Name and rows do not."""
    parts = {"model": experiment.model, "model_args": dict(experiment.model_args)}
    parts |= {"modalities": list(experiment.modalities), "recipe": experiment.recipe}
    parts |= {"seed": int(seed), "features": splits.fingerprint}
    parts["code"] = code_version(*TRAINED_BY, "study/runs.py", "study/savchenko.py")
    return parts | {"train": experiment.train and inspect.getsource(experiment.train)}


def train_model(experiment: Experiment, train, valid, seed: int, checkpoint) -> Result:
    """The experiment's model, initialised and trained from `seed`; of media with its encoders."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = models.for_features(experiment.model, train, **experiment.model_args)
    if isinstance(train, MediaSet):
        from emilib.features import loading

        built = []
        for role in ("audio", "text"):
            settings = dict(train.encoders[role])
            built.append(loading.pretrained(role, settings.pop("checkpoint"), **settings))
        model = models.EndToEnd(*built, model, moments=train.scaling)
    judged = valid if experiment.recipe.selects else None  # else it is looked at once, at the end
    return fit(model, train, judged, experiment.recipe, seed, checkpoint)


def run_one(experiment: Experiment, seed: int, splits: FeatureSplits, cache: Cache) -> Path:
    """Train one experiment with one seed, on one thread, where `cache` lacks it; its folder."""
    parts = result_parts(experiment, seed, splits)

    def make(folder: Path) -> None:
        sets = (splits.train, splits.validation, splits.test)
        train, valid, test = (part.only(*experiment.modalities) for part in sets)
        checkpoint, arrays = cache.scratch(KIND, parts), {"target": valid.target}
        with contextlib.nullcontext() if torch.cuda.is_available() else one_thread():
            if experiment.train is None:
                results = {"": train_model(experiment, train, valid, seed, checkpoint)}
            else:
                how = (experiment.recipe, seed, checkpoint)
                pair = experiment.train(train, valid, *how, **experiment.model_args)
                results = dict(zip(("", "leaked_"), pair, strict=True))
            for prefix, result in results.items():
                of_test = result.predict(test) if len(test) else np.zeros((0, valid.num_targets))
                arrays[f"{prefix}prediction"] = result.predict(valid)
                arrays[f"{prefix}test_prediction"] = of_test
        names = {"ids": valid.ids, "test_ids": test.ids, "targets": valid.targets}
        arrays |= {name: np.array(values, str) for name, values in names.items()}
        np.savez(folder / "predictions.npz", **arrays)
        result = results[""]
        result.history.to_csv(folder / "history.csv", index=False)
        meta = {"experiment": experiment.name, "seed": seed, "torch": torch.__version__}
        meta |= {name: getattr(result, name) for name in ("parameters", "seconds", "epoch")}
        meta["scale"] = None if result.scale is None else result.scale.to_dict()
        (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        save = ()
        if isinstance(result.model, models.EndToEnd):
            from emilib.features.loading import save_encoder

            save = (save_encoder,)
        result.model.cpu().save_pretrained(folder / "model", *save)

    return cache.step(KIND, parts, make)


def run(experiments, seeds, features, cache, workers=None, progress=lambda *_: None) -> Results:
    """`run_one` for each experiment and seed that `cache` lacks; returns all results.

    seeds : of each experiment, and as many more as its `least_seeds` asks for
    features : by `Experiment.features`, those that are needed; ValueError where one is missing
    workers : processes; None is one a core, and one where there is a GPU. It changes no bit.
    progress : called with (runs done, runs in all)

    Several ranks (see `emilib.cache`) deal the runs out among them. Where runs fail the others are
    finished first; then ExperimentError names the failures.
    """
    experiments = {experiment.name: experiment for experiment in experiments}
    for name, reason in untrainable(experiments, features).items():
        raise ValueError(f"{name} can't be trained on this corpus: {reason}")
    jobs = {}  # equal settings under two names are trained once
    for experiment in experiments.values():
        for seed in experiment.seeds_of(seeds) if experiment.model else ():
            job = (experiment, int(seed), features[experiment.features])
            parts = result_parts(*job)
            jobs.setdefault(key(**parts), (parts, job))
    mine = share(list(jobs.values()))
    missing = [job for parts, job in mine if not cache.has(KIND, parts)]
    done, failures = len(mine) - len(missing), []
    progress(done, len(mine))
    workers = workers or (1 if torch.cuda.is_available() else count())
    attempt = functools.partial(_attempt, cache=cache)
    attempts = ordered_map(attempt, missing, min(workers, max(1, len(missing))))
    try:
        for (experiment, seed, _), error in zip(missing, attempts, strict=True):
            if error:
                failures.append(f"{experiment.name} with seed {seed}: {error}")
            else:
                done += 1
                progress(done, len(mine))
    except BrokenProcessPool:
        failures.append("a process died (out of memory, perhaps): use fewer workers")
    if failures:
        state = f"{done} of {len(mine)} runs are finished and kept; of the others failed: "
        raise ExperimentError(state + "; ".join(failures))
    for parts, _ in jobs.values():
        wait_until(lambda parts=parts: cache.has(KIND, parts))
    return Results(experiments, _collect(experiments, seeds, features, cache))


def _attempt(job, cache: Cache) -> str:
    """What went wrong, in a line; "" for a run that succeeds."""
    try:
        with single_process():  # a run belongs to one rank
            run_one(*job, cache)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def untrainable(experiments: Mapping[str, Experiment], features: Mapping) -> dict[str, str]:
    """Why some experiments can't be trained on these features, by name: "no official features".
    One on all three modalities is trained on those there are; a choice of them needs them all."""
    reasons = {}
    for name, experiment in experiments.items():
        official, splits = experiment.features == "official", features.get(experiment.features)
        if splits is None:
            reasons[name] = "no official features" if official else "no encoders"
        elif without := [_MISSING[m] for m in experiment.modalities if m not in splits.train.dims]:
            where = " in the official features" if official else ""
            if experiment.modalities != MODALITIES:
                reasons[name] = f"no {' and no '.join(without)}{where}"
    return reasons


def _collect(experiments: Mapping, seeds: Sequence[int], features: Mapping, cache: Cache) -> dict:
    """Outcomes by name; all runs are in the cache."""
    outcomes = {}
    for name, experiment in sorted(experiments.items(), key=lambda item: bool(item[1].members)):
        members = [outcomes[m] for m in experiment.members]
        if experiment.leaked:
            outcomes[name] = _read(experiment, members[0].seeds, members[0].folders, "leaked_")
        elif members:
            new = {"experiment": experiment, "histories": [], "folders": []}
            new["predictions"] = np.mean([m.predictions for m in members], axis=0)
            new["test_predictions"] = np.mean([m.test_predictions for m in members], axis=0)
            new["parameters"] = sum(m.parameters for m in members)
            new["seconds"] = np.sum([m.seconds for m in members], axis=0)
            outcomes[name] = dataclasses.replace(members[0], **new)
        else:
            own, splits = experiment.seeds_of(seeds), features[experiment.features]
            folders = [cache.folder(KIND, result_parts(experiment, s, splits)) for s in own]
            outcomes[name] = _read(experiment, own, folders)
    return {name: outcomes[name] for name in experiments}


def _read(experiment: Experiment, seeds: Sequence[int], folders: list, prefix="") -> Outcome:
    runs = [dict(np.load(folder / "predictions.npz", allow_pickle=False)) for folder in folders]
    metas = [json.loads((folder / "meta.json").read_text(encoding="utf-8")) for folder in folders]
    return Outcome(
        experiment,
        tuple(seeds),
        ids=runs[0]["ids"].tolist(),
        target=runs[0]["target"],
        predictions=np.stack([run[f"{prefix}prediction"] for run in runs]),
        test_ids=runs[0]["test_ids"].tolist(),
        test_predictions=np.stack([run[f"{prefix}test_prediction"] for run in runs]),
        histories=[pd.read_csv(folder / "history.csv") for folder in folders],
        parameters=metas[0]["parameters"],
        seconds=np.array([meta["seconds"] for meta in metas]),
        folders=[] if prefix else folders,  # leaked weights are not kept
        targets=tuple(runs[0]["targets"].tolist()),
        scale=TargetScale.from_dict(metas[0]["scale"]),
    )

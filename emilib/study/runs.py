"""Trains experiments: nothing but `run_one` trains for a table, and every result is kept."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import torch

from emilib.cache import Cache, key, share, single_process, wait_until
from emilib.features.feature_set import FeatureSplits
from emilib.features.media_set import MediaSet
from emilib.models import EndToEnd, for_features
from emilib.study.experiments import Experiment
from emilib.study.results import KIND, Results, collect, result_parts
from emilib.training.loop import Result, fit, one_thread
from emilib.workers import count, ordered_map

_MISSING = {"frames": "picture", "audio": "sound", "text": "words"}


class ExperimentError(RuntimeError):
    """Some runs failed; the others are kept."""


def train_model(experiment: Experiment, train, valid, seed: int, checkpoint) -> Result:
    """The experiment's model, initialised and trained from `seed`."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = for_features(experiment.model, train, **experiment.model_args)
    if isinstance(train, MediaSet):
        model = with_encoders(model, train)
    return fit(model, train, valid, experiment.recipe, seed, checkpoint)


def with_encoders(fusion: torch.nn.Module, data: MediaSet) -> torch.nn.Module:
    """A TAEMI with published encoders of sound and words inside, to be trained with it."""
    from emilib.features import loading

    built = []
    for role in ("audio", "text"):
        settings = dict(data.encoders[role])
        built.append(loading.pretrained(role, settings.pop("checkpoint"), **settings))
    return EndToEnd(*built, fusion, moments=data.scaling)


def run_one(experiment: Experiment, seed: int, splits: FeatureSplits, cache: Cache) -> Path:
    """Train one experiment with one seed where `cache` has no result yet; returns its folder.

    One torch thread on a CPU: a run made alone and one made beside others have the same bits.
    A run that was killed goes on from its last epoch.
    """
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
        model, save = result.model.cpu(), ()
        if isinstance(model, EndToEnd):
            from emilib.features.loading import save_encoder

            save = (save_encoder,)
        model.save_pretrained(folder / "model", *save)

    return cache.step(KIND, parts, make)


def run(
    experiments: Iterable[Experiment],
    seeds: Sequence[int],
    features: Mapping[str, FeatureSplits],
    cache: Cache,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Results:
    """`run_one` for each experiment and seed that `cache` lacks; returns all results.

    features : by `Experiment.features`, those that are needed
    workers : processes; None is one a core, and one where there is a GPU. It changes no bit.
    progress : called with (runs done, runs in all), results that were there included

    Several ranks (see `emilib.cache`) deal the runs out among them. Where runs fail the others are
    finished first; then ExperimentError names the failures. ValueError: features are missing.
    """
    experiments = {experiment.name: experiment for experiment in experiments}
    for name, reason in untrainable(experiments, features).items():
        raise ValueError(f"{name} can't be trained on this corpus: {reason}")
    jobs = {}  # equal settings under two names are trained once
    for experiment in experiments.values():
        for seed in seeds if experiment.model else ():
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
        raise ExperimentError(
            f"{done} of {len(mine)} runs are finished and kept; of the others failed: "
            f"{'; '.join(failures)}"
        )
    for parts, _ in jobs.values():
        wait_until(lambda parts=parts: cache.has(KIND, parts))
    return collect(experiments, seeds, features, cache)


def _attempt(job, cache: Cache) -> str:
    """What went wrong, in a line; "" for a run that succeeds."""
    try:
        with single_process():  # a run belongs to one rank
            run_one(*job, cache)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def untrainable(experiments: Mapping[str, Experiment], features: Mapping) -> dict[str, str]:
    """Why some experiments can't be trained on these features, by name: "no official features"."""
    reasons = {}
    for name, experiment in experiments.items():
        kind = experiment.features.split(",")[0]
        if experiment.features not in features:
            reasons[name] = f"no {kind} features"
            continue
        dims = features[experiment.features].train.dims
        without = [_MISSING[m] for m in experiment.modalities if m not in dims]
        if without:
            official = " in the official features" if kind == "official" else ""
            reasons[name] = f"no {' and no '.join(without)}{official}"
    return reasons

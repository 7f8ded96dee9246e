"""Trains experiments: nothing but `run_one` trains for a table, and every result is kept."""

import contextlib
import functools
import itertools
import json
import traceback
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


def train_model(experiment: Experiment, train, valid, seed: int, checkpoint, device) -> Result:
    """The experiment's model, initialised and trained from `seed`.

    Where the clips are media, published encoders of sound and words are trained with it.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = for_features(experiment.model, train, **experiment.model_args)
    if isinstance(train, MediaSet):
        model = with_encoders(model, train)
    return fit(model, train, valid, experiment.recipe, seed, checkpoint, device)


def with_encoders(fusion: torch.nn.Module, data: MediaSet) -> torch.nn.Module:
    """A TAEMI with published encoders of sound and words inside, to be trained with it."""
    from emilib.features import loading

    built = []
    for role in ("audio", "text"):
        settings = dict(data.encoders[role])
        built.append(loading.pretrained(role, settings.pop("checkpoint"), **settings))
    return EndToEnd(*built, fusion, moments=data.moments)


class ExperimentError(RuntimeError):
    """Some runs failed; the others are kept. `failures` maps (name, seed) to what happened."""

    def __init__(self, failures: Mapping[tuple[str, int], str], total: int):
        self.failures = dict(failures)
        listed = "; ".join(f"{n} with seed {s}: {why}" for (n, s), why in failures.items())
        super().__init__(
            f"{len(failures)} of {total} runs failed, the others are kept and will not be trained "
            f"again: {listed}"
        )


def run_one(
    experiment: Experiment, seed: int, splits: FeatureSplits, cache: Cache, device=None
) -> Path:
    """Train one experiment with one seed where `cache` has no result yet; returns its folder.

    One torch thread on a CPU: a run made alone and one made beside others have the same bits.
    A run that was killed goes on from its last epoch.
    """
    parts = result_parts(experiment, seed, splits)

    def make(folder: Path) -> None:
        sets = (splits.train, splits.validation, splits.test)
        train, valid, test = (part.only(*experiment.modalities) for part in sets)
        checkpoint, leaked = cache.scratch(KIND, parts), None
        with contextlib.nullcontext() if _on_gpu(device) else one_thread():
            if experiment.train is None:
                result = train_model(experiment, train, valid, seed, checkpoint, device)
            else:
                settings = {"checkpoint": checkpoint, "device": device, **experiment.model_args}
                fitted = experiment.train(train, valid, experiment.recipe, seed, **settings)
                result, leaked = fitted.honest, fitted.leaked
            predictions = _predictions(result, valid, test)
            if leaked is not None:
                predictions |= _predictions(leaked, valid, test, "leaked_")
        np.savez(
            folder / "predictions.npz",
            ids=np.array(valid.ids, dtype=str),
            target=valid.target,
            test_ids=np.array(test.ids, dtype=str),
            targets=np.array(valid.targets, dtype=str),
            **predictions,
        )
        result.history.to_csv(folder / "history.csv", index=False)
        meta = {
            "experiment": experiment.name,
            "seed": seed,
            "parameters": result.parameters,
            "seconds": result.seconds,
            "epoch": result.epoch,
            "epochs": len(result.history),
            "device": next(result.model.parameters()).device.type,
            "torch": torch.__version__,
            "scale": None if result.scale is None else result.scale.to_dict(),
        }
        (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        model, save = result.model.cpu(), ()
        if isinstance(model, EndToEnd):
            from emilib.features.loading import save_encoder

            save = (save_encoder,)
        model.save_pretrained(folder / "model", *save)

    return cache.step(KIND, parts, make)


def _predictions(result: Result, valid, test, prefix: str = "") -> dict[str, np.ndarray]:
    of_test = result.predict(test) if len(test) else np.zeros((0, valid.num_targets))
    return {f"{prefix}prediction": result.predict(valid), f"{prefix}test_prediction": of_test}


def run(
    experiments: Mapping[str, Experiment] | Iterable[Experiment],
    seeds: Sequence[int],
    features: Mapping[str, FeatureSplits],
    cache: Cache,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    device=None,
) -> Results:
    """`run_one` for each experiment and seed that `cache` lacks; returns all results.

    features : by `Experiment.features`, those that are needed
    workers : processes; None is one a core, and one where there is a GPU. One is this process.
        The number changes no bit of the result on a CPU.
    progress : called with (runs done, runs in all), results that were there included

    Several ranks (see `emilib.cache`) deal the runs out among them.
    Where runs fail the others are finished first; then ExperimentError names the failures. Raises
    ValueError for features that are missing.
    """
    if not isinstance(experiments, Mapping):
        experiments = {experiment.name: experiment for experiment in experiments}
    for name, reason in untrainable(experiments, features).items():
        raise ValueError(f"{name} can't be trained on this corpus: {reason}")
    jobs = {}  # equal settings under two names are trained once
    for experiment in experiments.values():
        for seed in seeds if experiment.model else ():
            parts = result_parts(experiment, seed, features[experiment.features])
            jobs.setdefault(key(**parts), (experiment, int(seed), parts))
    mine = share(list(jobs.values()))
    others = [job for job in jobs.values() if job not in mine]
    missing = [job for job in mine if not cache.has(KIND, job[2])]
    report = progress or (lambda done, total: None)
    done, failures = len(mine) - len(missing), {}
    report(done, len(mine))
    items = [(experiment, seed, features[experiment.features]) for experiment, seed, _ in missing]
    workers = workers or (1 if _on_gpu(device) else count())
    attempt = functools.partial(_attempt, cache=cache, device=device)
    attempts = ordered_map(attempt, items, min(workers, max(1, len(items))))
    for experiment, seed, _ in missing:
        try:
            error = next(attempts)
        except BrokenProcessPool:
            error = "its process died (out of memory, perhaps): use fewer workers"
            attempts = itertools.repeat("not begun")
        if error:
            failures[experiment.name, seed] = error
        else:
            done += 1
            report(done, len(mine))
    if failures:
        raise ExperimentError(failures, len(mine))
    for _, _, parts in others:
        wait_until(lambda parts=parts: cache.has(KIND, parts))
    return collect(experiments, seeds, features, cache)


def _attempt(item, cache: Cache, device) -> str:
    """What went wrong, in a line; "" for a run that succeeds."""
    try:
        with single_process():  # a run belongs to one rank
            run_one(*item, cache, device)
    except Exception as error:
        return traceback.format_exception_only(error)[-1].strip()
    return ""


def _on_gpu(device) -> bool:
    return torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"


def untrainable(
    experiments: Mapping[str, Experiment], features: Mapping[str, FeatureSplits]
) -> dict[str, str]:
    """Why some experiments can't be trained on these features, by name: "no official features"."""
    reasons = {}
    for name, experiment in sorted(experiments.items(), key=lambda item: bool(item[1].members)):
        kind = experiment.features.split(",")[0]
        if experiment.members:
            missing = [
                f"no {m!r}: run it as well" for m in experiment.members if m not in experiments
            ]
            missing += [reasons[m] for m in experiment.members if m in reasons]
            if missing:
                reasons[name] = missing[0]
        elif experiment.features not in features:
            reasons[name] = f"no {kind} features"
        else:
            dims = features[experiment.features].train.dims
            without = [_MISSING[m] for m in experiment.modalities if m not in dims]
            if without:
                official = " in the official features" if kind == "official" else ""
                reasons[name] = f"no {' and no '.join(without)}{official}"
    return reasons

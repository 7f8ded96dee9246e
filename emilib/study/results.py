"""What experiments came to: predictions of every seed, with their scores and differences."""

import dataclasses
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from emilib import EMOTIONS, metrics, models
from emilib.cache import Cache, code_version
from emilib.features.feature_set import FeatureSplits
from emilib.progress import quietly
from emilib.study.experiments import MEDIA, Experiment
from emilib.training.loop import TargetScale

KIND = "result"  # of a step in the cache
TRAINED_BY = ("models", "training", "metrics.py", "features/feature_set.py")


@dataclasses.dataclass
class Outcome:
    """What an experiment came to, over S seeds, on N validation clips.

    ids : N names; target (N, E); predictions (S, N, E), not clipped
    test_ids, test_predictions : the same for the test clips, whose labels nobody has
    histories : a DataFrame a seed, see `emilib.training.loop.Result`
    parameters : number of trained parameters; seconds : (S,) of training
    folders : where each seed's result lies; empty for a mean of members
    scale : turned the models' outputs into predictions in the range of the E targets, or None
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
    folders: list[Path]
    targets: tuple[str, ...] = EMOTIONS
    scale: TargetScale | None = None


@dataclasses.dataclass
class Results:
    """Outcomes by name of experiment; `lacking` says why others can't be trained on this corpus."""

    experiments: Mapping[str, Experiment]
    outcomes: dict[str, Outcome]
    lacking: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return list(self.outcomes)

    def __contains__(self, name: str) -> bool:
        return name in self.outcomes

    def __getitem__(self, name: str) -> Outcome:
        if name not in self.outcomes:
            reason = self.lacking.get(name, f"results: {', '.join(self.outcomes)}")
            raise ValueError(f"no result for {name!r}; {reason}")
        return self.outcomes[name]

    def summary(self, name: str) -> metrics.Estimate:
        """Mean ρ with its spread over seeds and its interval over clips."""
        return metrics.estimate(self[name].target, self[name].predictions)

    def difference(self, first: str, second: str) -> metrics.Estimate:
        """ρ of `first` minus ρ of `second`, paired over seeds and clips."""
        a, b = self[first], self[second]
        return metrics.difference(a.target, a.predictions, b.predictions)

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
        return quietly(getattr(models, outcome.experiment.model).from_pretrained, folder).eval()


def result_parts(experiment: Experiment, seed: int, splits: FeatureSplits) -> dict:
    """All that determines a result. Name and rows do not."""
    return {
        "model": experiment.model,
        "model_args": dict(experiment.model_args),
        "modalities": list(experiment.modalities),
        "recipe": experiment.recipe,
        "seed": int(seed),
        "features": splits.fingerprint,
        "code": code_version(*TRAINED_BY, "study/runs.py", "study/savchenko.py"),
        "train": experiment.train and inspect.getsource(experiment.train),
    }


def collect(
    experiments: Mapping[str, Experiment], seeds: Sequence[int], features: Mapping, cache: Cache
) -> Results:
    """The results that are there, without training: experiments that lack a seed are left out."""
    outcomes = {}
    for name, experiment in sorted(experiments.items(), key=lambda item: bool(item[1].members)):
        members = [outcomes[m] for m in experiment.members if m in outcomes]
        if len(members) < len(experiment.members):
            continue
        if experiment.leaked:  # its weights are not kept
            outcome = _read(experiment, members[0].seeds, members[0].folders, "leaked_")
            outcomes[name] = dataclasses.replace(outcome, folders=[])
        elif members:
            outcomes[name] = _mean(experiment, members)
        elif experiment.features in features:
            parts = [result_parts(experiment, s, features[experiment.features]) for s in seeds]
            if all(cache.has(KIND, part) for part in parts):
                folders = [cache.folder(KIND, part) for part in parts]
                outcomes[name] = _read(experiment, tuple(seeds), folders)
    return Results(experiments, {n: outcomes[n] for n in experiments if n in outcomes})


def _read(experiment: Experiment, seeds: tuple, folders: list[Path], prefix: str = "") -> Outcome:
    runs = [dict(np.load(folder / "predictions.npz", allow_pickle=False)) for folder in folders]
    metas = [json.loads((folder / "meta.json").read_text(encoding="utf-8")) for folder in folders]
    return Outcome(
        experiment,
        seeds,
        ids=runs[0]["ids"].tolist(),
        target=runs[0]["target"],
        predictions=np.stack([run[f"{prefix}prediction"] for run in runs]),
        test_ids=runs[0]["test_ids"].tolist(),
        test_predictions=np.stack([run[f"{prefix}test_prediction"] for run in runs]),
        histories=[pd.read_csv(folder / "history.csv") for folder in folders],
        parameters=metas[0]["parameters"],
        seconds=np.array([meta["seconds"] for meta in metas]),
        folders=folders,
        targets=tuple(runs[0]["targets"].tolist()),
        scale=TargetScale.from_dict(metas[0]["scale"]),
    )


def _mean(experiment: Experiment, members: list[Outcome]) -> Outcome:
    """Mean of the members' predictions, seed by seed."""
    return dataclasses.replace(
        members[0],
        experiment=experiment,
        predictions=np.mean([m.predictions for m in members], axis=0),
        test_predictions=np.mean([m.test_predictions for m in members], axis=0),
        histories=[],
        parameters=sum(m.parameters for m in members),
        seconds=np.sum([m.seconds for m in members], axis=0),
        folders=[],
    )

"""What experiments came to: predictions of every seed, with their scores and differences.

A result is kept under a key made from all that determines it: the model's and the recipe's
settings, the features, the seed and the source code that trains.
"""

import dataclasses
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from emilib import EMOTIONS, metrics, models
from emilib.cache import Cache, code_version, key
from emilib.features.feature_set import FeatureSplits
from emilib.progress import quietly
from emilib.study.experiments import MEDIA, Experiment
from emilib.training.loop import TargetScale

KIND = "result"  # of a step in the cache
TRAINED_BY = (
    "study/runs.py",
    "training/loop.py",
    "training/optimisation.py",
    "training/target_scale.py",
    "metrics.py",
    "features/feature_set.py",
    "models/__init__.py",
)


@dataclasses.dataclass
class Outcome:
    """What an experiment came to, over S seeds, on N validation clips.

    ids : N names; target (N, E); predictions (S, N, E), not clipped
    test_ids, test_predictions : the same for the test clips, whose labels nobody has
    histories : a DataFrame a seed, see `emilib.training.loop.Result`
    parameters : number of trained parameters; seconds, epochs : (S,) training time and best epoch
    folders : where each seed's result lies; empty for a mean of members
    targets : E names
    scale : what turns outputs of the models into targets; None where they are targets.
        `predictions` are in the targets' range already
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
    scale: TargetScale | None = None


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
        if name not in self.outcomes:
            reason = self.lacking.get(name, f"results: {', '.join(self.outcomes)}")
            raise ValueError(f"no result for {name!r}; {reason}")
        return self.outcomes[name]

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
            if a.ids != b.ids or a.seeds != b.seeds:
                raise ValueError(
                    f"{first} and {second}: expected the same clips and seeds, got {len(a.ids)} "
                    f"and {len(b.ids)} clips, seeds {a.seeds} and {b.seeds}; run them together"
                )
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
        folder = str(outcome.folders[position] / "model")
        if outcome.experiment.features == MEDIA:
            from emilib.features.loading import load_encoder

            return quietly(models.EndToEnd.from_pretrained, folder, load_encoder).eval()
        cls = getattr(models, outcome.experiment.model)
        return quietly(cls.from_pretrained, folder).eval()


def result_parts(experiment: Experiment, seed: int, splits: FeatureSplits) -> dict:
    """All that determines a result. Name and rows do not."""
    return {
        "model": experiment.model,
        "model_args": dict(experiment.model_args),
        "modalities": list(experiment.modalities),
        "recipe": experiment.recipe,
        "seed": int(seed),
        "features": splits.fingerprint,
        "code": _code(experiment),
    }


def _code(experiment: Experiment) -> str:
    """Version of the source behind a result: the model with all it uses, and what trains it."""
    modules = _modules(getattr(models, experiment.model).__module__)
    if experiment.features == MEDIA:
        modules |= {"emilib.models.end_to_end", "emilib.features.media_set"}
    if experiment.train is not None and experiment.train.__module__.startswith("emilib."):
        modules |= {experiment.train.__module__}
    files = [name.removeprefix("emilib.").replace(".", "/") + ".py" for name in sorted(modules)]
    train = "" if experiment.train is None else inspect.getsource(experiment.train)
    return key(code=code_version(*TRAINED_BY, *files), train=train)


def _modules(name: str) -> set[str]:
    """A module of `emilib.models` and those of them that it takes something from."""
    values = vars(sys.modules[name]).values()
    homes = {str(getattr(v, "__module__", getattr(v, "__name__", ""))) for v in values} - {name}
    return {name}.union(*(_modules(h) for h in homes if h.startswith("emilib.models.")))


def collect(
    experiments: Mapping[str, Experiment], seeds: Sequence[int], features: Mapping, cache: Cache
) -> Results:
    """The results that are there, without training: experiments that lack a seed are left out."""
    outcomes = {}
    for name, experiment in sorted(experiments.items(), key=lambda item: bool(item[1].members)):
        if experiment.members:
            members = [outcomes[m] for m in experiment.members if m in outcomes]
            if len(members) == len(experiment.members):
                outcomes[name] = (_leaked if experiment.leaked else _mean)(experiment, *members)
        elif experiment.features in features:
            splits = features[experiment.features]
            parts = [result_parts(experiment, seed, splits) for seed in seeds]
            if all(cache.has(KIND, part) for part in parts):
                folders = [cache.folder(KIND, part) for part in parts]
                outcomes[name] = _read(experiment, tuple(seeds), folders)
    return Results(experiments, {n: outcomes[n] for n in experiments if n in outcomes})


def _read(experiment: Experiment, seeds: tuple, folders: list[Path], prefix: str = "") -> Outcome:
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
        predictions=np.stack([s[f"{prefix}prediction"] for s in stored]),
        test_ids=stored[0]["test_ids"].tolist(),
        test_predictions=np.stack([s[f"{prefix}test_prediction"] for s in stored]),
        histories=[pd.read_csv(folder / "history.csv") for folder in folders],
        parameters=metas[0]["parameters"],
        seconds=np.array([meta["seconds"] for meta in metas]),
        epochs=np.array([meta["epoch"] for meta in metas]),
        folders=folders,
        targets=tuple(stored[0]["targets"].tolist()),
        scale=TargetScale.from_dict(metas[0]["scale"]),
    )


def _leaked(experiment: Experiment, member: Outcome) -> Outcome:
    """What the member's runs give with the fusion weights that fit the validation clips best."""
    leaked = _read(experiment, member.seeds, member.folders, "leaked_")
    return dataclasses.replace(leaked, folders=[])  # its weights are not kept


def _mean(experiment: Experiment, *members: Outcome) -> Outcome:
    """Mean of the members' predictions, seed by seed."""
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

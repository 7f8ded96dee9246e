"""What input that is missing or corrupted costs trained models, and what the papers claim of it.

Dimension key: N clips, S seeds, E emotions, R resamples.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from emilib import MODALITIES, metrics
from emilib.cache import Cache, code_version, single_process
from emilib.features.feature_set import FeatureSet
from emilib.progress import Counter
from emilib.study.corruptions import Corruption
from emilib.study.runs import Results
from emilib.training.loop import no_denormals
from emilib.workers import device

# What the papers claim without showing it, and what tests it here: if the claim holds,
# the experiment `first` loses less than `second` under corruptions of these `kinds`.
HYPOTHESES = pd.read_csv(Path(__file__).with_name("hypotheses.csv"), dtype=str)


def intensity_and_weights(model: torch.nn.Module, data: FeatureSet, batch_size: int = 64):
    """Intensities (N, E) of a model, and its quality weights (N, 3), None where it has none.

    A weight (paper A, Eq. 8) is the mean over a clip's segments that have anything; NaN of none.
    """
    on, intensity, weights = next(model.parameters()).device, [], []
    with torch.inference_mode(), no_denormals():
        for batch in data.batches(batch_size, device=on):
            output = model.eval()(**batch.inputs())
            intensity.append(output.intensity.cpu().numpy())
            if output.weights is not None:
                counts = (output.weights.sum(dim=2) > 0).sum(dim=1, keepdim=True)
                weights.append((output.weights.sum(dim=1) / counts).cpu().numpy())
    return np.concatenate(intensity), np.concatenate(weights) if weights else None


class Measurements:
    """Predictions of experiments on clean and corrupted clips, and what can be read from them.

    intensity, weights, present : (corruption, experiment) → (S, N, E), (S, N, 3) for those that
        have weights, and (N, 3) bool, which modalities the clips then have; None is clean
    """

    def __init__(self, target, intensity: Mapping, weights: Mapping, present: Mapping):
        self.target = target
        self.intensity, self.weights, self.present = intensity, weights, present
        self._rho = functools.cache(self._measured)

    def _measured(self, corruption: Corruption | None, name: str) -> tuple[np.ndarray, np.ndarray]:
        """ρ of each seed (S,), and of each draw of clips, common to all, mean over seeds (R,)."""
        predictions = self.intensity[corruption, name]
        each = np.array([metrics.mean_pearson(self.target, p) for p in predictions])
        return each, metrics.resample(self.target, predictions).mean(axis=(1, 2))

    def rho(self, *terms: tuple[int, Corruption | None, str]) -> metrics.Estimate:
        """Sum of signed ρ, paired over seeds and clips; terms are (sign, corruption, name)."""
        measured = [(sign, *self._rho(corruption, name)) for sign, corruption, name in terms]
        each, drawn = (sum(row[0] * row[i] for row in measured) for i in (1, 2))
        return metrics.summarise(each, drawn)

    def weight_change(self, corruption: Corruption, name: str) -> metrics.Estimate:
        """Weight of the corrupted modality minus its weight before: mean, and interval, over the
        clips that have it both times."""
        column = MODALITIES.index(corruption.modality)
        keys = ((corruption, name), (None, name))
        both = np.all([self.present[key][:, column] for key in keys], axis=0)
        after, before = (self.weights[key][:, both, column] for key in keys)
        change = after - before
        rows = np.random.default_rng(0).integers(0, both.sum(), (metrics.RESAMPLES, both.sum()))
        return metrics.summarise(change.mean(axis=1), change.mean(axis=0)[rows].mean(axis=1))


def measure(
    results: Results,
    queries: Mapping[Corruption | None, Sequence[str]],
    validation: Callable[[Corruption | None, str], FeatureSet],
    cache: Cache,
) -> Measurements:
    """Run trained models on corrupted validation clips; kept in `cache`.

    queries : corruption → names of experiments, None, the clean clips, first
    validation(corruption, kind) : the clips, as features of the kind `Experiment.features`
    """

    @functools.cache
    def trained(name: str) -> list[torch.nn.Module]:
        return [results.model(name, seed).to(device()) for seed in results[name].seeds]

    def make(corruption: Corruption | None, names: Sequence[str], folder: Path) -> None:
        arrays = {}
        for name in names:
            experiment = results[name].experiment
            with single_process():  # the other ranks wait for this step, and make no shards of it
                clips = validation(corruption, experiment.features).only(*experiment.modalities)
            outputs = [intensity_and_weights(model, clips) for model in trained(name)]
            arrays[f"intensity {name}"] = np.stack([intensity for intensity, _ in outputs])
            arrays[f"present {name}"] = clips.present
            if outputs[0][1] is not None:
                arrays[f"weights {name}"] = np.stack([weights for _, weights in outputs])
        np.savez(folder / "predictions.npz", **arrays)

    progress = Counter("robustness: corruptions")
    measured = {"intensity": {}, "weights": {}, "present": {}}
    code = code_version("study/robustness.py", "study/corruptions.py")
    for number, (corruption, names) in enumerate(queries.items(), 1):
        runs = {name: [folder.name for folder in results[name].folders] for name in names}
        parts = {"corruption": corruption, "results": runs, "code": code}
        folder = cache.shared_step("robustness", parts, functools.partial(make, corruption, names))
        with np.load(folder / "predictions.npz", allow_pickle=False) as stored:
            for title in stored.files:
                what, name = title.split(" ")
                measured[what][corruption, name] = stored[title]
        progress(number, len(queries))
    return Measurements(results[queries[None][0]].target, **measured)

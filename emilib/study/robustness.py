"""How trained models bear input that is missing or spoilt: what does the damage, what it costs.

Nothing is trained here, and no model has seen such damage in training, but for modality dropout.
Sound and frames are damaged as media and go through the frozen encoders again.

Dimension key: N clips, S seeds, E emotions, T steps, M segments.
"""

import dataclasses
import functools
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter

from emilib import metrics
from emilib.cache import code_version, single_process
from emilib.features.feature_set import MODALITIES, FeatureSet, Standardised
from emilib.features.store import Rows
from emilib.progress import Counter
from emilib.study.results import Results
from emilib.training.loop import no_denormals

GREY = 128  # of what covers a face


@dataclasses.dataclass(frozen=True)
class Damage:
    """One way to harm a modality, and how much.

    kind : a key of `KINDS`, which says what `level` is
    """

    kind: str
    modality: str
    level: float

    def __str__(self):
        return f"{self.modality}, {self.kind} {KINDS[self.kind].format(level=self.level)}"


# How a level reads. Shares are of the clips for the first and the last, of the picture's side for
# the blur, of its area for the cover, of a clip's frames for the noise.
KINDS = {
    "missing": "{level:.0%}",
    "white noise": "{level:g} dB",
    "blur": "{level:.1%}",
    "covered": "{level:.0%}",
    "lost to noise": "{level:.0%}",
    "wrong words": "{level:.0%}",
}
MISSING = tuple(Damage("missing", m, share) for m in MODALITIES for share in (0.25, 0.5, 1.0))
SPOILT = (
    *(Damage("white noise", "audio", snr) for snr in (20.0, 10.0, 0.0)),
    *(Damage("blur", "frames", share) for share in (0.03, 0.06)),
    *(Damage("covered", "frames", share) for share in (0.25, 0.5)),
    *(Damage("lost to noise", "frames", share) for share in (0.25, 0.5)),
    *(Damage("wrong words", "text", share) for share in (0.25, 0.5, 1.0)),
)


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a paper says without showing it, in our words, and what is compared here.

    first, second : experiments; the claim is that `first` loses less than `second`
    damages : under which it is tested
    """

    paper: str
    where: str
    claim: str
    first: str
    second: str
    damages: tuple[Damage, ...]


def _of(*kinds: str) -> tuple[Damage, ...]:
    return tuple(d for d in SPOILT if d.kind in kinds)


_PHYSICAL = _of("white noise", "blur", "covered", "lost to noise")
CLAIMS = (
    Claim(
        "B",
        "1, 3.4, 4.3",
        "a learned token for what is missing serves better than zeros",
        "taemi",
        "taemi_no_tokens",
        MISSING,
    ),
    Claim(
        "B",
        "1, 3.4, 4.3",
        "modality dropout keeps a model from relying on everything being there",
        "taemi",
        "taemi_no_dropout",
        MISSING,
    ),
    Claim(
        "B",
        "1, 3.3",
        "the text as query filters the noise of sound and frames; concatenation does not",
        "taemi",
        "taemi_concat",
        _PHYSICAL,
    ),
    Claim(
        "B",
        "4.3",
        "sound as query suffers from noise in the sound; text does not",
        "taemi",
        "taemi_audio_anchor",
        _of("white noise"),
    ),
    Claim(
        "B",
        "4.3",
        "frames as query suffer from occlusion and other noise; text does not",
        "taemi",
        "taemi_vision_anchor",
        _of("blur", "covered", "lost to noise"),
    ),
    Claim(
        "A",
        "abstract, 1, 3.5",
        "weights from quality scores make up for noise and occlusion; equal weights can't",
        "dual_stage_vat",
        "dual_stage_uniform",
        _PHYSICAL,
    ),
    Claim(
        "A",
        "1, 2.2, 3.4",
        "means over segments suppress noisy frames",
        "dual_stage_vat",
        "dual_stage_no_segments",
        _of("lost to noise"),
    ),
)
WEIGHT_CLAIM = ("abstract, 1, 2.2, 3.5", "the weight of a modality falls when it is impaired")


# ------------------------------------------------------------------------- what does the damage


def chosen(count: int, share: float, seed: int = 0) -> np.ndarray:
    """(count,) bool, True for a share of them, drawn at random.

    Of one seed a smaller share is part of a larger one. Raises ValueError outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected from 0 to 1, came {share}")
    mask = np.zeros(count, bool)
    mask[np.random.default_rng(seed).permutation(count)[: round(share * count)]] = True
    return mask


def replaced(data: FeatureSet, modality: str, values) -> FeatureSet:
    """The same clips with other features of one modality, in the form of `from_arrays`."""
    if modality not in data.dims:
        raise ValueError(f"modality: expected one of {sorted(data.dims)}, came {modality!r}")
    columns = {m: getattr(data, m) for m in MODALITIES} | {modality: values}
    rest = {"target": data.target, "dims": dict(data.dims), "names": data.names}
    return FeatureSet(data.ids, **columns, **rest)


def without(data: FeatureSet, modality: str, share: float = 1.0, seed: int = 0) -> FeatureSet:
    """A share of the clips lacks a modality from now on; its width stays known."""
    gone, values = chosen(len(data), share, seed), getattr(data, modality, None)
    if isinstance(values, np.ndarray):  # text
        values = np.where(gone[:, None], np.nan, values)
    elif isinstance(values, Standardised):  # as when it is read: rounding stays the same
        values = Standardised(_kept(values.raw, gone), values.mean, values.spread)
    elif values is not None:
        values = _kept(values, gone)
    return replaced(data, modality, values)


def _kept(arrays: Sequence, gone: np.ndarray) -> list:
    return [None if lacks else array for array, lacks in zip(arrays, gone, strict=True)]


def wrong_words(data: FeatureSet, share: float = 1.0, seed: int = 0) -> FeatureSet:
    """A share of the clips that have words gets those of another clip."""
    here = np.flatnonzero(data.present[:, 2])
    here = np.random.default_rng(seed).permutation(here)
    text = data.text.copy()
    now = chosen(len(here), share, seed)
    text[here[now]] = data.text[np.roll(here, 1)[now]]
    return replaced(data, "text", text)


def with_noise(waveform: np.ndarray, snr: float, generator: np.random.Generator) -> np.ndarray:
    """White Gaussian noise at a signal-to-noise ratio over the whole clip; (S,) int16.

    snr : 10 log10 of the power of the clip over that of the noise, in dB. A silent clip stays
        silent. What leaves the range of 16 bits is clipped, as a recorder does.
    """
    signal = waveform.astype(np.float64)
    deviation = np.sqrt(np.mean(signal**2) / 10 ** (snr / 10)) if len(signal) else 0.0
    noisy = signal + generator.normal(0.0, deviation, len(signal))
    return np.clip(np.rint(noisy), -32768, 32767).astype(np.int16)


def blurred(frames: np.ndarray, share: float) -> np.ndarray:
    """(T, 3, S, S) uint8 through a Gaussian whose deviation is this share of the side S."""
    sigma = share * frames.shape[-1]
    smooth = gaussian_filter(frames.astype(np.float32), (0, 0, sigma, sigma), mode="nearest")
    return np.rint(smooth).astype(np.uint8)


def covered(frames: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """(T, 3, S, S) uint8 with a grey square over this share of the area.

    It lies at a random place within the picture, the same in all frames of the clip.
    """
    size = frames.shape[-1]
    side = round(size * np.sqrt(share))
    top, left = generator.integers(0, size - side + 1, 2)
    result = frames.copy()
    result[:, :, top : top + side, left : left + side] = GREY
    return result


def noisy_frames(frames: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """(T, 3, S, S) uint8 of which a share of the frames is noise and nothing else."""
    lost = chosen(len(frames), share, int(generator.integers(2**32)))
    result = frames.copy()
    result[lost] = generator.integers(0, 256, result[lost].shape, dtype=np.uint8)
    return result


def spoil(damage: Damage, id_: str, medium: np.ndarray, seed: int = 0) -> np.ndarray:
    """The frames or the waveform of a clip, damaged; the draw depends on seed and id alone."""
    generator = np.random.default_rng([seed, zlib.crc32(id_.encode())])
    if damage.kind == "blur":
        return blurred(medium, damage.level)
    harm = {"white noise": with_noise, "covered": covered, "lost to noise": noisy_frames}
    return harm[damage.kind](medium, damage.level, generator)


def damaged(ws, damage: Damage, kind: str = "ours", seed: int = 0) -> FeatureSet:
    """The validation clips of a workspace with one modality damaged, as fusion models get them.

    kind : of the features, as in `Experiment.features`
    Damaged media go through the frozen encoders and are kept in the workspace's cache.
    """
    clean = ws.features(*kind.split(", ")).validation
    if damage.kind == "missing":
        return without(clean, damage.modality, damage.level, seed)
    if damage.kind == "wrong words":
        return wrong_words(clean, damage.level, seed)
    stage = kind.partition(", ")[2] or "aligned"
    plain = ws.features("ours", stage, standardised=False)
    encoded = ws.spoilt_features(
        stage,
        damage.modality,
        lambda id_, medium: spoil(damage, id_, medium, seed),
        {"damage": damage, "seed": seed, "code": code_version("study/robustness.py")},
    )
    spoilt = replaced(plain.validation, damage.modality, Rows(encoded, plain.validation.ids))
    return spoilt.standardised(ws.features("ours", stage).moments)


# --------------------------------------------------------------------------- what it comes to


def ask(model: torch.nn.Module, data: FeatureSet, batch_size: int = 64):
    """Intensities (N, E) of a model, and its quality weights (N, 3), None where it has none.

    The weight of a modality (paper A, Eq. 8) is the mean over the clip's segments that have
    anything; a clip that has nothing is a row of NaN.
    """
    device = next(model.parameters()).device
    intensity, weights = [], []
    with torch.inference_mode(), no_denormals():
        for batch in data.batches(batch_size, device=device):
            output = model.eval()(**batch.inputs())
            intensity.append(output.intensity.cpu().numpy())
            if output.weights is not None:
                counts = (output.weights.sum(dim=2) > 0).sum(dim=1, keepdim=True)
                weights.append((output.weights.sum(dim=1) / counts).cpu().numpy())
    return np.concatenate(intensity), np.concatenate(weights) if weights else None


class Answers:
    """What experiments say of clips that are clean or damaged, and what can be read from it.

    target : (N, E)
    intensity, weights, present : (damage, experiment) → (S, N, E), (S, N, 3) for those that have
        weights, and (N, 3) bool, which modalities the clips then have; damage None is clean
    """

    def __init__(self, target, intensity: Mapping, weights: Mapping, present: Mapping):
        self.target = target
        self.intensity, self.weights, self.present = intensity, weights, present
        # A draw of clips is common to all, so differences of draws are paired.
        self._rho = functools.cache(self._measured)

    def _measured(self, damage: Damage | None, name: str) -> tuple[np.ndarray, np.ndarray]:
        """ρ of each seed (S,), and of each draw of clips, mean over seeds (R,)."""
        predictions = self.intensity[damage, name]
        each = np.array([metrics.mean_pearson(self.target, p) for p in predictions])
        return each, metrics.resample(self.target, predictions).mean(axis=(1, 2))

    def rho(self, *terms: tuple[int, Damage | None, str]) -> metrics.Estimate:
        """Sum of signed ρ, paired over seeds and clips; terms are (sign, damage, experiment)."""
        measured = [(sign, *self._rho(damage, name)) for sign, damage, name in terms]
        each, drawn = (sum(row[0] * row[i] for row in measured) for i in (1, 2))
        return metrics.summarise(each, drawn)

    def cost(self, damage: Damage | None, name: str) -> metrics.Estimate:
        """ρ of the damaged clips minus that of the clean ones."""
        return self.rho((1, damage, name), (-1, None, name))

    def cost_difference(self, damage: Damage, first: str, second: str) -> metrics.Estimate:
        """Cost of `first` minus that of `second`: above 0 the first bears the damage better."""
        return self.rho(
            (1, damage, first), (-1, None, first), (-1, damage, second), (1, None, second)
        )

    def weight_change(self, damage: Damage, name: str) -> metrics.Estimate:
        """Weight of the damaged modality minus its weight before, mean over the clips that have
        it both times; interval over these clips."""
        column = MODALITIES.index(damage.modality)
        both = self.present[None, name][:, column] & self.present[damage, name][:, column]
        after, before = (self.weights[d, name][:, both, column] for d in (damage, None))
        return mean_over_clips(after - before)


def answers(ws, results: Results, asked: Mapping[Damage | None, Sequence[str]]) -> Answers:
    """Ask trained models about the damaged validation clips of a workspace; kept in its cache.

    asked : damage → names of experiments, as `needed` gives them; None is the clips as they are
    """
    progress = Counter("robustness: damages")
    trained = functools.cache(functools.partial(_trained, results))
    found = {"intensity": {}, "weights": {}, "present": {}}
    for number, (damage, names) in enumerate(asked.items(), 1):
        parts = {
            "damage": damage,
            "results": {name: [folder.name for folder in results[name].folders] for name in names},
            "code": code_version("study/robustness.py"),
        }

        def make(folder: Path, damage=damage, names=names) -> None:
            with single_process():  # the other ranks wait for this step, and make no shards of it
                arrays = _asked(ws, results, damage, names, trained)
            np.savez(folder / "answers.npz", **arrays)

        folder = ws.cache.shared_step("robustness", parts, make)
        with np.load(folder / "answers.npz", allow_pickle=False) as arrays:
            for title in arrays.files:
                what, name = title.split(" ")
                found[what][damage, name] = arrays[title]
        progress(number, len(asked))
    target = ws.features_of(next(iter(asked[None]))).validation.target
    return Answers(target, **found)


def _asked(ws, results: Results, damage: Damage | None, names, trained) -> dict[str, np.ndarray]:
    """Arrays "intensity NAME", "weights NAME" and "present NAME" of the experiments `names`."""
    arrays, kinds = {}, {results[name].experiment.features for name in names}
    data = {
        kind: ws.features(*kind.split(", ")).validation
        if damage is None
        else damaged(ws, damage, kind)
        for kind in sorted(kinds)
    }
    for name in names:
        experiment = results[name].experiment
        given = data[experiment.features].only(*experiment.modalities)
        rows = [ask(model, given) for model in trained(name)]
        arrays[f"intensity {name}"] = np.stack([row[0] for row in rows])
        arrays[f"present {name}"] = given.present
        if rows[0][1] is not None:
            arrays[f"weights {name}"] = np.stack([row[1] for row in rows])
    return arrays


def _trained(results: Results, name: str) -> list[torch.nn.Module]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [results.model(name, seed).to(device) for seed in results[name].seeds]


def needed(
    claims: Sequence[Claim] = (), also: Mapping[str, Sequence[Damage]] | None = None
) -> dict[Damage | None, list[str]]:
    """What has to be asked: damage → experiments, the clean clips (None) among them.

    also : experiment → further damages
    """
    pairs = [(name, d) for c in claims for name in (c.first, c.second) for d in c.damages]
    pairs += [(name, d) for name, damages in (also or {}).items() for d in damages]
    asked: dict[Damage | None, list[str]] = {None: list(dict.fromkeys(name for name, _ in pairs))}
    for name, damage in pairs:
        names = asked.setdefault(damage, [])
        if name not in names:
            names.append(name)
    return asked


def levels(found: Answers, labels: Mapping[str, str], damages: Sequence[Damage]) -> pd.DataFrame:
    """ρ under each damage for each model that was asked, and what the damage costs.

    labels : experiment → how it is called

    Columns kind, modality, level, model, rho, sd (over seeds), low, high (over clips), and cost,
    cost_low, cost_high, see `Answers.cost`. The clean clips are damages of level NaN.
    """
    groups = list(dict.fromkeys((d.kind, d.modality) for d in damages))
    whole = [(group, None) for group in groups]
    rows = []
    for (kind, modality), damage in [*whole, *(((d.kind, d.modality), d) for d in damages)]:
        here = [d for d in damages if (d.kind, d.modality) == (kind, modality)]
        for name, label in labels.items():
            if not all((d, name) in found.intensity for d in here):
                continue
            rho, cost = found.rho((1, damage, name)), found.cost(damage, name)
            rows.append(
                {
                    **{"kind": kind, "modality": modality, "model": label},
                    "level": np.nan if damage is None else damage.level,
                    **{"rho": rho.value, "sd": rho.sd, "low": rho.low, "high": rho.high},
                    **{"cost": cost.value, "cost_low": cost.low, "cost_high": cost.high},
                }
            )
    return pd.DataFrame(rows)


def tested(found: Answers, claims: Sequence[Claim], labels: Mapping[str, str]) -> pd.DataFrame:
    """Each claim under each of its damages: does the first model lose less than the second?

    Columns paper, where, claim, compared, damage, value (`Answers.cost_difference`), sd, low,
    high, verdict.
    """
    rows = []
    for claim in claims:
        for damage in claim.damages:
            less = found.cost_difference(damage, claim.first, claim.second)
            rows.append(
                {
                    **{name: getattr(claim, name) for name in ("paper", "where", "claim")},
                    "compared": f"{labels[claim.first]} − {labels[claim.second]}",
                    "damage": str(damage),
                    **_columns(less),
                    "verdict": verdict(less),
                }
            )
    return pd.DataFrame(rows)


def weight_changes(found: Answers, name: str, damages: Sequence[Damage]) -> pd.DataFrame:
    """Does the weight of a modality fall when it is damaged? `damages` are those asked of `name`.

    Columns damage, modality, value (`Answers.weight_change`), sd, low, high, verdict.
    """
    rows = []
    for damage in damages:
        change = found.weight_change(damage, name)
        row = {"damage": str(damage), "modality": damage.modality, **_columns(change)}
        rows.append({**row, "verdict": verdict(change, claimed=-1)})
    return pd.DataFrame(rows)


def _columns(estimate: metrics.Estimate) -> dict:
    return {name: getattr(estimate, name) for name in ("value", "sd", "low", "high")}


def verdict(estimate: metrics.Estimate, claimed: int = 1) -> str:
    """What a number says of a claim about its sign.

    "as claimed" or "the opposite" where the interval over clips leaves out 0 and every seed is on
    the same side of it, otherwise "not told apart".
    """
    values = np.array([estimate.low, estimate.high, *estimate.per_seed])
    if (values * claimed > 0).all():
        return "as claimed"
    return "the opposite" if (values * claimed < 0).all() else "not told apart"


def mean_over_clips(values: np.ndarray, resamples=metrics.RESAMPLES, seed=0) -> metrics.Estimate:
    """Mean of (S, N) values, with its spread over seeds and its interval over clips."""
    clips = values.shape[1]
    drawn = np.random.default_rng(seed).integers(0, clips, (resamples, clips))
    return metrics.summarise(values.mean(axis=1), values.mean(axis=0)[drawn].mean(axis=1))

"""A model by name, made for the features at hand: the classes take their widths differently."""

import inspect
from collections.abc import Mapping

from torch import nn

from emilib.models import dual_stage, taemi
from emilib.models import earlier as prior
from emilib.models.inputs import MODALITIES

CLASSES = {
    cls.__name__: cls
    for cls in (
        taemi.TAEMI,
        dual_stage.DualStage,
        prior.MeanLinear,
        prior.LastStepGRU,
        prior.LateAverage,
        prior.Yu2024,
        prior.Hallmen2024,
        prior.StatisticsMLP,
        prior.Savchenko2025,
        prior.Zhang2024,
        prior.TFN,
        prior.MulT,
        prior.MISA,
    )
}


def for_features(name: str, data, **settings) -> nn.Module:
    """The model of this name for the widths, modalities and targets of `data`.

    name : a fusion model, baseline or earlier solution of `emilib.models`, such as "MulT"
    data : FeatureSet with targets
    settings : of the class, beside widths and number of targets: `width=32`; `modality="audio"`
        where a class reads one of them

    A class that reads modalities which the data lack gets a place of width 1 for them, and meets
    them as missing; DualStage leaves them out. Weights are drawn from torch's generator.
    Raises ValueError for an unknown name, data without targets, or none that the class reads.
    """
    if not data.num_targets:
        raise ValueError(f"{name}: expected clips with targets, came a set without; give target")
    return build(name, data.dims, data.num_targets, **settings)


def build(name: str, dims: Mapping[str, int], num_targets: int, **settings) -> nn.Module:
    """`for_features` from the widths alone: dims maps "frames", "audio", "text" to theirs."""
    if name not in CLASSES:
        raise ValueError(f"model: expected one of {', '.join(CLASSES)}, came {name!r}")
    cls = CLASSES[name]
    accepted = inspect.signature(cls.__init__).parameters
    if "dim" in accepted:
        modality = settings.setdefault("modality", _default(accepted["modality"], dims))
        _check_reads(name, [modality], dims)
        return cls(dim=dims[modality], num_targets=num_targets, **settings)
    reads = [modality for modality in MODALITIES if f"{modality}_dim" in accepted]
    _check_reads(name, reads, dims)
    if "modalities" in accepted:
        settings.setdefault("modalities", tuple(m for m in MODALITIES if m in dims))
    widths = {f"{modality}_dim": dims.get(modality, 1) for modality in reads}
    return cls(**widths, num_targets=num_targets, **settings)


def _default(parameter: inspect.Parameter, dims: Mapping[str, int]) -> str:
    """The modality a class reads if not told; where it has no favourite, the first there is."""
    if parameter.default is inspect.Parameter.empty:
        return next(modality for modality in MODALITIES if modality in dims)
    return parameter.default


def _check_reads(name: str, reads: list[str], dims: Mapping[str, int]) -> None:
    if not set(reads) & set(dims):
        raise ValueError(
            f"{name} reads {', '.join(reads)}, which the clips lack; they have {', '.join(dims)}"
        )

"""Fusion models of both papers and the solutions before them, as plain `nn.Module`s.

Names are loaded when first used, so that importing this package does not import torch.
"""

import inspect
from collections.abc import Mapping
from importlib import import_module

from emilib import MODALITIES

MODELS = {  # what `for_features` builds, and the module it is in
    "TAEMI": "taemi",
    "DualStage": "dual_stage",
    "MeanLinear": "earlier",
    "LastStepGRU": "earlier",
    "LateAverage": "earlier",
    "Yu2024": "earlier",
    "Hallmen2024": "earlier",
    "StatisticsMLP": "earlier",
    "Savchenko2025": "earlier",
    "Zhang2024": "earlier",
    "TFN": "multimodal",
    "MulT": "multimodal",
    "MISA": "multimodal",
}
_HOME = MODELS | {
    "Yu2025": "earlier",
    "ContrastivePair": "contrastive",
    "EndToEnd": "end_to_end",
    "Output": "inputs",
}

__all__ = [*_HOME, "MODELS", "build", "for_features"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def for_features(name: str, data, **settings):
    """The model of this name for the widths, modalities and targets of `data`.

    name : a fusion model, baseline or earlier solution of `emilib.models`, such as "MulT"
    data : FeatureSet with targets
    settings : of the class, beside widths and number of targets: `width=32`; `modality="audio"`
        where a class reads one of them

    A class that reads modalities which the data lack gets a width of 1 for them, and treats them
    as missing; DualStage leaves them out. Weights are drawn from torch's generator.
    Raises ValueError for an unknown name, data without targets, or none that the class reads.
    """
    if not data.num_targets:
        raise ValueError(f"{name}: expected clips with targets, got none; set target")
    return build(name, data.dims, data.num_targets, **settings)


def build(name: str, dims: Mapping[str, int], num_targets: int, **settings):
    """`for_features` from the widths alone: dims maps "frames", "audio", "text" to theirs."""
    if name not in MODELS:
        raise ValueError(f"expected a model out of {', '.join(MODELS)}, got {name!r}")
    cls = getattr(import_module(f".{MODELS[name]}", __name__), name)
    accepted = inspect.signature(cls.__init__).parameters
    if "modality" in accepted:  # of one modality: what it is for, or else the first there is
        default = accepted["modality"].default
        first = next(m for m in MODALITIES if m in dims)
        settings.setdefault("modality", first if default is inspect.Parameter.empty else default)
        reads = [settings["modality"]]
    else:
        reads = [m for m in MODALITIES if f"{m}_dim" in accepted]
    if not set(reads) & set(dims):
        raise ValueError(
            f"expected clips with {' or '.join(reads)}, which {name} reads, got {', '.join(dims)}"
        )
    if "modality" in accepted:
        return cls(dim=dims[reads[0]], num_targets=num_targets, **settings)
    if "modalities" in accepted:
        settings.setdefault("modalities", tuple(m for m in MODALITIES if m in dims))
    widths = {f"{m}_dim": dims.get(m, 1) for m in reads}
    return cls(**widths, num_targets=num_targets, **settings)

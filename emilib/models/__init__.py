"""Fusion models of both papers and the solutions before them, as plain `nn.Module`s."""

import inspect
import math

from emilib import MODALITIES
from emilib.models.dual_stage import DualStage
from emilib.models.earlier import (
    Hallmen2024,
    LastStepGRU,
    MeanLinear,
    Savchenko2025,
    StatisticsMLP,
    Trimodal,
    Yu2024,
    Zhang2024,
)
from emilib.models.end_to_end import EndToEnd as EndToEnd
from emilib.models.inputs import Output as Output
from emilib.models.multimodal import MISA, TFN, MulT
from emilib.models.taemi import TAEMI

_CLASSES = (TAEMI, DualStage, MeanLinear, LastStepGRU, Yu2024, Hallmen2024)
_CLASSES += (StatisticsMLP, Savchenko2025, Zhang2024, TFN, MulT, MISA)
MODELS = {cls.__name__: cls for cls in _CLASSES}  # what `for_features` builds


def for_features(name: str, data, **settings):
    """The model of this name for the widths, modalities and targets of `data`.

    name : a fusion model, baseline or earlier solution of `emilib.models`, such as "MulT"
    data : FeatureSet with targets; only its `dims`, `num_targets` and number of clips are read
    settings : of the class, beside widths and number of targets: `width=32`; `modality="audio"`
        where a class reads one. TAEMI and DualStage without a `width` are scaled to `width_for`

    A class that reads modalities which the data lack gets a width of 1 for them, and treats them
    as missing; DualStage leaves them out. Weights are drawn from torch's generator.
    Raises ValueError for an unknown name, data without targets, or none that the class reads.
    """
    if name not in MODELS:
        raise ValueError(f"expected a model out of {', '.join(MODELS)}, got {name!r}")
    if not data.num_targets:
        raise ValueError(f"{name}: expected clips with targets, got none; set target")
    accepted = inspect.signature(MODELS[name]).parameters
    if name in ("TAEMI", "DualStage") and "width" not in settings:
        paper, width = accepted["width"].default, width_for(len(data))
        inner = [n for n in ("width", "tcn_width", "audio_hidden") if n in accepted]
        settings = {n: min(width, paper) * accepted[n].default // paper for n in inner} | settings
    has = tuple(m for m in MODALITIES if m in data.dims)
    reads = [m for m in MODALITIES if f"{m}_dim" in accepted]
    reads = MODELS[name].reads if issubclass(MODELS[name], Trimodal) else reads
    if one := "modality" in accepted:  # what is asked for, or its own
        reads = [settings.get("modality", accepted["modality"].default)]
    if not set(reads) & set(has):
        wanted = " or ".join(reads)
        raise ValueError(f"expected clips with {wanted}, which {name} reads, got {', '.join(has)}")
    if "modalities" in accepted:
        settings.setdefault("modalities", has)
    dims = {"dim" if one else f"{m}_dim": data.dims.get(m, 1) for m in reads}
    return MODELS[name](num_targets=data.num_targets, **settings, **dims)


def width_for(clips: int) -> int:
    """The power of two nearest to √(2 clips), at least 32: 64 for 1,300, 512 for 130,000."""
    return max(32, 2 ** round(math.log2(2 * max(clips, 1)) / 2))

"""Checks of what goes into a fusion model, the same for all of them.

A model's `forward` begins with

    inputs = check_inputs(
        frames, audio, text, frames_valid, audio_valid, present,
        dims={"frames": 768, "audio": 1024, "text": 768}, uses=("frames", "audio", "text"),
    )

and afterwards reads only `inputs`: masks are complete there, `present` agrees with them, and
whatever is padding or absent is zero. So its content (NaN included) cannot reach the output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MODALITIES = ("frames", "audio", "text")


@dataclass
class Inputs:
    """Checked inputs of a fusion model; a modality that is not used or not given is None.

    frames, audio : (B, T, D) float, zero where not valid
    text : (B, D) float, zero where not present
    frames_valid, audio_valid : (B, T) bool, all False in the row of a clip that lacks the modality
    present : (B, 3) bool, order frames, audio, text; False for a modality that is not used
    """

    frames: Tensor | None
    audio: Tensor | None
    text: Tensor | None
    frames_valid: Tensor | None
    audio_valid: Tensor | None
    present: Tensor


def check_inputs(
    frames: Tensor | None,
    audio: Tensor | None,
    text: Tensor | None,
    frames_valid: Tensor | None = None,
    audio_valid: Tensor | None = None,
    present: Tensor | None = None,
    *,
    dims: Mapping[str, int],
    uses: Sequence[str] = MODALITIES,
    dtype: torch.dtype | None = None,
) -> Inputs:
    """Check and complete the six inputs of a fusion model.

    frames, audio : (B, T, D) float, or None; text : (B, D) float, or None
    frames_valid, audio_valid : (B, T) bool, True = real; None means every step is real
    present : (B, 3) bool, order frames, audio, text; None means present wherever given with at
        least one real step. A modality is never present without a real step.
    dims : width of each used modality
    uses : the modalities the model reads; the others are dropped unseen
    dtype : what to cast features to (a model's own dtype); None keeps them

    Raises ValueError when a used input has the wrong rank, width, number of clips or dtype, no
    step or no clip at all, a mask of the wrong shape or dtype, a value that is not finite at a
    real step of a present modality, or when none of the used modalities is given.
    """
    given = {"frames": frames, "audio": audio, "text": text}
    masks = {"frames": frames_valid, "audio": audio_valid}
    features = {name: given[name] for name in uses if given[name] is not None}
    if not features:
        raise ValueError(
            f"expected at least one of the modalities {', '.join(uses)}, but none was given; "
            "pass the features of at least one"
        )
    for name, values in features.items():
        check_features(name, values, dims[name])
    clips = _same_number_of_clips(features)
    present = _check_present(present, features, clips)
    for name in ("frames", "audio"):
        if name in features:
            masks[name] = _complete_mask(name, masks[name], features[name], present)
            present[:, MODALITIES.index(name)] = masks[name].any(1)
    for name, values in features.items():
        real = present[:, 2] if name == "text" else masks[name]
        values = values if dtype is None else values.to(dtype)
        features[name] = _zero_unless(name, values, real)
    return Inputs(
        **{name: features.get(name) for name in MODALITIES},
        frames_valid=masks["frames"] if "frames" in features else None,
        audio_valid=masks["audio"] if "audio" in features else None,
        present=present,
    )


def check_features(name: str, values: Tensor, width: int, steps: bool | None = None) -> None:
    """Rank, width, length and dtype of one modality; ValueError in one sentence.

    steps : whether it is a sequence (B, T, D) or one vector a clip (B, D); None: by `name`
    """
    steps = name != "text" if steps is None else steps
    shape = "(B, T, D)" if steps else "(B, D)"
    if not isinstance(values, Tensor):
        raise ValueError(f"expected {name} as a torch.Tensor {shape}, got {type(values).__name__}")
    if values.ndim != 2 + steps:
        raise ValueError(f"expected {name} of shape {shape}, got {tuple(values.shape)}")
    if values.shape[-1] != width:
        raise ValueError(
            f"expected {name} of width {width}, got {values.shape[-1]} (shape "
            f"{tuple(values.shape)}); build the model with {name}_dim={values.shape[-1]} or "
            "check which features these are"
        )
    if 0 in values.shape:
        raise ValueError(
            f"expected {name} with at least one clip and one step, got shape "
            f"{tuple(values.shape)}; give a clip that lacks {name} one step and an all-False mask"
        )
    if not values.is_floating_point():
        raise ValueError(f"expected {name} as floating point, got {values.dtype}")


def check_mask(name: str, valid: Tensor, shape: Sequence[int]) -> None:
    """Type, dtype and shape of a mask; ValueError in one sentence."""
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        came = valid.dtype if isinstance(valid, Tensor) else type(valid).__name__
        raise ValueError(f"expected {name} as torch.bool with True where real, got {came}")
    if tuple(valid.shape) != tuple(shape):
        raise ValueError(
            f"expected {name} of shape {tuple(shape)} as its features have, "
            f"got {tuple(valid.shape)}"
        )


def check_prefix(name: str, valid: Tensor) -> None:
    """Refuse a mask (B, T) with a hole: real steps come first, then padding."""
    if (valid[:, 1:] & ~valid[:, :-1]).any():
        clip = int((valid[:, 1:] & ~valid[:, :-1]).any(1).nonzero()[0])
        raise ValueError(
            f"expected {name} to be True up to the clip's length and False after it, but row "
            f"{clip} has a real step after padding; pad on the right and drop steps inside a clip"
        )


def check_finite(name: str, values: Tensor) -> None:
    """Refuse NaN and infinity, naming the first clip that has one."""
    # One pass in the usual case: a sum is finite only if every term is (or it overflowed).
    if torch.isfinite(values.detach().sum(dtype=torch.float32)):
        return
    bad = ~torch.isfinite(values.detach()).flatten(1).all(1)
    if bad.any():
        raise ValueError(
            f"expected finite {name}, but {int(bad.sum())} of {len(bad)} clips hold NaN or "
            f"infinity (first: row {int(bad.nonzero()[0])}); mark missing steps in the mask and "
            "missing clips in `present`"
        )


def _same_number_of_clips(features: Mapping[str, Tensor]) -> int:
    counts = {name: values.shape[0] for name, values in features.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"expected the same number of clips in every modality, got {counts}")
    return next(iter(counts.values()))


def _check_present(present: Tensor | None, features: Mapping[str, Tensor], clips: int) -> Tensor:
    device = next(iter(features.values())).device
    read = torch.tensor([name in features for name in MODALITIES], device=device)
    if present is None:
        return read.repeat(clips, 1)
    check_mask("present", present, (clips, 3))
    return present.to(device) & read


def _complete_mask(name: str, valid: Tensor | None, values: Tensor, present: Tensor) -> Tensor:
    """(B, T) mask that is False in the rows of absent clips."""
    column = MODALITIES.index(name)
    if valid is None:
        valid = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
    check_mask(f"{name}_valid", valid, values.shape[:2])
    return valid & present[:, column, None]


def _zero_unless(name: str, values: Tensor, real: Tensor) -> Tensor:
    # `where` and not a product: NaN times 0 is NaN.
    if not real.all():
        values = values.masked_fill(~real.unsqueeze(-1), 0.0)
    check_finite(name, values)
    return values

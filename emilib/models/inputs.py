"""What goes into every fusion model and what comes out: checks, masks, tokens and `Output`.

A model's `forward` begins with

    inputs = check_inputs(
        frames, audio, text, frames_valid, audio_valid, present, dims={"frames": 768, "text": 768}
    )

and afterwards reads only `inputs`: masks are complete there, `present` agrees with them, and
padding and absent modalities are zero. So their content (NaN included) cannot reach the output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from emilib import MODALITIES


@dataclass
class Output:
    """Prediction of a model with what explains it. B clips, E emotions, M segments,
    H heads, T steps.

    intensity : (B, E) float, not bounded; clip it to [0, 1] for a submission
    weights : what each modality contributed, order frames, audio, text. `DualStage` returns
        (B, M, 3), paper A, Eq. 8: rows sum to 1, an absent modality has exactly 0, a segment
        (or clip) without anything real is all 0. None where a model has no such weights.
    attention : what the anchor looked at, a dict from modality name to (B, H, T), which
        sums to 1 over a clip's real steps (paper B, `TAEMI`). None where a model has none.
    """

    intensity: Tensor
    weights: Tensor | None = None
    attention: dict[str, Tensor] | None = None


@dataclass
class Inputs:
    """Checked inputs of a fusion model, for the modalities that it reads.

    sequences : (B, T, D) float by modality, zero where not valid; text has T = 1
    valid : (B, T) bool by modality, all False in the row of a clip that lacks the modality
    present : (B, 3) bool, order frames, audio, text; False for a modality that is not read
    """

    sequences: dict[str, Tensor]
    valid: dict[str, Tensor]
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
    dtype: torch.dtype | None = None,
) -> Inputs:
    """Check and complete the six inputs of a fusion model.

    frames, audio : (B, T, D) float, or None; text : (B, D) float, or None
    frames_valid, audio_valid : (B, T) bool, True = real; None means every step is real
    present : (B, 3) bool, order frames, audio, text; None means present wherever passed with at
        least one real step. A modality is never present without a real step.
    dims : width of each modality that the model reads; the others are dropped unseen
    dtype : what to cast features to (a model's own dtype); None keeps them

    A modality of `dims` that is None becomes one step of zeros that is not valid.
    Raises ValueError when a modality has the wrong rank, width, number of clips or dtype, no
    step or no clip at all, a mask of the wrong shape or dtype, a value that is not finite at a
    real step of a present clip, or when no modality of `dims` is passed.
    """
    features = {"frames": frames, "audio": audio, "text": text}
    masks = {"frames": frames_valid, "audio": audio_valid}
    features = {name: features[name] for name in dims if features[name] is not None}
    if not features:
        raise ValueError(f"expected at least one of {', '.join(dims)}, got none; pass its features")
    for name, values in features.items():
        check_features(name, values, dims[name], "(B, D)" if name == "text" else "(B, T, D)")
    counts = {name: len(values) for name, values in features.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"expected the same number of clips in every modality, got {counts}")

    like = next(iter(features.values()))
    read = torch.tensor([name in features for name in MODALITIES], device=like.device)
    if present is not None:
        check_mask("present", present, (len(like), 3))
        present = present.to(like.device) & read
    else:
        present = read.repeat(len(like), 1)
    inputs = Inputs({}, {}, present)
    for name, width in dims.items():
        column = MODALITIES.index(name)
        values = features.get(name, like.new_zeros(len(like), 1, width))
        values = values.unsqueeze(1) if values.ndim == 2 else values
        valid = masks.get(name) if name in features else None
        if valid is None:
            valid = torch.ones(values.shape[:2], dtype=torch.bool, device=like.device)
        check_mask(f"{name}_valid", valid, values.shape[:2])
        valid = valid & present[:, column, None]
        values = values if dtype is None else values.to(dtype)
        if not valid.all():  # a product with 0 would keep NaN
            values = values.masked_fill(~valid.unsqueeze(-1), 0.0)
        check_finite(name, values)
        present[:, column] = valid.any(1)
        inputs.sequences[name], inputs.valid[name] = values, valid
    return inputs


def check_features(name: str, values: Tensor, width: int, shape: str) -> None:
    """Refuse features that are not a float tensor of `shape`, "(B, T, D)" or "(B, D)"."""
    if not isinstance(values, Tensor):
        raise ValueError(f"expected {name} as a torch.Tensor {shape}, got {type(values).__name__}")
    if values.ndim != shape.count(",") + 1:
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
            f"{tuple(values.shape)}; pass one step and an all-False mask for a clip without {name}"
        )
    if not values.is_floating_point():
        raise ValueError(f"expected {name} as floating point, got {values.dtype}")


def check_mask(name: str, valid: Tensor, shape: Sequence[int]) -> None:
    """Refuse a mask that is not a bool tensor of `shape`."""
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        kind = valid.dtype if isinstance(valid, Tensor) else type(valid).__name__
        raise ValueError(f"expected {name} as torch.bool with True where real, got {kind}")
    if tuple(valid.shape) != tuple(shape):
        raise ValueError(
            f"expected {name} of shape {tuple(shape)}, as its features have, "
            f"got {tuple(valid.shape)}"
        )


def check_prefix(name: str, valid: Tensor) -> None:
    """Refuse a mask (B, T) with a hole: real steps come first, then padding."""
    holes = (valid[:, 1:] & ~valid[:, :-1]).any(1)
    if holes.any():
        raise ValueError(
            f"expected {name} to be True up to the clip's length and False after it, but row "
            f"{int(holes.nonzero()[0])} has a real step after padding; pad on the right and drop "
            "steps inside a clip"
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


def check_choice(name: str, value, choices: Sequence) -> None:
    """Refuse a setting that is not one of `choices`."""
    if value not in choices:
        raise ValueError(
            f"expected {name} as one of {', '.join(map(repr, choices))}, got {value!r}"
        )


def check_at_least_one(**sizes: int | None) -> None:
    """Refuse a size below 1; None passes."""
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"expected {name} of at least 1, got {size}")


def check_heads(width: int, heads: int) -> None:
    """Refuse a width that attention heads do not divide."""
    check_at_least_one(width=width, heads=heads)
    if width % heads:
        raise ValueError(f"expected a width that heads divide, got width {width}, heads {heads}")


def masked_mean(sequence: Tensor, valid: Tensor) -> Tensor:
    """Mean of (B, T, D) over the real steps; (B, D), zeros where no step is real."""
    weight = valid.unsqueeze(-1).to(sequence.dtype)
    return (sequence * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)


def stand_in(
    sequence: Tensor, valid: Tensor, present: Tensor, token: Tensor
) -> tuple[Tensor, Tensor]:
    """A token in place of the sequences that are not present: one real step, at step 0.

    sequence (B, T, D), valid (B, T) bool, present (B,) bool, token (D,) or (B, D).
    Returns the sequence and its mask; neither keeps anything of an absent sequence.
    """
    steps = sequence.shape[1]
    alone = F.pad(token.unsqueeze(-2), (0, 0, 0, steps - 1))  # (T, D) or (B, T, D)
    first = torch.arange(steps, device=valid.device) == 0
    sequence = torch.where(present[:, None, None], sequence, alone)
    return sequence, torch.where(present[:, None], valid, first)

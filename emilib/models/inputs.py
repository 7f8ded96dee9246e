"""What goes into every fusion model and what comes out: checks, masks, tokens and `Output`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emilib import MODALITIES

TOKEN_STD = 0.02  # not stated in the paper; the release draws its missing tokens from N(0, 0.02²)


@dataclass
class Output:
    """Prediction of a model with what explains it: B clips, E emotions, M segments, H heads.

    intensity : (B, E) float, not bounded without `sigmoid`; clip it to [0, 1] for a submission
    weights : (B, M, 3), what frames, audio and text contributed to `DualStage` (paper A, Eq. 8):
        rows sum to 1, an absent modality has exactly 0, a segment without anything real is all 0
    attention : what the anchor of `TAEMI` looked at (paper B, 3.3): a dict from modality name to
        (B, H, T), which sums to 1 over a clip's real steps
    auxiliary_loss : scalar to add to the training loss; None outside training
    """

    intensity: Tensor
    weights: Tensor | None = None
    attention: dict[str, Tensor] | None = None
    auxiliary_loss: Tensor | None = None


def check_inputs(
    frames, audio, text, frames_valid=None, audio_valid=None, present=None, *, dims, dtype=None
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Check and complete the six inputs of a fusion model.

    frames, audio : (B, T, D) float, or None; text : (B, D) float, or None
    frames_valid, audio_valid : (B, T) bool, True = real; None means every step is real
    present : (B, 3) bool, order frames, audio, text; None means present wherever passed. A
        modality is never present without a real step.
    dims : width of each modality that the model reads; the others are dropped unseen
    dtype : what to cast features to (a model's own dtype); None keeps them

    Returns, by modality of `dims`, sequences (B, T, D), text with T = 1, and valid (B, T); and
    present (B, 3), False for a modality that is not read. Padding and absent modalities are zero:
    their content, NaN included, cannot reach the output.
    Raises ValueError for a wrong shape or dtype, or a value at a real step that is not finite.
    """
    passed = {"frames": (frames, frames_valid), "audio": (audio, audio_valid), "text": (text, None)}
    passed = {name: passed[name] for name in dims if passed[name][0] is not None}
    if not passed:
        raise ValueError(f"expected at least one of {', '.join(dims)}, got none; pass its features")
    for name, (values, _) in passed.items():
        shape = "(B, D)" if name == "text" else "(B, T, D)"
        kind = getattr(values, "dtype", type(values).__name__), tuple(getattr(values, "shape", ()))
        floating = isinstance(values, Tensor) and values.is_floating_point()
        if not floating or values.ndim != shape.count(",") + 1 or 0 in values.shape:
            raise ValueError(
                f"expected {name} as a floating point Tensor of shape {shape} with at least one "
                f"clip and one step, got {kind}; a clip without {name} is one step, not valid"
            )
        if values.shape[-1] != dims[name]:
            raise ValueError(
                f"expected {name} of width {dims[name]}, got {values.shape[-1]}; build the model "
                f"with {name}_dim={values.shape[-1]} or check which features these are"
            )
    counts = {name: len(values) for name, (values, _) in passed.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"expected the same number of clips in every modality, got {counts}")
    like = values  # the last one
    everything = like.new_ones((len(like), 3), dtype=torch.bool)
    present = everything if present is None else present
    check_mask("present", present, everything.shape)

    sequences, masks, read = {}, {}, torch.zeros_like(everything)
    for name, width in dims.items():
        column = MODALITIES.index(name)
        absent = like.new_zeros(len(like), 1, width), ~everything[:, :1]
        values, valid = passed.get(name, absent)
        values = values.unsqueeze(1) if values.ndim == 2 else values
        if valid is None:
            valid = like.new_ones(values.shape[:2], dtype=torch.bool)
        check_mask(f"{name}_valid", valid, values.shape[:2])
        masks[name] = valid & present[:, column, None].to(like.device)
        read[:, column] = masks[name].any(1)
        values = values.to(dtype or values.dtype).masked_fill(~masks[name].unsqueeze(-1), 0.0)
        # A sum is finite only if every term is.
        bad = ~values.detach().flatten(1).sum(1, dtype=torch.float32).isfinite()
        if bad.any():
            raise ValueError(
                f"expected finite {name}, got NaN or infinity in clips "
                f"{bad.nonzero()[:, 0].tolist()}; mark missing steps and clips as not valid"
            )
        sequences[name] = values
    return sequences, masks, read


def check_mask(name: str, valid: Tensor, shape: Sequence[int]) -> None:
    """Refuse a mask that is not a bool tensor of `shape`."""
    kind = getattr(valid, "dtype", type(valid)), tuple(getattr(valid, "shape", ()))
    if kind != (torch.bool, tuple(shape)):
        raise ValueError(f"expected {name} as torch.bool {tuple(shape)}, True if real, got {kind}")


def check_choice(name: str, value, choices: Sequence) -> None:
    """Refuse a setting that is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"expected {name} as one of {choices}, got {value!r}")


def masked_mean(sequence: Tensor, valid: Tensor) -> Tensor:
    """Mean of (B, T, D) over the real steps; (B, D), zeros where no step is real."""
    weight = valid.unsqueeze(-1).to(sequence.dtype)
    return (sequence * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)


def vectors(dims: dict[str, int]) -> nn.ParameterDict:
    """A small random vector for each modality, as the release of paper B draws its tokens."""
    return nn.ParameterDict({n: nn.Parameter(torch.randn(d) * TOKEN_STD) for n, d in dims.items()})


def stand_in(sequence, valid, present, token) -> tuple[Tensor, Tensor]:
    """A token in place of the sequences that are not present, as their only real step, at step 0.
    sequence (B, T, D), valid (B, T) bool, present (B,) bool, token (D,) or (B, D)."""
    steps = sequence.shape[1]
    alone = F.pad(token.unsqueeze(-2), (0, 0, 0, steps - 1))  # (T, D) or (B, T, D)
    first = torch.arange(steps, device=valid.device) == 0
    sequence = torch.where(present[:, None, None], sequence, alone)
    return sequence, torch.where(present[:, None], valid, first)

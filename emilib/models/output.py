"""What every fusion model and baseline returns."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Output:
    """Prediction of a model with what explains it. B clips, E emotions, M segments,
    H heads, T steps.

    intensity : (B, E) float, not bounded; clip it to [0, 1] for a submission
    weights : what each modality contributed, order frames, audio, text. `DualStage` gives
        (B, M, 3), paper A, Eq. 8: rows sum to 1, an absent modality has exactly 0, a segment
        (or clip) without anything real is all 0. None where a model has no such weights.
    attention : what the anchor looked at, a dict from modality name to (B, H, T), which
        sums to 1 over a clip's real steps (paper B, `TAEMI`). None where a model has none.
    """

    intensity: Tensor
    weights: Tensor | None = None
    attention: dict[str, Tensor] | None = None

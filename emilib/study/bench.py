"""How long a training step takes: the dual-stage network beside its own recurrence alone.

What no network with an LSTM and a Transformer can save is the LSTM over the sound and the
Transformer over the segments. The rest of the network, TCN, gate, pooling, mapping, scores and
weights, should cost little beside them.
"""

import statistics
import time
from collections.abc import Callable

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from emilib.models import DualStage
from emilib.training.loop import no_denormals

BATCH, FRAMES, STEPS = 32, 60, 600  # 12 s of video at 5 frames a second, of sound at 50 a second
FRAMES_DIM, AUDIO_DIM, TEXT_DIM, TARGETS = 768, 1024, 768, 6


class _Bare(nn.Module):
    """torch's BiLSTM and Transformer encoder, of the sizes they have in `DualStage`."""

    def __init__(self, like: DualStage):
        super().__init__()
        hidden = like.lstm.lstm.hidden_size
        self.lstm = nn.LSTM(AUDIO_DIM, hidden, batch_first=True, bidirectional=True)
        layer = nn.TransformerEncoderLayer(
            like.width, 4, 4 * like.width, 0.1, "gelu", batch_first=True, norm_first=True
        )
        layers = len(like.encoder.layers)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, audio, segments):
        return self.lstm(audio)[0].mean() + self.encoder(segments).mean()


def stage_two(repeats: int = 9, device=None) -> pd.DataFrame:
    """Seconds of a training step of Stage II: B = 32, 60 frames × 768, 600 audio steps × 1024.

    repeats : steps that are timed of each, in turns, after one that is not
    device : None is the first GPU where there is one, else the CPU

    Columns: what, seconds (median), ratio (to the bare BiLSTM and Transformer). A step is forward,
    backward and AdamW.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DualStage(FRAMES_DIM, AUDIO_DIM, TEXT_DIM, TARGETS).to(device).train()
        bare = _Bare(model).to(device).train()
        frames = torch.randn(BATCH, FRAMES, FRAMES_DIM, device=device)
        audio = torch.randn(BATCH, STEPS, AUDIO_DIM, device=device)
        text = torch.randn(BATCH, TEXT_DIM, device=device)
        segments = torch.randn(BATCH, model.segments, model.width, device=device)
        target = torch.rand(BATCH, TARGETS, device=device)
        lengths = torch.linspace(0.5, 1, BATCH, device=device)[:, None]
        frames_valid = torch.arange(FRAMES, device=device) < lengths * FRAMES
        audio_valid = torch.arange(STEPS, device=device) < lengths * STEPS

        def loss(*masks):
            return F.mse_loss(model(frames, audio, text, *masks).intensity, target)

        steps = {
            "bare BiLSTM and Transformer": _step(bare, lambda: bare(audio, segments)),
            "DualStage": _step(model, loss),
            "DualStage, clips of half to full length": _step(
                model, lambda: loss(frames_valid, audio_valid)
            ),
        }
        with no_denormals():  # as `fit` trains
            seconds = _in_turns(steps, repeats, device)
    frame = pd.DataFrame({"what": list(seconds), "seconds": list(seconds.values())})
    return frame.assign(ratio=frame["seconds"] / frame["seconds"].iloc[0])


def _step(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def _in_turns(steps: dict[str, Callable], repeats: int, device) -> dict[str, float]:
    """Median seconds of each; in turns, so that a busy moment of the machine meets all alike."""
    taken = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            _wait(device)
            start = time.perf_counter()
            step()
            _wait(device)
            if turn:  # the first turn allocates
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def _wait(device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

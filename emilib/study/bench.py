"""How long a training step takes: the dual-stage network beside its own recurrence alone.

A network with an LSTM over the sound and a Transformer over the segments can't cost less than
these two. The rest of it, TCN, gate, pooling, mapping, scores and weights, should cost little more.
"""

import statistics
import time

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from emilib.models import DualStage
from emilib.training.loop import no_denormals
from emilib.workers import device as default_device


def stage_two(repeats: int = 9, device=None, batch: int = 32, steps: int = 600) -> pd.DataFrame:
    """Seconds of a training step of Stage II: 60 frames × 768, 600 steps of sound × 1024 (12 s).

    repeats : steps that are timed of each, in turns, so that a busy moment of the machine meets all
        alike; a first turn, which allocates, is not timed
    device : None is the first GPU where there is one, else the CPU

    Columns: what, seconds (median), ratio (to the bare BiLSTM and Transformer). A step is forward,
    backward and AdamW.
    """
    device = torch.device(device or default_device())
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = DualStage(768, 1024, 768, 6).train()
        lstm = nn.LSTM(1024, model.lstm.lstm.hidden_size, batch_first=True, bidirectional=True)
        layer = nn.TransformerEncoderLayer(
            model.width, 4, 4 * model.width, 0.1, "gelu", batch_first=True, norm_first=True
        )
        encoder = nn.TransformerEncoder(
            layer, len(model.encoder.layers), enable_nested_tensor=False
        )
        frames, audio = torch.randn(batch, 60, 768), torch.randn(batch, steps, 1024)
        text, target = torch.randn(batch, 768), torch.rand(batch, 6)
        segments = torch.randn(batch, model.segments, model.width)
        lengths = torch.linspace(0.5, 1, batch)[:, None]
        masks = [torch.arange(count) < lengths * count for count in (60, steps)]

    def bare():
        return lstm(audio)[0].mean() + encoder(segments).mean()

    def full(*valid):
        return F.mse_loss(model(frames, audio, text, *valid).intensity, target)

    both = torch.optim.AdamW([*lstm.parameters(), *encoder.parameters()])
    optimizer = torch.optim.AdamW(model.parameters())
    runs = {
        "bare BiLSTM and Transformer": (both, bare),
        "DualStage": (optimizer, full),
        "DualStage, clips of half to full length": (optimizer, lambda: full(*masks)),
    }
    seconds = {name: [] for name in runs}
    with torch.random.fork_rng(), no_denormals():  # as `fit` trains
        for _ in range(repeats + 1):
            for name, (optimiser, loss) in runs.items():
                start = time.perf_counter()
                optimiser.zero_grad()
                loss().backward()
                optimiser.step()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    frame = pd.DataFrame({"what": list(medians), "seconds": list(medians.values())})
    return frame.assign(ratio=frame["seconds"] / frame["seconds"].iloc[0])

"""How long a training step takes: the dual-stage network beside its own recurrence alone.

A network with an LSTM over the sound and a Transformer over the segments can't cost less than
these two. The rest of it, TCN, gate, pooling, mapping, scores and weights, should cost little more.
"""

import time
from copy import deepcopy

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from emilib.models import DualStage
from emilib.training.loop import no_denormals
from emilib.workers import device as default_device


def stage_two(repeats: int = 9, device=None, batch: int = 32, steps: int = 600) -> pd.DataFrame:
    """Seconds of a training step of Stage II: 60 frames × 768, 600 steps of sound × 1024 (12 s).

    repeats : steps that are timed of each, in turns, after one that is not

    Columns: what, seconds (median), ratio (to the bare BiLSTM and Transformer). A step is forward,
    backward and AdamW.
    """
    device, rows = torch.device(device or default_device()), []
    with torch.random.fork_rng(), torch.device(device), no_denormals():  # as `fit` trains
        torch.manual_seed(0)
        model = DualStage(768, 1024, 768, 6).train()
        lstm = nn.LSTM(1024, model.lstm.lstm.hidden_size, batch_first=True, bidirectional=True)
        bare = nn.ModuleList([lstm, deepcopy(model.encoder)])
        frames, audio = torch.randn(batch, 60, 768), torch.randn(batch, steps, 1024)
        text, target = torch.randn(batch, 768), torch.rand(batch, 6)
        segments = torch.randn(batch, model.segments, model.width)
        losses = {
            "bare BiLSTM and Transformer": lambda: lstm(audio)[0].mean() + bare[1](segments).mean(),
            "DualStage": lambda: F.mse_loss(model(frames, audio, text).intensity, target),
        }
        optimizers = [torch.optim.AdamW(module.parameters()) for module in (bare, model)]
        for _ in range(repeats + 1):
            for (name, loss), optimizer in zip(losses.items(), optimizers, strict=True):
                start = time.perf_counter()
                optimizer.zero_grad()
                loss().backward()
                optimizer.step()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                rows.append((name, time.perf_counter() - start))
    table = pd.DataFrame(rows[len(losses) :], columns=["what", "seconds"])
    table = table.groupby("what", sort=False).median().reset_index()
    return table.assign(ratio=table["seconds"] / table["seconds"].iloc[0])

"""A self-supervised start for the small encoders, where there is no CLIP, wav2vec2 or BERT.
Each learns from the raw media alone, before Stage I: how a face changes in a clip, what a masked
stretch of sound was, which word is hidden. `progress` is called with (steps done, steps in all)."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from emilib import SAMPLE_RATE
from emilib.features.encoders import AudioEncoder, TextEncoder, VisionEncoder
from emilib.training.recipes import WarmStart


def warm_vision(encoder: VisionEncoder, clips, plan: WarmStart, seed: int, progress=None):
    """Learn what changes in a face: the change of a frame's vector moves the first picture.
    With a later frame t of one of the clips, (T, 3, H, W) uint8 with T ≥ 2, and m = f_t − f_0, one
    linear map of m is a coarse field of displacements and another adds grey where something
    appears: warp(I_0, U m) + W m ≈ I_t, both small and grey, as in Wiles et al. 2018 (FAb-Net).
    Returns the loss at each step, as a share of the variance of the changes."""
    generator = torch.Generator().manual_seed(seed)
    side, coarse = plan.change_size, plan.change_size // 4
    flow = nn.Linear(encoder.dim, 2 * coarse**2, bias=False)
    added = nn.Linear(encoder.dim, side**2, bias=False)
    with torch.no_grad():  # begin with hardly a change
        flow.weight.mul_(0.1)
        added.weight.mul_(0.1)
    grid = F.affine_grid(torch.eye(2, 3)[None], (1, 1, side, side), align_corners=False)

    def loss() -> Tensor:
        first, later = [], []
        for clip in _drawn("clips with at least two frames", clips, plan.vision_batch, generator):
            t = int(torch.randint(1, len(clips[clip]), (), generator=generator))
            first.append(clips[clip][0])
            later.append(clips[clip][t])
        images = torch.stack(first + later)
        before, after = encoder(images).chunk(2)
        grey = images.float().mean(dim=1, keepdim=True) / 255
        then, now = F.interpolate(grey, size=(side, side), mode="area").chunk(2)
        move = after - before
        shift = flow(move).view(-1, 2, coarse, coarse)
        shift = F.interpolate(shift, size=(side, side), mode="bilinear").permute(0, 2, 3, 1)
        moved = F.grid_sample(then, grid + shift, padding_mode="border", align_corners=False)
        error = F.mse_loss(moved + added(move).view_as(moved), now)
        return error / (now - then).var().clamp_min(1e-6)

    return _optimise([encoder, flow, added], loss, plan.vision_steps, plan.lr, progress)


def log_mel(waveform: Tensor, hop: int, bands: int) -> Tensor:
    """(B, S) at 16 kHz → (B, S // hop, bands): log energies of HTK mel bands, 50 to 7,600 Hz."""
    size = 1024
    padded = F.pad(waveform, (size // 2, size // 2))
    window = torch.hann_window(size)
    spectrum = torch.stft(padded, size, hop, window=window, center=False, return_complex=True)
    power = spectrum.abs().square()[:, :, : waveform.shape[1] // hop]  # (B, F, T)
    mel = torch.linspace(*(2595 * math.log10(1 + f / 700) for f in (50.0, 7600.0)), bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    frequency = torch.arange(size // 2 + 1) * SAMPLE_RATE / size
    rise = (frequency - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - frequency) / (edges[2:] - edges[1:-1])[:, None]
    filters = torch.minimum(rise, fall).clamp_min(0)  # (bands, F)
    return torch.log(torch.einsum("bf,nft->ntb", filters, power) + 1e-4)


def warm_audio(encoder: AudioEncoder, clips, plan: WarmStart, seed: int, progress=None):
    """Learn to hear: the log-mel energies of every step from sound with masked stretches."""
    generator = torch.Generator().manual_seed(seed)
    decoder, model = nn.Linear(encoder.dim, plan.mel_bands), encoder.model
    blank = nn.Parameter(torch.zeros(encoder.dim))  # what a masked step holds
    length = round(plan.audio_seconds * SAMPLE_RATE)
    steps = int(encoder.steps(torch.tensor(length)))

    def batch() -> tuple[Tensor, Tensor]:
        cuts = []
        for sound in [clips[i] for i in _drawn("sound", clips, plan.audio_batch, generator)]:
            if len(sound) > length:
                sound = sound[int(torch.randint(len(sound) - length, (1,), generator=generator)) :]
            cuts.append(F.pad(sound[:length], (0, max(0, length - len(sound)))))
        waveform = torch.stack(cuts)
        return waveform, log_mel(waveform, encoder.stride, plan.mel_bands)

    sample = torch.cat([batch()[1] for _ in range(4)])
    mean, std = sample.mean(dim=(0, 1)), sample.std(dim=(0, 1)).clamp_min(1e-3)

    def loss() -> Tensor:
        waveform, energies = batch()
        # Stretches of 5 steps; their starts are drawn so that about the wanted share is hit.
        starts = torch.rand(len(waveform), steps, generator=generator) < plan.masked_share / 5
        masked = F.max_pool1d(F.pad(starts.float(), (4, 0)), 5, 1).bool()
        hidden, _ = model.feature_projection(model.feature_extractor(waveform).transpose(1, 2))
        hidden = torch.where(masked[..., None], blank, hidden)
        heard = decoder(model.encoder(hidden).last_hidden_state)
        return F.mse_loss(heard, ((energies - mean) / std)[:, :steps])

    modules = [encoder, decoder, nn.ParameterList([blank])]
    return _optimise(modules, loss, plan.audio_steps, plan.lr, progress)


def warm_text(encoder: TextEncoder, texts, plan: WarmStart, seed: int, progress=None):
    """Masked words (BERT's first objective); returns the cross-entropy in nats at each step."""
    generator = torch.Generator().manual_seed(seed)
    decoder = nn.Linear(encoder.dim, len(encoder.tokenizer))
    special = torch.tensor(encoder.tokenizer.all_special_ids)
    tokens = encoder.tokens(texts) if len(texts) else {}

    def loss() -> Tensor:
        pick = _drawn("transcripts", texts, plan.text_batch, generator)
        ids, attention = tokens["input_ids"][pick], tokens["attention_mask"][pick]
        words = ~torch.isin(ids, special)
        masked = words & (torch.rand(ids.shape, generator=generator) < plan.masked_share)
        masked = masked if masked.any() else words
        hidden_ids = ids.masked_fill(masked, encoder.tokenizer.mask_token_id)
        states = encoder.model(input_ids=hidden_ids, attention_mask=attention).last_hidden_state
        return F.cross_entropy(decoder(states[masked]), ids[masked])

    return _optimise([encoder, decoder], loss, plan.text_steps, plan.text_lr, progress)


def _drawn(what: str, items: Sequence, count: int, generator: torch.Generator) -> list[int]:
    """Positions of `count` random items."""
    if len(items) == 0:
        raise ValueError(f"expected {what} for a self-supervised start, got none in this corpus")
    return torch.randint(len(items), (count,), generator=generator).tolist()


def _optimise(modules, loss_of: Callable[[], Tensor], steps: int, lr: float, progress):
    """AdamW, one loss a step; the rate rises over a tenth of the steps, then falls as a cosine."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, fused=True)
    rise = max(1, steps // 10)

    def rate(t: int) -> float:
        share = (t - rise) / max(1, steps - rise)
        return (t + 1) / rise if t < rise else 0.5 * (1 + math.cos(math.pi * share))

    schedule, history = torch.optim.lr_scheduler.LambdaLR(optimizer, rate), []
    modules[0].train()
    for step in range(steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        history.append(loss.item())
        if progress:
            progress(step + 1, steps)
    return history

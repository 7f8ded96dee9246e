"""A self-supervised start for the small encoders of the embedded profile.

The papers begin from networks that saw the web (CLIP, wav2vec2, BERT). A laptop without network
has none of these, so before Stage I each small encoder learns from the raw media alone what such
a network would bring: how a face changes within a clip, what a masked stretch of sound was, which
word is hidden. No label is used anywhere in this module. With pretrained checkpoints it is
skipped.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from emilib.features.encoders import SAMPLE_RATE, AudioEncoder, TextEncoder, VisionEncoder
from emilib.training.recipes import WarmStart

Progress = Callable[[int, int], None]


def _optimise(
    modules: Sequence[nn.Module],
    losses: Iterator[torch.Tensor],
    steps: int,
    lr: float,
    progress: Progress | None,
) -> list[float]:
    """AdamW over one loss a step, the rate along half a sine arch with a short rise."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, fused=True)
    rise = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda t: (
            (t + 1) / rise
            if t < rise
            else 0.5 * (1 + math.cos(math.pi * (t - rise) / max(1, steps - rise)))
        ),
    )
    history = []
    for step in range(steps):
        loss = next(losses)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        history.append(loss.item())
        if progress:
            progress(step + 1, steps)
    return history


def _some(what: str, given: Sequence) -> None:
    if len(given) == 0:
        raise ValueError(f"a self-supervised start needs {what}, and this corpus has none")


# --------------------------------------------------------------------------------------- vision


def warm_vision(
    encoder: VisionEncoder,
    clips: Sequence[torch.Tensor],
    plan: WarmStart,
    seed: int,
    progress: Progress | None = None,
) -> list[float]:
    """Learn what changes in a face: the difference of two frames' vectors gives their difference.

    clips : (T, 3, H, W) uint8, T ≥ 2, one a clip

    With frames s, t of one clip, a linear map of f_t − f_s reconstructs the small grey picture
    I_t − I_s. Who it is, the light and the room cancel out in both; what is left is expression
    and pose. Returns the loss at each step, as a share of the variance of the changes.
    """
    _some("clips with at least two frames", clips)
    generator = torch.Generator().manual_seed(seed)
    side = plan.change_size
    decoder = nn.Linear(encoder.dim, side * side)

    def small(images):
        grey = images.float().mean(dim=1, keepdim=True) / 255
        return F.interpolate(grey, size=(side, side), mode="area").flatten(1)

    def losses():
        encoder.train()
        while True:
            pick = torch.randint(len(clips), (plan.vision_batch,), generator=generator).tolist()
            first, second = [], []
            for clip in pick:
                s, t = torch.randperm(len(clips[clip]), generator=generator)[:2].tolist()
                first.append(clips[clip][s])
                second.append(clips[clip][t])
            images = torch.stack(first + second)
            features = encoder(images)
            change = decoder(features[plan.vision_batch :] - features[: plan.vision_batch])
            pictures = small(images)
            wanted = pictures[plan.vision_batch :] - pictures[: plan.vision_batch]
            yield F.mse_loss(change, wanted) / wanted.var().clamp_min(1e-6)

    return _optimise([encoder, decoder], losses(), plan.vision_steps, plan.lr, progress)


# ---------------------------------------------------------------------------------------- audio


def log_mel(waveform: torch.Tensor, hop: int, bands: int) -> torch.Tensor:
    """(B, S) at 16 kHz → (B, S // hop, bands): log energies of mel bands, one row a hop.

    Triangular filters on the HTK mel scale from 50 to 7,600 Hz over a Hann window of 64 ms.
    """
    size = 1024
    padded = F.pad(waveform, (size // 2, size // 2))
    spectrum = torch.stft(
        padded, size, hop, window=torch.hann_window(size), center=False, return_complex=True
    )
    power = spectrum.abs().square()[:, :, : waveform.shape[1] // hop]  # (B, F, T)
    mel = torch.linspace(*(2595 * math.log10(1 + f / 700) for f in (50.0, 7600.0)), bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    frequency = torch.arange(size // 2 + 1) * SAMPLE_RATE / size
    rise = (frequency - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - frequency) / (edges[2:] - edges[1:-1])[:, None]
    filters = torch.minimum(rise, fall).clamp_min(0)  # (bands, F)
    # A narrow low band may lie between two bins: give it its nearest one.
    empty = filters.sum(dim=1) == 0
    nearest = (edges[1:-1, None] - frequency).abs().argmin(dim=1)
    filters[empty, nearest[empty]] = 1.0
    return torch.log(torch.einsum("bf,nft->ntb", filters, power) + 1e-4)


def warm_audio(
    encoder: AudioEncoder,
    clips: Sequence[torch.Tensor],
    plan: WarmStart,
    seed: int,
    progress: Progress | None = None,
) -> list[float]:
    """Learn to hear: from sound with masked stretches, tell the log-mel energies of every step.

    clips : (S,) float waveforms, none shorter than `encoder.shortest`

    Loudness, pitch and voice quality have to be in the hidden states for that; the masked
    stretches ask for what surrounds them as well. Returns the loss at each step, as a share of
    the variance of the energies.
    """
    _some("clips with sound", clips)
    generator = torch.Generator().manual_seed(seed)
    decoder = nn.Linear(encoder.dim, plan.mel_bands)
    length = round(plan.audio_seconds * SAMPLE_RATE)

    def cut(waveform):
        if len(waveform) <= length:
            return F.pad(waveform, (0, length - len(waveform)))
        start = int(torch.randint(len(waveform) - length, (1,), generator=generator))
        return waveform[start : start + length]

    def batch():
        pick = torch.randint(len(clips), (plan.audio_batch,), generator=generator).tolist()
        return torch.stack([cut(clips[i]) for i in pick])

    # What a masked step holds. The encoder has no such vector of its own where its configuration
    # masks nothing in later training, and needs none afterwards.
    blank = nn.Parameter(torch.zeros(encoder.dim))

    def hear(waveform, masked):
        model = encoder.model
        hidden, _ = model.feature_projection(model.feature_extractor(waveform).transpose(1, 2))
        hidden = torch.where(masked[..., None], blank, hidden)
        return model.encoder(hidden).last_hidden_state

    with torch.no_grad():
        sample = torch.cat([log_mel(batch(), encoder.stride, plan.mel_bands) for _ in range(4)])
    mean, std = sample.mean(dim=(0, 1)), sample.std(dim=(0, 1)).clamp_min(1e-3)

    def losses():
        encoder.train()
        while True:
            waveform = batch()
            wanted = (log_mel(waveform, encoder.stride, plan.mel_bands) - mean) / std
            steps = int(encoder.steps(torch.tensor(length)))
            # Stretches of 5 steps; their starts are drawn so that about the wanted share is hit.
            starts = torch.rand(len(waveform), steps, generator=generator)
            starts = (starts < plan.masked_share / 5).float()
            masked = F.max_pool1d(F.pad(starts, (4, 0)), 5, 1).bool()
            yield F.mse_loss(decoder(hear(waveform, masked)), wanted[:, :steps])

    modules = [encoder, decoder, nn.ParameterList([blank])]
    return _optimise(modules, losses(), plan.audio_steps, plan.lr, progress)


# ----------------------------------------------------------------------------------------- text


def warm_text(
    encoder: TextEncoder,
    texts: Sequence[str],
    plan: WarmStart,
    seed: int,
    progress: Progress | None = None,
) -> list[float]:
    """Masked words (BERT's first objective) on transcripts without labels.

    Returns the cross-entropy in nats at each step.
    """
    _some("transcripts", texts)
    generator = torch.Generator().manual_seed(seed)
    decoder = nn.Linear(encoder.dim, len(encoder.tokenizer))
    tokens = encoder.tokens(texts)
    special = torch.tensor(encoder.tokenizer.all_special_ids)
    mask_id = encoder.tokenizer.mask_token_id

    def losses():
        encoder.train()
        while True:
            pick = torch.randint(len(texts), (plan.text_batch,), generator=generator)
            ids, attention = tokens["input_ids"][pick], tokens["attention_mask"][pick]
            words = ~torch.isin(ids, special)
            masked = words & (torch.rand(ids.shape, generator=generator) < plan.masked_share)
            if not masked.any():
                masked = words
            hidden = encoder.model(
                input_ids=ids.masked_fill(masked, mask_id), attention_mask=attention
            ).last_hidden_state
            yield F.cross_entropy(decoder(hidden[masked]), ids[masked])

    return _optimise([encoder, decoder], losses(), plan.text_steps, plan.text_lr, progress)

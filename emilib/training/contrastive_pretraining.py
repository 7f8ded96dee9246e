"""Stage I of paper A: vision-text and audio-text contrastive pretraining (3.3, Eq. 1, Eq. 10).

The two runs are decoupled: each has its own copy of the text encoder and its own projection
heads, and neither sees a label. Stage II takes the encoders from here, not the heads.
"""

import atexit
import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from copy import deepcopy

import torch
import torch.distributed as dist
from torch import Tensor, nn

from emilib import SAMPLE_RATE, workers
from emilib.cache import key, share, world_size
from emilib.features.encoders import TextEncoder, VisionEncoder, padded
from emilib.models.contrastive import ContrastivePair, contrastive_loss, sgdr, text_groups
from emilib.training.loop import load_state, save_state
from emilib.training.recipes import StageOne

STRETCHES = 8  # a step sees one frame of each stretch of a clip; not stated in the paper


@dataclasses.dataclass
class Clips:
    """What Stage I sees of N clips: media, which may be read when asked, and words; no label."""

    ids: list[str]
    frames: Sequence  # (T, 3, H, W) uint8, or None, one a clip
    waveforms: Sequence  # (S,) float at 16 kHz, or None
    texts: list[str]  # "" where there are none


@dataclasses.dataclass
class Contrast:
    """A finished run: encoders and heads, and its history, one row a step."""

    media: nn.Module
    text: TextEncoder
    pair: ContrastivePair
    history: list[dict]


def pretrain(
    media, text, clips, plan: StageOne, seed: int, checkpoint=None, progress=None, device=None
) -> Contrast:
    """Contrast one modality with the words of the same clips; trains copies of the encoders.

    media : VisionEncoder or AudioEncoder; text : TextEncoder; clips : Clips
    checkpoint : folder; a killed run resumes after its last epoch, on a CPU to the same bits
    progress : called with (steps done, steps in all)
    device : None is the GPU of this rank where there is one, else the CPU; the result is on the CPU

    Several ranks divide each batch and come to the result of one process, to the same bits on a
    CPU with `plan.chunk`. Clips without words or this modality are left out, and so is the last,
    smaller batch of an epoch, which has fewer negatives. Raises ValueError when fewer than two
    clips are left, or for the checkpoint of another run.
    """
    if world_size() > 1:
        from accelerate import PartialState

        # A rank that ends while another still uses what it offers would take that one with it.
        atexit.register(PartialState().destroy_process_group)
    device = torch.device(workers.device() if device is None else device)
    rows, side = usable(clips, media), "frames" if isinstance(media, VisionEncoder) else "audio"
    if len(rows) < 2:
        raise ValueError(f"expected at least 2 clips with {side} and words, got {len(rows)}")
    media, text = deepcopy(media), deepcopy(text)
    if side == "audio":  # NumPy draws the masks of SpecAugment, where no seed of a run reaches
        media.model.config.apply_spec_augment = False
    with torch.random.fork_rng():  # the caller's draws stay what they were
        torch.manual_seed(seed)  # heads and dropout
        pair = ContrastivePair(media.dim, text.dim, plan.width, plan.segments)
        draw = torch.Generator().manual_seed(seed)
        for encoder in (media, text):
            encoder.requires_grad_(plan.train_encoders).train(plan.train_encoders)
        modules = [module.to(device) for module in (media, text, pair)]
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=plan.lr_max, weight_decay=plan.weight_decay)
        batch_size = min(plan.batch_size, len(rows))
        steps, history = len(rows) // batch_size, []
        schedule = sgdr(optimizer, steps, plan.cycle_epochs, plan.lr_min)
        identity = key(plan=plan, seed=seed, side=side, clips=clips.ids)
        run = (checkpoint, identity, [*modules, optimizer, schedule])
        if state := load_state(*run):
            history, drawn, dropped = state
            draw.set_state(drawn)
            torch.set_rng_state(dropped)
        for epoch in range(len(history) // steps, plan.epochs):
            for batch in torch.randperm(len(rows), generator=draw).split(batch_size)[:steps]:
                batch, lr = [rows[i] for i in batch], schedule.get_last_lr()[0]
                optimizer.zero_grad()
                loss = _gradient(
                    *modules, parameters, clips, batch, plan, draw, (seed, len(history))
                )
                nn.utils.clip_grad_norm_(parameters, 1.0)  # not stated in the paper
                optimizer.step()
                schedule.step()
                record = {"step": len(history), "epoch": epoch, "lr": lr, "loss": loss}
                history.append(record | {"logit_scale": pair.logit_scale.item()})
                if progress:
                    progress(len(history), plan.epochs * steps)
            save_state(*run, (history, draw.get_state(), torch.get_rng_state()))
        if world_size() > 1:
            dist.barrier()  # the last checkpoint is written
    return Contrast(*(module.cpu().eval() for module in modules), history)


def usable(clips: Clips, media: nn.Module) -> list[int]:
    """Positions of the clips that have words and this encoder's modality."""
    vision = isinstance(media, VisionEncoder)
    sequence, least = (clips.frames, 1) if vision else (clips.waveforms, media.shortest)
    return [i for i, text in enumerate(clips.texts) if text and _length(sequence, i) >= least]


def drawn_frames(count: int, generator: torch.Generator) -> list[int]:
    """Positions of one random frame of each of min(8, count) equal stretches of `count` frames."""
    borders = torch.linspace(0, count, min(STRETCHES, count) + 1).long().tolist()
    pairs = itertools.pairwise(borders)
    return [a + int(torch.randint(b - a, (), generator=generator)) for a, b in pairs]


def encoded_frames(encoder: VisionEncoder, clips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """clips, (T, 3, H, W) uint8 each → hidden states (B, T, D) and valid (B, T) bool."""
    counts = [len(frames) for frames in clips]
    images = torch.cat(list(clips)).to(encoder.mean.device)
    hidden = nn.utils.rnn.pad_sequence(encoder(images).split(counts), batch_first=True)
    valid = torch.arange(hidden.shape[1]) < torch.tensor(counts)[:, None]
    return hidden, valid.to(hidden.device)


def chunked_gradient(embed, chunks: Sequence[range], pair, loss_of, parameters: Sequence) -> float:
    """The gradient of one large batch in the memory of a chunk (Gao et al. 2021); returns the loss.

    embed : number of a chunk → embeddings (b, W) of its media and words, always the same
    chunks : rows of the batch, consecutive; ranks share them out
    loss_of : embeddings (B, W) of all media and words, and the logit scale → scalar
    parameters : get `.grad`, as `loss.backward()` on the whole batch would set it

    Sums over chunks are in double precision, so that they hardly depend on who has which chunk.
    """
    mine = share(list(enumerate(chunks)))
    rows, width = chunks[-1].stop, pair.media_head.out_features
    embeddings = torch.zeros(2, rows, width, device=pair.log_scale.device)
    with torch.no_grad():
        for number, chunk in mine:
            embeddings[:, chunk.start : chunk.stop] = torch.stack(embed(number))
    if world_size() > 1:
        dist.all_reduce(embeddings)
    leaves = [x.detach().clone().requires_grad_() for x in (*embeddings, pair.logit_scale)]
    loss = loss_of(*leaves)
    slopes = torch.autograd.grad(loss, leaves)
    total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for number, chunk in mine:
        outputs = [*embed(number), pair.logit_scale]
        of_outputs = [slope[chunk.start : chunk.stop] for slope in slopes[:2]]
        of_outputs.append(slopes[2] * (number == 0))  # one scale for the whole batch: once
        gradients = torch.autograd.grad(outputs, parameters, of_outputs, materialize_grads=True)
        for sum_, gradient in zip(total, gradients, strict=True):
            sum_ += gradient
    for sum_, parameter in zip(total, parameters, strict=True):
        if world_size() > 1:
            dist.all_reduce(sum_)
        parameter.grad = sum_.to(parameter.dtype)
    return loss.item()


def _gradient(media, text, pair, parameters, clips, rows, plan: StageOne, draw, seeds) -> float:
    """Set `.grad` to the gradient of Eq. 1 on some clips; returns the loss.

    draw : generator of what is seen of each clip; seeds : numbers that the dropout of chunks is of
    """
    device, vision = pair.log_scale.device, isinstance(media, VisionEncoder)
    sequence = clips.frames if vision else clips.waveforms
    texts = [clips.texts[row] for row in rows]
    eq1 = {"symmetric": plan.symmetric, "same_text": text_groups(texts).to(device)}
    loss_of = functools.partial(contrastive_loss, **eq1)
    lengths, longest = [_length(sequence, row) for row in rows], plan.audio_seconds * SAMPLE_RATE
    if vision:
        cuts = [drawn_frames(length, draw) for length in lengths]
    else:  # a stretch of each sound
        room = [max(1, length - round(longest)) for length in lengths]
        starts = [int(torch.randint(most, (), generator=draw)) for most in room]
        cuts = [slice(start, start + round(longest)) for start in starts]
    size = plan.chunk or math.ceil(len(rows) / world_size())
    chunks = [range(i, min(i + size, len(rows))) for i in range(0, len(rows), size)]

    def embed(number: int) -> tuple[Tensor, Tensor]:
        if len(chunks) > 1:
            torch.manual_seed(int(key(numbers=[*seeds, number])[:15], 16))
        tokens = text.tokens([texts[i] for i in chunks[number]])
        pieces = [sequence[rows[i]][cuts[i]] for i in chunks[number]]
        half = plan.mixed_precision is not None and device.type == "cuda"
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            if vision:
                hidden, valid = encoded_frames(media, pieces)
            else:
                waveforms, valid = padded([piece.float() for piece in pieces])
                hidden, valid = media(waveforms.to(device), valid.to(device))
            states = text(**{name: ids.to(device) for name, ids in tokens.items()})
            return pair.embed_media(hidden, valid).float(), pair.embed_text(states).float()

    if len(chunks) > 1:
        return chunked_gradient(embed, chunks, pair, loss_of, parameters)
    loss = loss_of(*embed(0), pair.logit_scale)
    loss.backward()
    return loss.item()


def _length(sequence: Sequence, row: int) -> int:
    """Length of one clip's media, 0 for None; without reading it where the sequence knows."""
    if hasattr(sequence, "length"):
        return sequence.length(row)
    return 0 if sequence[row] is None else len(sequence[row])

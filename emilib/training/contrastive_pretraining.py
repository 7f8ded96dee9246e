"""Stage I of paper A: vision-text and audio-text contrastive pretraining (3.3, Eq. 1, Eq. 10).

The two runs are decoupled: each has its own copy of the text encoder and its own projection
heads, and neither sees a label. With `StageOne.joint` they are one, with one text encoder, and the
loss is L_v2t + L_a2t. Stage II takes the encoders from here, not the heads.
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
from emilib.training.loop import OPTIMIZERS, load_state, save_state
from emilib.training.recipes import StageOne

STRETCHES = 8  # a step sees one frame of each stretch of a clip; not stated in the paper


@dataclasses.dataclass
class Clips:
    """What Stage I sees of N clips: media, which may be read when asked, and words; no label."""

    ids: list[str]
    frames: Sequence  # (T, 3, H, W) uint8, or None, one a clip
    audio: Sequence  # (S,) float at 16 kHz, or None
    texts: list[str]  # "" where there are none


@dataclasses.dataclass
class Contrast:
    """A finished run: encoders and heads, and its history, one row a step."""

    media: nn.Module
    text: TextEncoder
    pair: ContrastivePair
    history: list[dict]


def pretrain(media, text, clips, plan, seed, checkpoint=None, progress=None, device=None):
    """Contrast one modality with the words of the same clips; trains copies of the encoders.

    media : VisionEncoder or AudioEncoder; with `plan.joint` a list of both, and so is the result,
        with one text encoder; text : TextEncoder; clips : Clips
    checkpoint : folder; a killed run resumes after its last epoch, on a CPU to the same bits
    progress : called with (steps done, steps in all)
    device : None is the GPU of this rank where there is one, else the CPU; the result is on the CPU

    Several ranks divide each batch and come to the result of one process, to the same bits on a
    CPU with `plan.chunk`. Clips without words or this modality are left out, and so is an epoch's
    last, smaller batch. ValueError for fewer than two clips, or the checkpoint of another run.
    """
    if world_size() > 1:
        from accelerate import PartialState

        # A rank that ends while another still uses what it offers would take that one with it.
        atexit.register(PartialState().destroy_process_group)
    if plan.joint == isinstance(media, nn.Module):
        what = "a list of both encoders" if plan.joint else "one encoder"
        raise ValueError(f"expected {what} with joint={plan.joint}, got {type(media).__name__}")
    device = torch.device(workers.device() if device is None else device)
    encoders = nn.ModuleList(deepcopy(media if plan.joint else [media]))
    rows, side = usable(clips, *encoders), " and ".join(map(_side, encoders))
    if len(rows) < 2:
        raise ValueError(f"expected at least 2 clips with {side} and words, got {len(rows)}")
    text = deepcopy(text)
    for encoder in encoders:  # NumPy draws the masks of SpecAugment, where no seed of a run reaches
        if _side(encoder) == "audio":
            encoder.model.config.apply_spec_augment = False
    with torch.random.fork_rng():  # the caller's draws stay what they were
        torch.manual_seed(seed)  # heads and dropout
        heads = (plan.width, plan.segments, plan.temperature, plan.learn_temperature, plan.cosine)
        reference = {"frames": plan.frame_reference, "audio": "none"}
        pairs = (ContrastivePair(e.dim, text.dim, *heads, reference[_side(e)]) for e in encoders)
        pairs = nn.ModuleList(pairs)
        draw = torch.Generator().manual_seed(seed)
        for encoder in (encoders, text):
            encoder.requires_grad_(plan.train_encoders).train(plan.train_encoders)
        modules = [module.to(device) for module in (encoders, text, pairs)]
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        settings = {"lr": plan.lr_max, "weight_decay": plan.weight_decay}
        optimizer = OPTIMIZERS[plan.optimizer](parameters, **settings)
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
                drawn = plan, draw, (seed, len(history))
                losses = _gradient(*modules, parameters, clips, batch, *drawn)
                if plan.clip is not None:
                    nn.utils.clip_grad_norm_(parameters, plan.clip)
                optimizer.step()
                schedule.step()
                record = {"step": len(history), "epoch": epoch, "lr": lr}
                each = zip(losses, [pair.logit_scale.item() for pair in pairs], strict=True)
                history.append([record | {"loss": l, "logit_scale": s} for l, s in each])
                if progress:
                    progress(len(history), plan.epochs * steps)
            save_state(*run, (history, draw.get_state(), torch.get_rng_state()))
        if world_size() > 1:
            dist.barrier()  # the last checkpoint is written
    encoders, text, pairs = (module.cpu().eval() for module in modules)
    sides = zip(encoders, pairs, zip(*history, strict=True), strict=True)
    runs = [Contrast(encoder, text, pair, list(rows)) for encoder, pair, rows in sides]
    return runs if plan.joint else runs[0]


def usable(clips: Clips, *media: nn.Module) -> list[int]:
    """Positions of the clips that have words and the modality of each encoder."""
    rows = [i for i, text in enumerate(clips.texts) if text]
    for encoder in media:
        least = 1 if _side(encoder) == "frames" else encoder.shortest
        rows = [i for i in rows if _length(getattr(clips, _side(encoder)), i) >= least]
    return rows


def drawn_frames(count: int, generator: torch.Generator, reference="none") -> list[int]:
    """Positions of a random frame of each of min(8, count) stretches; 0 first for "first"."""
    borders = torch.linspace(0, count, min(STRETCHES, count) + 1).long().tolist()
    pairs = itertools.pairwise(borders)
    drawn = [a + int(torch.randint(b - a, (), generator=generator)) for a, b in pairs]
    return [0, *drawn[1:]] if reference == "first" else drawn


def encoded_frames(encoder: VisionEncoder, clips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """clips, (T, 3, H, W) uint8 each → hidden states (B, T, D) and valid (B, T) bool."""
    counts = [len(frames) for frames in clips]
    images = torch.cat(list(clips)).to(encoder.mean.device)
    hidden = nn.utils.rnn.pad_sequence(encoder(images).split(counts), batch_first=True)
    valid = torch.arange(hidden.shape[1]) < torch.tensor(counts)[:, None]
    return hidden, valid.to(hidden.device)


def chunked_gradient(embed, chunks: Sequence[range], pairs, loss_of, parameters: Sequence):
    """The gradient of one large batch in the memory of a chunk (Gao et al. 2021); returns the loss.

    embed : number of a chunk → embeddings (b, W) of its media and words by each pair
    chunks : rows of the batch, consecutive; ranks share them out
    loss_of : embeddings (B, W) of all media and words by each pair, and the logit scale of each →
        a loss, or several that are added up
    parameters : get `.grad`, as `loss.backward()` on the whole batch would set it
    """
    mine = share(list(enumerate(chunks)))
    rows, width = chunks[-1].stop, pairs[0].width
    embeddings = torch.zeros(2 * len(pairs), rows, width, device=pairs[0].log_scale.device)
    with torch.no_grad():
        for number, chunk in mine:
            embeddings[:, chunk.start : chunk.stop] = torch.stack(embed(number))
    if world_size() > 1:
        dist.all_reduce(embeddings)
    scales = [pair.logit_scale for pair in pairs]
    leaves = [x.detach().clone().requires_grad_() for x in (*embeddings, *scales)]
    loss = loss_of(*leaves)
    slopes = torch.autograd.grad(loss.sum(), leaves)
    total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for number, chunk in mine:
        outputs = [*embed(number), *(pair.logit_scale for pair in pairs)]
        of_outputs = [slope[chunk.start : chunk.stop] for slope in slopes[: len(embeddings)]]
        # One scale for the whole batch: once.
        of_outputs += [slope * (number == 0) for slope in slopes[len(embeddings) :]]
        both = [p for p in zip(outputs, of_outputs, strict=True) if p[0].requires_grad]
        outputs, of_outputs = zip(*both, strict=True)
        gradients = torch.autograd.grad(outputs, parameters, of_outputs, materialize_grads=True)
        for sum_, gradient in zip(total, gradients, strict=True):
            sum_ += gradient
    for sum_, parameter in zip(total, parameters, strict=True):
        if world_size() > 1:
            dist.all_reduce(sum_)
        parameter.grad = sum_.to(parameter.dtype)
    return loss.tolist()


def summands(*leaves: Tensor, **eq1) -> Tensor:
    """L_v2t and L_a2t of 3.6, or one of them: (K,), of embeddings and scales as `chunked_gradient`
    passes them."""
    pairs = len(leaves) // 3
    media, text, scales = leaves[0 : 2 * pairs : 2], leaves[1 : 2 * pairs : 2], leaves[2 * pairs :]
    sides = zip(media, text, scales, strict=True)
    return torch.stack([contrastive_loss(*side, **eq1) for side in sides])


def _gradient(encoders, text, pairs, parameters, clips, rows, plan: StageOne, draw, seeds) -> list:
    """Set `.grad` to the gradient of Eq. 1 on some clips; returns the loss of each encoder."""
    device, texts = pairs[0].log_scale.device, [clips.texts[row] for row in rows]
    same_text = text_groups(texts).to(device) if plan.mask_duplicates else None
    loss_of = functools.partial(summands, symmetric=plan.symmetric, same_text=same_text)
    cuts, longest = [], round(plan.audio_seconds * SAMPLE_RATE)
    for encoder in encoders:
        lengths = [_length(getattr(clips, _side(encoder)), row) for row in rows]
        if _side(encoder) == "frames":
            cuts.append([drawn_frames(length, draw, plan.frame_reference) for length in lengths])
        else:  # a stretch of each sound
            room = [max(1, length - longest) for length in lengths]
            starts = [int(torch.randint(most, (), generator=draw)) for most in room]
            cuts.append([slice(start, start + longest) for start in starts])
    size = plan.chunk or math.ceil(len(rows) / world_size())
    chunks = [range(i, min(i + size, len(rows))) for i in range(0, len(rows), size)]

    def embed(number: int) -> list[Tensor]:
        if len(chunks) > 1:
            torch.manual_seed(int(key(numbers=[*seeds, number])[:15], 16))
        tokens = text.tokens([texts[i] for i in chunks[number]])
        half, media = plan.mixed_precision is not None and device.type == "cuda", []
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            for encoder, cut in zip(encoders, cuts, strict=True):
                sequence = getattr(clips, _side(encoder))
                pieces = [sequence[rows[i]][cut[i]] for i in chunks[number]]
                if _side(encoder) == "frames":
                    media.append(encoded_frames(encoder, pieces))
                else:
                    waveforms, valid = padded([piece.float() for piece in pieces])
                    media.append(encoder(waveforms.to(device), valid.to(device)))
            states = text(**{name: ids.to(device) for name, ids in tokens.items()})
            sides = zip(pairs, media, strict=True)
            both = [(p.embed_media(*hidden), p.embed_text(states)) for p, hidden in sides]
            return [x.float() for side in both for x in side]

    if len(chunks) > 1:
        return chunked_gradient(embed, chunks, pairs, loss_of, parameters)
    losses = loss_of(*embed(0), *(pair.logit_scale for pair in pairs))
    losses.sum().backward()
    return losses.tolist()


def _side(encoder: nn.Module) -> str:
    return "frames" if isinstance(encoder, VisionEncoder) else "audio"


def _length(sequence: Sequence, row: int) -> int:
    """Length of one clip's media, 0 for None; without reading it where the sequence knows."""
    if hasattr(sequence, "length"):
        return sequence.length(row)
    return 0 if sequence[row] is None else len(sequence[row])

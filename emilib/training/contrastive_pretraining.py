"""Stage I of paper A: vision-text and audio-text contrastive pretraining (3.3, Eq. 1, Eq. 10).

The two runs are decoupled: each has its own copy of the text encoder and its own projection
heads, and neither sees a label. Stage II takes the encoders from here, not the heads.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from emilib import SAMPLE_RATE, workers
from emilib.cache import key, rank, share, world_size
from emilib.features.encoders import AudioEncoder, TextEncoder, VisionEncoder, padded
from emilib.models.contrastive import ContrastivePair, contrastive_loss, sgdr, text_groups
from emilib.training import distributed
from emilib.training.recipes import StageOne
from emilib.training.resume import load_state, save_state

STRETCHES = 8  # a step sees one frame of each stretch of a clip; not stated in the paper


@dataclasses.dataclass
class Clips:
    """What Stage I sees of N clips: media and words, no label.

    ids : N names
    frames : (T, 3, H, W) uint8, or None, one a clip; any sequence that reads them when asked
    waveforms : (S,) float at 16 kHz, or None; likewise
    texts : transcripts; "" where there are none
    """

    ids: list[str]
    frames: Sequence
    waveforms: Sequence
    texts: list[str]

    def __len__(self):
        return len(self.ids)


@dataclasses.dataclass
class Contrast:
    """A finished run: encoders and heads, and its history, one row a step."""

    media: nn.Module
    text: TextEncoder
    pair: ContrastivePair
    history: list[dict]


def pretrain(
    media: VisionEncoder | AudioEncoder,
    text: TextEncoder,
    clips: Clips,
    plan: StageOne,
    seed: int,
    checkpoint=None,
    progress: Callable[[int, int], None] | None = None,
    device=None,
) -> Contrast:
    """Contrast one modality with the words of the same clips; trains copies of the encoders.

    checkpoint : folder; a killed run resumes after its last finished epoch, to the same bits
    progress : called with (steps done, steps in all)
    device : None is the GPU of this rank where there is one, else the CPU; the result is on the CPU

    Several ranks divide each batch and come to the result of one process, to the same bits on a
    CPU with `plan.chunk`. Clips without words or without this modality are left out, and so is
    the last, smaller batch of an epoch, whose loss has fewer negatives. Raises ValueError when
    fewer than two clips are left, or for the checkpoint of another run.
    """
    path = None if checkpoint is None else Path(checkpoint) / "epoch.pt"
    device = torch.device(workers.device() if device is None else device)
    with torch.random.fork_rng():  # the caller's draws stay what they were
        run = _Run(media, text, clips, plan, seed, device)
        if path is not None:
            run.restore(path)
        while run.epoch < plan.epochs:
            run.train_epoch(progress)
            if path is not None and rank() == 0:
                run.save(path)
        distributed.barrier()  # the last checkpoint is written
    modules = (module.cpu().eval() for module in (run.media, run.text, run.pair))
    return Contrast(*modules, run.history)


def usable(clips: Clips, media: nn.Module) -> list[int]:
    """Positions of the clips that have words and this encoder's modality."""
    vision = isinstance(media, VisionEncoder)
    sequence, least = (clips.frames, 1) if vision else (clips.waveforms, media.shortest)
    return [i for i, text in enumerate(clips.texts) if text and _length(sequence, i) >= least]


def drawn_frames(count: int, generator: torch.Generator) -> list[int]:
    """Positions of one random frame of each of up to 8 equal stretches of a clip of `count`.

    A clip of fewer frames gives each of them once.
    """
    borders = torch.linspace(0, count, min(STRETCHES, count) + 1).long().tolist()
    return [
        start + int(torch.randint(end - start, (), generator=generator))
        for start, end in itertools.pairwise(borders)
    ]


def encoded_frames(encoder: VisionEncoder, clips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """clips, (T, 3, H, W) uint8 each → hidden states (B, T, D) and valid (B, T) bool."""
    counts = [len(frames) for frames in clips]
    images = torch.cat(list(clips)).to(encoder.mean.device)
    hidden = nn.utils.rnn.pad_sequence(encoder(images).split(counts), batch_first=True)
    valid = torch.arange(hidden.shape[1]) < torch.tensor(counts)[:, None]
    return hidden, valid.to(hidden.device)


def chunked_gradient(
    embed: Callable[[int], tuple[Tensor, Tensor]],
    chunks: Sequence[range],
    pair: ContrastivePair,
    loss_of: Callable[[Tensor, Tensor, Tensor], Tensor],
    parameters: Sequence[nn.Parameter],
) -> float:
    """The gradient of one large batch in the memory of a chunk (Gao et al. 2021); returns the loss.

    embed : number of a chunk → embeddings (b, W) of its media and words, with the same dropout
        at each call
    chunks : rows of the batch, consecutive; ranks share them out
    loss_of : embeddings (B, W) of all media and words, and the logit scale → scalar
    parameters : get `.grad`, as `loss.backward()` on the whole batch would set it

    Sums over chunks are in double precision, so that they hardly depend on who has which chunk.
    """
    mine = share(list(enumerate(chunks)))
    rows, width = chunks[-1].stop, pair.media_head.out_features
    embeddings = torch.zeros(2, rows, width, device=pair.log_scale.device)
    for number, chunk in mine:
        with torch.set_grad_enabled(len(mine) == 1):  # a single chunk's graph may as well be kept
            parts = embed(number)
        embeddings[:, chunk.start : chunk.stop] = torch.stack(parts).detach()
    leaves = [*_summed(embeddings), pair.logit_scale.detach()]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    loss = loss_of(*leaves)
    slopes = torch.autograd.grad(loss, leaves)
    total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for number, chunk in mine:
        if len(mine) > 1:
            parts = embed(number)
        outputs, gradients = [*parts], [slope[chunk.start : chunk.stop] for slope in slopes[:2]]
        if number == 0:  # the scale is one for the whole batch: its slope goes in once
            outputs, gradients = [*outputs, pair.logit_scale], [*gradients, slopes[2]]
        torch.autograd.backward(outputs, gradients)
        for sum_, parameter in zip(total, parameters, strict=True):
            if parameter.grad is not None:
                sum_ += parameter.grad
                parameter.grad = None
    for sum_, parameter in zip(total, parameters, strict=True):
        parameter.grad = _summed(sum_).to(parameter.dtype)
    return loss.item()


class _Run:
    """State of one contrastive run between epochs."""

    def __init__(self, media, text, clips, plan, seed, device):
        self.clips, self.plan, self.seed, self.device = clips, plan, seed, device
        self.media, self.text = deepcopy(media), deepcopy(text)
        self.epoch, self.history = 0, []
        self.side = "frames" if isinstance(media, VisionEncoder) else "audio"
        self.usable = usable(clips, media)
        if len(self.usable) < 2:
            raise ValueError(
                f"expected at least 2 clips with {self.side} and words, got {len(self.usable)}; "
                f"contrastive pretraining of {self.side} needs them as each other's negatives"
            )
        # NumPy draws the masks of SpecAugment, where no seed of a run reaches (not in the paper).
        if self.side == "audio":
            self.media.model.config.apply_spec_augment = False
        self.identity = key(plan=plan, seed=seed, side=self.side, clips=clips.ids)
        torch.manual_seed(seed)
        self.pair = ContrastivePair(media.dim, text.dim, plan.width, plan.segments)
        self.generator = torch.Generator().manual_seed(seed)
        for encoder in (self.media, self.text):
            encoder.requires_grad_(plan.train_encoders).train(plan.train_encoders)
        modules = [module.to(device) for module in (self.media, self.text, self.pair)]
        self.parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=plan.lr_max, weight_decay=plan.weight_decay
        )
        self.batch_size = min(plan.batch_size, len(self.usable))
        self.per_epoch = len(self.usable) // self.batch_size
        self.schedule = sgdr(self.optimizer, self.per_epoch, plan.cycle_epochs, plan.lr_min)

    def train_epoch(self, progress) -> None:
        order = torch.randperm(len(self.usable), generator=self.generator).tolist()
        for step in range(self.per_epoch):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            lr = self.schedule.get_last_lr()[0]
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.gradient([self.usable[i] for i in batch])
            nn.utils.clip_grad_norm_(self.parameters, 1.0)  # not stated in the paper
            self.optimizer.step()
            self.schedule.step()
            record = {"step": len(self.history), "epoch": self.epoch, "lr": lr, "loss": loss}
            self.history.append(record | {"logit_scale": self.pair.logit_scale.item()})
            if progress:
                progress(len(self.history), self.plan.epochs * self.per_epoch)
        self.epoch += 1

    def gradient(self, rows: list[int]) -> float:
        """Set `.grad` to the gradient of Eq. 1 on the batch; returns the loss."""
        cuts = [self.cut(i) for i in rows]  # drawn for the whole batch, on every rank
        groups = text_groups([self.clips.texts[i] for i in rows]).to(self.device)

        def loss_of(media: Tensor, text: Tensor, scale: Tensor) -> Tensor:
            return contrastive_loss(media, text, scale, self.plan.symmetric, groups)

        size = self.plan.chunk or math.ceil(len(rows) / world_size())
        chunks = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
        if len(chunks) == 1:
            loss = loss_of(*self.embed(rows, cuts), self.pair.logit_scale)
            loss.backward()
            return loss.item()

        def embed(number: int) -> tuple[Tensor, Tensor]:
            part = slice(chunks[number].start, chunks[number].stop)
            with torch.random.fork_rng([self.device.index or 0] if self.on_gpu else []):
                numbers = [self.seed, len(self.history), number]
                torch.manual_seed(int(key(numbers=numbers)[:15], 16))
                return self.embed(rows[part], cuts[part])

        return chunked_gradient(embed, chunks, self.pair, loss_of, self.parameters)

    def embed(self, rows: list[int], cuts: list) -> tuple[Tensor, Tensor]:
        """Embeddings of media and words of some clips, (B, W) float32 each."""
        tokens = self.text.tokens([self.clips.texts[i] for i in rows])
        tokens = {name: ids.to(self.device) for name, ids in tokens.items()}
        half = self.plan.mixed_precision is not None and self.on_gpu
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            if self.side == "frames":
                frames = [self.clips.frames[i][cut] for i, cut in zip(rows, cuts, strict=True)]
                hidden, valid = encoded_frames(self.media, frames)
            else:
                sounds = [self.clips.waveforms[i][cut] for i, cut in zip(rows, cuts, strict=True)]
                waveforms, valid = padded([sound.float() for sound in sounds])
                hidden, valid = self.media(waveforms.to(self.device), valid.to(self.device))
            media = self.pair.embed_media(hidden, valid)
            words = self.pair.embed_text(self.text(**tokens))
        return media.float(), words.float()

    def cut(self, row: int) -> list[int] | slice:
        """What one step sees of a clip: which frames, or which stretch of samples."""
        if self.side == "frames":
            return drawn_frames(_length(self.clips.frames, row), self.generator)
        longest = round(self.plan.audio_seconds * SAMPLE_RATE)
        spare = max(1, _length(self.clips.waveforms, row) - longest)
        start = int(torch.randint(spare, (), generator=self.generator))
        return slice(start, start + longest)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    PARTS = ("media", "text", "pair", "optimizer", "schedule")

    def save(self, path: Path) -> None:
        state = {
            "epoch": self.epoch,
            "history": self.history,
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if self.on_gpu else [],
            **{name: getattr(self, name).state_dict() for name in self.PARTS},
        }
        save_state(path, self.identity, state)

    def restore(self, path: Path) -> None:
        state = load_state(path, self.identity)
        if state is None:
            return
        for name in self.PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.epoch, self.history = state["epoch"], state["history"]
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        if state["cuda"] and self.on_gpu:
            torch.cuda.set_rng_state_all(state["cuda"])


def _length(sequence: Sequence, row: int) -> int:
    """Length of one clip's media, 0 for None; without reading it where the sequence knows."""
    if hasattr(sequence, "length"):
        return sequence.length(row)
    return 0 if sequence[row] is None else len(sequence[row])


def _summed(values: Tensor) -> Tensor:
    """Sum over ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values

"""Stage I of paper A: vision-text and audio-text contrastive pretraining (3.3, Eq. 1, Eq. 10).

The two runs are decoupled: each has its own copy of the text encoder and its own projection
heads, and neither sees a label. What Stage II takes from here are the encoders, not the heads.
"""

import dataclasses
import io
import itertools
import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from emilib import workers
from emilib.cache import atomic_write, key, rank, share, single_process, world_size
from emilib.features.encoders import SAMPLE_RATE, AudioEncoder, TextEncoder, VisionEncoder, padded
from emilib.models.contrastive import ContrastivePair, contrastive_loss, sgdr, text_groups
from emilib.training import distributed
from emilib.training.recipes import StageOne

# Frames a clip that one step of training looks at, one of each stretch.
STRETCHES = 8  # not stated in the paper


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

    checkpoint : folder; a run killed in it goes on from its last finished epoch
    progress : called with (steps done, steps in all)
    device : None is the GPU of this rank where there is one, else the CPU; the result is on the CPU

    Several ranks (`emilib.training.distributed`) divide each batch and come to the result of
    one process, to the rounding of sums on a CPU where `plan.chunk` is set.
    Clips without words or without this modality are left out, and so is the last, smaller batch
    of an epoch, whose loss has fewer negatives. Raises ValueError when fewer than two clips are
    left, or when the checkpoint is of another run.
    """
    if device is None:
        device = workers.device()
    with torch.random.fork_rng():  # the caller's draws stay what they were
        run = _Run(media, text, clips, plan, seed, torch.device(device))
        if checkpoint is not None:
            run.restore(Path(checkpoint))
        while run.epoch < plan.epochs:
            run.one_epoch(progress)
            if checkpoint is not None and rank() == 0:
                run.store(Path(checkpoint))
        distributed.barrier()  # the first rank has its last checkpoint written
    modules = (module.cpu().eval() for module in (run.media, run.text, run.pair))
    return Contrast(*modules, run.history)


def side_of(media: nn.Module) -> str:
    """ "frames" for a vision encoder, "audio" for an audio encoder."""
    return "frames" if isinstance(media, VisionEncoder) else "audio"


def usable(clips: Clips, media: nn.Module) -> list[int]:
    """Positions of the clips that have words and this encoder's modality."""
    if side_of(media) == "frames":
        sequence, least = clips.frames, 1
    else:
        sequence, least = clips.waveforms, media.shortest
    here = [_length(sequence, row) >= least for row in range(len(clips))]
    return [i for i, text in enumerate(clips.texts) if text and here[i]]


def _length(sequence: Sequence, row: int) -> int:
    """Length of one clip's media, 0 for None; without reading it where the sequence knows."""
    if hasattr(sequence, "length"):
        return sequence.length(row)
    return 0 if sequence[row] is None else len(sequence[row])


class _Run:
    """State of one contrastive run between epochs."""

    def __init__(self, media, text, clips, plan, seed, device):
        self.clips, self.plan, self.epoch, self.history = clips, plan, 0, []
        self.seed, self.device = seed, device
        self.media, self.text = deepcopy(media), deepcopy(text)
        self.side, self.usable = side_of(media), usable(clips, media)
        # Its masks are drawn by NumPy, where no seed of a run reaches (not stated in the paper).
        if self.side == "audio":
            self.media.model.config.apply_spec_augment = False
        if len(self.usable) < 2:
            raise ValueError(
                f"contrastive pretraining of {self.side} needs at least 2 clips that have "
                f"{self.side} and words, came {len(self.usable)}"
            )
        self.identity = key(plan=plan, seed=seed, side=self.side, clips=clips.ids)
        torch.manual_seed(seed)
        self.pair = ContrastivePair(media.dim, text.dim, plan.width, plan.segments)
        self.generator = torch.Generator().manual_seed(seed)
        for encoder in (self.media, self.text):
            encoder.requires_grad_(plan.train_encoders).train(plan.train_encoders)
        modules = [module.to(device) for module in (self.media, self.text, self.pair)]
        self.parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=plan.lr_max, weight_decay=plan.weight_decay
        )
        self.batch_size = min(plan.batch_size, len(self.usable))
        self.per_epoch = len(self.usable) // self.batch_size
        self.schedule = sgdr(self.optimiser, self.per_epoch, plan.cycle_epochs, plan.lr_min)

    def one_epoch(self, progress) -> None:
        order = torch.randperm(len(self.usable), generator=self.generator).tolist()
        for step in range(self.per_epoch):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            lr = self.schedule.get_last_lr()[0]
            self.optimiser.zero_grad(set_to_none=True)
            loss = self.gradient([self.usable[i] for i in batch])
            nn.utils.clip_grad_norm_(self.parameters, 1.0)  # not stated in the paper
            self.optimiser.step()
            self.schedule.step()
            record = {"step": len(self.history), "epoch": self.epoch, "lr": lr}
            record |= {"loss": loss, "logit_scale": self.pair.logit_scale.item()}
            self.history.append(record)
            if progress:
                progress(len(self.history), self.plan.epochs * self.per_epoch)
        self.epoch += 1

    def gradient(self, rows: list[int]) -> float:
        """Add the gradient of the batch to `.grad`; returns its loss."""
        cuts = [self.cut(i) for i in rows]  # drawn for the whole batch, on every rank
        groups = text_groups([self.clips.texts[i] for i in rows]).to(self.device)
        size = self.plan.chunk or math.ceil(len(rows) / world_size())
        chunks = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
        if len(chunks) == 1:
            media, text = self.embed(rows, cuts)
            loss = self.loss(media, text, self.pair.logit_scale, groups)
            loss.backward()
            return loss.item()
        return self.cached_gradient(rows, cuts, groups, chunks)

    def cached_gradient(self, rows, cuts, groups, chunks) -> float:
        """The gradient of one large batch from its chunks, shared by the ranks (Gao et al. 2021).

        Chunks are embedded, the loss and its slope on the embeddings of all are computed, then
        each chunk is embedded again, with a graph, and given its part. A chunk draws its dropout
        from a generator of its own, and chunks are summed in double precision: so neither depends
        on which rank has which chunk.
        """
        mine = share(list(enumerate(chunks)))
        once = len(mine) == 1  # a single chunk's graph may as well be kept
        width = self.plan.width
        embeddings = torch.zeros(2, len(rows), width, device=self.device)
        for number, chunk in mine:
            with torch.set_grad_enabled(once):
                parts = self.embed_chunk(rows, cuts, number, chunk)
            embeddings[:, chunk.start : chunk.stop] = torch.stack(parts).detach()
        _sum_over_ranks(embeddings)
        leaves = [leaf.clone().requires_grad_() for leaf in (*embeddings, self.scale())]
        loss = self.loss(*leaves, groups)
        slopes = torch.autograd.grad(loss, leaves)
        total = [torch.zeros_like(p, dtype=torch.float64) for p in self.parameters]
        for number, chunk in mine:
            if not once:
                parts = self.embed_chunk(rows, cuts, number, chunk)
            outputs = [*parts, self.pair.logit_scale]
            given = [*(s[chunk.start : chunk.stop] for s in slopes[:2]), slopes[2]]
            if number > 0:  # the scale is one for the whole batch: its slope goes in once
                outputs, given = outputs[:2], given[:2]
            torch.autograd.backward(outputs, given)
            for sum_, parameter in zip(total, self.parameters, strict=True):
                if parameter.grad is not None:
                    sum_ += parameter.grad
                    parameter.grad = None
        for sum_, parameter in zip(total, self.parameters, strict=True):
            parameter.grad = _sum_over_ranks(sum_).to(parameter.dtype)
        return loss.item()

    def scale(self) -> torch.Tensor:
        return self.pair.logit_scale.detach()

    def embed_chunk(self, rows, cuts, number: int, chunk: range):
        """`embed` of a part of the batch; the same dropout whenever and wherever it is asked."""
        devices = [self.device.index or 0] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(_draw_of(self.seed, len(self.history), number))
            return self.embed([rows[i] for i in chunk], [cuts[i] for i in chunk])

    def embed(self, rows: list[int], cuts: list) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of both sides of some clips, (B, W) float32 each."""
        tokens = self.text.tokens([self.clips.texts[i] for i in rows])
        tokens = {name: ids.to(self.device) for name, ids in tokens.items()}
        half = self.plan.mixed_precision is not None and self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            hidden, valid = self.media_states(rows, cuts)
            media = self.pair.embed_media(hidden, valid)
            words = self.pair.embed_text(self.text(**tokens))
        return media.float(), words.float()

    def loss(self, media, text, scale, groups) -> torch.Tensor:
        """Eq. 1 over the whole batch. Equal transcripts are not negatives of each other."""
        with single_process():  # the embeddings of all ranks are here already
            return contrastive_loss(
                media, text, scale, symmetric=self.plan.symmetric, same_text=groups
            )

    def cut(self, row: int):
        """What one step looks at of a clip: which frames, or which stretch of samples."""
        if self.side == "frames":
            return drawn_frames(_length(self.clips.frames, row), self.draw)
        longest = round(self.plan.audio_seconds * SAMPLE_RATE)
        start = int(self.draw(max(1, _length(self.clips.waveforms, row) - longest)))
        return slice(start, start + longest)

    def media_states(self, rows: list[int], cuts: list) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (B, T, D) of the cuts, and their mask."""
        if self.side == "frames":
            frames = [self.clips.frames[i][cut] for i, cut in zip(rows, cuts, strict=True)]
            return encoded_frames(self.media, frames)
        sounds = [self.clips.waveforms[i][cut].float() for i, cut in zip(rows, cuts, strict=True)]
        waveforms, valid = padded(sounds)
        return self.media(waveforms.to(self.device), valid.to(self.device))

    def draw(self, high: int) -> torch.Tensor:
        return torch.randint(high, (), generator=self.generator)

    def store(self, folder: Path) -> None:
        """Everything needed to go on with the next epoch, written atomically."""
        state = {
            "identity": self.identity,
            "epoch": self.epoch,
            "history": self.history,
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            **{name: getattr(self, name).state_dict() for name in self.STATES},
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        atomic_write(folder / "epoch.pt", buffer.getvalue())

    STATES = ("media", "text", "pair", "optimiser", "schedule")

    def restore(self, folder: Path) -> None:
        path = folder / "epoch.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location="cpu")
        if state["identity"] != self.identity:
            raise ValueError(
                f"{path}: expected a checkpoint of this run, came one of another plan, seed, side "
                "or list of clips; remove it or give another folder"
            )
        for name in self.STATES:
            getattr(self, name).load_state_dict(state[name])
        self.epoch, self.history = state["epoch"], state["history"]
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        if state["cuda"] and self.device.type == "cuda":
            torch.cuda.set_rng_state_all(state["cuda"])


def drawn_frames(count: int, draw) -> list[int]:
    """One random frame of each of up to 8 stretches of a clip of `count` frames.

    draw(n) gives a number below n. A clip of fewer frames gives each of them once.
    """
    borders = torch.linspace(0, count, min(STRETCHES, count) + 1).long().tolist()
    return [start + int(draw(end - start)) for start, end in itertools.pairwise(borders)]


def encoded_frames(encoder: VisionEncoder, clips: Sequence[torch.Tensor]):
    """clips, (T, 3, H, W) uint8 each → (B, T, D) and (B, T) bool."""
    counts = [len(frames) for frames in clips]
    images = torch.cat(list(clips)).to(encoder.mean.device)
    hidden = nn.utils.rnn.pad_sequence(encoder(images).split(counts), batch_first=True)
    valid = torch.arange(hidden.shape[1]) < torch.tensor(counts)[:, None]
    return hidden, valid.to(hidden.device)


def _sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def _draw_of(*numbers: int) -> int:
    """A 63-bit seed from whole numbers."""
    return int(key(numbers=list(numbers))[:15], 16)

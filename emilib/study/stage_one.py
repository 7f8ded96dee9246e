"""Stage I of paper A: vision-text and audio-text contrastive pretraining (3.3, Eq. 1, Eq. 10).

The two runs are decoupled: each has its own copy of the text encoder and its own projection
heads, and neither sees a label. What Stage II takes from here are the encoders, not the heads.
"""

import dataclasses
import io
import itertools
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn

from ..cache import atomic_write, key
from ..features.encoders import SAMPLE_RATE, AudioEncoder, TextEncoder, VisionEncoder, padded
from ..models.contrastive import ContrastivePair, contrastive_loss, sgdr, text_groups
from .plans import StageOne

# Frames a clip that one step of training looks at, one of each stretch.
STRETCHES = 8  # not stated in the paper


@dataclasses.dataclass
class Clips:
    """What Stage I sees of N clips: media and words, no label.

    ids : N names
    frames : (T, 3, H, W) uint8, or None, one a clip
    waveforms : (S,) float at 16 kHz, or None
    texts : transcripts; "" where there are none
    """

    ids: list[str]
    frames: list
    waveforms: list
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
    device : None is the first GPU where there is one, else the CPU; the result is on the CPU

    Clips without words or without this modality are left out, and so is the last, smaller batch
    of an epoch, whose loss has fewer negatives. Raises ValueError when fewer than two clips are
    left, or when the checkpoint is of another run.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng():  # the caller's draws stay what they were
        run = _Run(media, text, clips, plan, seed, torch.device(device))
        if checkpoint is not None:
            run.restore(Path(checkpoint))
        while run.epoch < plan.epochs:
            run.one_epoch(progress)
            if checkpoint is not None:
                run.store(Path(checkpoint))
    modules = (module.cpu().eval() for module in (run.media, run.text, run.pair))
    return Contrast(*modules, run.history)


def side_of(media: nn.Module) -> str:
    """ "frames" for a vision encoder, "audio" for an audio encoder."""
    return "frames" if isinstance(media, VisionEncoder) else "audio"


def usable(clips: Clips, media: nn.Module) -> list[int]:
    """Positions of the clips that have words and this encoder's modality."""
    if side_of(media) == "frames":
        here = [frames is not None and len(frames) > 0 for frames in clips.frames]
    else:
        here = [w is not None and len(w) >= media.shortest for w in clips.waveforms]
    return [i for i, text in enumerate(clips.texts) if text and here[i]]


class _Run:
    """State of one contrastive run between epochs."""

    def __init__(self, media, text, clips, plan, seed, device):
        self.clips, self.plan, self.epoch, self.history = clips, plan, 0, []
        self.device = device
        self.media, self.text = deepcopy(media), deepcopy(text)
        self.side, self.usable = side_of(media), usable(clips, media)
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
            loss = self.loss([self.usable[i] for i in batch])
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)  # not stated in the paper
            self.optimiser.step()
            self.schedule.step()
            record = {"step": len(self.history), "epoch": self.epoch, "lr": lr}
            record |= {"loss": loss.item(), "logit_scale": self.pair.logit_scale.item()}
            self.history.append(record)
            if progress:
                progress(len(self.history), self.plan.epochs * self.per_epoch)
        self.epoch += 1

    def loss(self, rows: list[int]) -> torch.Tensor:
        texts = [self.clips.texts[i] for i in rows]
        hidden, valid = self.media_states(rows)
        media = self.pair.embed_media(hidden, valid)
        tokens = {name: ids.to(self.device) for name, ids in self.text.tokens(texts).items()}
        words = self.pair.embed_text(self.text(**tokens))
        # Equal transcripts are not negatives of each other.
        same = text_groups(texts).to(self.device)
        return contrastive_loss(
            media, words, self.pair.logit_scale, symmetric=self.plan.symmetric, same_text=same
        )

    def media_states(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (B, T, D) and their mask, of a random cut of each clip."""
        if self.side == "frames":
            return sampled_frames(self.media, [self.clips.frames[i] for i in rows], self.draw)
        longest = round(self.plan.audio_seconds * SAMPLE_RATE)
        cuts = []
        for i in rows:
            waveform = self.clips.waveforms[i]
            start = int(self.draw(max(1, len(waveform) - longest)))
            cuts.append(waveform[start : start + longest])
        waveforms, valid = padded([cut.float() for cut in cuts])
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


def sampled_frames(encoder: VisionEncoder, clips: Sequence[torch.Tensor], draw):
    """One random frame of each of up to M = 8 stretches of each clip, encoded.

    clips : (T, 3, H, W) uint8 each; draw(n) gives a number below n
    Returns (B, M, D) and (B, M) bool. A clip shorter than M frames gives each of them once.
    """
    picked, counts = [], []
    for frames in clips:
        borders = torch.linspace(0, len(frames), min(STRETCHES, len(frames)) + 1).long().tolist()
        rows = [start + int(draw(end - start)) for start, end in itertools.pairwise(borders)]
        picked.append(frames[rows])
        counts.append(len(rows))
    images = torch.cat(picked).to(encoder.mean.device)
    hidden = nn.utils.rnn.pad_sequence(encoder(images).split(counts), batch_first=True)
    valid = torch.arange(hidden.shape[1]) < torch.tensor(counts)[:, None]
    return hidden, valid.to(hidden.device)

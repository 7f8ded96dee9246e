"""Stage I of paper A: contrastive alignment of frames or audio with text (Eq. 1), SGDR (Eq. 10).

Each media side is aligned with text in a run of its own: a `ContrastivePair` holds one media
side and the text side, `contrastive_loss` is what it minimises. Batches are gathered over all
ranks, so that N processes compute the loss and gradient of one, and `cached_contrastive_step`
gives a large batch's gradient in the memory of a small one.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from safetensors.torch import save_file
from torch import Tensor, nn
from torch import distributed as dist

from emilib.cache import in_single_process
from emilib.models.inputs import check_features, check_finite, check_mask
from emilib.models.temporal import pool_segments

TEMPERATURE = 0.07  # where CLIP begins; not stated in the paper
HIGHEST_SCALE = 100.0  # bound of the logit scale, as in CLIP; not stated in the paper


class ContrastivePair(nn.Module, PyTorchModelHubMixin):
    """Projection heads of one media side and of text, with a learnable temperature.

    media_dim, text_dim : widths of the hidden states or pooled features
    width : common width of the embeddings
    segments : M of the segment-wise average pooling that makes one vector of a clip
    media_encoder, text_encoder : modules or any callables that return hidden states
        (B, T, D) and their mask (B, T) bool, or pooled (B, D), from what `forward` is given.
        None: `forward` takes these states themselves, which trains the heads only. Encoders are
        trained with the pair where they are modules, and are saved by their own means: the
        saved pair is the heads.

    The paper puts d_a = 1024 and d_s = 768 into one dot product and names no projection; heads
    to a common width, cosine similarity and a learnable temperature are not stated in it.
    """

    def __init__(
        self,
        media_dim: int,
        text_dim: int = 768,
        width: int = 256,
        segments: int = 8,
        temperature: float = TEMPERATURE,
        media_encoder: Callable[..., Any] | None = None,
        text_encoder: Callable[..., Any] | None = None,
    ):
        super().__init__()
        if temperature < 1 / HIGHEST_SCALE:
            raise ValueError(
                f"expected a temperature of at least {1 / HIGHEST_SCALE}, got {temperature}"
            )
        self.media_dim, self.text_dim, self.segments = media_dim, text_dim, segments
        self.media_head = nn.Linear(media_dim, width, bias=False)
        self.text_head = nn.Linear(text_dim, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.media_encoder = media_encoder
        self.text_encoder = text_encoder

    @property
    def logit_scale(self) -> Tensor:
        """1/τ of Eq. 1, at most `HIGHEST_SCALE`."""
        # The parameter itself is brought back: a clamp in the graph would have no gradient
        # beyond the bound, and a scale that crossed it once could never return.
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(HIGHEST_SCALE))
        return self.log_scale.exp()

    def embed_media(self, media: Any, valid: Tensor | None = None) -> Tensor:
        """Media of B clips → (B, width), L2-normalised.

        Without an encoder: media (B, T, media_dim) with valid (B, T) bool, or pooled
        (B, media_dim). With one: whatever it takes; a mapping is passed as keywords.
        """
        pooled = self._pool("media", self.media_encoder, media, valid, self.media_dim)
        return F.normalize(self.media_head(pooled), dim=-1)

    def embed_text(self, text: Any, valid: Tensor | None = None) -> Tensor:
        """Transcripts of B clips → (B, width), L2-normalised; inputs as in `embed_media`."""
        pooled = self._pool("text", self.text_encoder, text, valid, self.text_dim)
        return F.normalize(self.text_head(pooled), dim=-1)

    def forward(
        self,
        media: Any,
        text: Any,
        media_valid: Tensor | None = None,
        text_valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of both sides (B, width) and the logit scale."""
        return (
            self.embed_media(media, media_valid),
            self.embed_text(text, text_valid),
            self.logit_scale,
        )

    def _pool(self, name: str, encoder, states: Any, valid: Tensor | None, width: int) -> Tensor:
        if encoder is not None:
            states = encoder(**states) if isinstance(states, Mapping) else encoder(states)
            states, valid = states if isinstance(states, tuple) else (states, valid)
        if isinstance(states, Tensor) and states.ndim == 2:
            check_features(name, states, width, steps=False)
            check_finite(name, states)
            return states
        check_features(name, states, width, steps=True)
        return pool_clip(states, valid, self.segments, name)

    def _save_pretrained(self, save_directory: Path) -> None:
        heads = {
            key: value.contiguous()
            for key, value in self.state_dict().items()
            if not key.startswith(("media_encoder.", "text_encoder."))
        }
        save_file(heads, save_directory / SAFETENSORS_SINGLE_FILE)


def pool_clip(
    hidden_states: Tensor, valid: Tensor | None, segments: int, name: str = "hidden_states"
) -> Tensor:
    """Segment-wise average pooling to one vector: the mean of the segments' means (Stage I).

    hidden_states (B, T, D), valid (B, T) bool or None; returns (B, D). Segments without a real
    step do not count. Raises ValueError for a mask that does not fit, NaN at a real step, or a
    clip without a real step: it has nothing to align.
    """
    shape = hidden_states.shape[:2]
    if valid is None:
        valid = torch.ones(shape, dtype=torch.bool, device=hidden_states.device)
    check_mask(f"{name}_valid", valid, shape)
    if not valid.any(1).all():
        row = int((~valid.any(1)).nonzero()[0])
        raise ValueError(
            f"expected {name} with a real step in every clip, but row {row} has none; leave "
            "clips that lack a side out of contrastive batches"
        )
    if not valid.all():
        hidden_states = hidden_states.masked_fill(~valid.unsqueeze(-1), 0.0)
    check_finite(name, hidden_states)
    means, real = pool_segments(hidden_states, valid, segments)
    return means.sum(1) / real.sum(1, keepdim=True)


def contrastive_loss(
    media_embedding: Tensor,
    text_embedding: Tensor,
    logit_scale: Tensor | float,
    symmetric: bool = True,
    same_text: Tensor | None = None,
) -> Tensor:
    """InfoNCE between the two sides of B clips; pair i is row i of both (paper A, Eq. 1).

    media_embedding, text_embedding : (B, W) float, normalised as `ContrastivePair` does
    logit_scale : 1/τ
    symmetric : mean of media → text and text → media, as CLIP; False is Eq. 1 to the letter,
        media → text only
    same_text : (B,) long, clips of one number have the same transcript (`text_groups`), or
        (B, B) bool. Such clips are not negatives of each other: left out of the denominators.

    In a process group the batches of all ranks are gathered first. Every rank returns the loss
    of the whole batch, and when gradients are averaged over ranks, as DistributedDataParallel
    does, they are those of one process with the whole batch. Needs batches of one size and
    `same_text` as numbers there.
    Raises ValueError where shapes disagree.
    """
    _check_pairs(media_embedding, text_embedding, same_text)
    if not in_single_process() and dist.is_initialized() and dist.get_world_size() > 1:
        media_embedding, text_embedding, same_text = _gather(
            media_embedding, text_embedding, same_text
        )
    # Similarities times up to 100 need more than half precision.
    dtype = torch.promote_types(media_embedding.dtype, torch.float32)
    with torch.autocast(media_embedding.device.type, enabled=False):
        logits = media_embedding.to(dtype) @ text_embedding.to(dtype).T  # (B, B)
        logits = logit_scale * logits
    if same_text is not None:
        if same_text.ndim == 1:
            same_text = same_text[:, None] == same_text
        itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(same_text & ~itself, -torch.inf)
    pairs = torch.arange(len(logits), device=logits.device)
    loss = F.cross_entropy(logits, pairs)
    if symmetric:
        loss = (loss + F.cross_entropy(logits.T, pairs)) / 2
    return loss


def text_groups(transcripts: Sequence[str]) -> Tensor:
    """(B,) long, equal where transcripts are equal but for case and spacing.

    The numbers come from the text alone, so they agree between processes and batches.
    """
    plain = (" ".join(text.lower().split()) for text in transcripts)
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in plain)
    return torch.tensor([int.from_bytes(d, "big", signed=True) for d in digests])


def cached_contrastive_step(
    pair: nn.Module,
    chunks: Sequence[tuple],
    *,
    symmetric: bool = True,
    same_text: Tensor | None = None,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> Tensor:
    """The gradient of one large batch in the memory of a small one (gradient caching).

    Embeds every chunk without a graph, computes the loss and its gradient on the embeddings,
    then embeds chunk by chunk again with a graph and passes each its part of the gradient. Both
    passes draw the same dropout. Adds to `.grad` what `contrastive_loss(...).backward()` on the
    whole batch adds.

    pair : a `ContrastivePair`, or one wrapped in DistributedDataParallel
    chunks : arguments of `pair.forward`, a tuple for each part of the batch
    symmetric, same_text : as in `contrastive_loss`, same_text for the clips of all chunks
    backward : called with a scalar; `Accelerator.backward` where Accelerate scales gradients

    Returns the loss, detached. Raises ValueError without a chunk. See Gao et al. 2021.
    """
    if not chunks:
        raise ValueError("expected at least one chunk of a batch, got none")
    states, media, text = [], [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state())
            media_part, text_part, scale = pair(*chunk)
            media.append(media_part)
            text.append(text_part)
    leaves = [torch.cat(media), torch.cat(text), scale.clone()]
    with torch.enable_grad():
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        loss = contrastive_loss(*leaves, symmetric=symmetric, same_text=same_text)
        gradients = torch.autograd.grad(loss, leaves)
    torch.clear_autocast_cache()  # it holds weights cast without a graph
    sizes = [len(part) for part in media]
    parts = zip(chunks, states, gradients[0].split(sizes), gradients[1].split(sizes), strict=True)
    for number, (chunk, state, media_gradient, text_gradient) in enumerate(parts, start=1):
        last = number == len(chunks)
        with _no_sync(pair, not last), torch.random.fork_rng(_cuda_devices()):
            _set_random_state(state)
            media_part, text_part, scale = pair(*chunk)
            surrogate = (media_part * media_gradient).sum() + (text_part * text_gradient).sum()
            # The scale is one for the whole batch: its gradient goes in once.
            surrogate = surrogate + scale * (gradients[2] if last else 0.0)
            backward(surrogate)
    return loss.detach()


def recall_at(media: Tensor, text: Tensor, k: int, groups: Tensor | None = None) -> float:
    """Share of transcripts whose own clip is among the k most similar clips (text → clip).

    media, text : (N, W) embeddings, pair i is row i of both
    groups : (N,) long or (N, N) bool; any clip with the same transcript counts as the own one

    An equally similar wrong clip counts as ahead, so collapsed embeddings score 0, not 1.
    Raises ValueError where shapes disagree or k is below 1.
    """
    _check_pairs(media, text, groups)
    if k < 1:
        raise ValueError(f"expected k of at least 1, got {k}")
    similarity = text.double() @ media.double().T  # (queries, clips)
    groups = torch.arange(len(text), device=text.device) if groups is None else groups
    own = groups if groups.ndim == 2 else groups[:, None] == groups
    best = similarity.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    ahead = ((similarity >= best) & ~own).sum(1)
    return float((ahead < k).double().mean())


def alignment(media: Tensor, text: Tensor) -> float:
    """Mean squared distance of the two sides of a pair (Wang and Isola 2020); 0 is perfect.

    media, text : (N, W), normalised.
    """
    _check_pairs(media, text)
    return float((media - text).double().square().sum(1).mean())


def uniformity(embedding: Tensor) -> float:
    """log mean exp(-2 d²) over all pairs of clips (Wang and Isola 2020); lower is more spread.

    embedding : (N, W), normalised, N at least 2. A collapsed embedding gives 0, the highest.
    """
    if embedding.ndim != 2 or len(embedding) < 2:
        raise ValueError(
            f"expected embeddings (N, W) of at least 2 clips, got {tuple(embedding.shape)}"
        )
    return float(torch.pdist(embedding.double()).square().mul(-2).exp().mean().log())


def sgdr(
    optimizer: torch.optim.Optimizer,
    steps_per_epoch: int,
    cycle_epochs: int = 10,
    lr_min: float = 1e-7,
) -> torch.optim.lr_scheduler.CosineAnnealingWarmRestarts:
    """Cosine annealing with warm restarts (paper A, Eq. 10), to be stepped after every step.

    η_max is the optimiser's learning rate, 1e-5 in the paper; T_cur counts steps in the cycle.
    A restart sets the learning rate only: the optimiser's momentum stays.
    """
    if steps_per_epoch < 1 or cycle_epochs < 1:
        raise ValueError(
            f"expected at least one step an epoch and one epoch a cycle, got {steps_per_epoch} "
            f"and {cycle_epochs}"
        )
    return torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        optimizer, T_0=cycle_epochs * steps_per_epoch, eta_min=lr_min
    )


class _AllGather(torch.autograd.Function):
    """(B, W) of every rank stacked in rank order; the gradient is summed over ranks."""

    @staticmethod
    def forward(ctx, local: Tensor) -> Tensor:
        ctx.rows = len(local)
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank() * ctx.rows :][: ctx.rows]


def _gather(
    media: Tensor, text: Tensor, same_text: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    if same_text is not None and same_text.ndim != 1:
        raise ValueError(
            "expected same_text as (B,) group numbers when batches of several processes are "
            f"gathered, got shape {tuple(same_text.shape)}; use text_groups(transcripts)"
        )
    sizes = torch.zeros(dist.get_world_size(), dtype=torch.long, device=media.device)
    sizes[dist.get_rank()] = len(media)
    dist.all_reduce(sizes)
    if (sizes != len(media)).any():
        raise ValueError(
            f"expected batches of one size on every rank, got {sizes.tolist()}; drop the last "
            "incomplete batch"
        )
    groups = None if same_text is None else _AllGather.apply(same_text.to(media.device))
    return _AllGather.apply(media), _AllGather.apply(text), groups


def _check_pairs(media: Tensor, text: Tensor, groups: Tensor | None = None) -> None:
    if media.ndim != 2 or media.shape != text.shape or len(media) == 0:
        raise ValueError(
            "expected media and text embeddings of one shape (B, W) with B at least 1, got "
            f"{tuple(media.shape)} and {tuple(text.shape)}"
        )
    if groups is None:
        return
    rows = len(media)
    numbers = groups.shape == (rows,) and not groups.dtype.is_floating_point
    if not numbers and not (groups.shape == (rows, rows) and groups.dtype == torch.bool):
        raise ValueError(
            f"expected the groups of equal transcripts as ({rows},) long or ({rows}, {rows}) "
            f"bool, got {tuple(groups.shape)} {groups.dtype}"
        )


def _no_sync(pair: nn.Module, on: bool):
    return pair.no_sync() if on and hasattr(pair, "no_sync") else nullcontext()


def _cuda_devices() -> list[int]:
    return [torch.cuda.current_device()] if torch.cuda.is_initialized() else []


def _random_state() -> tuple[Tensor, Tensor | None]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return torch.get_rng_state(), cuda


def _set_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])

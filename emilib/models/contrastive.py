"""Stage I of paper A: contrastive alignment of frames or audio with text (Eq. 1), SGDR (Eq. 10)."""

import hashlib
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from emilib.models.inputs import check_choice
from emilib.models.temporal import pool_segments

HIGHEST_SCALE = 100.0  # bound of the logit scale, as in CLIP; not stated in the paper


class ContrastivePair(nn.Module, PyTorchModelHubMixin):
    """Projection heads of one media side and of text, with a learnable temperature of their own.

    media_dim, text_dim : widths of the hidden states or pooled features
    width : common width of the embeddings; None: no heads, for sides of one width
    segments : M of the segment-wise average pooling that makes one vector of a clip
    temperature : τ at the beginning, as in CLIP; for good with learn_temperature=False
    cosine : embeddings are brought to length 1
    reference : "first" makes the clip's vector one of changes since its first step, see `pool_clip`

    The paper puts d_a = 1024 and d_s = 768 into one dot product and names no projection; heads
    to a common width, cosine similarity and a learnable temperature are not stated in it.
    Raises ValueError for two widths without heads, or another reference than "first" and "none".
    """

    def __init__(
        self,
        media_dim: int,
        text_dim: int = 768,
        width: int | None = 256,
        segments: int = 8,
        temperature: float = 0.07,
        learn_temperature: bool = True,
        cosine: bool = True,
        reference: str = "none",
    ):
        super().__init__()
        check_choice("reference", reference, ("none", "first"))
        if width is None and media_dim != text_dim:
            sides = f"{media_dim} and {text_dim}"
            raise ValueError(f"expected a width of heads, or sides of one width, got {sides}")
        self.segments, self.reference = segments, reference
        self.cosine, self.width = cosine, width or media_dim
        head = (lambda dim: nn.Linear(dim, width, bias=False)) if width else lambda _: nn.Identity()
        self.media_head, self.text_head = head(media_dim), head(text_dim)
        log_scale = torch.tensor(math.log(1 / temperature))
        self.log_scale = nn.Parameter(log_scale, requires_grad=learn_temperature)

    @property
    def logit_scale(self) -> Tensor:
        """1/τ of Eq. 1, at most `HIGHEST_SCALE`."""
        # Detached: a clamp has no gradient beyond its bound, and the scale could never return.
        excess = (self.log_scale - math.log(HIGHEST_SCALE)).clamp(min=0).detach()
        return (self.log_scale - excess).exp()

    def embed_media(self, media: Tensor, valid: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, media_dim) with valid (B, T) bool, or pooled (B, media_dim) →
        (B, width), L2-normalised with `cosine`."""
        if media.ndim == 3:
            media = pool_clip(media, valid, self.segments, self.reference)
        embedding = self.media_head(media)
        return F.normalize(embedding, dim=-1) if self.cosine else embedding

    def embed_text(self, text: Tensor) -> Tensor:
        """Transcripts' vectors (B, text_dim) → (B, width), L2-normalised with `cosine`."""
        embedding = self.text_head(text)
        return F.normalize(embedding, dim=-1) if self.cosine else embedding

    def forward(self, media, text, valid=None) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of both sides (B, width) and the logit scale."""
        return self.embed_media(media, valid), self.embed_text(text), self.logit_scale


def pool_clip(hidden_states: Tensor, valid: Tensor | None, segments: int, reference="none"):
    """Segment-wise average pooling to one vector: the mean of the segments' means (Stage I).
    hidden_states (B, T, D), valid (B, T) bool or None; returns (B, D). Segments without a real
    step do not count; ValueError for a clip without any. With reference "first" the first step is
    subtracted from all: what changes in a face stays, whose it is goes; not stated in the paper."""
    if valid is None:
        valid = torch.ones(hidden_states.shape[:2], dtype=torch.bool, device=hidden_states.device)
    if reference == "first":
        hidden_states = hidden_states - hidden_states[:, :1]
    means, real = pool_segments(hidden_states, valid, segments)
    if not real.any(1).all():
        empty = (~real.any(1)).nonzero().tolist()
        raise ValueError(f"expected a real step in every clip, got none in {empty}; leave them out")
    return means.sum(1) / real.sum(1, keepdim=True)


def contrastive_loss(media, text, logit_scale, symmetric=True, same_text=None) -> Tensor:
    """InfoNCE between the two sides of B clips; pair i is row i of both (paper A, Eq. 1).

    media, text : embeddings (B, W) float, normalised as `ContrastivePair` does
    logit_scale : 1/τ
    symmetric : mean of media → text and text → media, as CLIP; False is Eq. 1's media → text alone
    same_text : (B,) long, of `text_groups`; clips of one transcript are no negatives of each other
    """
    # Similarities times up to 100 need more than half precision.
    dtype = torch.promote_types(media.dtype, torch.float32)
    with torch.autocast(media.device.type, enabled=False):
        logits = logit_scale * (media.to(dtype) @ text.to(dtype).T)  # (B, B)
    if same_text is not None:
        itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill((same_text[:, None] == same_text) & ~itself, -torch.inf)
    pairs = torch.arange(len(logits), device=logits.device)
    loss = F.cross_entropy(logits, pairs)
    if symmetric:
        loss = (loss + F.cross_entropy(logits.T, pairs)) / 2
    return loss


def text_groups(transcripts: Sequence[str]) -> Tensor:
    """(B,) long, equal where transcripts are equal but for case and spacing, in any process."""
    plain = (" ".join(text.lower().split()) for text in transcripts)
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in plain)
    return torch.tensor([int.from_bytes(d, "big", signed=True) for d in digests])


def recall_at(media: Tensor, text: Tensor, k: int, groups: Tensor | None = None) -> float:
    """Share of transcripts whose own clip is among the k most similar clips (text → clip).

    media, text : (N, W) embeddings, pair i is row i of both
    groups : (N,) long; any clip with the same transcript counts as the own one

    An equally similar wrong clip is ahead, so collapsed embeddings score 0.
    """
    similarity = text.double() @ media.double().T  # (queries, clips)
    groups = torch.arange(len(text), device=text.device) if groups is None else groups
    own = groups[:, None] == groups
    best = similarity.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    ahead = ((similarity >= best) & ~own).sum(1)
    return float((ahead < k).double().mean())


def sgdr(optimizer, steps_per_epoch: int, cycle_epochs: int = 10, lr_min: float = 1e-7):
    """Cosine annealing with warm restarts (A, Eq. 10), to be stepped after every step."""
    return CosineAnnealingWarmRestarts(optimizer, cycle_epochs * steps_per_epoch, eta_min=lr_min)

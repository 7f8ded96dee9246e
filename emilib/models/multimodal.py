"""Three multimodal networks that both papers discuss: TFN, MulT and MISA."""

from itertools import combinations, pairwise, permutations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emilib import MODALITIES
from emilib.models.earlier import Sequences, Trimodal
from emilib.models.inputs import Output, masked_mean
from emilib.models.temporal import BiLSTM, last_step, positions, transformer


class TFN(Trimodal):
    """Tensor Fusion Network, Zadeh et al. 2017: the outer product of three embeddings.
    z = [z_text; 1] ⊗ [z_frames; 1] ⊗ [z_audio; 1], so that every one-, two- and three-way
    product is in it; then two layers of 128 ReLU and a linear layer."""

    def __init__(self, num_targets=6, width=32, text_width=128, hidden=128, dropout=0.1, **dims):
        super().__init__(**dims)
        self.embed = nn.ModuleDict()
        for name, dim in self.dims.items():
            widths = [text_width] * 2 if name == "text" else [width] * 3
            self.embed[name] = relu_stack([dim, *widths], dropout)
        stack = relu_stack([(text_width + 1) * (width + 1) ** 2, hidden, hidden], dropout)
        self.head = nn.Sequential(stack, nn.Linear(hidden, num_targets))

    def combine(self, sequences: Sequences, present: Tensor) -> Output:
        z = {n: self.embed[n](masked_mean(x, valid)) for n, (x, valid) in sequences.items()}
        z = {name: F.pad(embedded, (0, 1), value=1.0) for name, embedded in z.items()}  # [z; 1]
        cube = torch.einsum("bi,bj,bk->bijk", z["text"], z["frames"], z["audio"])
        return Output(self.head(cube.flatten(1)))


class MulT(Trimodal):
    """Multimodal Transformer, Tsai et al. 2019: each modality read through the two others.
    Temporal convolution to a common width, sinusoidal positions; six crossmodal transformers β → α;
    for each α a self-attention Transformer over [β → α; γ → α]; the last real steps of the three,
    concatenated, through a residual block and a linear layer."""

    def __init__(self, num_targets=6, width=40, heads=8, layers=4, dropout=0.1, **dims):
        super().__init__(**dims)
        self.project, self.crossmodal = nn.ModuleDict(), nn.ModuleDict()
        for name, dim in self.dims.items():
            kernel = 1 if name == "text" else 3  # text is one step
            self.project[name] = nn.Conv1d(dim, width, kernel, padding="same")
        for target, source in permutations(MODALITIES, 2):
            self.crossmodal[f"{source}_to_{target}"] = Crossmodal(width, heads, layers, dropout)
        memory = {name: transformer(2 * width, heads, layers, dropout) for name in MODALITIES}
        self.memory = nn.ModuleDict(memory)
        stack = relu_stack([6 * width, 6 * width], dropout)
        self.residual = nn.Sequential(*stack, nn.Linear(6 * width, 6 * width))
        self.head = nn.Linear(6 * width, num_targets)

    def combine(self, sequences: Sequences, present: Tensor) -> Output:
        low, last = {}, []
        for name, (x, _) in sequences.items():
            x = self.project[name](x.transpose(1, 2)).transpose(1, 2)
            low[name] = x + positions(x)
        for target, (_, valid) in sequences.items():
            read = [
                self.crossmodal[f"{source}_to_{target}"](low[target], low[source], source_valid)
                for source, (_, source_valid) in sequences.items()
                if source != target
            ]
            states = self.memory[target](torch.cat(read, dim=-1), src_key_padding_mask=~valid)
            last.append(last_step(states, valid))
        fused = torch.cat(last, dim=-1)  # (B, 6 width)
        return Output(self.head(fused + self.residual(fused)))


class Crossmodal(nn.Module):
    """Crossmodal transformer β → α: the target's steps ask, the source's low-level steps answer.
    Block i: Y = CM_i(LN(Z_{i-1}), LN(Z_β)) + LN(Z_{i-1}), Z_i = f(LN(Y)) + LN(Y)."""

    def __init__(self, width: int, heads: int, layers: int, dropout: float):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict() for _ in range(layers))
        for block in self.blocks:
            block["norm"], block["source_norm"] = nn.LayerNorm(width), nn.LayerNorm(width)
            block["attention"] = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
            block["forward_norm"] = nn.LayerNorm(width)
            stack = relu_stack([width, 4 * width], dropout)
            block["feed_forward"] = nn.Sequential(*stack, nn.Linear(4 * width, width))

    def forward(self, target: Tensor, source: Tensor, source_valid: Tensor) -> Tensor:
        """target (B, T_α, W), source (B, T_β, W), source_valid (B, T_β) → (B, T_α, W)."""
        for block in self.blocks:
            query, context = block["norm"](target), block["source_norm"](source)
            settings = {"key_padding_mask": ~source_valid, "need_weights": False}
            read, _ = block["attention"](query, context, context, **settings)
            target = block["forward_norm"](read + query)
            target = block["feed_forward"](target) + target
        return target


class MISA(Trimodal):
    """Modality-invariant and -specific representations, Hazarika et al. 2020.

    u_m from the end states of two stacked bidirectional LSTMs, a LayerNorm between them (text: its
    vector); a shared and a private encoder, linear and sigmoid, give h_c and h_p; the six vectors
    through one Transformer layer, concatenated, and a linear layer. In training `auxiliary_loss` is
    the weighted sum of `misa_losses` over the clips that have all three modalities.

    weights : 1, 0.3 and 1 for labels from -3 to 3, whose variance is 20 times that of [0, 1]
    """

    def __init__(
        self, num_targets=6, width=128, heads=2, dropout=0.1, weights=(0.05, 0.015, 0.05), **dims
    ):
        super().__init__(**dims)
        self.loss_weights = tuple(weights)
        self.recurrent, self.project = nn.ModuleDict(), nn.ModuleDict()
        for n in ("frames", "audio"):
            lower, upper = BiLSTM(self.dims[n], width), BiLSTM(2 * width, width)
            self.recurrent[n] = nn.ModuleList([lower, nn.LayerNorm(2 * width), upper])
        for n, d in {"frames": 4 * width, "audio": 4 * width, "text": self.dims["text"]}.items():
            self.project[n] = nn.Sequential(nn.Linear(d, width), nn.ReLU(), nn.LayerNorm(width))
        self.shared = nn.Sequential(nn.Linear(width, width), nn.Sigmoid())
        private = {n: nn.Sequential(nn.Linear(width, width), nn.Sigmoid()) for n in MODALITIES}
        self.private = nn.ModuleDict(private)
        self.decode = nn.ModuleDict({n: nn.Linear(width, width) for n in MODALITIES})
        self.fuse = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, batch_first=True)
        stack = relu_stack([6 * width, 3 * width], dropout)
        self.head = nn.Sequential(stack, nn.Linear(3 * width, num_targets))

    def combine(self, sequences: Sequences, present: Tensor) -> Output:
        u = {}
        for name, (x, valid) in sequences.items():
            if name in self.recurrent:  # end states of both directions of both LSTMs
                lower, norm, upper = self.recurrent[name]
                states = [x := lower(x, valid), upper(norm(x), valid)]
                halves = [part for h in states for part in h.chunk(2, dim=-1)]
                ends = [last_step(h, valid) for h in halves[::2]] + [h[:, 0] for h in halves[1::2]]
                x = torch.cat(ends, dim=-1)
            u[name] = self.project[name](x[:, 0] if name == "text" else x)
        shared = {name: self.shared(x) for name, x in u.items()}
        private = {name: self.private[name](x) for name, x in u.items()}
        six = torch.stack([*shared.values(), *private.values()], dim=1)  # (B, 6, width)
        intensity = self.head(self.fuse(six).flatten(1))
        if not self.training:
            return Output(intensity)
        rebuilt = {n: self.decode[n](shared[n] + private[n]) for n in MODALITIES}
        whole = present.all(dim=1)
        sides = [{n: x[whole] for n, x in side.items()} for side in (u, shared, private, rebuilt)]
        parts = zip(self.loss_weights, misa_losses(*sides), strict=True)
        return Output(intensity, auxiliary_loss=sum(w * part for w, part in parts))


def misa_losses(u, shared, private, rebuilt) -> tuple[Tensor, Tensor, Tensor]:
    """Similarity, difference and reconstruction loss of MISA; all 0 for fewer than 2 clips.
    Each argument maps a modality to (B, D). Similarity: mean over pairs of modalities of the
    central moment discrepancy of the shared vectors. Difference: mean square of H_cᵀ H_p for each
    modality and of H_pᵀ H_p' for each pair, of vectors of zero mean over the batch and then of
    length 1. Reconstruction: mean squared error of u."""
    names, pairs = list(u), list(combinations(u, 2))
    if len(u[names[0]]) < 2:
        return (u[names[0]].sum() * 0,) * 3
    similarity = sum(central_moment_discrepancy(shared[a], shared[b]) for a, b in pairs) / 3
    sides = shared, private
    s, p = ({n: F.normalize(x - x.mean(0), dim=-1) for n, x in d.items()} for d in sides)
    difference = sum((s[n].T @ p[n]).square().mean() for n in names)
    difference = difference + sum((p[a].T @ p[b]).square().mean() for a, b in pairs)
    reconstruction = sum((u[n] - rebuilt[n]).square().mean() for n in names) / 3
    return similarity, difference, reconstruction


def central_moment_discrepancy(x: Tensor, y: Tensor, moments: int = 5) -> Tensor:
    """CMD of two samples (B, D) with values in [0, 1] (Zellinger et al. 2017).
    ‖E x - E y‖ + sum over k = 2..K of ‖C_k(x) - C_k(y)‖ with C_k(x) = E (x - E x)^k."""
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    total = torch.linalg.vector_norm(x_mean - y_mean)
    for k in range(2, moments + 1):
        gap = (x - x_mean).pow(k).mean(dim=0) - (y - y_mean).pow(k).mean(dim=0)
        total = total + torch.linalg.vector_norm(gap)
    return total


def relu_stack(widths: list[int], dropout: float) -> nn.Sequential:
    """Linear, ReLU and dropout between each two widths."""
    layers = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)

"""TAEMI with its audio network and text encoder inside (paper B, 4.1).

The paper loads both encoders and takes vision features ready-made; whether the encoders are
trained is not stated in so many words. Here each is fine-tuned or frozen. A frozen one gives what
its cached features give, to float tolerance.

Waveforms are padded to the longest of the batch, with a mask, and not to 12 s: a network with layer
norm in its convolutions then gives every clip what it gives the clip alone. One with group norm
mixes padding into every step, mask or not, so its clips are encoded one at a time.

Dimension key: B clips, S samples, T steps, D width, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emilib.features.encoders import (
    SAMPLE_RATE,
    AudioEncoder,
    EmotionHead,
    TextEncoder,
)
from emilib.features.loading import load_encoder, save_encoder
from emilib.models.inputs import check_mask
from emilib.models.output import Output
from emilib.models.taemi import MAX_AUDIO_SECONDS, TAEMI

ENCODERS = ("audio", "text")


def pad_waveforms(
    waveforms: Sequence, max_seconds: float | None = MAX_AUDIO_SECONDS
) -> tuple[Tensor, Tensor]:
    """Mono 16 kHz waveforms (S_i,), or None, as (B, S) and its mask; S is the longest here.

    max_seconds : longer clips lose their end, as in the paper; None keeps all
    A clip without sound is a row that is all False. Raises ValueError for what is not mono.
    """
    limit = None if max_seconds is None else int(max_seconds * SAMPLE_RATE)
    rows = []
    for number, waveform in enumerate(waveforms):
        row = torch.as_tensor([] if waveform is None else waveform, dtype=torch.float32)
        if row.ndim != 1:
            raise ValueError(
                f"expected waveform {number} of shape (S,), came {tuple(row.shape)}; mix it to mono"
            )
        rows.append(row[:limit])
    if not rows:
        raise ValueError("expected at least one waveform (or None), came an empty list")
    lengths = torch.tensor([len(row) for row in rows])
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    padded = F.pad(padded, (0, max(0, 1 - padded.shape[1])))  # at least one sample
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


class EndToEnd(nn.Module):
    """Waveform and words through their encoders into a `TAEMI`; frames come as features.

    A = Concat(H_a, Z_a) with `emotion_head`, or with an `EmotionEncoder`, which has the head
    inside; H_a without. t from the text encoder.

    frozen : which of "audio" and "text" stay as they are: no gradient, no dropout. A frozen audio
        network freezes its emotion head too.
    moments : mean and spread (D,) of "audio" and "text", by which what the encoders give is
        standardised before the fusion, as `FeatureSet.standardised` does with cached features
        (not stated in the paper); None leaves it as it is
    audio_every : hidden states of the sound that are averaged into one step
    spec_augment : let wav2vec2 mask steps in training (not stated in the paper). It refuses
        clips of fewer steps than its mask is long, so it is off unless asked for.

    A clip whose sound is shorter than the audio network takes counts as a clip without sound.
    Raises ValueError when the widths do not fit.
    """

    def __init__(
        self,
        audio: AudioEncoder,
        text: TextEncoder,
        fusion: TAEMI,
        *,
        emotion_head: EmotionHead | None = None,
        frozen: Sequence[str] = (),
        moments: Mapping[str, tuple] | None = None,
        audio_every: int = 1,
        spec_augment: bool = False,
    ):
        super().__init__()
        if not set(frozen) <= set(ENCODERS):
            raise ValueError(f"frozen is {tuple(frozen)}: give names of {ENCODERS}.")
        logits = 0 if emotion_head is None else emotion_head.out_proj.out_features
        for name, came in (("audio", audio.dim + logits), ("text", text.dim)):
            if fusion.dims[name] != came:
                raise ValueError(
                    f"the fusion takes {name} of width {fusion.dims[name]}, but its encoder gives "
                    f"{came}: build TAEMI with {name}_dim={came}"
                )
        self.audio, self.text, self.fusion = audio, text, fusion
        self.emotion_head = emotion_head
        self.frozen = tuple(frozen)
        self.audio_every = int(audio_every)
        for name in ENCODERS:
            mean, spread = (0.0, 1.0) if moments is None else moments[name]
            width = fusion.dims[name]
            self.register_buffer(f"{name}_mean", _numbers(mean).expand(width).clone())
            self.register_buffer(f"{name}_spread", _numbers(spread).expand(width).clone())
        audio.model.config.apply_spec_augment = spec_augment
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train(self.training)

    def _frozen_modules(self) -> list[nn.Module]:
        modules = [getattr(self, name) for name in self.frozen]
        if "audio" in self.frozen and self.emotion_head is not None:
            modules.append(self.emotion_head)
        return modules

    def train(self, mode: bool = True) -> EndToEnd:
        """As in torch, but what is frozen stays in evaluation: its dropout is off."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def parameter_groups(self, lr: float = 1e-4, encoder_lr: float | None = None) -> list[dict]:
        """Groups for an optimiser; `encoder_lr` None is one rate for all, as in the release."""
        fusion = list(self.fusion.parameters())
        own = {id(p) for p in fusion}
        encoders = [p for p in self.parameters() if p.requires_grad and id(p) not in own]
        groups = [{"params": fusion, "lr": lr}]
        if encoders:
            groups.append({"params": encoders, "lr": lr if encoder_lr is None else encoder_lr})
        return groups

    def forward(
        self,
        frames: Tensor | None,
        waveform: Tensor | None,
        tokens: dict[str, Tensor] | None,
        frames_valid: Tensor | None = None,
        waveform_valid: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Output:
        """frames (B, T, D), waveform (B, S) at 16 kHz, tokens of `TextEncoder.tokens` → `Output`.

        waveform_valid : (B, S) bool, True where a sample is real; None: every sample
        present : (B, 3) bool, order frames, audio, text; None: whatever is given is present
        Raises ValueError when shapes disagree.
        """
        clips = _clips(frames, waveform, tokens)
        if present is None:
            given = [x is not None for x in (frames, waveform, tokens)]
            like = next(iter(tokens.values())) if tokens is not None else frames
            like = waveform if like is None else like
            present = torch.tensor(given, device=like.device).repeat(clips, 1)
        check_mask("present", present, (clips, 3))
        audio = audio_valid = text = None
        if waveform is not None:
            audio, audio_valid = self._hear(waveform, waveform_valid, present[:, 1])
        if tokens is not None:
            text = self._read(tokens, present[:, 2])
        return self.fusion(frames, audio, text, frames_valid, audio_valid, present)

    def _hear(self, waveform: Tensor, valid: Tensor | None, here: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) and (B, T); clips without enough sound are zeros and all False."""
        if valid is None:
            valid = torch.ones_like(waveform, dtype=torch.bool)
        check_mask("waveform_valid", valid, waveform.shape)
        here = here & (valid.sum(dim=1) >= self.audio.shortest)
        rows = here.nonzero().squeeze(1)
        if not len(rows):
            width = self.fusion.dims["audio"]
            empty = waveform.new_zeros(len(waveform), 1, width)
            return empty, empty.new_zeros(empty.shape[:2], dtype=torch.bool)
        # Cut to the longest that is left; `where` keeps NaN in padding out of the network.
        longest = int(valid[rows].sum(dim=1).max())
        sound = torch.where(valid, waveform, 0.0)[rows, :longest]
        with torch.set_grad_enabled(torch.is_grad_enabled() and "audio" not in self.frozen):
            hidden, real = self.audio(sound, valid[rows, :longest])
            if self.emotion_head is not None:
                hidden = torch.cat([hidden, self.emotion_head(hidden)], dim=-1)
        hidden, real = _averaged(hidden, real, self.audio_every)
        hidden = ((hidden - self.audio_mean) / self.audio_spread).masked_fill(~real[..., None], 0.0)
        audio = hidden.new_zeros(len(waveform), *hidden.shape[1:]).index_copy(0, rows, hidden)
        mask = real.new_zeros(len(waveform), real.shape[1]).index_copy(0, rows, real)
        return audio, mask

    def _read(self, tokens: dict[str, Tensor], here: Tensor) -> Tensor:
        """(B, D); zeros where the clip has no text."""
        rows = here.nonzero().squeeze(1)
        like = next(self.text.parameters())
        if not len(rows):
            return like.new_zeros(len(here), self.text.dim)
        with torch.set_grad_enabled(torch.is_grad_enabled() and "text" not in self.frozen):
            vectors = self.text(**{name: value[rows] for name, value in tokens.items()})
        vectors = (vectors - self.text_mean) / self.text_spread
        return vectors.new_zeros(len(here), self.text.dim).index_copy(0, rows, vectors)

    def save_pretrained(self, folder) -> None:
        """Write fusion, audio network, text encoder and emotion head, a folder each."""
        folder = Path(folder)
        self.fusion.save_pretrained(folder / "fusion")
        for name in ENCODERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
            save_encoder(getattr(self, name), folder / name)
        kept = {name: value.contiguous() for name, value in self.named_buffers(recurse=False)}
        save_file(kept, folder / "moments.safetensors", {"audio_every": str(self.audio_every)})
        if self.emotion_head is not None:
            weights = {k: v.contiguous() for k, v in self.emotion_head.state_dict().items()}
            save_file(weights, folder / "emotion_head.safetensors")

    @classmethod
    def from_pretrained(cls, folder, **settings) -> EndToEnd:
        """What `save_pretrained` wrote; `settings` as the constructor's `frozen`."""
        folder = Path(folder)
        head = None
        if (folder / "emotion_head.safetensors").is_file():
            weights = load_file(folder / "emotion_head.safetensors")
            outputs, dim = weights["out_proj.weight"].shape
            head = EmotionHead(dim, outputs)
            head.load_state_dict(weights)
        encoders = [load_encoder(folder / name) for name in ENCODERS]
        with safe_open(folder / "moments.safetensors", framework="pt") as kept:
            settings.setdefault("audio_every", int(kept.metadata()["audio_every"]))
            pairs = {n: [kept.get_tensor(f"{n}_{w}") for w in ("mean", "spread")] for n in ENCODERS}
        settings.setdefault("moments", pairs)
        fusion = TAEMI.from_pretrained(folder / "fusion")
        return cls(*encoders, fusion, emotion_head=head, **settings)


def _numbers(values) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)


def _averaged(hidden: Tensor, real: Tensor, every: int) -> tuple[Tensor, Tensor]:
    """Mean of every so many steps (B, T, D) that are real; the last may be of fewer."""
    if every == 1:
        return hidden, real
    missing = -hidden.shape[1] % every
    hidden = F.pad(hidden * real[..., None], (0, 0, 0, missing)).unflatten(1, (-1, every))
    real = F.pad(real, (0, missing)).unflatten(1, (-1, every))
    count = real.sum(dim=2, keepdim=True).clamp_min(1)
    return hidden.sum(dim=2) / count, real.any(dim=2)


def _clips(frames, waveform, tokens) -> int:
    if waveform is not None and waveform.ndim != 2:
        raise ValueError(f"expected waveform of shape (B, S), came {tuple(waveform.shape)}")
    counts = {"frames": frames, "waveform": waveform}
    counts = {name: len(x) for name, x in counts.items() if x is not None}
    if tokens is not None:
        counts |= {name: len(x) for name, x in tokens.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(
            f"expected the same number of clips in every input, came {counts or 'no input at all'}"
        )
    return next(iter(counts.values()))

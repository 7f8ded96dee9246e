"""TAEMI with its audio network and text encoder inside, and trained (paper B, 4.1)."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emilib.models.inputs import Output
from emilib.models.taemi import TAEMI

ENCODERS, MOMENTS = ("audio", "text"), "moments.safetensors"


class EndToEnd(nn.Module):
    """Waveform and words through their encoders into a `TAEMI`; frames are features.

    audio : module with `dim`, `shortest` (samples) and forward(waveform, valid) → hidden states
        (B, T, D) and their mask, as `features.encoders.AudioEncoder`
    text : module with `dim` and forward(**tokens) → (B, D), as `features.encoders.TextEncoder`
    moments : mean and spread (D,) of "audio" and "text", by which what the encoders give is
        standardised before the fusion, as with cached features (not stated in the paper); or None

    wav2vec2 masks no steps in training: it refuses clips of fewer steps than its mask is long. A
    clip whose sound is shorter than the audio network takes counts as a clip without sound.
    """

    def __init__(self, audio, text, fusion: TAEMI, moments=None):
        super().__init__()
        self.audio, self.text, self.fusion = audio, text, fusion
        for name in ENCODERS:
            moment = (0.0, 1.0) if moments is None else moments[name]
            for what, numbers in zip(("mean", "spread"), moment, strict=True):
                numbers = torch.as_tensor(numbers, dtype=torch.float32)
                numbers = numbers.expand(getattr(self, name).dim).clone()
                self.register_buffer(f"{name}_{what}", numbers)
        audio.model.config.apply_spec_augment = False

    def forward(
        self, frames, waveform, tokens, frames_valid=None, waveform_valid=None, present=None
    ) -> Output:
        """frames (B, T, D), waveform (B, S) at 16 kHz, tokens of `TextEncoder.tokens` → `Output`.
        waveform_valid : (B, S) bool, True where a sample is real; None: every sample
        present : (B, 3) bool, order frames, audio, text; None: whatever is passed is present"""
        if present is None:
            passed = (frames, waveform, *(tokens or {}).values())
            like = next(x for x in passed if x is not None)
            present = torch.ones(len(like), 3, dtype=torch.bool, device=like.device)
        audio = audio_valid = text = None
        if waveform is not None:
            audio, audio_valid = self.encode_audio(waveform, waveform_valid, present[:, 1])
        if tokens is not None:
            text = self.encode_text(tokens, present[:, 2])
        return self.fusion(frames, audio, text, frames_valid, audio_valid, present)

    def encode_audio(self, waveform, valid, present) -> tuple[Tensor, Tensor]:
        """(B, T, D) and (B, T); clips without enough sound are zeros and all False."""
        valid = torch.ones_like(waveform, dtype=torch.bool) if valid is None else valid
        samples = valid.sum(dim=1) * present
        rows = (samples >= max(1, self.audio.shortest)).nonzero().squeeze(1)
        if not len(rows):
            empty = waveform.new_zeros(len(waveform), 1, self.audio.dim)
            return empty, torch.zeros_like(empty[..., 0], dtype=torch.bool)
        # Cut to the longest that is left; `where` keeps NaN in padding out of the network.
        longest = int(samples.max())
        sound = torch.where(valid, waveform, 0.0)[rows, :longest]
        hidden, real = self.audio(sound, valid[rows, :longest])
        hidden = (hidden - self.audio_mean) / self.audio_spread
        audio = hidden.new_zeros(len(waveform), *hidden.shape[1:]).index_copy(0, rows, hidden)
        return audio, real.new_zeros(len(waveform), real.shape[1]).index_copy(0, rows, real)

    def encode_text(self, tokens: dict[str, Tensor], present: Tensor) -> Tensor:
        """(B, D); zeros where the clip has no text."""
        rows = present.nonzero().squeeze(1)
        empty = self.text_mean.new_zeros(len(present), self.text.dim)
        if not len(rows):
            return empty
        vectors = self.text(**{name: value[rows] for name, value in tokens.items()})
        return empty.index_copy(0, rows, (vectors - self.text_mean) / self.text_spread)

    def save_pretrained(self, folder, save_encoder: Callable) -> None:
        """Write each part into a folder; save_encoder as `features.loading.save_encoder`."""
        self.fusion.save_pretrained(Path(folder, "fusion"))
        for name in ENCODERS:
            Path(folder, name).mkdir(parents=True, exist_ok=True)
            save_encoder(getattr(self, name), Path(folder, name))
        moments = {name: value.contiguous() for name, value in self.named_buffers(recurse=False)}
        save_file(moments, Path(folder, MOMENTS))

    @classmethod
    def from_pretrained(cls, folder, load_encoder: Callable) -> "EndToEnd":
        """What `save_pretrained` wrote; load_encoder : folder → encoder."""
        saved = load_file(Path(folder, MOMENTS))
        moments = {name: (saved[f"{name}_mean"], saved[f"{name}_spread"]) for name in ENCODERS}
        audio, text = (load_encoder(Path(folder, name)) for name in ENCODERS)
        return cls(audio, text, TAEMI.from_pretrained(Path(folder, "fusion")), moments)

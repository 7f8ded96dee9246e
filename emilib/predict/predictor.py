"""From a video file to intensities: what was trained on a corpus, used on anybody's clips.

Each clip is decoded as the corpus was, encoded, standardised by the training clips' moments, and
given to the model of every seed; clips don't share a batch.
S seeds, W windows of a clip, T steps, E emotions, H heads, M segments.
"""

import contextlib
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from emilib import EMOTIONS, MODALITIES, SAMPLE_RATE
from emilib.corpus.media import MediaError
from emilib.features import checkpoints, extraction, transcripts
from emilib.features.feature_set import FeatureSet
from emilib.predict import pretrained
from emilib.predict.clip import LONGEST, WINDOW, Prediction, clips_of, read_clip, windows_of
from emilib.training.loop import no_denormals
from emilib.workers import one_thread, ordered_map

FEW = 16  # clips that are decoded faster than worker processes start
ENDS = "reading it ends the process; leave it out"
TOGETHER = 32  # windows in a batch of the fusion models
SMALL = 10_000_000  # parameters in all up to which a second thread gains nothing


@dataclass
class Explanation:
    """What the models looked at in a clip, or in a part of it."""

    prediction: Prediction
    without: pd.DataFrame  # as `EmiPredictor.without`
    start: float  # s, where the part begins and ends
    end: float
    images: np.ndarray | None  # (T, 3, P, P) uint8
    times: np.ndarray  # (T,) s of the images, from the clip's beginning
    waveform: np.ndarray | None  # (N,) int16 at SAMPLE_RATE
    weights: np.ndarray | None = None  # (S, M, 3) of Eq. 8 in paper A; None: the model has none
    weight_borders: np.ndarray | None = None  # (M + 1,) s
    # "frames" and "audio" → (S, H, T), None where the clip lacks it; None: the model has none
    attention: dict[str, np.ndarray | None] | None = None
    attention_borders: dict[str, np.ndarray] | None = None  # → (T + 1,) s


@dataclass(repr=False, eq=False)
class EmiPredictor:
    """Encoders, the fusion models of all seeds of one experiment, and how to feed them."""

    encoders: dict  # "vision", "audio", "text", of `features.encoders`
    models: dict  # seed → fusion model
    moments: dict  # of the training clips' features, `FeatureSet.moments`
    settings: object  # `MediaSettings`
    facts: dict  # what a user has to know: corpus, rho, rho_sd, experiment, ...
    modalities: tuple[str, ...] = MODALITIES  # those the models read
    emotions: tuple[str, ...] = EMOTIONS  # names of the targets
    scale: object = None  # `TargetScale` of the models' outputs; None where they are targets
    device: object = None  # None is the first GPU where there is one, else the CPU

    def __post_init__(self):
        self.device = torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        networks = torch.nn.ModuleList([*self.encoders.values(), *self.models.values()])
        networks.to(self.device).eval()
        small = sum(p.numel() for p in networks.parameters()) < SMALL
        self._threads = one_thread if small else contextlib.nullcontext

    @property
    def note(self) -> str:
        """Where the model comes from and what it can't know, to be told with every number."""
        facts, count = self.facts, len(self.models)
        rho = f"ρ {facts['rho']:.3f} ± {facts['rho_sd']:.3f} there on validation".replace("-", "−")
        origin = f"Model {facts['experiment']} of {count} seeds, trained on the {facts['corpus']}"
        return f"{origin}; {rho}. {pretrained.LIMITS[facts['synthetic']]}"

    def save_pretrained(self, folder) -> Path:
        """Write weights (safetensors), config.json and a model card into `folder`."""
        return pretrained.save(self, Path(folder))

    @classmethod
    def from_pretrained(cls, source, device=None) -> "EmiPredictor":
        """The predictor in a folder that `save_pretrained` wrote, or on the hub (owner/name).
        No code of it runs and no pickle is read. Raises ValueError where it holds no predictor."""
        return pretrained.load(source, functools.partial(cls, device=device))

    def predict(self, paths, text=None, window=None, step=None) -> pd.DataFrame:
        """Intensities of clips; a row a clip in the order of `paths`.

        paths : one or several of path or `Clip`
        text : the words of the clip; for several clips a list, None where they are not known.
            Without, Whisper listens where its weights are on this machine, else there are none
        window, step : s; the mean over windows, one every `step` s, the last one up to the clip's
            end, but those without anything. None: whole up to 30 s, else by 12 and 6 s

        Columns: clip, status ("ok" or "failed"), each emotion in [0, 1] (mean over the seeds and
        windows, clipped) and "Joy sd" and so on (over seeds), missing, damaged, problems, notes,
        text, windows, duration and seconds (it took), reason (of a failure: a file that can't be
        read is a row, too); `attrs["note"]` says what the model is.
        """
        predictions = self.predictions(paths, text, window, step)
        table = pd.DataFrame([prediction.row() for prediction in predictions])
        table.attrs["note"] = self.note
        return table

    def predictions(self, paths, text=None, window=None, step=None) -> Iterator[Prediction]:
        """`predict` one clip at a time: `Prediction`s in the order of `paths`."""
        clips, _ = clips_of(paths, text), windows_of(0.0, window, step)  # both refuse nonsense
        read = functools.partial(read_clip, settings=self.settings, emotions=self.emotions)
        processes = 1 if len(clips) <= FEW else None

        def died(clip) -> Prediction:
            return Prediction(clip, self.emotions, f"{clip.name}: {ENDS}")

        for prediction in ordered_map(read, clips, processes, died):
            began = time.perf_counter()
            try:
                self._predict(prediction, *windows_of(prediction.duration, window, step))
            except Exception as error:  # whatever it is, the other clips go on
                prediction.fail(error)
            prediction.frames = prediction.waveform = None
            prediction.seconds += time.perf_counter() - began
            yield prediction

    def over_time(self, path, text: str | None = None, window=WINDOW, step=None) -> pd.DataFrame:
        """`Prediction.windows` of one clip; MediaError for a file that can't be read."""
        return self._read(path, text, window, step)[0].windows()

    def without(self, path, text: str | None = None) -> pd.DataFrame:
        """Which modality mattered: the intensities with each removed in turn.
        Index "all" and "without frames", "without audio", "without text" for those the clip has
        and the model reads; a column an emotion, mean over seeds and windows. Raises MediaError."""
        return self._without(*self._read(path, text))

    def _without(self, prediction: Prediction, data: FeatureSet) -> pd.DataFrame:
        rows = {"all": prediction.intensity}
        for name, exists in zip(MODALITIES, data.present.any(axis=0), strict=True):
            if exists:
                rows[f"without {name}"] = self._run(data, name)[1]
        some = data.present.any(axis=1)  # windows with anything in them
        means = {n: prediction.over_seeds(x[:, some].mean(axis=1)) for n, x in rows.items()}
        return pd.DataFrame.from_dict(means, orient="index", columns=list(self.emotions))

    def look(self, path, text: str | None = None, start: float = 0.0) -> Explanation:
        """What the models looked at in a clip: weights or attention over time, as arrays.
        start : s; of a clip longer than 30 s the 12 s from here on are shown, or its last 12 s.
        Raises MediaError for a file that can't be read."""
        prediction = read_clip(*clips_of([path], text), self.settings, self.emotions)
        whole, end = not prediction.duration > LONGEST, prediction.duration
        start = 0.0 if whole else float(min(max(start, 0), end - WINDOW))
        windows = np.array([start]), np.array([end if whole else start + WINDOW])
        data, [rows], [sound], [outputs] = self._predict(prediction, *windows)
        end = windows[1].item()
        without, times = self._without(prediction, data), prediction.times[rows]
        images = None if prediction.frames is None else prediction.frames[rows]
        result = Explanation(prediction, without, start, end, images, times, sound)
        if outputs[0].weights is not None and outputs[0].weights.ndim == 3:
            result.weights = np.stack([output.weights[0].cpu().double() for output in outputs])
            result.weight_borders = np.linspace(start, end, result.weights.shape[1] + 1)
        if outputs[0].attention is not None:
            result.attention, result.attention_borders = {}, {"frames": np.append(times, end)}
            for name in {"frames", "audio"} & set(outputs[0].attention):  # but its anchor
                heads = np.stack([output.attention[name][0].cpu().double() for output in outputs])
                result.attention[name] = heads if data.present[0, MODALITIES.index(name)] else None
                if name == "audio":
                    step = self.encoders["audio"].stride * self.settings.audio_every / SAMPLE_RATE
                    steps = start + step * np.arange(heads.shape[-1] + 1)
                    result.attention_borders["audio"] = np.minimum(steps, end)
        return result

    def _read(self, path, text, *window) -> tuple[Prediction, FeatureSet]:
        prediction = read_clip(*clips_of([path], text), self.settings, self.emotions)
        return prediction, self._predict(prediction, *windows_of(prediction.duration, *window))[0]

    def _predict(self, prediction: Prediction, starts, ends) -> tuple:
        """Fill in the result of windows; returns their features, frames, sounds and `Output`s."""
        if prediction.reason is not None:
            raise MediaError(prediction.reason)
        first = np.searchsorted(prediction.times, starts)
        last = np.searchsorted(prediction.times, ends, side="right")  # a window holds its end
        rows = list(map(slice, first, last))
        sounds = [None] * len(rows)
        if prediction.waveform is not None:
            cuts = np.rint(np.stack([starts, ends], axis=1) * SAMPLE_RATE).astype(int)
            sounds = [prediction.waveform[begin:end] for begin, end in cuts]
        texts, source = self._words(prediction.clip.text, sounds)
        data = self._encode(prediction.frames, rows, sounds, texts)
        prediction.start, prediction.end, prediction.present = starts, ends, data.present
        outputs, intensity = self._run(data)
        prediction.intensity = np.where(data.present.any(axis=1)[:, None], intensity, np.nan)
        prediction.text = " ".join(dict.fromkeys(filter(None, texts))) or None
        prediction.notes.append(source)
        if len(rows) > 1:
            words = " Each is given all the words." if prediction.clip.text and texts[0] else ""
            mean = f"Mean over {len(rows)} windows of {ends[0] - starts[0]:g} s."
            prediction.notes.append(mean + words)
        return data, rows, sounds, outputs

    def _words(self, text: str | None, sounds: list) -> tuple[list[str], str]:
        """The words of each window, "" for none, and where they come from."""
        source = "Words as given." if text else "No words given."
        if "text" not in self.modalities:
            text, source = "", "Words are not read by this model."
        elif text is None and self._whisper is not None:
            path, model = self._whisper
            waveforms = [None if s is None else s.astype(np.float32) / 32768 for s in sounds]
            return transcripts.transcribe(model, waveforms), f"Words by Whisper ({path.name})."
        elif text is None:
            source = "No words: none were given, and Whisper's weights are not on this machine."
        return [(text or "").strip()] * len(sounds), source

    @functools.cached_property
    def _whisper(self):
        path = checkpoints.whisper_file()
        return None if path is None else (path, transcripts.load_whisper(path, self.device))

    def _encode(self, frames, rows: list[slice], sounds: list, texts: list[str]) -> FeatureSet:
        """Standardised features of windows: rows of `frames`, a sound and a text each."""
        images, audio, text = None, None, None
        first, last = rows[0].start, rows[-1].stop
        with self._threads():
            if frames is not None and "frames" in self.modalities and first < last:
                [encoded] = extraction.encode_frames(self.encoders["vision"], [frames[first:last]])
                images = [encoded[part.start - first : part.stop - first] for part in rows]
            if "audio" in self.modalities:
                encoder, every = self.encoders["audio"], self.settings.audio_every
                audio = extraction.encode_waveforms(encoder, sounds, every)
            if any(texts):
                encoder, distinct = self.encoders["text"], list(dict.fromkeys(texts))
                known = dict(zip(distinct, extraction.encode_texts(encoder, distinct), strict=True))
                known[""] = np.full((1, encoder.dim), np.nan)
                text = np.concatenate([known[words] for words in texts]).astype(np.float32)
        if images is None and text is None and all(sound is None for sound in audio or ()):
            wanted = " or ".join(self.modalities)
            raise MediaError(f"expected {wanted} for this model, got none")
        settings = {"frame_reference": self.settings.frame_reference}
        data = FeatureSet.from_arrays(range(len(rows)), images, audio, text, **settings)
        return data.standardised(self.moments)

    def _run(self, data: FeatureSet, removed: str | None = None) -> tuple[list[list], np.ndarray]:
        """Each model's `Output` of each batch, and intensities (S, W, E) in the targets' range."""
        outputs = []
        with torch.inference_mode(), no_denormals(), self._threads():
            for batch in data.batches(TOGETHER, device=self.device):
                if removed is not None:
                    batch.present[:, MODALITIES.index(removed)] = False
                outputs.append([model(**batch.inputs()) for model in self.models.values()])
        batches = [np.stack([o.intensity.cpu().double() for o in batch]) for batch in outputs]
        intensity = np.concatenate(batches, axis=1)
        return outputs, self.scale.inverse_transform(intensity) if self.scale else intensity

"""From a video file to intensities: what was trained on a corpus, used on anybody's clips.

    EmiPredictor.from_pretrained("models/taemi").predict(["clip.mp4"])

Each clip is decoded as the corpus was, encoded by the frozen encoders, standardised by the
training clips' moments, and given to the fusion model of every seed. Clips don't share a batch, so
the other files of a call never change a clip's numbers.

Dimension key: S seeds, W windows of a clip, T steps, E emotions, H heads, M segments.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from emilib import EMOTIONS, MODALITIES, SAMPLE_RATE
from emilib.corpus import media
from emilib.corpus.media import MediaError
from emilib.features import extraction, transcripts
from emilib.features.feature_set import FeatureSet
from emilib.predict import pretrained
from emilib.predict.clip import (
    WINDOW,
    Clip,
    DecodedClip,
    MediaSettings,
    check_window,
    clips_of,
    first_line,
    read_all,
    read_long,
    windows_of,
)
from emilib.predict.prediction import Explanation, Prediction, over_seeds
from emilib.training.loop import TargetScale, no_denormals, one_thread

SMALL = 10_000_000  # parameters in all up to which networks take one core
TOGETHER = 32  # windows encoded together


class EmiPredictor:
    """Encoders, the fusion models of all seeds of one experiment, and how to feed them.

    encoders : "vision", "audio", "text", of `features.encoders`
    models : seed → fusion model
    moments : of the training clips' features, `FeatureSplits.moments`
    modalities : those the models read
    facts : what a user has to know: corpus, rho, rho_sd, experiment, ...
    emotions : names of the targets; another corpus than the papers' may have others
    scale : `TargetScale` of the models' outputs; None where they are targets
    device : None is the first GPU where there is one, else the CPU
    """

    def __init__(
        self,
        encoders: dict,
        models: dict,
        moments: dict,
        settings: MediaSettings,
        facts: dict,
        modalities: Sequence[str] = MODALITIES,
        emotions: Sequence[str] = EMOTIONS,
        scale: TargetScale | None = None,
        device=None,
    ):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.encoders = {role: e.to(self.device).eval() for role, e in encoders.items()}
        self.models = {int(s): m.to(self.device).eval() for s, m in models.items()}
        self.moments = moments
        self.settings = settings
        self.facts = dict(facts)
        self.modalities = tuple(modalities)
        self.emotions = tuple(emotions)
        self.scale = scale

    def __repr__(self):
        return f"EmiPredictor({self.facts['experiment']!r}, {self.facts['corpus']!r})"

    @property
    def note(self) -> str:
        """Where the model comes from and what it can't know, to be told with every number."""
        facts = self.facts
        rho = f"ρ {facts['rho']:.3f} ± {facts['rho_sd']:.3f} there on validation".replace("-", "−")
        origin = f"Model {facts['experiment']} of {len(self.models)} seeds, trained on the"
        return f"{origin} {facts['corpus']}; {rho}. {pretrained.limits(facts)}"

    def save_pretrained(self, folder) -> Path:
        """Write weights (safetensors), config.json and a model card into `folder`."""
        return pretrained.save(self, Path(folder))

    @classmethod
    def from_pretrained(cls, source, device=None) -> "EmiPredictor":
        """The predictor in a folder that `save_pretrained` wrote, or in a hub repository.

        source : folder, or a name like owner/model of the Hugging Face hub

        No code from the folder runs and no pickle is read. Raises ValueError, one sentence, where
        there is no such folder or it holds no predictor.
        """
        return cls(**pretrained.load(source), device=device)

    # ----------------------------------------------------------------------------------- prediction

    def predict(
        self,
        paths,
        text=None,
        window: float | None = None,
        step: float | None = None,
        workers: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> pd.DataFrame:
        """Intensities of clips; a row a clip in the order of `paths`.

        paths : one or several of path or `Clip`
        text : the words of the clip; for several clips a list, None where they are not known.
            Without, Whisper listens where its weights are on this machine, else there are none
        window, step : s; cut each clip into windows, one every `step` s, the last one up to the
            clip's end, and take the mean over them. `over_time` gives each. None: a clip up to
            30 s is taken whole, a longer one in windows of 12 s, one every 6 s
        workers : processes that decode, where there are many clips; None is one a core
        progress : called with (clips done, clips in all)

        Columns: clip, status ("ok" or "failed"), each emotion in [0, 1] (mean over the seeds and
        windows, clipped) and "Joy sd" and so on (over seeds), missing, damaged, problems, notes,
        text, windows, duration and seconds (it took), reason (of a failure). A file that can't be
        read is a row with its reason; `attrs["note"]` says what the model is.
        """
        return self.table(self.predictions(paths, text, window, step, workers, progress))

    def table(self, predictions: Iterable[Prediction]) -> pd.DataFrame:
        """`Prediction`s as the DataFrame of `predict`."""
        table = pd.DataFrame([prediction.row() for prediction in predictions])
        table.attrs["note"] = self.note
        return table

    def predictions(
        self, paths, text=None, window=None, step=None, workers=None, progress=None
    ) -> Iterator[Prediction]:
        """`predict` one clip at a time: `Prediction`s in the order of `paths`."""
        clips, spans = clips_of(paths, text), check_window(window, step)
        return self._predict_each(clips, spans, workers, progress)

    def _predict_each(self, clips, spans, workers, progress) -> Iterator[Prediction]:
        decoded = read_all(clips, self.settings, workers)
        for done, (clip, part) in enumerate(zip(clips, decoded, strict=True), 1):
            began, prediction = time.perf_counter(), Prediction(clip, self.emotions)
            try:
                part, features, text = self._encode(clip, part)
                windows = windows_of(part.duration, *spans)
                groups = [
                    (self._intensity(self._outputs(data)), data.present, words)
                    for data, words in self._feature_sets(part, features, text, *windows)
                ]
            except (ValueError, OSError) as error:
                prediction.reason = first_line(error)
            else:
                _fill(prediction, part, text, windows, groups)
            prediction.describe(part, began)
            yield prediction
            if progress is not None:
                progress(done, len(clips))

    def over_time(self, path, text: str | None = None, window=WINDOW, step=None) -> pd.DataFrame:
        """Intensities of one clip in sliding windows.

        window, step : s; None for `step` is half a window

        Columns start and end (s), each emotion in [0, 1] and its sd over seeds, missing. Memory
        does not grow with the clip's length. Raises MediaError for a file that can't be read.
        """
        [prediction] = self.predictions([path], text, window, step)
        if prediction.reason is not None:
            raise MediaError(prediction.reason)
        return prediction.windows()

    def without(self, path, text: str | None = None) -> pd.DataFrame:
        """Which modality mattered: the intensities with each removed in turn.

        Index "all" and "without frames", "without audio", "without text" for those the clip has
        and the model reads; a column an emotion, in [0, 1], mean over seeds (and windows).
        Raises MediaError for a file that can't be read.
        """
        [clip] = clips_of([path], text)
        [decoded] = read_all([clip], self.settings)
        decoded, features, words = self._encode(clip, decoded)
        windows = windows_of(decoded.duration)
        parts = self._feature_sets(decoded, features, words, *windows)
        return self._without([data for data, _ in parts])

    def _without(self, parts: list[FeatureSet]) -> pd.DataFrame:
        present = np.concatenate([data.present for data in parts]).any(axis=0)
        rows = {}
        for removed, exists in [(None, True), *zip(MODALITIES, present, strict=True)]:
            if exists and (removed is None or removed in self.modalities):
                values = [self._intensity(self._outputs(data, removed)) for data in parts]
                mean = over_seeds(np.concatenate(values, axis=1).mean(axis=1), self.emotions)
                rows["all" if removed is None else f"without {removed}"] = mean
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(self.emotions))

    def look(self, path, text: str | None = None, start: float = 0.0) -> Explanation:
        """What the models looked at in a clip: weights or attention over time, as arrays.

        start : s; of a clip longer than 30 s the 12 s from here on are shown

        Raises MediaError for a file that can't be read, ValueError for a `start` behind its end.
        """
        began = time.perf_counter()
        [clip] = clips_of([path], text)
        [decoded] = read_all([clip], self.settings)
        first = 0.0
        if decoded.long:
            first = float(start)
            decoded, blocks = read_long(clip, self.settings, np.asarray, first, first + WINDOW)
            decoded.frames = np.concatenate(blocks) if blocks else None
        decoded, features, words = self._encode(clip, decoded)
        whole = np.array([0.0]), np.array([decoded.duration])
        [(data, texts)] = self._feature_sets(decoded, features, words, *whole)
        outputs = self._outputs(data)
        prediction = Prediction(clip, self.emotions)
        windows = tuple(first + border for border in whole)
        group = (self._intensity(outputs), data.present, texts)
        _fill(prediction, decoded, words, windows, [group])
        prediction.describe(decoded, began)
        explanation = Explanation(
            prediction=prediction,
            without=self._without([data]),
            images=decoded.frames,
            times=first + decoded.times,
            waveform=decoded.waveform,
            start=first,
            end=float(first + decoded.duration),
        )
        if outputs[0].weights is not None and outputs[0].weights.ndim == 3:
            explanation.weights = np.stack([_array(o.weights[0]) for o in outputs])
            segments = explanation.weights.shape[1]
            explanation.weight_borders = first + np.linspace(0, decoded.duration, segments + 1)
        if outputs[0].attention is not None:
            explanation.attention = {}
            for name in outputs[0].attention:
                explanation.attention[name] = None
                if name != "text" and data.present[0, MODALITIES.index(name)]:
                    heads = np.stack([_array(o.attention[name][0]) for o in outputs])
                    explanation.attention[name] = heads
                    borders = self._borders(name, heads.shape[-1], decoded)
                    explanation.attention_borders[name] = first + borders
        return explanation

    def _borders(self, name: str, steps: int, decoded: DecodedClip) -> np.ndarray:
        """(T + 1,) s: from when to when each step of a sequence is."""
        if name == "audio":
            length = self.encoders["audio"].stride * self.settings.audio_every / SAMPLE_RATE
            return np.minimum(np.arange(steps + 1) * length, decoded.duration)
        return np.append(decoded.times, max(decoded.duration, decoded.times[-1]))

    # ---------------------------------------------------------------------------- the single steps

    def _encode(self, clip: Clip, decoded: DecodedClip):
        """(decoded clip, features of its frames or None, its words or None for Whisper to listen).

        A long clip is read here and not in a worker: its features are small, it is not.
        """
        if decoded.reason is not None:
            raise MediaError(decoded.reason)
        features = None
        if decoded.long:
            take = self._encode_frames if "frames" in self.modalities else None
            decoded, blocks = read_long(clip, self.settings, take)
            features = np.concatenate(blocks) if blocks else None
        elif decoded.frames is not None and "frames" in self.modalities:
            features = self._encode_frames(decoded.frames)
        words, source = self._words(clip)
        decoded.notes = [*decoded.notes, source]
        return decoded, features, words

    def _encode_frames(self, frames: np.ndarray) -> np.ndarray:
        with self._threads():
            return extraction.encode_frames(self.encoders["vision"], [frames])[0]

    def _feature_sets(self, decoded: DecodedClip, features, text: str | None, starts, ends):
        """Standardised features and words of up to TOGETHER windows at a time."""
        for first in range(0, len(starts), TOGETHER):
            frames, sounds = [], []
            for start, end in zip(starts[first:][:TOGETHER], ends[first:][:TOGETHER], strict=True):
                inside, samples = slice(None), slice(None)
                if len(starts) > 1:
                    latest = end + media.TIME_TOLERANCE
                    inside = (decoded.times >= start) & (decoded.times < latest)
                    samples = slice(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE))
                frames.append(None if features is None else features[inside])
                sound = decoded.waveform
                sounds.append(None if sound is None else np.array(sound[samples]))
            texts = self._listen(sounds) if text is None else [text] * len(sounds)
            yield self._features(frames, sounds, texts), texts

    def _features(self, frames: list, sounds: list, texts: list[str]) -> FeatureSet:
        audio, matrix = [None] * len(sounds), None
        with self._threads():
            if "audio" in self.modalities:
                encoder, every = self.encoders["audio"], self.settings.audio_every
                audio = extraction.encode_waveforms(encoder, sounds, every)
            if "text" in self.modalities and any(texts):
                encoder, distinct = self.encoders["text"], [t for t in dict.fromkeys(texts) if t]
                vectors = extraction.encode_texts(encoder, distinct)
                rows = {text: vector[0] for text, vector in zip(distinct, vectors, strict=True)}
                nothing = np.full(encoder.dim, np.nan, np.float32)
                matrix = np.stack([np.float32(rows.get(text, nothing)) for text in texts])
        if matrix is None and all(a is None or not len(a) for a in (*frames, *audio)):
            needed = ", ".join(self.modalities)
            raise ValueError(f"The clip has nothing that this model reads ({needed}).")
        data = FeatureSet.from_arrays(range(len(texts)), frames, audio, matrix)
        return data.standardised(self.moments)

    def _threads(self):
        """Small networks take one core: a second one gains nothing, and waits where files that
        are decoded meanwhile need it."""
        networks = (*self.encoders.values(), *self.models.values())
        size = sum(p.numel() for network in networks for p in network.parameters())
        alone = size < SMALL and self.device.type == "cpu"
        return one_thread() if alone else contextlib.nullcontext()

    def _outputs(self, data: FeatureSet, removed: str | None = None) -> list:
        """The `Output` of each seed's model, with a modality removed where one is named."""
        batch = data.batch(np.arange(len(data)), self.device)
        if removed is not None:
            batch.present[:, MODALITIES.index(removed)] = False
        with torch.inference_mode(), no_denormals(), self._threads():
            return [model(**batch.inputs()) for model in self.models.values()]

    def _intensity(self, outputs: list) -> np.ndarray:
        """(S, W, E) in the range of the corpus's targets."""
        intensity = np.stack([_array(output.intensity) for output in outputs])
        return intensity if self.scale is None else self.scale.inverse_transform(intensity)

    def _words(self, clip: Clip) -> tuple[str | None, str]:
        """The clip's words, None for Whisper to find them, and where they come from."""
        if "text" not in self.modalities:
            return "", "Words are not read by this model."
        if clip.text is not None:
            return clip.text.strip(), "Words as given." if clip.text.strip() else "No words given."
        if self._whisper is None:
            return "", "No words: none were given, and Whisper's weights are not on this machine."
        return None, f"Words by Whisper ({self._whisper[0].name})."

    @functools.cached_property
    def _whisper(self):
        """Path and model of Whisper, or None where its weights are not on this machine."""
        path = transcripts.find_weights()
        return None if path is None else (path, transcripts.load_whisper(path, self.device))

    def _listen(self, sounds: Sequence) -> list[str]:
        waveforms = [None if s is None else s.astype(np.float32) / 32768 for s in sounds]
        return transcripts.transcribe(self._whisper[1], waveforms)


def _fill(prediction: Prediction, decoded: DecodedClip, text, windows, groups) -> None:
    """Put (intensity, present, words) of groups of windows into a prediction."""
    prediction.start, prediction.end = starts, ends = windows
    intensity, present, words = zip(*groups, strict=True)
    prediction.intensity = np.concatenate(intensity, axis=1)
    prediction.present = np.concatenate(present)
    distinct = dict.fromkeys(text for texts in words for text in texts if text)
    prediction.text = " ".join(distinct) or None  # once where every window has the same
    prediction.notes = list(decoded.notes)
    if len(starts) > 1:
        shared = " Each is given all the words." if text else ""
        mean = f"Mean over {len(starts)} windows of {ends[0] - starts[0]:g} s."
        prediction.notes.append(mean + shared)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy().astype(np.float64)

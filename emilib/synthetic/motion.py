"""How faces and heads move: expressions rise and fall, lips follow the phonemes, heads nod."""

import math

import numpy as np

from emilib.synthetic.face import MOTION
from emilib.synthetic.generative_model import ACTION_UNITS, DATA

# POSES: action units of lids or head; column of the motion, its value at full amplitude.
# VISEMES: initials of phonemes (eSpeak's names); opening of the jaw, rounding of the lips.
POSES, VISEMES, OTHER_VISEME = DATA["poses"], DATA["visemes"], (0.14, 0.0)


def move(clip, seed: int, times, seconds: float, phonemes, rng) -> np.ndarray:
    """How somebody moves in a clip: (T, 19), columns as in MOTION.

    clip : of `Performances.clips`; seed : of the corpus
    times : (T,) s of the frames; seconds : length of the clip
    phonemes : [(time in s, name), ...]
    """
    motion = np.zeros((len(times), len(MOTION)))
    column = {name: motion[:, i] for i, name in enumerate(MOTION)}
    # Action units rise, hold with a slow wave, and fall again a little before the end.
    onset, rise, fall = rng.uniform([0.05, 0.3, 0.4], [0.35, 0.7, 0.8])
    up, down = np.clip([(times - onset) / rise, (seconds - times) / fall], 0, 1)
    shape = up * up * (3 - 2 * up) * (0.25 + 0.75 * (down * down * (3 - 2 * down)))
    for name, peak in zip(ACTION_UNITS, clip.action_units, strict=True):
        wave = 1 - 0.12 * (1 + np.sin(rng.uniform(1.5, 3) * times + rng.uniform(0, 6)))
        target, most = POSES.get(name, (name, 1.0))
        column[target][:] += most * peak * shape * wave / wave.max()
    if phonemes and clip.defect not in ("silent", "no_audio_track"):
        _move_lips(column, times, phonemes)
    _move_head(clip, seed, column, times, rng)
    # Lids close for about a sixth of a second every three seconds or so.
    start = rng.uniform(0.5, 3.0)
    while start < times[-1]:
        closed = np.clip(1.15 - np.abs(times - start) / 0.10, 0, 1)
        column["blink"][:] = np.maximum(column["blink"], closed)
        start += rng.uniform(2.0, 4.5)
    return motion


def _viseme(phoneme: str) -> tuple[float, float]:
    bare = phoneme.lstrip("',%=_|")
    if bare in ("", ";", ":"):  # silence
        return 0.0, 0.0
    return next((shape for names, shape in VISEMES.items() if bare[0] in names), OTHER_VISEME)


def _move_lips(column, times, phonemes) -> None:
    """Jaw and lips follow the phonemes; the expression keeps the rest of the face."""
    starts = np.array([time for time, _ in phonemes])
    shapes = np.array([(0.0, 0.0), *(_viseme(name) for _, name in phonemes)])
    now = shapes[np.searchsorted(starts, times, side="right")]
    before = shapes[np.searchsorted(starts, times - 0.05, side="right")]
    jaw, rounded = (0.65 * now + 0.35 * before).T  # lips are not infinitely fast
    speaking = (jaw > 0).astype(float)
    column["au26"][:] = np.clip(column["au26"] * (1 - 0.45 * speaking) + jaw, 0, 1)
    column["au24"][:] *= 1 - 0.5 * speaking
    column["pucker"][:] = rounded


def _move_head(clip, seed, column, times, rng) -> None:
    """Gestures depend on the topic mostly, on the seed a little; small drifts mean nothing."""
    of_topic = np.random.default_rng([seed, 4, clip.topic]).uniform(-1, 1, 8)
    of_seed = np.random.default_rng([seed, 5, clip.seed]).uniform(-1, 1, 8)
    tilt, turn, level, gaze_x, gaze_y, nod, sway, shake = 0.8 * of_topic + 0.2 * of_seed
    phase = rng.uniform(0, 2 * math.pi, 8)

    def drift(k, speed):
        return np.sin(speed * times + phase[k])

    column["roll"][:] += 0.07 * tilt + 0.03 * drift(0, 0.8)
    column["yaw"][:] += 0.11 * turn + 0.05 * drift(1, 0.6) + 0.05 * shake * drift(2, 4.0)
    column["pitch"][:] += 0.04 * level + 0.03 * drift(3, 0.9) + 0.05 * nod * drift(4, 5.0)
    column["x"][:] = 0.02 * drift(5, 0.7) + 0.04 * sway * drift(6, 2.2)
    column["y"][:] = 0.04 + 0.015 * drift(7, 1.1) + 0.012 * nod * drift(4, 5.0)
    column["gaze_x"][:] = 0.45 * gaze_x + 0.12 * drift(2, 1.3)
    column["gaze_y"][:] = 0.35 * gaze_y

"""Drawn people: how they look (`drawing`, about a millisecond a frame) and how they move."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from emilib.synthetic import drawing
from emilib.synthetic.drawing import BOB, BUN, CURLY, LONG, PARTED, SPAN
from emilib.synthetic.generative_model import ACTION_UNITS, DATA

# Colours are RGB in [0, 1]. A stroke is a round spot on both halves of the face, which makes it
# darker or warmer, or its relief higher; {"one": 0.03, "au6": 0.055} means 0.03 + 0.055 au6.
_PALETTE = json.loads(Path(__file__).with_name("palette.json").read_text("utf-8"))
STROKE = ("relief", "dark", "warm", "u", "v", "slant", "width", "height")  # columns of strokes
COLOURS = {name: np.array(rows) for name, rows in _PALETTE["colours"].items()}
# Columns of a motion array (T, 19): ten action units, eyelids and rounding of the lips in [0, 1],
# head rotation in radians, head position and gaze in head units.
_OTHERS = ("blink", "pucker", "yaw", "pitch", "roll", "x", "y", "gaze_x", "gaze_y")
MOTION = (*ACTION_UNITS[:10], *_OTHERS)
# POSES: action units of lids or head; column of the motion, its value at full amplitude.
# VISEMES: initials of phonemes (eSpeak's names); opening of the jaw, rounding of the lips.
POSES, VISEMES, OTHER_VISEME = DATA["poses"], DATA["visemes"], (0.14, 0.0)
GRAIN = 0.008  # spread of the camera's noise


def appearance(rng: np.random.Generator) -> SimpleNamespace:
    """What a person looks like, and the room behind. Lengths are in head units, see `drawing`."""
    feminine = rng.random() < 0.5
    women, men = [PARTED, BOB, LONG, CURLY, BUN], [0, 0, 0, 1, 1, 1, 1, 4, 4, 6]
    style = int(rng.choice(women if feminine else men))
    skin = COLOURS["skin"]
    tone = rng.uniform(0, len(skin) - 1.001)
    low = int(tone)
    dark = tone > 2.4  # dark skin comes with dark hair mostly

    def tint(name, shades, low, high):
        return COLOURS[name][rng.integers(shades)] * rng.uniform(low, high)

    hair = tint("hair", 2 if dark else 5, 0.85, 1.15)
    lamp = np.array([rng.choice([-1, 1]) * rng.uniform(0.25, 0.6), rng.uniform(-0.7, -0.4), 1])
    return SimpleNamespace(
        skin=skin[low] * (low + 1 - tone) + skin[low + 1] * (tone - low),
        hair=hair,
        iris=COLOURS["iris"][rng.choice([0, 3]) if dark else rng.integers(4)],
        wall=tint("wall", 5, 0.88, 1.04),
        shirt=tint("shirt", 7, 0.85, 1.15),
        light=lamp / np.linalg.norm(lamp),  # towards the lamp
        feminine=feminine,
        beard=0.0 if feminine or rng.random() < 0.55 else rng.uniform(0.35, 0.9),
        glasses=rng.random() < 0.18,
        **{name: rng.uniform(*ends) for name, ends in _PALETTE["sizes"].items()},
        brow=rng.uniform(0.012, 0.018) + (0 if feminine else 0.006),  # half its thickness
        hairline=rng.uniform(-0.60, -0.52),
        part=rng.choice([-1, 1]) * rng.uniform(0.1, 0.3),  # of the hair
        window=rng.uniform(-1.0, 1.0),  # where light falls on the wall
        style=style,
        **list(_PALETTE["styles"].values())[style],  # of the hair
    )


def render(person: SimpleNamespace, motion, size: tuple[int, int], rng, empty=False) -> np.ndarray:
    """Frames of a motion (T, 19) of a person, or of the empty room: (T, height, width, 3) uint8."""
    p = {name: np.tile(value, (len(motion), 1)) for name, value in vars(person).items()}
    p |= dict(zip(MOTION, motion.T[..., None], strict=True))
    for turn in ("yaw", "pitch", "roll"):
        p[f"cos_{turn}"], p[f"sin_{turn}"] = np.cos(p[turn]), np.sin(p[turn])
    # The mouth: half its width, the height of its centre, the lift of its corners, its opening.
    p["half"] = p["mouth"] * (1.0 + 0.34 * p["au12"] - 0.14 * p["au24"] - 0.28 * p["pucker"])
    p["centre"] = 0.435 + 0.035 * p["au26"] - 0.02 * p["au17"] + 0.015 * p["au12"]
    p["lift"] = 0.026 + 0.115 * p["au12"] - 0.095 * p["au15"]
    p["gap"] = 0.16 * p["au26"] * (1.0 - 0.7 * p["au24"]) + 0.035 * p["au12"] * (1.0 - p["au24"])
    strokes = np.zeros((len(motion), len(_PALETTE["strokes"]), len(STROKE)))
    for k, stroke in enumerate(_PALETTE["strokes"].values()):
        for column, name in enumerate(STROKE):
            terms = stroke.get(name, 0.0)
            for term, factor in (terms if isinstance(terms, dict) else {"one": terms}).items():
                strokes[:, k, column] += factor * (1.0 if term == "one" else p[term][:, 0])
    # No stroke is finer than pixels are; multiplying is cheaper than dividing for each of them.
    strokes[..., 6:] = 1.0 / np.maximum(strokes[..., 6:], 0.7 * SPAN / min(size))
    record = np.dtype([(name, float, (3,) if v.shape[1] == 3 else ()) for name, v in p.items()])
    table = np.concatenate(list(p.values()), axis=1).astype(float).view(record)[:, 0]
    # Drawn once a clip and read at a moving offset: far cheaper than noise for each pixel.
    grain = (GRAIN * rng.standard_normal(1 << 14)).astype(np.float32)
    # Allocated here: code that allocates takes Numba seconds longer to compile.
    frames = np.empty((len(motion), *size, 3), np.uint8)
    drawing.render(frames, table, strokes, grain, empty)
    return frames


def boxes(motion: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(T, 4) int: squares around the face, inside the picture: left, top, right, bottom."""
    scale = min(size) / SPAN
    side = round(1.88 * scale)
    x = size[1] / 2 + motion[:, MOTION.index("x")] * scale - side / 2
    y = size[0] / 2 + (motion[:, MOTION.index("y")] + 0.02) * scale - side / 2
    x, y = np.clip(x, 0, size[1] - side).round(), np.clip(y, 0, size[0] - side).round()
    return np.stack([x, y, x + side, y + side], axis=1).astype(int)


def move(clip, seed: int, times, seconds: float, phonemes, rng) -> np.ndarray:
    """How somebody moves in a clip: (T, 19), columns as in MOTION.

    clip : of `generative_model.clips`; seed : of the corpus
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


def _move_lips(column, times, phonemes) -> None:
    """Jaw and lips follow the phonemes; the expression keeps the rest of the face."""
    starts, shapes = np.array([time for time, _ in phonemes]), np.zeros((len(phonemes) + 1, 2))
    for k, (_, name) in enumerate(phonemes):
        bare = name.lstrip("',%=_|")
        if bare not in ("", ";", ":"):  # which are silence
            visemes = (shape for initials, shape in VISEMES.items() if bare[0] in initials)
            shapes[k + 1] = next(visemes, OTHER_VISEME)
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

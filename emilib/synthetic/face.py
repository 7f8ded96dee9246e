"""A shaded head with ten action units, ray-cast per pixel (NumPy and Numba, about a millisecond).

Coordinates are head units, x to the right and y down, with the origin at the centre of the face;
the shorter side of the picture spans SPAN units. The head is an egg-shaped ellipsoid; where a
pixel's ray meets it, (u, v) is the place on the face after turning the head, and everything painted
on the face (eyes, brows, mouth, bumps of the surface) is placed in (u, v). Every edge is a ramp
about a pixel wide, so that nothing is jagged. Colours are mixed in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numba import njit

# Columns of a motion array (T, 19): ten action units and the eyelids in [0, 1], lips rounded by
# speech, head rotation in radians, head position and gaze in head units.
MOTION = (
    *("au1", "au2", "au4", "au5", "au6", "au12", "au15", "au17", "au24", "au26"),
    *("blink", "round", "yaw", "pitch", "roll", "x", "y", "gaze_x", "gaze_y"),
)
SPAN = 2.36  # head units along the shorter side of a picture
HAIR_STYLES = ("cropped", "parted", "bob", "long", "curly", "bun", "bald")

_SKIN = np.array(
    [
        [0.97, 0.82, 0.73],
        [0.93, 0.74, 0.61],
        [0.82, 0.61, 0.46],
        [0.64, 0.44, 0.32],
        [0.46, 0.31, 0.23],
    ]
)
_HAIR = np.array(
    [
        [0.09, 0.07, 0.07],
        [0.22, 0.13, 0.08],
        [0.40, 0.25, 0.13],
        [0.72, 0.54, 0.30],
        [0.52, 0.25, 0.11],
    ]
)
_IRIS = np.array([[0.30, 0.18, 0.10], [0.30, 0.42, 0.55], [0.33, 0.42, 0.26], [0.22, 0.13, 0.08]])
_WALL = np.array(
    [
        [0.84, 0.82, 0.78],
        [0.74, 0.80, 0.83],
        [0.80, 0.83, 0.76],
        [0.86, 0.79, 0.75],
        [0.72, 0.73, 0.79],
    ]
)
_SHIRT = np.array(
    [
        [0.26, 0.36, 0.50],
        [0.55, 0.30, 0.30],
        [0.31, 0.44, 0.38],
        [0.80, 0.78, 0.73],
        [0.25, 0.25, 0.29],
        [0.62, 0.52, 0.38],
        [0.48, 0.42, 0.58],
    ]
)


@dataclass(frozen=True)
class Look:
    """What a person looks like, and the room behind; the same in each of the person's clips."""

    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    wall: np.ndarray
    shirt: np.ndarray
    light: np.ndarray  # unit vector towards the lamp
    style: int  # index into HAIR_STYLES
    feminine: bool
    beard: float  # 0 none .. 1 full
    glasses: bool
    width: float  # half width of the head
    height: float  # half height of the head
    eye_x: float
    eye_size: float
    nose: float
    mouth: float  # half width of the mouth at rest
    brow: float  # half thickness of the brows
    hairline: float
    part: float  # where the hair is parted
    window: float  # where light falls on the wall
    noise: float = field(default=0.008)  # spread of the camera's noise

    @classmethod
    def of(cls, rng: np.random.Generator) -> Look:
        """Draw a person."""
        feminine = rng.random() < 0.5
        style = (
            rng.choice([1, 2, 3, 4, 5]) if feminine else rng.choice([0, 0, 0, 1, 1, 1, 1, 4, 4, 6])
        )
        tone = rng.uniform(0, len(_SKIN) - 1.001)
        dark = tone > 2.4  # dark skin comes with dark hair mostly
        hair = _HAIR[rng.integers(2 if dark else len(_HAIR))] * rng.uniform(0.85, 1.15)
        lamp = np.array(
            [rng.choice([-1, 1]) * rng.uniform(0.25, 0.6), rng.uniform(-0.7, -0.4), 1.0]
        )
        return cls(
            skin=_mix(_SKIN, tone),
            hair=hair,
            iris=_IRIS[rng.choice([0, 3]) if dark else rng.integers(len(_IRIS))],
            wall=_WALL[rng.integers(len(_WALL))] * rng.uniform(0.88, 1.04),
            shirt=_SHIRT[rng.integers(len(_SHIRT))] * rng.uniform(0.85, 1.15),
            light=lamp / np.linalg.norm(lamp),
            style=int(style),
            feminine=bool(feminine),
            beard=0.0 if feminine or rng.random() < 0.55 else rng.uniform(0.35, 0.9),
            glasses=bool(rng.random() < 0.18),
            width=rng.uniform(0.60, 0.66),
            height=rng.uniform(0.82, 0.89),
            eye_x=rng.uniform(0.235, 0.265),
            eye_size=rng.uniform(0.105, 0.122),
            nose=rng.uniform(0.075, 0.10),
            mouth=rng.uniform(0.20, 0.235),
            brow=rng.uniform(0.012, 0.018) + (0 if feminine else 0.006),
            hairline=rng.uniform(-0.60, -0.52),
            part=rng.choice([-1, 1]) * rng.uniform(0.1, 0.3),
            window=rng.uniform(-1.0, 1.0),
        )

    def packed(self) -> np.ndarray:
        """The look as one float vector, which is what the compiled code reads."""
        colours = [self.skin, self.hair, self.iris, self.wall, self.shirt, self.light]
        numbers = [self.style, self.beard, self.glasses, self.width, self.height, self.eye_x]
        numbers += [self.eye_size, self.nose, self.mouth, self.brow, self.hairline, self.part]
        return np.concatenate([*colours, [*numbers, self.window]]).astype(np.float64)


def render(look: Look, motion: np.ndarray, size: tuple[int, int], rng) -> np.ndarray:
    """Draw frames.

    motion : (T, 19), columns as in MOTION
    size : height and width in pixels
    rng : generator of the camera's noise

    Returns (T, height, width, 3) uint8 RGB.
    """
    motion = np.ascontiguousarray(motion, dtype=np.float64)
    if motion.ndim != 2 or motion.shape[1] != len(MOTION):
        raise ValueError(f"motion must be (T, {len(MOTION)}), but it is {motion.shape}")
    # Made here: code that allocates takes Numba seconds longer to compile.
    frames = np.empty((len(motion), *size, 3), np.uint8)
    turns = motion[:, _YAW - _AU1 : _ROLL - _AU1 + 1]
    sines = np.stack([np.cos(turns), np.sin(turns)], axis=2).reshape(len(motion), -1)
    p = np.hstack([np.tile(look.packed(), (len(motion), 1)), motion, sines])
    _render(frames, p, _bumps(p), _grain(look.noise, rng))
    return frames


def empty_room(look: Look, frames: int, size: tuple[int, int], rng) -> np.ndarray:
    """The same room with nobody in it: (frames, height, width, 3) uint8 RGB."""
    room = np.empty((frames, *size, 3), np.uint8)
    _render_room(room, look.packed(), _grain(look.noise, rng))
    return room


def head_box(motion: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(T, 4) squares around the face in pixels: left, top, right, bottom (may be outside)."""
    scale = min(size) / SPAN
    centre_x = size[1] / 2 + motion[:, MOTION.index("x")] * scale
    centre_y = size[0] / 2 + (motion[:, MOTION.index("y")] + 0.02) * scale
    half = 0.94 * scale
    return np.stack([centre_x - half, centre_y - half, centre_x + half, centre_y + half], axis=1)


def _mix(table: np.ndarray, position: float) -> np.ndarray:
    low = int(position)
    return table[low] * (low + 1 - position) + table[low + 1] * (position - low)


def _grain(spread: float, rng, count: int = 1 << 14) -> np.ndarray:
    """Camera noise, drawn once a clip and read at a moving offset: far cheaper than per pixel."""
    return (spread * rng.standard_normal(count)).astype(np.float32)


# Everything below is compiled. Only the two entry points are cached and callable from Python; the
# rest is linked into them, without reference counting.
_compiled = njit(cache=True, fastmath=True, error_model="numpy")
_inner = njit(
    fastmath=True, error_model="numpy", _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True
)
_inlined = njit(
    fastmath=True,
    error_model="numpy",
    inline="always",
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
)
# One vector p holds the look, the motion of the frame and the sines of its rotations (arrays are
# costly arguments). Positions in it:
_SKIN_AT, _HAIR_AT, _IRIS_AT, _WALL_AT, _SHIRT_AT, _LIGHT_AT = 0, 3, 6, 9, 12, 15
_STYLE, _BEARD, _GLASSES, _WIDTH, _HEIGHT, _EYE_X = 18, 19, 20, 21, 22, 23
_EYE_SIZE, _NOSE, _MOUTH, _BROW, _HAIRLINE, _PART, _WINDOW = 24, 25, 26, 27, 28, 29, 30
_AU1, _AU2, _AU4, _AU5, _AU6, _AU12, _AU15, _AU17, _AU24, _AU26 = range(31, 41)
_BLINK, _ROUND, _YAW, _PITCH, _ROLL, _X, _Y, _GAZE_X, _GAZE_Y = range(41, 50)
_COS_YAW, _SIN_YAW, _COS_PITCH, _SIN_PITCH, _COS_ROLL, _SIN_ROLL = range(50, 56)
_DEPTH = 0.72  # half depth of the head
_REACH = 0.95  # beside the head, beyond any hair
_EYE_Y = -0.09  # height of the eyes on the face


@_inner
def _ramp(x, width):
    """1 where x is well below 0, 0 well above, smooth between; the edge of every shape."""
    t = 0.5 - x / width
    if t <= 0.0:
        return 0.0
    if t >= 1.0:
        return 1.0
    return t * t * (3.0 - 2.0 * t)


@_inner
def _blob(x, y, width, height):
    """Round spot, 1 in its centre, 0 from twice its width on.

    (1 - q / 4)^4 is close to the Gaussian exp(-q), ends, and needs no exponential.
    """
    q = (x / width) ** 2 + (y / height) ** 2
    if q >= 4.0:
        return 0.0
    f = 1.0 - 0.25 * q
    return f * f * f * f


@_inner
def _wave(x):
    """Like math.sin, made of parabolas: near enough for hair, at a quarter of the cost."""
    t = x * (0.5 / math.pi)
    t -= math.floor(t)
    return 16.0 * t * (0.5 - t) if t < 0.5 else 16.0 * (t - 0.5) * (t - 1.0)


@_inner
def _over(below, above, alpha):
    """Paint a colour over another."""
    return (
        below[0] + alpha * (above[0] - below[0]),
        below[1] + alpha * (above[1] - below[1]),
        below[2] + alpha * (above[2] - below[2]),
    )


@_inner
def _scaled(colour, factor):
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


@_inner
def _colour(p, at):
    return (p[at], p[at + 1], p[at + 2])


@_inlined
def _room(p, x, y):
    """A plain wall, lighter towards the window, darker towards the corners."""
    glow = 0.10 * _blob(x - p[_WINDOW], y + 0.6, 1.4, 1.4)
    shade = 0.90 - 0.05 * y + glow - 0.035 * (x * x + y * y) * 0.5
    return _scaled(_colour(p, _WALL_AT), shade)


@_inner
def _neck(p, x, y, px, under):
    """The neck over what is `under`, in the chin's shadow; it follows the head most of the way."""
    across = x - 0.75 * p[_X]
    low = max(y - 0.95, 0.0)
    cover = _ramp(abs(across) - 0.285 - 0.9 * low * low, 2 * px) * _ramp(0.45 - y, 0.05)
    shadow = max(1.0 - 2.5 * max(y - p[_HEIGHT] - p[_Y] + 0.06, 0.0), 0.0)
    shade = (0.80 - 0.30 * shadow * shadow * shadow) * (1.0 - 3.9 * across * across)
    return _over(under, _scaled(_colour(p, _SKIN_AT), shade), cover)


@_inner
def _shirt(p, x, y, px, under):
    """Shirt and shoulders over what is `under`; they follow the head half-way."""
    cx = x - 0.5 * p[_X]
    shoulder = 0.99 + 0.28 * cx * cx - 0.05 * _blob(abs(cx) - 0.34, 0.0, 0.13, 1.0)
    collar = 1.06 + 0.4 * max(0.30 - abs(cx), 0.0) - 1.4 * max(abs(cx) - 0.24, 0.0)
    cover = _ramp(max(shoulder, collar) - y, 2 * px)
    light = 0.88 + 0.12 * _blob(cx, 0.0, 0.82, 1.0) + 0.03 * _wave(6.0 * cx + 2.0 * y)
    light += 0.3 * cx * p[_LIGHT_AT]
    return _over(under, _scaled(_colour(p, _SHIRT_AT), light), cover)


@_inner
def _torso(p, x, y, px, under):
    colour = under
    if y > 0.4 and abs(x) < 0.8:
        colour = _neck(p, x, y, px, colour)
    if y > 0.85:
        colour = _shirt(p, x, y, px, colour)
    return colour


@_inner
def _hair_tone(p, x, y):
    """Strands and a soft sheen; low contrast, so that it does not look like a helmet."""
    angle = x / (1.5 - y)  # strands spread from a point below
    radius = math.sqrt(x * x + (y + 0.1) * (y + 0.1))
    strands = 0.07 * _wave(62.0 * angle + 5.0 * radius) + 0.05 * _wave(131.0 * angle - 9.0 * radius)
    lamp = p[_LIGHT_AT]
    sheen = 0.30 * _blob(0.0, radius - 0.78, 1.0, 0.16) * max(0.0, 0.6 + lamp * x - 0.5 * y)
    if p[_STYLE] == 4:
        strands = 0.16 * _wave(23.0 * x + 4.0 * _wave(17.0 * y)) * _wave(25.0 * y)
        sheen *= 0.4
    return _scaled(_colour(p, _HAIR_AT), 0.85 + 0.25 * lamp * x - 0.12 * y + strands + sheen)


@_inner
def _hair_behind(p, x, y, px):
    """How much of the pixel is hair behind or around the head (head's own axes)."""
    style, rx, ry = p[_STYLE], p[_WIDTH], p[_HEIGHT]
    if style == 6 or abs(x) > 0.88 or y < -1.25 or (y > 0.45 and style != 2 and style != 3):
        return 0.0
    grow = 1.055 if style == 0 else (1.25 if style == 4 else 1.10)
    wobble = 0.0
    if style == 4:
        angle = math.atan2(x, -y)
        wobble = 0.025 * _wave(13.0 * angle) + 0.018 * _wave(29.0 * angle + 1.0)
    up = 0.05 if style != 0 else 0.015
    cap = math.sqrt((x / (rx * grow)) ** 2 + ((y + up) / (ry * (grow - 0.02))) ** 2) - 1.0 - wobble
    limit = 0.02  # how far down the hair reaches at the sides
    if style == 1 or style == 5:
        limit = -0.02
    elif style == 4:
        limit = 0.28
    cover = _ramp(cap, 3.0 * px) * _ramp(y - limit, 0.16)
    if style == 2 or style == 3:
        low = 0.62 if style == 2 else 1.25
        half = rx * (1.13 + 0.05 * max(y, 0.0)) - 0.10 * max(y - low + 0.25, 0.0) ** 2 * 8.0
        fall = _ramp(abs(x) - half, 3.0 * px) * _ramp(-y - 0.05, 0.05) * _ramp(y - low, 0.10)
        cover = max(cover, fall)
    if style == 5:
        knot = math.sqrt((x / 0.24) ** 2 + ((y + ry * 1.12) / 0.20) ** 2) - 1.0
        cover = max(cover, _ramp(knot, 6.0 * px))
    return cover


@_inner
def _hair_front(p, u, v, px):
    """How much of a place on the face is under hair."""
    style, line = p[_STYLE], p[_HAIRLINE]
    if style == 6:
        return 0.0
    edge = line + 0.30 * u * u  # round hairline
    soft = 0.07
    if style == 0:
        edge = line - 0.02 + 0.9 * max(abs(u) - 0.36, 0.0)
        soft = 0.12
    elif style == 1:
        side = (u - p[_PART]) * (1.0 if p[_PART] < 0 else -1.0)
        edge = (
            line - 0.06 + 0.55 * math.sqrt(max(side, 0.0) * 0.35) + 0.9 * max(-side - 0.1, 0.0) ** 2
        )
    elif style == 2:
        edge = line + 0.19 + 0.10 * u * u + 0.012 * _wave(37.0 * u)  # fringe
    elif style == 3:
        across = abs(u - 0.4 * p[_PART])
        edge = line - 0.05 + across * math.sqrt(across)
    elif style == 4:
        edge = line + 0.03 + 0.35 * u * u + 0.02 * _wave(24.0 * u)
        soft = 0.09
    cover = _ramp(v - edge, soft)
    falls = style == 2 or style == 3  # hair that hangs down beside the face
    temple = 0.53 if falls else 0.57
    reach = 0.9 if falls else 0.0
    sides = _ramp(temple - abs(u) + 0.06 * v, 0.09) * _ramp(v - reach, 0.30)
    return max(cover, sides)


@_inner
def _ear(p, x, y, px):
    """Cover and shading of an ear beside the head."""
    q = math.sqrt(((abs(x) - p[_WIDTH] * 0.985) / 0.075) ** 2 + ((y - 0.02) / 0.155) ** 2)
    return _ramp(q - 1.0, 0.25), 0.80 - 0.22 * _blob(
        abs(x) - p[_WIDTH] * 1.01, y - 0.02, 0.035, 0.09
    )


@_inlined
def _mouth_geometry(p):
    """(half width, centre height, lift of the corners, opening) for one frame."""
    half = p[_MOUTH] * (1.0 + 0.34 * p[_AU12] - 0.14 * p[_AU24] - 0.28 * p[_ROUND])
    centre = 0.435 + 0.035 * p[_AU26] - 0.02 * p[_AU17] + 0.015 * p[_AU12]
    lift = 0.026 + 0.115 * p[_AU12] - 0.095 * p[_AU15]
    gap = 0.16 * p[_AU26] * (1.0 - 0.7 * p[_AU24]) + 0.035 * p[_AU12] * (1.0 - p[_AU24])
    return half, centre, lift, gap


def _bumps(p):
    """The relief of half a face, (T, K, 5): height, u, v, 1 / width, 1 / height.

    p : (T, P); by NumPy, because assigning rows takes Numba seconds to compile
    """
    p = p.T
    ex, nose = p[_EYE_X], p[_NOSE]
    half, _, _, _ = _mouth_geometry.py_func(p)
    smile, cheek = p[_AU12], p[_AU6]
    lifted = 0.17 - 0.05 * smile - 0.03 * cheek
    fold = -0.008 - 0.020 * smile - 0.006 * cheek
    bumps = (
        (0.130, 0.0, 0.13, nose, 0.10),  # tip of the nose
        (0.085, 0.0, -0.04, 0.055, 0.20),  # its bridge
        (0.040, 0.0, 0.40, 0.20, 0.10),  # around the mouth
        (0.055, 0.0, 0.70, 0.17, 0.11),  # chin
        (-0.025 - 0.03 * p[_AU17], 0.0, 0.575, 0.13, 0.04),  # fold above the chin
        (-0.03 * p[_AU4], 0.0, -0.24, 0.025, 0.07),  # between the brows
        (0.035, nose * 0.9, 0.155, 0.045, 0.04),  # wing of the nose
        (0.03 + 0.055 * cheek + 0.045 * smile, 0.32, lifted, 0.15, 0.12),  # cheek
        (0.045, ex, -0.27 - 0.04 * p[_AU2], 0.17, 0.06),  # brow ridge
        (-0.055, ex, _EYE_Y, 0.15, 0.085),  # socket
        (fold, half + 0.055, 0.33, 0.03, 0.12),  # nose to mouth
    )
    table = np.stack([np.stack(np.broadcast_arrays(*bump, ex)[:5], axis=1) for bump in bumps], 1)
    table[..., 3:] = 1.0 / table[..., 3:]  # multiplying is cheaper than dividing for every pixel
    return np.ascontiguousarray(table)


@_inlined
def _relief(table, u, v):
    """Slope of the relief in u and v: the gradient of the sum of its bumps, each like `_blob`."""
    du, dv, side, across = 0.0, 0.0, 1.0 if u > 0 else -1.0, abs(u)
    for k in range(table.shape[0]):
        b = (v - table[k, 2]) * table[k, 4]
        a = (across - table[k, 1]) * table[k, 3]
        q = a * a + b * b
        if q < 4.0:
            f = 1.0 - 0.25 * q
            g = -2.0 * table[k, 0] * f * f * f
            du += g * a * table[k, 3]
            dv += g * b * table[k, 4]
    return side * du, dv


@_inner
def _complexion(p, u, v, px):
    """Colour of the skin at (u, v) before light falls on it: blush, folds, beard, nostrils."""
    skin = _colour(p, _SKIN_AT)
    a = abs(u)
    if v < -0.2:
        lines = p[_AU1] * (_blob(u, v + 0.43, 0.24, 0.012) + _blob(u, v + 0.365, 0.21, 0.012))
        frown = p[_AU4] * _blob(a - 0.04 - 0.05 * (v + 0.25), v + 0.25, 0.014, 0.06)
        return _scaled(skin, 1.0 - 0.16 * lines - 0.25 * frown)
    warm = _blob(a - 0.33, v - 0.19, 0.17, 0.13) * (0.5 + 0.4 * p[_AU6]) + 0.5 * _blob(
        u, v - 0.15, 0.10, 0.09
    )
    colour = (
        skin[0] * (1.0 + 0.03 * warm),
        skin[1] * (1.0 - 0.10 * warm),
        skin[2] * (1.0 - 0.09 * warm),
    )
    frown = p[_AU4] * _blob(a - 0.04 - 0.05 * (v + 0.25), v + 0.25, 0.014, 0.06)
    tired = _blob(a - p[_EYE_X], v - _EYE_Y - 0.115, 0.10, 0.022) * (0.08 + 0.22 * p[_AU6])
    crow = p[_AU6] * _blob(a - p[_EYE_X] - 0.20, v - _EYE_Y - 0.02, 0.05, 0.04) * 0.10
    half, _, _, _ = _mouth_geometry(p)
    crease = (0.03 + 0.10 * p[_AU12]) * _blob(
        a - half - 0.035 - 0.25 * (v - 0.33), v - 0.33, 0.016, 0.12
    )
    nostril = 0.50 * _blob(a - 0.045, v - 0.215, 0.024, 0.013) + 0.16 * _blob(
        u, v - 0.235, 0.09, 0.025
    )
    shade = 1.0 - 0.25 * frown - tired - crow - crease - nostril
    colour = _scaled(colour, shade)
    if p[_BEARD] > 0.0:
        jaw = _ramp(0.40 - v - 0.75 * max(a - 0.30, 0.0) - 0.20 * a, 0.34)  # fades up the cheek
        moustache = _blob(a - 0.09, v - 0.325, 0.15, 0.045)
        bare = _blob(u, v - 0.43, 0.22, 0.06)
        colour = _over(
            colour,
            _scaled(_colour(p, _HAIR_AT), 1.1),
            0.75 * p[_BEARD] * max(jaw * (1 - bare), moustache),
        )
    return colour


@_inner
def _paint_mouth(p, u, v, px, colour):
    """Lips, the dark of the open mouth, teeth and tongue; nothing beyond the mouth's corners."""
    half, centre, lift, gap = _mouth_geometry(p)
    t = u / half
    if abs(t) > 1.15 or v < 0.15 or v > 0.85:
        return colour
    arch = max(1.0 - t * t, 0.0)
    line = centre + 0.35 * lift - lift * min(t * t, 1.3)
    press = 1.0 - 0.55 * p[_AU24]
    bow = (
        1.0
        - 0.22 * math.exp(-((t / 0.16) ** 2))
        + 0.12 * math.exp(-(((abs(t) - 0.25) / 0.15) ** 2))
    )
    upper_in, lower_in = line - 0.25 * gap * arch, line + 0.75 * gap * arch
    root = math.sqrt(arch)
    fine = root * math.sqrt(root)
    upper_out = upper_in - 0.056 * press * bow * fine
    lower_out = lower_in + 0.074 * press * fine
    ends = _ramp(abs(t) - 1.0, 0.10)
    lips = _ramp(max(upper_out - v, v - lower_out), 1.6 * px) * ends
    skin = _colour(p, _SKIN_AT)
    glow = (
        0.93 if v < line else 1.03 + 0.10 * _blob(u, v - 0.5 * (lower_in + lower_out), 0.10, 0.015)
    )
    lip = (skin[0] * 0.88 * glow, skin[1] * 0.64 * glow, skin[2] * 0.65 * glow)
    colour = _over(colour, lip, 0.85 * lips)
    seam = _blob(0.0, v - line, 1.0, 0.011) * (0.75 - 0.25 * t * t) * ends
    colour = _scaled(colour, 1.0 - 0.62 * seam)
    corner = _blob(abs(t) - 1.0, v - line, 0.10, 0.022)
    colour = _scaled(colour, 1.0 - 0.30 * corner)
    inside = _ramp(max(upper_in - v, v - lower_in), 1.4 * px) * ends * min(gap / 0.02, 1.0)
    if inside > 0.0:
        depth = (0.26, 0.09, 0.09)
        tongue = _blob(u, v - centre - 0.80 * gap, 0.60 * half, 0.35 * gap + 0.01)
        depth = _over(depth, (0.68, 0.34, 0.34), 0.75 * tongue)
        reach = upper_in + min(0.40 * gap + 0.012, 0.055) * root
        teeth = _ramp(v - reach, 1.5 * px) * min(gap / 0.03, 1.0)
        depth = _over(depth, _scaled((0.94, 0.92, 0.88), 1.0 - 0.25 * t * t), teeth)
        colour = _over(colour, depth, inside)
    return colour


@_inner
def _paint_eye(p, side, u, v, px, colour):
    """One eye: ball, iris, pupil, glint, lids and lashes; side is -1 or 1."""
    size = p[_EYE_SIZE]
    x, y = (u - side * p[_EYE_X]) * side, v - _EYE_Y  # x grows outwards
    width = 1.28 * size
    t = x / width
    if abs(t) > 1.25 or abs(y) > 0.16:
        return colour
    arch = max(1.0 - t * t, 0.0)
    open_ = (1.0 + 0.38 * p[_AU5]) * (1.0 - 0.22 * p[_AU4]) * (1.0 - 0.12 * p[_AU6])
    height = 0.66 * size * open_ * (1.0 - p[_BLINK])
    tilt = -0.012 * t  # outer corner a little higher
    shape = math.sqrt(arch) * (0.75 + 0.25 * arch)
    upper = tilt - height * shape + 0.55 * size * p[_BLINK] * shape
    lower = tilt + (0.50 * size - 0.042 * p[_AU6]) * shape
    if lower < upper:
        lower = upper
    ball = _ramp(max(upper - y, y - lower), 1.4 * px) * _ramp(abs(t) - 1.0, 0.06)
    gx, gy = x - side * 0.055 * p[_GAZE_X], y - 0.04 * p[_GAZE_Y] + 0.004
    r = math.sqrt(gx * gx + gy * gy)
    white = _scaled((0.95, 0.94, 0.93), 1.0 - 0.25 * _ramp(y - upper - 0.03, 0.05) - 0.18 * t * t)
    iris = _scaled(_colour(p, _IRIS_AT), 0.85 + 0.55 * max(gy, 0.0) / size + 0.25 * r / size)
    eye = _over(white, iris, _ramp(r - 0.54 * size, 1.6 * px))
    eye = _over(eye, _scaled(iris, 0.45), 0.6 * _blob(0.0, r - 0.54 * size, 1.0, 0.016))
    eye = _over(eye, (0.03, 0.02, 0.02), _ramp(r - 0.25 * size, 1.6 * px))
    eye = _over(
        eye,
        (1.0, 1.0, 1.0),
        0.9 * _blob(gx - side * 0.026 * (1 if p[_LIGHT_AT] > 0 else -1), gy + 0.03, 0.017, 0.017),
    )
    colour = _over(colour, eye, ball)
    edge = _ramp(abs(t) - 1.04, 0.12)
    lash = _blob(0.0, y - upper + 0.004, 1.0, 0.017) * edge * (0.62 + 0.18 * t)
    crease = _blob(0.0, y - upper + 0.052 - 0.01 * p[_AU5], 1.0, 0.014) * edge * 0.16
    rim = _blob(0.0, y - lower, 1.0, 0.012) * edge * (0.18 + 0.10 * p[_AU6])
    return _over(colour, _scaled(_colour(p, _SKIN_AT), 0.18), min(lash + crease + rim, 0.92))


@_inner
def _paint_brow(p, side, u, v, px, colour):
    """One eyebrow, thick inside and tapering outwards."""
    if v < -0.5 or v > -0.1:
        return colour
    x = (u - side * p[_EYE_X]) * side  # -0.17 at its inner end, 0.19 at its outer end
    inner = min(max((0.10 - x) / 0.24, 0.0), 1.0)
    outer = 1.0 - inner
    x += 0.03 * p[_AU4] * inner
    s = (x + 0.17) / 0.36
    if s < -0.2 or s > 1.2:
        return colour
    arch = 0.012 * s - 0.048 * math.sin(min(max(s, 0.0), 1.0) * 2.7)
    raised = 0.085 * p[_AU1] * inner + p[_AU2] * (0.075 - 0.03 * inner) + 0.02 * p[_AU5]
    y = v - (-0.262 + arch - raised + 0.07 * p[_AU4] * inner + 0.035 * p[_AU4] * outer)
    thick = p[_BROW] * (1.15 - 0.75 * s)
    cover = _ramp(abs(y) - thick, 0.022) * _ramp(abs(s - 0.5) - 0.5, 0.16)
    hair = 0.10 * math.sin(140.0 * x + 60.0 * y)
    return _over(colour, _scaled(_colour(p, _HAIR_AT), 0.80 + hair), 0.82 * cover)


@_inner
def _paint_glasses(p, u, v, px, colour):
    """Thin round frames and a bridge."""
    a = abs(u)
    x, y = (a - p[_EYE_X]) / 0.205, (v - _EYE_Y - 0.015) / 0.165
    ring = math.sqrt(x * x + y * y) - 1.0
    rim = _ramp(abs(ring) * 0.18 - 0.010, 1.2 * px)
    bridge = _ramp(abs(v - _EYE_Y + 0.02 + 0.3 * u * u) - 0.010, 1.2 * px) * _ramp(
        a - p[_EYE_X] + 0.205, px
    )
    arm = _ramp(abs(v - _EYE_Y) - 0.010, 1.2 * px) * _ramp(p[_EYE_X] + 0.205 - a, px)
    colour = _over(colour, (1.0, 1.0, 1.0), 0.04 * _ramp(ring, 0.1))
    return _over(colour, (0.16, 0.14, 0.14), 0.85 * max(rim, max(bridge, arm)))


@_inlined
def _lit(p, table, u, v, x, y, z, colour):
    """Let the lamp shine on a place of the face; hair and skin have the same relief."""
    du, dv = _relief(table, u, v)
    flat = 1.35 * z / _DEPTH
    nx = x / p[_WIDTH] ** 2 - du * flat
    ny = y / p[_HEIGHT] ** 2 - dv * flat
    nz = z / _DEPTH**2 + 0.25
    length = 1.0 / math.sqrt(nx * nx + ny * ny + nz * nz)
    lamp = (nx * p[_LIGHT_AT] + ny * p[_LIGHT_AT + 1] + nz * p[_LIGHT_AT + 2]) * length
    wrapped = max(0.42 + 0.58 * lamp, 0.0)  # light wraps around, as it does on skin
    light = 0.34 + 0.74 * wrapped
    soft = 0.10 * (1.0 - wrapped) * wrapped * 4.0  # red shines through where light turns to shade
    glint = max(lamp, 0.0) ** 2
    glint = 0.09 * glint * glint * glint * glint
    return (
        colour[0] * (light + 0.6 * soft) + glint,
        colour[1] * light + glint,
        colour[2] * (light - 0.15 * soft) + glint,
    )


@_inlined
def _face_pixel(p, table, x, y, z, px):
    """Colour of the head where the ray at (x, y) meets it at depth z."""
    u, w = p[_COS_YAW] * x - p[_SIN_YAW] * z, p[_SIN_YAW] * x + p[_COS_YAW] * z
    v = p[_COS_PITCH] * y - p[_SIN_PITCH] * w
    hair = _hair_front(p, u, v, px)
    if hair >= 1.0:
        return _hair_tone(p, x, y)
    side = 1.0 if u > 0 else -1.0
    colour = _complexion(p, u, v, px)
    colour = _paint_mouth(p, u, v, px, colour)
    colour = _paint_eye(p, side, u, v, px, colour)
    colour = _paint_brow(p, side, u, v, px, colour)
    colour = _lit(p, table, u, v, x, y, z, colour)
    if p[_GLASSES] > 0:
        colour = _paint_glasses(p, u, v, px, colour)
    if v < -0.2:  # the hair's shadow on the forehead
        colour = _scaled(colour, 1.0 - 0.18 * _hair_front(p, u, v - 0.06, px))
    return _over(colour, _hair_tone(p, x, y), hair) if hair > 0.0 else colour


@_inner
def _egg(p, y):
    """Half width of the head at height y: the jaw is narrower than the temples."""
    low = min(max((y - 0.02) / 0.85, 0.0), 1.0)
    return p[_WIDTH] * (1.0 - 0.15 * low * low)


@_inner
def _backdrop(p, sx, sy, x, y, px):
    """Everything but the face: wall, hair behind the head, neck and shirt, ears."""
    colour = _room(p, sx, sy)
    cover = _hair_behind(p, x - 0.12 * p[_SIN_YAW], y, px)
    falls = p[_STYLE] == 2 or p[_STYLE] == 3
    behind = p[_STYLE] == 3  # long hair falls behind the shoulders
    if behind and cover > 0.0:
        colour = _over(colour, _scaled(_hair_tone(p, x, y), 0.80), cover)
    colour = _torso(p, sx, sy, px, colour)
    if not behind and cover > 0.0:
        colour = _over(colour, _scaled(_hair_tone(p, x, y), 0.88), cover)
    if not falls and abs(y) < 0.25:
        cover, tone = _ear(p, x + 0.12 * p[_SIN_YAW], y, px)
        colour = _over(colour, _scaled(_colour(p, _SKIN_AT), tone), cover)
    return colour


@_inner
def _pixel(p, table, sx, sy, px):
    """Colour at (sx, sy) of the picture."""
    dx, dy = sx - p[_X], sy - p[_Y]
    if abs(dx) > _REACH:
        return _torso(p, sx, sy, px, _room(p, sx, sy))
    x, y = p[_COS_ROLL] * dx + p[_SIN_ROLL] * dy, -p[_SIN_ROLL] * dx + p[_COS_ROLL] * dy
    q = 1.0 - (x / _egg(p, y)) ** 2 - (y / p[_HEIGHT]) ** 2
    face, cover = (0.0, 0.0, 0.0), 0.0
    if q > 0.0:
        face = _face_pixel(p, table, x, y, _DEPTH * math.sqrt(q), px)
        cover = min(q / (2.2 * px), 1.0)
    if cover < 1.0:
        face = _over(_backdrop(p, sx, sy, x, y, px), face, cover)
    return face


@_inlined
def _store(frames, t, j, i, colour, grain):
    for c in range(3):
        frames[t, j, i, c] = np.uint8(255.0 * min(max(colour[c] + grain, 0.0), 1.0))


@_compiled
def _render(frames, p, table, grain):
    height, width = frames.shape[1], frames.shape[2]
    px = SPAN / min(height, width)
    for t in range(frames.shape[0]):
        here, relief = p[t], table[t]
        for j in range(height):
            for i in range(width):
                x, y = (i + 0.5 - 0.5 * width) * px, (j + 0.5 - 0.5 * height) * px
                colour = _pixel(here, relief, x, y, px)
                noise = grain[(t * 7919 + j * 211 + i * 3 + j * i) & (grain.shape[0] - 1)]
                _store(frames, t, j, i, colour, noise)


@_compiled
def _render_room(frames, p, grain):
    height, width = frames.shape[1], frames.shape[2]
    px = SPAN / min(height, width)
    for t in range(frames.shape[0]):
        for j in range(height):
            for i in range(width):
                x, y = (i + 0.5 - 0.5 * width) * px, (j + 0.5 - 0.5 * height) * px
                noise = grain[(t * 7919 + j * 211 + i * 3 + j * i) & (grain.shape[0] - 1)]
                _store(frames, t, j, i, _room(p, x, y), noise)

"""The compiled part of `face`: the colour of each pixel, a ray each. Numba's cache wants one file.

Coordinates are head units, x to the right and y down, from the centre of the face; the shorter side
of the picture spans SPAN. The head is an egg-shaped ellipsoid; where a pixel's ray meets it, (u, v)
is the place on the face after turning the head. Every edge is a ramp about a pixel wide (`px`).
Colours are in [0, 1]. p is one record of what `face.render` tells.
"""

import math

import numpy as np
from numba import njit

SPAN = 2.36  # head units along the shorter side of a picture
DEPTH = 0.72  # half depth of the head
EYE_Y = -0.09  # height of the eyes on the face
CROPPED, PARTED, BOB, LONG, CURLY, BUN, BALD = range(7)  # hair styles

_fast = dict(fastmath=True, error_model="numpy")
_inner = njit(**_fast, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@_inner
def _ramp(x, width):
    """1 where x is well below 0, 0 well above, smooth between; the edge of every shape."""
    t = min(max(0.5 - x / width, 0.0), 1.0)
    return t * t * (3.0 - 2.0 * t)


@_inner
def _blob(x, y, width, height):
    """Round spot, 1 in its centre, 0 from twice its width on: close to exp(-q), but it ends."""
    q = (x / width) ** 2 + (y / height) ** 2
    return (1.0 - 0.25 * q) ** 4 if q < 4.0 else 0.0


@_inner
def _wave(x):
    """Like math.sin, made of parabolas: near enough for hair, at a quarter of the cost."""
    t = x * (0.5 / math.pi)
    t -= math.floor(t)
    return 16.0 * t * (0.5 - t) if t < 0.5 else 16.0 * (t - 0.5) * (t - 1.0)


@_inner
def _tint(colour, factor):
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


@_inner
def _over(below, above, alpha, shade=1.0):
    """Paint a colour, darkened by `shade`, over another."""
    return (
        below[0] + alpha * (above[0] * shade - below[0]),
        below[1] + alpha * (above[1] * shade - below[1]),
        below[2] + alpha * (above[2] * shade - below[2]),
    )


@_inner
def _wall(p, x, y):
    glow = 0.10 * _blob(x - p.window, y + 0.6, 1.4, 1.4)  # lighter towards the window
    return _tint(p.wall, 0.90 - 0.05 * y + glow - 0.035 * (x * x + y * y) * 0.5)


@_inner
def _body(p, x, y, px, colour):
    """The neck in the chin's shadow, and the shirt; they follow the head part of the way."""
    if y > 0.4 and abs(x) < 0.8:
        across, low = x - 0.75 * p.x, max(y - 0.95, 0.0)
        cover = _ramp(abs(across) - 0.285 - 0.9 * low * low, 2 * px) * _ramp(0.45 - y, 0.05)
        shadow = max(1.0 - 2.5 * max(y - p.height - p.y + 0.06, 0.0), 0.0)
        shade = (0.80 - 0.30 * shadow * shadow * shadow) * (1.0 - 3.9 * across * across)
        colour = _over(colour, p.skin, cover, shade)
    if y > 0.85:
        across = x - 0.5 * p.x
        away = abs(across)
        shoulder = 0.99 + 0.28 * across * across - 0.05 * _blob(away - 0.34, 0.0, 0.13, 1.0)
        collar = 1.06 + 0.4 * max(0.30 - away, 0.0) - 1.4 * max(away - 0.24, 0.0)
        light = 0.88 + 0.12 * _blob(across, 0.0, 0.82, 1.0) + 0.3 * across * p.light[0]
        light += 0.03 * _wave(6.0 * across + 2.0 * y)
        colour = _over(colour, p.shirt, _ramp(max(shoulder, collar) - y, 2 * px), light)
    return colour


@_inner
def _hair_tone(p, x, y):
    """Strands and a soft sheen; low contrast, so that it does not look like a helmet."""
    angle = x / (1.5 - y)  # strands spread from a point below
    radius = math.sqrt(x * x + (y + 0.1) * (y + 0.1))
    strands = 0.07 * _wave(62.0 * angle + 5.0 * radius) + 0.05 * _wave(131.0 * angle - 9.0 * radius)
    lamp = p.light[0]
    sheen = 0.30 * _blob(0.0, radius - 0.78, 1.0, 0.16) * max(0.0, 0.6 + lamp * x - 0.5 * y)
    if p.style == CURLY:
        strands = 0.16 * _wave(23.0 * x + 4.0 * _wave(17.0 * y)) * _wave(25.0 * y)
        sheen *= 0.4
    return _tint(p.hair, 0.85 + 0.25 * lamp * x - 0.12 * y + strands + sheen)


@_inner
def _hair_behind(p, x, y, px):
    """How much of the pixel is hair behind or around the head (head's own axes)."""
    if p.style == BALD or abs(x) > 0.88 or y < -1.25 or (y > 0.45 and p.fall == 0.0):
        return 0.0
    edge = math.hypot(x / (p.width * p.grow), (y + p.up) / (p.height * (p.grow - 0.02))) - 1.0
    if p.style == CURLY:
        angle = math.atan2(x, -y)
        edge -= 0.025 * _wave(13.0 * angle) + 0.018 * _wave(29.0 * angle + 1.0)
    cover = _ramp(edge, 3.0 * px) * _ramp(y - p.limit, 0.16)
    if p.fall > 0.0:
        half = p.width * (1.13 + 0.05 * max(y, 0.0)) - 0.8 * max(y - p.fall + 0.25, 0.0) ** 2
        fall = _ramp(abs(x) - half, 3.0 * px) * _ramp(-y - 0.05, 0.05) * _ramp(y - p.fall, 0.10)
        cover = max(cover, fall)
    if p.style == BUN:
        bun = math.hypot(x / 0.24, (y + p.height * 1.12) / 0.20) - 1.0
        cover = max(cover, _ramp(bun, 6.0 * px))
    return cover


@_inner
def _hair_front(p, u, v):
    """How much of a place on the face is under hair."""
    if p.style == BALD:
        return 0.0
    edge = p.hairline + p.line + p.bow * u * u + p.ripple * _wave(p.waves * u)
    if p.style == CROPPED:
        edge += 0.9 * max(abs(u) - 0.36, 0.0)
    elif p.style == PARTED:
        side = u - p.part if p.part < 0 else p.part - u
        edge += 0.55 * math.sqrt(0.35 * max(side, 0.0)) + 0.9 * max(-side - 0.1, 0.0) ** 2
    elif p.style == LONG:
        edge += abs(u - 0.4 * p.part) ** 1.5
    temple, reach = (0.53, 0.9) if p.fall > 0.0 else (0.57, 0.0)  # hangs down beside the face?
    sides = _ramp(temple - abs(u) + 0.06 * v, 0.09) * _ramp(v - reach, 0.30)
    return max(_ramp(v - edge, p.soft), sides)


@_inner
def _relief(p, strokes, u, v, x, y, z):
    """Light on red, green and blue at a place, its glint; how much strokes darken and warm it."""
    du, dv, dark, warm, side, across = 0.0, 0.0, 0.0, 0.0, 1.0 if u > 0 else -1.0, abs(u)
    for k in range(strokes.shape[0]):
        below = v - strokes[k, 4]
        a = (across - strokes[k, 3] - strokes[k, 5] * below) * strokes[k, 6]
        b = below * strokes[k, 7]
        f = 1.0 - 0.25 * (a * a + b * b)
        if f > 0.0:
            slope = -2.0 * strokes[k, 0] * f**3
            du += side * slope * a * strokes[k, 6]
            dv += slope * b * strokes[k, 7]
            dark += strokes[k, 1] * f**4
            warm += strokes[k, 2] * f**4
    flat, nz = 1.35 * z / DEPTH, z / DEPTH**2 + 0.25
    nx, ny = x / p.width**2 - du * flat, y / p.height**2 - dv * flat
    lamp = nx * p.light[0] + ny * p.light[1] + nz * p.light[2]
    lamp *= 1.0 / math.sqrt(nx * nx + ny * ny + nz * nz)
    wrapped = max(0.42 + 0.58 * lamp, 0.0)  # light wraps around, as it does on skin
    light, glint = 0.34 + 0.74 * wrapped, 0.09 * max(lamp, 0.0) ** 8
    soft = 0.10 * (1.0 - wrapped) * wrapped * 4.0  # red shines through where light turns to shade
    return light + 0.6 * soft, light, light - 0.15 * soft, glint, dark, warm


@_inner
def _paint_mouth(p, u, v, px, colour):
    """Lips, the dark of the open mouth, teeth and tongue; nothing beyond the mouth's corners."""
    t, gap = u / p.half, p.gap
    if abs(t) > 1.15 or v < 0.15 or v > 0.85:
        return colour
    arch = max(1.0 - t * t, 0.0)
    root = math.sqrt(arch)
    fine, press = root * math.sqrt(root), 1.0 - 0.55 * p.au24
    line = p.centre + 0.35 * p.lift - p.lift * min(t * t, 1.3)
    bow = 1.0 - 0.22 * math.exp(-((t / 0.16) ** 2))
    bow += 0.12 * math.exp(-(((abs(t) - 0.25) / 0.15) ** 2))
    upper_in, lower_in = line - 0.25 * gap * arch, line + 0.75 * gap * arch
    upper_out, lower_out = upper_in - 0.056 * press * bow * fine, lower_in + 0.074 * press * fine
    ends = _ramp(abs(t) - 1.0, 0.10)
    lips = _ramp(max(upper_out - v, v - lower_out), 1.6 * px) * ends
    shine = 0.10 * _blob(u, v - 0.5 * (lower_in + lower_out), 0.10, 0.015)
    lip = (p.skin[0] * 0.88, p.skin[1] * 0.64, p.skin[2] * 0.65)
    colour = _over(colour, lip, 0.85 * lips, 0.93 if v < line else 1.03 + shine)
    seam = _blob(0.0, v - line, 1.0, 0.011) * (0.75 - 0.25 * t * t) * ends
    corner = _blob(abs(t) - 1.0, v - line, 0.10, 0.022)
    colour = _tint(colour, (1.0 - 0.62 * seam) * (1.0 - 0.30 * corner))
    inside = _ramp(max(upper_in - v, v - lower_in), 1.4 * px) * ends * min(gap / 0.02, 1.0)
    if inside > 0.0:
        tongue = _blob(u, v - p.centre - 0.80 * gap, 0.60 * p.half, 0.35 * gap + 0.01)
        depth = _over((0.26, 0.09, 0.09), (0.68, 0.34, 0.34), 0.75 * tongue)
        teeth = _ramp(v - upper_in - min(0.40 * gap + 0.012, 0.055) * root, 1.5 * px)
        teeth *= min(gap / 0.03, 1.0)
        depth = _over(depth, (0.94, 0.92, 0.88), teeth, 1.0 - 0.25 * t * t)
        colour = _over(colour, depth, inside)
    return colour


@_inner
def _paint_eye(p, side, u, v, px, colour):
    size = p.eye_size
    x, y = (u - side * p.eye_x) * side, v - EYE_Y  # x grows outwards
    t = x / (1.28 * size)
    if abs(t) > 1.25 or abs(y) > 0.16:
        return colour
    arch = max(1.0 - t * t, 0.0)
    open_ = (1.0 + 0.38 * p.au5) * (1.0 - 0.22 * p.au4) * (1.0 - 0.12 * p.au6) * (1.0 - p.blink)
    shape, tilt = math.sqrt(arch) * (0.75 + 0.25 * arch), -0.012 * t  # outer corner a little higher
    upper = tilt - (0.66 * open_ - 0.55 * p.blink) * size * shape
    lower = max(tilt + (0.50 * size - 0.042 * p.au6) * shape, upper)
    ball = _ramp(max(upper - y, y - lower), 1.4 * px) * _ramp(abs(t) - 1.0, 0.06)
    gx, gy = x - side * 0.055 * p.gaze_x, y - 0.04 * p.gaze_y + 0.004
    r = math.sqrt(gx * gx + gy * gy)
    white = 1.0 - 0.25 * _ramp(y - upper - 0.03, 0.05) - 0.18 * t * t
    iris = _tint(p.iris, 0.85 + 0.55 * max(gy, 0.0) / size + 0.25 * r / size)
    eye = _over(_tint((0.95, 0.94, 0.93), white), iris, _ramp(r - 0.54 * size, 1.6 * px))
    eye = _over(eye, iris, 0.6 * _blob(0.0, r - 0.54 * size, 1.0, 0.016), 0.45)
    eye = _over(eye, (0.03, 0.02, 0.02), _ramp(r - 0.25 * size, 1.6 * px))
    aside = gx - side * (0.026 if p.light[0] > 0 else -0.026)
    eye = _over(eye, (1.0, 1.0, 1.0), 0.9 * _blob(aside, gy + 0.03, 0.017, 0.017))
    edge = _ramp(abs(t) - 1.04, 0.12)
    lash = _blob(0.0, y - upper + 0.004, 1.0, 0.017) * edge * (0.62 + 0.18 * t)
    lash += _blob(0.0, y - upper + 0.052 - 0.01 * p.au5, 1.0, 0.014) * edge * 0.16  # the lid's fold
    lash += _blob(0.0, y - lower, 1.0, 0.012) * edge * (0.18 + 0.10 * p.au6)
    return _over(_over(colour, eye, ball), p.skin, min(lash, 0.92), 0.18)


@_inner
def _paint_brow(p, side, u, v, px, colour):
    x = (u - side * p.eye_x) * side  # -0.17 at its inner end, 0.19 at its outer end
    inner = min(max((0.10 - x) / 0.24, 0.0), 1.0)
    x += 0.03 * p.au4 * inner
    s = (x + 0.17) / 0.36
    if v < -0.5 or v > -0.1 or s < -0.2 or s > 1.2:
        return colour
    arch = 0.012 * s - 0.048 * math.sin(min(max(s, 0.0), 1.0) * 2.7)
    raised = 0.085 * p.au1 * inner + p.au2 * (0.075 - 0.03 * inner) + 0.02 * p.au5
    y = v - (-0.262 + arch - raised + p.au4 * (0.07 * inner + 0.035 * (1.0 - inner)))
    cover = _ramp(abs(y) - p.brow * (1.15 - 0.75 * s), max(0.022, 1.4 * px))
    cover *= _ramp(abs(s - 0.5) - 0.5, 0.16)
    return _over(colour, p.hair, 0.82 * cover, 0.80 + 0.10 * math.sin(140.0 * x + 60.0 * y))


@_inner
def _paint_glasses(p, u, v, px, colour):
    a = abs(u)
    ring = math.hypot((a - p.eye_x) / 0.205, (v - EYE_Y - 0.015) / 0.165) - 1.0
    bridge = _ramp(abs(v - EYE_Y + 0.02 + 0.3 * u * u) - 0.010, 1.2 * px)
    bridge *= _ramp(a - p.eye_x + 0.205, px)
    arm = _ramp(abs(v - EYE_Y) - 0.010, 1.2 * px) * _ramp(p.eye_x + 0.205 - a, px)
    frame = max(_ramp(abs(ring) * 0.18 - 0.010, 1.2 * px), max(bridge, arm))
    colour = _over(colour, (1.0, 1.0, 1.0), 0.04 * _ramp(ring, 0.1))
    return _over(colour, (0.16, 0.14, 0.14), 0.85 * frame)


@_inner
def _head(p, strokes, x, y, z, px):
    """Colour of the head where the ray at (x, y) meets it at depth z."""
    u, w = p.cos_yaw * x - p.sin_yaw * z, p.sin_yaw * x + p.cos_yaw * z
    v = p.cos_pitch * y - p.sin_pitch * w
    hair = _hair_front(p, u, v)
    if hair >= 1.0:
        return _hair_tone(p, x, y)
    side = 1.0 if u > 0 else -1.0
    red, green, blue, glint, dark, warm = _relief(p, strokes, u, v, x, y, z)
    r, g, b = _tint(p.skin, 1.0 - dark)
    colour = (r * (1.0 + 0.03 * warm), g * (1.0 - 0.10 * warm), b * (1.0 - 0.09 * warm))
    if p.beard > 0.0:
        a = abs(u)
        jaw = _ramp(0.40 - v - 0.75 * max(a - 0.30, 0.0) - 0.20 * a, 0.34)  # fades up the cheek
        jaw *= 1.0 - _blob(u, v - 0.43, 0.22, 0.06)  # bare around the lips
        moustache = _blob(a - 0.09, v - 0.325, 0.15, 0.045)
        colour = _over(colour, p.hair, 0.75 * p.beard * max(jaw, moustache), 1.1)
    colour = _paint_mouth(p, u, v, px, colour)
    colour = _paint_brow(p, side, u, v, px, _paint_eye(p, side, u, v, px, colour))
    colour = (colour[0] * red + glint, colour[1] * green + glint, colour[2] * blue + glint)
    if p.glasses > 0:
        colour = _paint_glasses(p, u, v, px, colour)
    if v < -0.2:  # the hair's shadow on the forehead
        colour = _tint(colour, 1.0 - 0.18 * _hair_front(p, u, v - 0.06))
    return _over(colour, _hair_tone(p, x, y), hair) if hair > 0.0 else colour


@_inner
def _backdrop(p, sx, sy, x, y, px):
    """Everything but the face: wall, hair behind the head, neck and shirt, ears."""
    colour, turned = _wall(p, sx, sy), 0.12 * p.sin_yaw
    cover = _hair_behind(p, x - turned, y, px)
    if p.style == LONG and cover > 0.0:  # falls behind the shoulders
        colour = _over(colour, _hair_tone(p, x, y), cover, 0.80)
    colour = _body(p, sx, sy, px, colour)
    if p.style != LONG and cover > 0.0:
        colour = _over(colour, _hair_tone(p, x, y), cover, 0.88)
    if p.fall == 0.0 and abs(y) < 0.25:
        beside = abs(x + turned)
        ear = math.hypot((beside - p.width * 0.985) / 0.075, (y - 0.02) / 0.155) - 1.0
        tone = 0.80 - 0.22 * _blob(beside - p.width * 1.01, y - 0.02, 0.035, 0.09)
        colour = _over(colour, p.skin, _ramp(ear, 0.25), tone)
    return colour


@_inner
def _pixel(p, strokes, sx, sy, px):
    dx, dy = sx - p.x, sy - p.y
    if abs(dx) > 0.95:  # beside the head, beyond any hair
        return _body(p, sx, sy, px, _wall(p, sx, sy))
    x, y = p.cos_roll * dx + p.sin_roll * dy, -p.sin_roll * dx + p.cos_roll * dy
    low = min(max((y - 0.02) / 0.85, 0.0), 1.0)  # the jaw is narrower than the temples
    half = p.width * (1.0 - 0.15 * low * low)
    q = 1.0 - (x / half) ** 2 - (y / p.height) ** 2
    cover = min(q / (2.2 * px), 1.0)
    if cover <= 0.0:
        return _backdrop(p, sx, sy, x, y, px)
    colour = _head(p, strokes, x, y, DEPTH * math.sqrt(q), px)
    return colour if cover >= 1.0 else _over(_backdrop(p, sx, sy, x, y, px), colour, cover)


@njit(cache=True, **_fast)
def render(frames, p, strokes, grain, empty):
    height, width = frames.shape[1], frames.shape[2]
    px = SPAN / min(height, width)
    for t in range(frames.shape[0]):
        for j in range(height):
            for i in range(width):
                x, y = (i + 0.5 - 0.5 * width) * px, (j + 0.5 - 0.5 * height) * px
                colour = _wall(p[t], x, y) if empty else _pixel(p[t], strokes[t], x, y, px)
                noise = grain[(t * 7919 + j * 211 + i * 3 + j * i) & (grain.shape[0] - 1)]
                for c in range(3):
                    frames[t, j, i, c] = np.uint8(255.0 * min(max(colour[c] + noise, 0.0), 1.0))

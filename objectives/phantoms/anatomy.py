"""Draw the density of a synthetic frontal chest: lungs, heart, mediastinum, diaphragm, bones, airway, vessels."""

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from acuity.objectives.phantoms.film import (
    CANVAS,
    SUBPIXEL_BITS,
    Field,
    Film,
    Mask,
    Points,
    draw_tubes,
    empty_mask,
    fill,
    soften,
    to_fixed_point,
)

LUNG_HALF_WIDTH = 0.70
"""Greatest distance from the midline to the inner chest wall, in the patient's frame."""
_APEX = -0.75


def draw_thorax(
    rng: np.random.Generator, film: Film, *, female: bool, cardiothoracic_ratio: float
) -> tuple[Field, Field]:
    """Density of the chest, and the fraction of unobstructed lung in each pixel.

    rng: generator of the patient; it is in the same state for each of the patient's films.
    """
    width = float(rng.normal(0.97 if female else 1.0, 0.035))
    height = film.breath * float(rng.normal(0.95 if female else 1.0, 0.04))
    # The liver lifts the right dome, on the left of the film.
    lungs = [_lung(side, width, height, dome=rng.normal(lift, 0.03)) for side, lift in ((-1, -0.04), (1, 0.0))]
    heart = _heart(film, cardiothoracic_ratio * 2 * LUNG_HALF_WIDTH * width, height)

    body = soften(fill(film, _BODY * [width, 1]) | fill(film, *_arms(rng, width)), 2.5)
    air = fill(film, *lungs)
    aerated, depth = soften(air, 0.8), soften(air, 7.0)
    front = np.maximum(soften(fill(film, heart), 1.1), soften(fill(film, _mediastinum(rng, film, height)), 1.0))
    density = 0.62 * body * _thickness(rng)
    density += 0.16 * body * soften(fill(film, _abdomen(height)), 5.0)
    density -= aerated * (1 - 0.80 * front) * (0.33 + 0.14 * depth)
    density += 0.05 * front
    density -= 0.14 * soften(_stomach_bubble(rng, film, height), 1.0)
    density -= 0.09 * soften(_airway(film), 0.8)
    density += _bones(rng, film, width, height) * (0.45 + 0.55 * np.maximum(aerated, 1 - depth))
    breasts = _breasts(rng, film, width, height)
    if female:
        density += 0.09 * body * soften(breasts, 1.5)
    clear = aerated * np.clip(1 - 1.3 * front, 0, 1)
    density += 0.24 * clear * soften(_vessels(rng, film, width, height), 0.4)
    return density, clear


def _outline(corners: str, *, points: int = 64, mirrored: bool = False) -> Points:
    """Draw a smooth closed outline through corners "x y, x y, ..."; mirrored: corners are of its left half."""
    ring = np.array([corner.split() for corner in corners.split(",")], dtype=float)
    if mirrored:
        ring = np.vstack([ring, ring[::-1] * [-1, 1]])
    spline = CubicSpline(np.arange(len(ring) + 1), np.vstack([ring, ring[:1]]), bc_type="periodic")
    outline: Points = spline(np.linspace(0, len(ring), points, endpoint=False))
    return outline


_BODY = _outline(
    "-0.17 -1.3, -0.18 -1.0, -0.32 -0.86, -0.66 -0.77, -0.97 -0.66, -1.04 -0.46, -0.92 -0.22, -0.84 0.1, -0.83 0.5,"
    "-0.86 1.3",
    points=120,
    mirrored=True,
)

_LUNG = _outline(
    "0.27 -0.75, 0.43 -0.67, 0.555 -0.48, 0.64 -0.22, 0.685 0.08, 0.70 0.33, 0.675 0.50, 0.57 0.39, 0.42 0.325,"
    "0.27 0.33, 0.12 0.40, 0.08 0.2, 0.08 -0.2, 0.09 -0.5, 0.15 -0.69"
)

_HEART = _outline(
    "-0.10 -0.24, -0.19 -0.06, -0.225 0.14, -0.19 0.33, 0.04 0.43, 0.27 0.44, 0.395 0.37, 0.405 0.24, 0.33 0.04,"
    "0.19 -0.16, 0.08 -0.26"
)

_HEART_WIDTH = float(np.ptp(_HEART[:, 0]))
_MEDIASTINUM = _outline(
    "-0.11 -1.2, -0.10 -0.9, -0.10 -0.62, -0.13 -0.42, -0.145 -0.2, -0.10 0.1, -0.09 0.6, 0.10 0.6, 0.11 0.1,"
    "0.15 -0.12, 0.15 -0.22, 0.12 -0.30, 0.165 -0.37, 0.155 -0.45, 0.105 -0.55, 0.10 -0.9, 0.11 -1.2",
    points=100,
)


def _breathe(y: NDArray[np.float64], height: float) -> NDArray[np.float64]:
    return _APEX + (y - _APEX) * height


def _lung(side: int, width: float, height: float, *, dome: float) -> Points:
    outline = _LUNG * [side * width, 1]
    outline[:, 1] = _breathe(outline[:, 1], height) + np.clip((outline[:, 1] - 0.1) / 0.3, 0, 1) * dome
    return outline


def _heart(film: Film, width: float, height: float) -> Points:
    """A larger heart extends mostly to the patient's left; its lower edge remains on the diaphragm."""
    scale = width / _HEART_WIDTH
    lowest, tall = _HEART[:, 1].max(), 0.45 + 0.55 * scale
    x = scale * (_HEART[:, 0] - 0.09) + 0.09 + 1.2 * film.turn
    return np.column_stack([x, _breathe(np.array(lowest), height) + tall * (_HEART[:, 1] - lowest)])


def _mediastinum(rng: np.random.Generator, film: Film, height: float) -> Points:
    outline = _MEDIASTINUM * [rng.normal(1, 0.08), 1]
    aortic_knob = np.exp(-(((_MEDIASTINUM - [0.16, -0.40]) / 0.07) ** 2).sum(axis=1))
    outline[:, 0] += 0.5 * film.turn + rng.normal(0.01, 0.02) * aortic_knob
    outline[:, 1] = _breathe(outline[:, 1], height)
    return outline


def _abdomen(height: float) -> Points:
    top = float(_breathe(np.array(0.45), height))
    return np.array([(-0.9, top), (0.9, top), (0.95, 1.4), (-0.95, 1.4)])


def _arms(rng: np.random.Generator, width: float) -> Points:
    """Upper arms, at a random distance from the body."""
    spread = rng.uniform(0.10, 0.34)
    outer = [(0.86, -0.68), (1.02, -0.62), (1.10 + spread, 0.1), (1.1 + 1.6 * spread, 1.1)]
    inner = [(0.93 + 1.6 * spread, 1.1), (0.95 + 0.7 * spread, 0.0), (0.88, -0.3)]
    arm = np.array(outer + inner)
    return np.stack([arm * [-width, 1], arm * [width, 1]])


def _thickness(rng: np.random.Generator) -> Field:
    """Thickness of the body: the abdomen is thicker than the chest, the midline thicker than the flanks."""
    axis = np.linspace(-1, 1, CANVAS, dtype=np.float32)
    thickness: Field = 1 + 0.12 * axis[:, None] - np.float32(rng.uniform(0.05, 0.25)) * axis**2
    return thickness


def _bones(rng: np.random.Generator, film: Film, width: float, height: float) -> Field:
    along = np.linspace(0, 1, 12)
    sides = np.array([-1, 1])[:, None, None]
    rib = np.arange(9)[:, None]
    droop = rng.normal(0.15, 0.03) + 0.02 * rib
    edge = width * LUNG_HALF_WIDTH * np.clip(0.60 + 0.17 * rib - 0.017 * rib**2, 0, 1.03)
    start = _APEX + (0.05 + 0.125 * rib) * height
    behind = start - 0.05 * np.sin(0.8 * np.pi * along) + droop * along**2.2
    behind_x = sides * (0.06 + (edge - 0.06) * np.sin(along * np.pi / 2)) - 0.3 * film.turn
    before = start[:7] + droop[:7] + (0.16 + 0.025 * rib[:7]) * along
    before_x = sides * (0.24 + (edge[:7] - 0.24) * np.cos(along * np.pi / 2) ** 0.8) + 0.3 * film.turn
    tilt = rng.normal(0.10, 0.03, (2, 1, 1))
    collar = -0.60 - tilt * along + 0.035 * np.sin(2 * np.pi * along)
    collar_x = sides * (0.07 + 0.70 * along) * width + film.turn
    heads = np.array([(-0.92 * width, -0.60), (0.92 * width, -0.60)])

    posterior = draw_tubes(film, behind_x, behind, width=0.052, cortex=190, marrow=140)
    anterior = draw_tubes(film, before_x, before, width=0.058, cortex=110, marrow=80)
    shoulder = draw_tubes(film, collar_x, collar, width=0.066, cortex=210, marrow=150)
    for centre in to_fixed_point(film, heads):
        cv2.circle(shoulder, tuple(centre), 8 << SUBPIXEL_BITS, 130, -1, cv2.LINE_AA, SUBPIXEL_BITS)
    blade = np.array([(0.58, -0.56), (0.92, -0.62), (0.80, -0.22), (0.72, 0.0), (0.66, -0.2)])
    blade[:, 0] += 0.10 - 0.16 * film.supine
    blades = np.stack([blade * [-width, 1], blade * [width, 1]])
    cv2.polylines(anterior, list(to_fixed_point(film, blades)), True, 110, 1, cv2.LINE_AA, SUBPIXEL_BITS)
    spine = soften(_spine(film, bend=float(rng.normal(0, 0.03))), 0.5)
    bones: Field = (
        0.15 * soften(posterior, 0.4) + 0.13 * soften(anterior, 0.5) + 0.16 * soften(shoulder, 0.5) + 0.11 * spine
    )
    return bones


def _spine(film: Film, *, bend: float) -> Mask:
    """Vertebral bodies with discs between them, each with its two pedicles."""
    count = np.arange(24)
    step = 0.075 * 1.03**count
    top = np.cumsum(step * 1.16) - 1.25
    half = (0.055 + 0.012 * (top + 1))[:, None]
    body = np.array([(-1, 0), (-0.84, 0.5), (-1, 1), (1, 1), (0.84, 0.5), (1, 0)])
    middle = (bend * np.sin(2.2 * top) - 0.5 * film.turn)[:, None]
    boxes = np.stack([middle + half * body[:, 0], top[:, None] + step[:, None] * body[:, 1]], axis=2)
    mask = empty_mask()
    cv2.fillPoly(mask, list(to_fixed_point(film, boxes)), 190, cv2.LINE_AA, SUBPIXEL_BITS)
    for side in (-0.6, 0.6):
        pedicles = np.column_stack([middle + side * half, top + 0.35 * step])
        for centre in to_fixed_point(film, pedicles):
            cv2.circle(mask, tuple(centre), 16, 255, -1, cv2.LINE_AA, SUBPIXEL_BITS)
    return mask


def _airway(film: Film) -> Mask:
    """The trachea and the two main bronchi."""
    x = 0.3 * film.turn
    trachea = np.array([(x, -1.2), (x, -0.6), (x + 0.012, -0.34), (x + 0.012, -0.29)])
    bronchi = [[(x + 0.01, -0.31), (x - 0.05, -0.24), (x - 0.12, -0.14)]]
    bronchi += [[(x + 0.01, -0.31), (x + 0.07, -0.25), (x + 0.16, -0.20)]]
    mask = empty_mask()
    cv2.polylines(mask, [to_fixed_point(film, trachea)], False, 255, 5, cv2.LINE_AA, SUBPIXEL_BITS)
    cv2.polylines(mask, list(to_fixed_point(film, np.array(bronchi))), False, 190, 3, cv2.LINE_AA, SUBPIXEL_BITS)
    return mask


def _stomach_bubble(rng: np.random.Generator, film: Film, height: float) -> Mask:
    """Gas under the left dome of the diaphragm, in most patients."""
    size = rng.uniform(-0.3, 1.0)
    if size < 0:
        return empty_mask()
    around = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    x = 0.36 + (0.05 + 0.10 * size) * np.cos(around)
    y = _breathe(np.array(0.47), height) + (0.03 + 0.06 * size) * np.sin(around) + 0.02 * np.cos(2 * around)
    return fill(film, np.column_stack([x, y]))


def _breasts(rng: np.random.Generator, film: Film, width: float, height: float) -> Mask:
    size, low = rng.uniform(0.26, 0.36), rng.normal(0.0, 0.04)
    around = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    x = np.array([[-1], [1]]) * (0.46 * width + size * np.cos(around))
    y = np.broadcast_to(0.16 * height + low + 1.05 * size * np.sin(around), x.shape)
    return fill(film, *np.stack([x, y], axis=2))


def _vessels(rng: np.random.Generator, film: Film, width: float, height: float) -> Mask:
    """Two trees of vessels from the hila; each generation bends, forks and is thinner and less dense."""
    mask = empty_mask()
    trunks = 7
    side = np.repeat([-1, 1], trunks)
    fan = np.deg2rad(np.tile(np.linspace(-75, 80, trunks), 2)) + rng.normal(0, 0.12, 2 * trunks)
    origin = np.tile(np.linspace(-0.18, 0.04, trunks), 2)
    start = np.column_stack([side * (0.14 + rng.uniform(0, 0.05, 2 * trunks)), origin])
    length = rng.uniform(0.12, 0.20, 2 * trunks)
    for thickness, shade in ((2, 150), (1, 140), (1, 85), (1, 50)):
        bend = fan + rng.normal(0, 0.25, len(fan))
        stretch = np.column_stack([side * width, np.full(len(side), height)]) * length[:, None] / 2
        middle = start + stretch * np.column_stack([np.cos(fan), np.sin(fan)])
        end = middle + stretch * np.column_stack([np.cos(bend), np.sin(bend)])
        paths = to_fixed_point(film, np.stack([start, middle, end], axis=1))
        cv2.polylines(mask, list(paths), False, shade, thickness, cv2.LINE_AA, SUBPIXEL_BITS)
        fork = np.abs(rng.normal(0.38, 0.12, len(fan)))
        fan, side, start = np.concatenate([bend - fork, bend + 0.7 * fork]), np.tile(side, 2), np.tile(end, (2, 1))
        length = np.tile(length, 2) * rng.uniform(0.65, 0.95, len(fan))
    return mask

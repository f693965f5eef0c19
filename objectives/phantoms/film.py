"""Position a patient before a synthetic film, draw shapes on it, and expose it.

All coordinates are fractions of the image's side. All films are drawn anti-aliased on one canvas, and smaller phantoms
are area averages of it. High density is white on the film; air is black.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import fft

Points = NDArray[np.float64]  # [..., 2] x, y in the patient's frame: 0 in the middle, 1 at the edges, y downwards
Field = NDArray[np.float32]  # [CANVAS, CANVAS]
Mask = NDArray[np.uint8]  # [CANVAS, CANVAS]
CANVAS = 128
"""Pixels a side; nothing finer exists in a phantom."""
SUBPIXEL_BITS = 4
"""Fractional bits of the fixed-point positions at which OpenCV draws."""


@dataclass(frozen=True, eq=False)
class Film:
    """Position and inspiration of the patient on one film."""

    supine: bool
    pose: NDArray[np.float64]
    """[2, 3] affine map from the patient's frame to canvas pixels."""
    turn: float
    """Shift of anterior structures against the spine by rotation about the long axis."""
    breath: float
    """Depth of inspiration; 1 is full."""


def take_film(rng: np.random.Generator, *, supine: bool) -> Film:
    """Draw position and inspiration; supine (AP) films have more rotation and less inspiration."""
    angle = np.deg2rad(rng.normal(0, 2.5 if supine else 1.2))
    scale = rng.normal(1.06, 0.04)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]]) * CANVAS / 2
    shift = (rng.normal([0, 0.05], 0.03) + 1) * CANVAS / 2 - 0.5
    return Film(
        supine=supine,
        pose=np.column_stack([linear, shift]),
        turn=float(rng.normal(0, 0.025 if supine else 0.012)),
        breath=float(np.clip(rng.normal(0.88 if supine else 1.0, 0.05), 0.7, 1.08)),
    )


def expose(density: Field, rng: np.random.Generator, *, supine: bool) -> Field:
    """Convert density to brightness in [0, 1] with anatomical noise, quantum noise, contrast, exposure and a marker."""
    frequency = spatial_frequency()
    falling = np.divide(1, frequency**1.5, out=np.zeros_like(frequency), where=frequency > 0)
    # The power spectrum of anatomical noise falls as 1/f^3 (Burgess 1999).
    density = density + 0.035 * filtered_noise(rng, falling) * np.clip(4 * density, 0, 1)
    # Dense parts of the patient transmit fewer photons; bedside X-ray tubes emit fewer.
    graininess = np.float32(0.011 * rng.lognormal(0.15 if supine else 0.0, 0.2))
    quantum = rng.standard_normal(density.shape, dtype=np.float32)
    density += graininess * quantum * np.sqrt(np.clip(density, 0.05, None) + 0.25)
    gain, middle = rng.normal(4.2 if supine else 5.2, 0.6), rng.normal(0.40, 0.045)
    heel = np.linspace(-1, 1, CANVAS, dtype=np.float32)[:, None] * np.float32(rng.normal(0, 0.03))
    brightness: Field = 1 / (1 + np.exp(np.float32(-gain) * (density + heel - np.float32(middle))))
    return np.maximum(brightness, _marker(rng, supine=supine).astype(np.float32) / 255)


def spatial_frequency() -> Field:
    """Cycles per canvas pixel of each term of a real Fourier transform: [CANVAS, CANVAS // 2 + 1]."""
    radius: Field = np.hypot(np.fft.fftfreq(CANVAS)[:, None], np.fft.rfftfreq(CANVAS)).astype(np.float32)
    return radius


def filtered_noise(rng: np.random.Generator, amplitude: Field) -> Field:
    """Gaussian noise of unit variance with this amplitude at each spatial frequency."""
    white = rng.standard_normal((CANVAS, CANVAS), dtype=np.float32)
    noise = np.asarray(fft.irfft2(fft.rfft2(white) * amplitude), dtype=np.float32)
    return np.asarray(noise / noise.std(), dtype=np.float32)


def draw_spots(
    film: Film,
    centres: Points,
    *,
    radii: NDArray[np.float64],
    edges: NDArray[np.float64],
    amounts: NDArray[np.float64],
) -> Field:
    """Draw discs of these radii with soft edges; both in canvas pixels.

    The pixels of each disc sum exactly to its amount of density, at any size and any subpixel position.
    """
    around = np.arange(-8, 9)
    pixels = to_canvas(film, centres)
    corners = np.rint(pixels).astype(int)
    x, y = (around + (corners - pixels)[:, axis, None] for axis in (0, 1))
    distance = np.hypot(x[:, None, :], y[:, :, None])
    spots = np.clip((radii[:, None, None] - distance) / edges[:, None, None] + 0.5, 0, 1)
    spots *= (amounts / spots.sum(axis=(1, 2)))[:, None, None]
    field = np.zeros((CANVAS, CANVAS), np.float32)
    columns, rows = (corners[:, axis, None] + around for axis in (0, 1))
    rows, columns, spots = np.broadcast_arrays(rows[:, :, None], columns[:, None, :], spots)
    inside = (rows >= 0) & (rows < CANVAS) & (columns >= 0) & (columns < CANVAS)
    np.add.at(field, (rows[inside], columns[inside]), spots[inside])
    return field


def draw_tubes(
    film: Film, x: NDArray[np.float64], y: NDArray[np.float64], *, width: float, cortex: int, marrow: int
) -> Mask:
    """Draw long bones along paths x, y [..., points]; the cortex is denser than the marrow."""
    mask = empty_mask()
    paths = np.stack(np.broadcast_arrays(x, y), axis=-1).reshape(-1, x.shape[-1], 2)
    along = np.gradient(paths, axis=1)
    across = np.stack([-along[..., 1], along[..., 0]], axis=-1) / np.linalg.norm(along, axis=-1, keepdims=True)
    for half, shade in ((width / 2, cortex), (width / 4, marrow)):
        outlines = np.concatenate([paths + half * across, (paths - half * across)[:, ::-1]], axis=1)
        for outline in to_fixed_point(film, outlines):
            cv2.fillPoly(mask, [outline], shade, cv2.LINE_AA, SUBPIXEL_BITS)
    return mask


def fill(film: Film, *outlines: Points) -> Mask:
    """Fill closed outlines with 255."""
    mask = empty_mask()
    for outline in outlines:
        cv2.fillPoly(mask, [to_fixed_point(film, outline)], 255, cv2.LINE_AA, SUBPIXEL_BITS)
    return mask


def soften(mask: Mask, sigma: float) -> Field:
    """Scale the mask to [0, 1] and blur it by sigma canvas pixels."""
    blurred: Field = np.asarray(cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), sigma), dtype=np.float32)
    return blurred


def empty_mask() -> Mask:
    return np.zeros((CANVAS, CANVAS), np.uint8)


def to_canvas(film: Film, points: Points) -> Points:
    """Convert points in the patient's frame to canvas pixels x, y."""
    return points @ film.pose[:, :2].T + film.pose[:, 2]


def to_fixed_point(film: Film, points: Points) -> NDArray[np.int32]:
    """Convert points in the patient's frame to canvas pixels in OpenCV's fixed-point format."""
    return np.rint(to_canvas(film, points) * (1 << SUBPIXEL_BITS)).astype(np.int32)


def _marker(rng: np.random.Generator, *, supine: bool) -> Mask:
    """The letter L on the patient's left, and AP on supine films."""
    mask = empty_mask()
    x, y = int(rng.uniform(0.86, 0.91) * CANVAS), int(rng.uniform(0.07, 0.14) * CANVAS)
    cv2.putText(mask, "L", (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.28, 230, 1, cv2.LINE_AA)
    if supine:
        cv2.putText(mask, "AP", (x - 2, y + 8), cv2.FONT_HERSHEY_SIMPLEX, 0.2, 210, 1, cv2.LINE_AA)
    return mask

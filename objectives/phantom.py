"""Synthetic radiographs in NIH's file format whose findings need known resolutions: one 32 px, one 64 px, one 128 px."""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from objectives.phantom_anatomy import LUNG_HALF_WIDTH, draw_thorax
from objectives.phantom_film import (
    CANVAS,
    Field,
    Film,
    draw_spots,
    expose,
    filtered_noise,
    spatial_frequency,
    take_film,
)

LABELS = ("Cardiomegaly", "Fibrosis", "Nodule")
"""Findings of the phantoms, in NIH's words and order."""

_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
_DETECTORS = ((2048, 2500, 0.171), (2500, 2048, 0.168), (2992, 2991, 0.143), (3056, 2544, 0.139))
OCCULT = 0.1
FIBOCC = 0.08
RAD = (1.0, 2.0)
AMOUNT = (0.6, 1.4)
COUNT = (8, 14)
ILL = (3, 8)
WIDE = (1, 1, 2)
FIB = (0.022, 0.5)
_SHARE_OF_PATIENTS = 0.30
_MOST_FILMS = 12


@dataclass(frozen=True)
class Phantom:
    """One film and what is written about it."""

    patient: int
    follow_up: int
    age: int
    female: bool
    supine: bool
    findings: frozenset[str]
    pixels: NDArray[np.uint8]
    """[size, size] brightness."""


def write_phantoms(folder: Path, *, images: int = 1500, size: int = 128, seed: int = 0) -> Path:
    """Write folder/images/*.png and folder/Data_Entry.csv as NIH's 2020 file is; returns the CSV's path.

    The CSV is moved into place last: where it is, the images are.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for phantom in draw_phantoms(images, size=size, seed=seed):
        name = f"{phantom.patient:08d}_{phantom.follow_up:03d}.png"
        _, png = cv2.imencode(".png", phantom.pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        (folder / "images" / name).write_bytes(png.tobytes())
        width, height, spacing = _DETECTORS[(phantom.patient + phantom.follow_up) % len(_DETECTORS)]
        rows.append(
            [name, "|".join(sorted(phantom.findings)) or "No Finding", phantom.follow_up, phantom.patient, phantom.age]
            + ["F" if phantom.female else "M", "AP" if phantom.supine else "PA", width, height, spacing, spacing]
        )
    path = folder / "Data_Entry.csv"
    draft = path.with_suffix(".csv.part")
    with draft.open("w", encoding="utf-8", newline="") as file:
        file.write(_HEADER + "\n")
        csv.writer(file, lineterminator="\n").writerows(rows)
    os.replace(draft, path)
    return path


def draw_phantoms(images: int, *, size: int = CANVAS, seed: int = 0) -> Iterator[Phantom]:
    """Films in patient order. A film depends on the seed and its place alone; sizes are averages of one drawing."""
    drawn, patient, position = 0, 0, 0
    while drawn < images:
        rng = np.random.default_rng([seed, position, 0])
        patient += int(rng.integers(1, 5))
        age, female = int(np.clip(rng.normal(54, 16), 18, 94)), bool(rng.random() < 0.45)
        films = min(int(rng.geometric(0.55)), _MOST_FILMS, images - drawn)
        chance = 1 / (1 + np.exp(-(np.log(_SHARE_OF_PATIENTS / (1 - _SHARE_OF_PATIENTS)) + 0.015 * (age - 54))))
        onsets = {}
        for label in LABELS:
            ill, late = rng.random(2)
            if ill < chance:
                onsets[label] = 0 if late < 0.8 else int(1 + 20 * (late - 0.8))
        for follow_up in range(films):
            day = np.random.default_rng([seed, position, 1 + follow_up])
            findings = frozenset(label for label, onset in onsets.items() if follow_up >= onset)
            supine = bool(day.random() < (0.40 if findings else 0.32))
            body = np.random.default_rng([seed, position, 100])
            canvas = _draw(body, day, female=female, supine=supine, findings=findings)
            yield Phantom(patient, follow_up, age + follow_up // 3, female, supine, findings, _at_size(canvas, size))
        drawn += films
        position += 1


def _draw(
    body: np.random.Generator, day: np.random.Generator, *, female: bool, supine: bool, findings: frozenset[str]
) -> Field:
    film = take_film(day, supine=supine)
    healthy, enlargement = body.normal(0.445, 0.028), body.normal(0.085, 0.025)
    # The heart lies in front, further from the film where the tube is: supine films magnify it a little.
    ratio = (healthy + ("Cardiomegaly" in findings) * enlargement) * (1.03 if supine else 1.0)
    focal, texture = body.spawn(2)
    density, clear = draw_thorax(body, film, female=female, cardiothoracic_ratio=ratio)
    density += clear * _spots(focal, film, nodules="Nodule" in findings)
    density += clear * _interstitium(texture, fibrosis="Fibrosis" in findings)
    return expose(density, day, supine=supine)


def _spots(rng: np.random.Generator, film: Film, *, nodules: bool) -> Field:
    """Small round shadows in the lungs: nodules are dense and sharp, the vessels that everyone has end-on are soft."""
    column, row = np.divmod(rng.permutation(48), 6)
    count, ill = int(rng.integers(*COUNT)), int(rng.integers(*ILL))
    occult = rng.random() < OCCULT  # seen on CT only, yet in the report
    x = np.where(column < 4, -1, 1) * (0.21 + 0.10 * (column % 4)) + rng.uniform(-0.02, 0.02, 48)
    y = -0.46 + 0.13 * row + rng.uniform(-0.03, 0.03, 48)
    radii = rng.uniform(*RAD, count)
    amounts = rng.uniform(*AMOUNT, count)
    sharp = np.arange(count) < (ill if nodules and not occult else 0)
    nipples = np.array([(-0.42, 0.24), (0.42, 0.24)]) + rng.normal(0, 0.02, 2)
    protrusion = (rng.random() < 0.3) * rng.uniform(*AMOUNT)
    return draw_spots(
        film,
        np.concatenate([np.column_stack([x, y])[:count], nipples]),
        radii=np.append(np.where(sharp, radii, WIDE[0] * radii + WIDE[1]), [2.5, 2.5]),
        edges=np.append(np.where(sharp, 1.0, WIDE[2]), [2.5, 2.5]),
        amounts=np.append(amounts, [protrusion, protrusion]),
    )


def _interstitium(rng: np.random.Generator, *, fibrosis: bool) -> Field:
    """Fine markings in the lower lungs: fibrosis is a mesh of 2.2 to 2.8 px at 128; healthy lungs have what 64 px leaves of one.

    The healthy texture is a mesh averaged over blocks of 2 x 2, so at 64 px and below the two have the same distribution.
    """
    strength = np.float32(rng.lognormal(np.log(FIB[0]), FIB[1]))
    fibrosis &= rng.random() >= FIBOCC
    frequency = spatial_frequency()
    mesh = filtered_noise(rng, ((frequency > 0.36) & (frequency < 0.46)).astype(np.float32))
    if not fibrosis:
        mesh = cv2.resize(mesh, (CANVAS // 2, CANVAS // 2), interpolation=cv2.INTER_AREA).repeat(2, 0).repeat(2, 1)
    rows = np.linspace(-1, 1, CANVAS, dtype=np.float32)[:, None]
    basal = 1 / (1 + np.exp(-(rows + 0.15) / 0.12))
    return strength * basal * mesh


def _at_size(canvas: Field, size: int) -> NDArray[np.uint8]:
    way = cv2.INTER_AREA if size <= CANVAS else cv2.INTER_CUBIC
    resized = canvas if size == CANVAS else cv2.resize(canvas, (size, size), interpolation=way)
    return np.rint(255 * np.clip(resized, 0, 1)).astype(np.uint8)

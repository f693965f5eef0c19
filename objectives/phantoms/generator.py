"""Synthetic radiographs in NIH's file format, with three findings that need 32, 64 and 128 px."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from acuity.objectives.phantoms.anatomy import draw_thorax
from acuity.objectives.phantoms.film import (
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
_SHARE_OF_PATIENTS = 0.30
_MOST_FILMS = 12
_SPOT_AMOUNT = (2.2, 3.8)
"""Density of a nodule or vessel, summed over its pixels at 128."""
_VESSEL_RADIUS, _VESSEL_EDGE = 2.0, 4.0
"""Canvas pixels: how much wider a vessel seen end-on is than a nodule, and how softly it ends."""
_MARKINGS = (0.032, 0.022)
"""Median density of the lower lungs' mesh and of every lung's markings."""
_SPREAD = (0.5, 0.4)
"""Standard deviations of those densities' logarithms over patients."""
_OCCULT = 0.12
"""Share of patients whose nodules or fibrosis stand in the report, having been seen on CT, and not on the film."""


@dataclass(frozen=True, eq=False)
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


def write_phantoms(folder: Path, *, images: int = 1500, size: int = CANVAS, seed: int = 0) -> Path:
    """Write folder/images/*.png and folder/Data_Entry.csv as NIH's 2020 file is; returns the CSV's path.

    The CSV is moved into place last: where it is, its images are.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows: list[tuple[object, ...]] = []
    for phantom in draw_phantoms(images, size=size, seed=seed):
        name = f"{phantom.patient:08d}_{phantom.follow_up:03d}.png"
        _, png = cv2.imencode(".png", phantom.pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        (folder / "images" / name).write_bytes(png.tobytes())
        findings = "|".join(sorted(phantom.findings)) or "No Finding"
        sex, view = "F" if phantom.female else "M", "AP" if phantom.supine else "PA"
        width, height, spacing = _DETECTORS[(phantom.patient + phantom.follow_up) % len(_DETECTORS)]
        person = (phantom.follow_up, phantom.patient, phantom.age, sex, view)
        rows.append((name, findings, *person, width, height, spacing, spacing))
    path, draft = folder / "Data_Entry.csv", folder / "Data_Entry.csv.part"
    with draft.open("w", encoding="utf-8", newline="") as file:
        # NIH's header names two columns with a comma inside and without quotes: 9 names over 11 fields.
        file.write(_HEADER + "\n")
        csv.writer(file, lineterminator="\n").writerows(rows)
    draft.replace(path)
    return path


def draw_phantoms(images: int, *, size: int = CANVAS, seed: int = 0) -> Iterator[Phantom]:
    """Films, patient after patient: at every size the same ones, and a larger set starts with the smaller."""
    drawn = position = patient = 0
    while drawn < images:
        person = np.random.default_rng([seed, position])
        patient += int(person.integers(1, 5))
        age, female = int(np.clip(person.normal(54, 16), 18, 94)), bool(person.random() < 0.45)
        films = min(int(person.geometric(0.55)), _MOST_FILMS)
        onset = _onsets(person, age)
        for follow_up in range(min(films, images - drawn)):
            body = np.random.default_rng([seed, position, 0])
            day = np.random.default_rng([seed, position, 1, follow_up])
            findings = frozenset(label for label in onset if follow_up >= onset[label])
            supine = bool(day.random() < (0.40 if findings else 0.32))
            canvas = draw_film(body, day, female=female, supine=supine, findings=findings)
            pixels = _at_size(canvas, size)
            yield Phantom(patient, follow_up, age + follow_up // 3, female, supine, findings, pixels)
            drawn += 1
        position += 1


def _onsets(rng: np.random.Generator, age: int) -> dict[str, int]:
    """For each finding that the patient gets, the follow-up at which it is there; older patients get more."""
    odds = _SHARE_OF_PATIENTS / (1 - _SHARE_OF_PATIENTS) * np.exp(0.015 * (age - 54))
    ill, late = rng.random((2, len(LABELS)))
    onset = np.where(late < 0.8, 0, 1 + (20 * (late - 0.8)).astype(int))
    return {label: int(onset[i]) for i, label in enumerate(LABELS) if ill[i] < odds / (1 + odds)}


def draw_film(
    body: np.random.Generator, day: np.random.Generator, *, female: bool, supine: bool, findings: frozenset[str]
) -> Field:
    """Brightness of one film, [CANVAS, CANVAS] in [0, 1]: body is the same generator on all of a patient's films, day
    another on each.
    """
    anatomy, focal, interstitial = body.spawn(3)
    film = take_film(day, supine=supine)
    # Sick and healthy hearts overlap, and a tube at the bedside magnifies them: that, not resolution, limits their AUC.
    healthy, enlargement = anatomy.normal([0.445, 0.085], [0.028, 0.025])
    ratio = (healthy + ("Cardiomegaly" in findings) * enlargement) * (1.03 if supine else 1.0)
    density, clear = draw_thorax(anatomy, film, female=female, cardiothoracic_ratio=float(ratio))
    density += clear * _spots(focal, film, nodules="Nodule" in findings)
    density += clear * _markings(interstitial, fibrosis="Fibrosis" in findings)
    return expose(density, day, supine=supine)


def _spots(rng: np.random.Generator, film: Film, *, nodules: bool) -> Field:
    """Small round shadows in the lungs: in some patients nodules, in everyone vessels seen end-on, at times nipples.

    A nodule is 3 to 4 px wide at 128, with a sharp edge. A vessel is about twice as wide and soft, and adds up to the
    same: at 32 px both are one brighter pixel, and the sick have as many of the two together as the healthy.
    """
    count, ill = int(rng.integers(11, 17)), int(rng.integers(4, 10))
    seen = rng.random() >= _OCCULT
    column, row = np.divmod(rng.permutation(48)[:count], 6)
    x = np.where(column < 4, -1, 1) * (0.21 + 0.10 * (column % 4)) + rng.uniform(-0.02, 0.02, count)
    y = -0.46 + 0.13 * row + rng.uniform(-0.03, 0.03, count)
    radii, amounts = rng.uniform(1.5, 2.0, count), rng.uniform(*_SPOT_AMOUNT, count)
    sharp = np.arange(count) < (ill if nodules and seen else 0)
    nipples = rng.normal([(-0.42, 0.24), (0.42, 0.24)], 0.02)
    protrusion = np.repeat(rng.uniform(*_SPOT_AMOUNT) * (rng.random() < 0.3), 2)
    return draw_spots(
        film,
        np.concatenate([np.column_stack([x, y]), nipples]),
        radii=np.append(np.where(sharp, radii, radii + _VESSEL_RADIUS), [3.2, 3.2]),
        edges=np.append(np.where(sharp, 1.0, _VESSEL_EDGE), [3.0, 3.0]),
        amounts=np.append(amounts, protrusion),
    )


def _markings(rng: np.random.Generator, *, fibrosis: bool) -> Field:
    """Fine texture of the lungs; fibrosis is a mesh of lines 2.1 to 2.6 px apart at 128, in the lower lungs.

    Healthy lungs have there what is left of such a mesh averaged over blocks of 2 x 2, as strong: at 64 px and below
    the two look and vary alike, and neither brightness nor contrast gives the mesh away. Markings of every lung, 3 to
    5 px apart, cover what sizes in between make of it.
    """
    frequency = spatial_frequency()
    mesh = filtered_noise(rng, ((frequency > 0.38) & (frequency < 0.47)).astype(np.float32))
    common = filtered_noise(rng, ((frequency > 0.20) & (frequency < 0.34)).astype(np.float32))
    strength, commons = (rng.lognormal(np.log(_MARKINGS), _SPREAD)).astype(np.float32)
    if not (fibrosis and rng.random() >= _OCCULT):
        halved = cv2.resize(mesh, (CANVAS // 2, CANVAS // 2), interpolation=cv2.INTER_AREA)
        mesh = np.asarray(halved, dtype=np.float32).repeat(2, 0).repeat(2, 1)
    rows = np.linspace(-1, 1, CANVAS, dtype=np.float32)[:, None]
    basal = 1 / (1 + np.exp(-(rows + 0.15) / 0.12))
    texture: Field = strength * basal * mesh + commons * common
    return texture


def _at_size(canvas: Field, size: int) -> NDArray[np.uint8]:
    """8-bit pixels; sizes above the canvas are enlarged and show nothing more."""
    way = cv2.INTER_AREA if size <= CANVAS else cv2.INTER_CUBIC
    resized = canvas if size == CANVAS else cv2.resize(canvas, (size, size), interpolation=way)
    return np.rint(255 * np.clip(resized, 0, 1)).astype(np.uint8)

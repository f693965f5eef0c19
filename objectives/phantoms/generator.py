"""Write synthetic radiographs in NIH's file format, with three findings that need 32, 64 and 128 px."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from acuity.objectives.atomic_write import write_atomically
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
"""Findings of the phantoms, in NIH's terms and order."""
_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)

_DETECTORS = ((2048, 2500, 0.171), (2500, 2048, 0.168), (2992, 2991, 0.143), (3056, 2544, 0.139))
"""Width and height in px, pixel spacing in mm."""
_PREVALENCE = 0.30
"""Fraction of patients aged 54 that get each finding."""
_MAX_FILMS = 12
"""Maximum of films per patient."""
_SPOT_AMOUNT = (2.2, 3.8)
"""Range of the density of a nodule or vessel, summed over its pixels at 128 px."""
_VESSEL_RADIUS, _VESSEL_EDGE = 2.0, 4.0
"""Canvas pixels: difference of radius between a vessel seen end-on and a nodule, and width of the vessel's edge."""
_TEXTURE_MEDIANS = (0.032, 0.022)
"""Median density over patients of the mesh in the lower lungs and of the markings of every lung."""
_TEXTURE_LOG_SDS = (0.5, 0.4)
"""Standard deviations over patients of the logarithms of these densities."""
_OCCULT_FRACTION = 0.12
"""Fraction of patients with nodules or fibrosis in the report, known from CT, that the film does not show."""


@dataclass(frozen=True, eq=False)
class Phantom:
    """One film with its metadata and findings."""

    patient: int
    follow_up: int
    age: int
    female: bool
    supine: bool
    findings: frozenset[str]
    pixels: NDArray[np.uint8]
    """[size, size] brightness."""


def write_phantoms(folder: Path, *, images: int = 1500, size: int = CANVAS, seed: int = 0) -> Path:
    """Write folder/images/*.png and folder/Data_Entry.csv in the format of NIH's file of 2020; returns the CSV's path.

    images: number of films. size: pixels a side. The CSV is written last, so that all its images exist.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows: list[tuple[object, ...]] = []
    for phantom in draw_phantoms(images, size=size, seed=seed):
        name = f"{phantom.patient:08d}_{phantom.follow_up:03d}.png"
        _, png = cv2.imencode(".png", phantom.pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        file = folder / "images" / name
        file.unlink(missing_ok=True)
        with file.open("xb") as image:  # a new file, also where a link has its name
            image.write(png.tobytes())
        findings = "|".join(sorted(phantom.findings)) or "No Finding"
        sex, view = "F" if phantom.female else "M", "AP" if phantom.supine else "PA"
        width, height, spacing = _DETECTORS[(phantom.patient + phantom.follow_up) % len(_DETECTORS)]
        person = (phantom.follow_up, phantom.patient, phantom.age, sex, view)
        rows.append((name, findings, *person, width, height, spacing, spacing))
    table = io.StringIO()
    table.write(_HEADER + "\n")  # two column names contain a comma without quotes: 9 names for 11 fields
    csv.writer(table, lineterminator="\n").writerows(rows)
    path = folder / "Data_Entry.csv"
    write_atomically(path, table.getvalue().encode())
    return path


def draw_phantoms(images: int, *, size: int = CANVAS, seed: int = 0) -> Iterator[Phantom]:
    """Draw films patient by patient.

    A seed gives the same films at every size, and a larger set starts with the films of a smaller one.
    """
    drawn = position = patient = 0
    while drawn < images:
        person = np.random.default_rng([seed, position])
        patient += int(person.integers(1, 5))
        age, female = int(np.clip(person.normal(54, 16), 18, 94)), bool(person.random() < 0.45)
        films = min(int(person.geometric(0.55)), _MAX_FILMS)
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
    """First follow-up of each finding of a patient; older patients have more findings."""
    odds = _PREVALENCE / (1 - _PREVALENCE) * np.exp(0.015 * (age - 54))
    presence, delay = rng.random((2, len(LABELS)))
    onset = np.where(delay < 0.8, 0, 1 + (20 * (delay - 0.8)).astype(int))
    return {label: int(onset[i]) for i, label in enumerate(LABELS) if presence[i] < odds / (1 + odds)}


def draw_film(
    body: np.random.Generator, day: np.random.Generator, *, female: bool, supine: bool, findings: frozenset[str]
) -> Field:
    """Brightness of one film, [CANVAS, CANVAS] in [0, 1].

    body: generator that is the same for all films of a patient. day: generator of this film.
    """
    anatomy, focal, interstitial = body.spawn(3)
    film = take_film(day, supine=supine)
    # Ratios of patients with and without the finding overlap, and a supine film magnifies the heart. This limits the
    # AUC of Cardiomegaly at every resolution.
    healthy, enlargement = anatomy.normal([0.445, 0.085], [0.028, 0.025])
    ratio = (healthy + ("Cardiomegaly" in findings) * enlargement) * (1.03 if supine else 1.0)
    density, clear = draw_thorax(anatomy, film, female=female, cardiothoracic_ratio=float(ratio))
    density += clear * _spots(focal, film, nodules="Nodule" in findings)
    density += clear * _lung_texture(interstitial, fibrosis="Fibrosis" in findings)
    return expose(density, day, supine=supine)


def _spots(rng: np.random.Generator, film: Film, *, nodules: bool) -> Field:
    """Small round shadows in the lungs: nodules in some patients, vessels seen end-on in all, nipples in some.

    A nodule is 3 to 4 px wide at 128 px, with a sharp edge. A vessel is about twice as wide, with a soft edge and the
    same summed density, so that at 32 px both are one brighter pixel. The total number of nodules and vessels has the
    same distribution in patients with and without nodules.
    """
    count, num_nodules = int(rng.integers(11, 17)), int(rng.integers(4, 10))
    visible = rng.random() >= _OCCULT_FRACTION
    column, row = np.divmod(rng.permutation(48)[:count], 6)
    x = np.where(column < 4, -1, 1) * (0.21 + 0.10 * (column % 4)) + rng.uniform(-0.02, 0.02, count)
    y = -0.46 + 0.13 * row + rng.uniform(-0.03, 0.03, count)
    radii, amounts = rng.uniform(1.5, 2.0, count), rng.uniform(*_SPOT_AMOUNT, count)
    sharp = np.arange(count) < (num_nodules if nodules and visible else 0)
    nipples = rng.normal([(-0.42, 0.24), (0.42, 0.24)], 0.02)
    protrusion = np.repeat(rng.uniform(*_SPOT_AMOUNT) * (rng.random() < 0.3), 2)
    return draw_spots(
        film,
        np.concatenate([np.column_stack([x, y]), nipples]),
        radii=np.append(np.where(sharp, radii, radii + _VESSEL_RADIUS), [3.2, 3.2]),
        edges=np.append(np.where(sharp, 1.0, _VESSEL_EDGE), [3.0, 3.0]),
        amounts=np.append(amounts, protrusion),
    )


def _lung_texture(rng: np.random.Generator, *, fibrosis: bool) -> Field:
    """Fine texture of the lungs; fibrosis is a mesh of lines 2.1 to 2.6 px apart at 128 px, in the lower lungs.

    Lungs without fibrosis have there an equally strong mesh averaged over blocks of 2 x 2 pixels. At 64 px and below
    both have the same distribution, and neither brightness nor contrast reveals fibrosis. Markings of every lung, 3 to
    5 px apart, mask the mesh at sizes in between.
    """
    frequency = spatial_frequency()
    mesh = filtered_noise(rng, ((frequency > 0.38) & (frequency < 0.47)).astype(np.float32))
    markings = filtered_noise(rng, ((frequency > 0.20) & (frequency < 0.34)).astype(np.float32))
    mesh_density, markings_density = (rng.lognormal(np.log(_TEXTURE_MEDIANS), _TEXTURE_LOG_SDS)).astype(np.float32)
    if not (fibrosis and rng.random() >= _OCCULT_FRACTION):
        halved = cv2.resize(mesh, (CANVAS // 2, CANVAS // 2), interpolation=cv2.INTER_AREA)
        mesh = np.asarray(halved, dtype=np.float32).repeat(2, 0).repeat(2, 1)
    rows = np.linspace(-1, 1, CANVAS, dtype=np.float32)[:, None]
    basal = 1 / (1 + np.exp(-(rows + 0.15) / 0.12))
    texture: Field = mesh_density * basal * mesh + markings_density * markings
    return texture


def _at_size(canvas: Field, size: int) -> NDArray[np.uint8]:
    """Resample the canvas to 8-bit pixels; sizes above the canvas show no more detail."""
    interpolation = cv2.INTER_AREA if size <= CANVAS else cv2.INTER_CUBIC
    resized = canvas if size == CANVAS else cv2.resize(canvas, (size, size), interpolation=interpolation)
    return np.rint(255 * np.clip(resized, 0, 1)).astype(np.uint8)

"""Phantoms have NIH's file format, depend on the seed alone, and show each finding from its resolution on."""

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from acuity.objectives.index.image_index import read_index
from acuity.objectives.index.missing_images import find_missing_images
from acuity.objectives.phantoms.generator import LABELS, Phantom, draw_film, draw_phantoms, write_phantoms
from acuity.objectives.phantoms.truth import MARGIN, TRUTH
from acuity.objectives.statistics.metrics import auc


@pytest.fixture(scope="module")
def films() -> list[Phantom]:
    return list(draw_phantoms(500, seed=5))


def pixels_at(films: list[Phantom], resolution: int) -> NDArray[np.float32]:
    reduced = [cv2.resize(film.pixels, (resolution, resolution), interpolation=cv2.INTER_AREA) for film in films]
    return np.stack(reduced).astype(np.float32)


def targets(films: list[Phantom], label: str) -> NDArray[np.bool_]:
    return np.array([label in film.findings for film in films])


def lungs(resolution: int, *, top: float, bottom: float) -> tuple[slice, slice, slice]:
    """Rows and columns of the right lung, away from the heart and the chest wall."""
    rows = slice(round(top * resolution), round(bottom * resolution))
    return slice(None), rows, slice(round(0.2 * resolution), round(0.34 * resolution))


def test_index_of_phantoms_has_nihs_format(tmp_path: Path) -> None:
    path = write_phantoms(tmp_path, images=60, size=32)
    header, first = path.read_text(encoding="utf-8").splitlines()[:2]
    assert header == (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
    )
    assert len(first.split(",")) == 11
    index = read_index(path, images=tmp_path / "images")
    assert index.labels == LABELS
    assert len(index.table) == 60
    assert not find_missing_images(index)
    assert set(index.table["view"]) == {"PA", "AP"}
    assert set(index.table["sex"]) == {"F", "M"}
    assert index.table["age"].between(18, 100).all()
    named = index.table["file"].str.extract(r"^(\d{8})_(\d{3})\.png$")
    assert (named[0].astype(int) == index.table["patient"].astype(int)).all()


def test_same_seed_writes_the_same_bytes_and_another_seed_different_ones(tmp_path: Path) -> None:
    def written(name: str, seed: int) -> dict[str, bytes]:
        write_phantoms(tmp_path / name, images=8, size=32, seed=seed)
        files = (tmp_path / name).rglob("*.*")
        return {str(file.relative_to(tmp_path / name)): file.read_bytes() for file in files if file.is_file()}

    first = written("first", 3)
    assert len(first) == 9
    assert first == written("second", 3)
    assert first["Data_Entry.csv"] != written("third", 4)["Data_Entry.csv"]


def test_larger_set_starts_with_the_smaller_one(films: list[Phantom]) -> None:
    for short, long in zip(draw_phantoms(12, seed=5), films, strict=False):
        assert short.findings == long.findings
        np.testing.assert_array_equal(short.pixels, long.pixels)


@pytest.mark.parametrize("size", [32, 64, 96])
def test_smaller_phantom_is_the_area_average_of_the_larger(films: list[Phantom], size: int) -> None:
    small = np.stack([film.pixels for film in draw_phantoms(6, size=size, seed=5)]).astype(np.float32)
    assert np.abs(small - pixels_at(films[:6], size)).max() <= 1.01


def test_phantom_above_the_canvas_has_its_size_and_no_more_detail(films: list[Phantom]) -> None:
    large = next(iter(draw_phantoms(1, size=256, seed=5))).pixels
    assert large.shape == (256, 256)
    back = cv2.resize(large, (128, 128), interpolation=cv2.INTER_AREA).astype(np.float32)
    assert np.abs(back - films[0].pixels).mean() < 2


def test_every_label_has_enough_positive_films_and_most_films_are_negative(films: list[Phantom]) -> None:
    for label in LABELS:
        assert 0.15 <= targets(films, label).mean() <= 0.32
    assert 0.3 < np.mean([not film.findings for film in films]) < 0.6
    assert np.mean([len(film.findings) > 1 for film in films]) > 0.1
    assert 1.5 < len(films) / len({film.patient for film in films}) < 2.5


def test_patient_has_the_same_sex_and_keeps_findings_across_follow_ups(films: list[Phantom]) -> None:
    appeared = 0
    for before, after in itertools.pairwise(films):
        if before.patient == after.patient:
            assert after.follow_up == before.follow_up + 1
            assert (before.female, before.age) <= (after.female, after.age)
            assert before.findings <= after.findings
            appeared += len(after.findings - before.findings)
    assert appeared > 0


def test_films_of_a_patient_show_the_same_vessels(films: list[Phantom]) -> None:
    def similarity(first: Phantom, second: Phantom) -> float:
        """The best correlation of the right lungs' details over small shifts, since positions differ."""
        patch = cv2.GaussianBlur(first.pixels, (0, 0), 1.0)[44:72, 26:44].astype(np.float32)
        field = cv2.GaussianBlur(second.pixels, (0, 0), 1.0)[34:82, 18:52].astype(np.float32)
        return float(cv2.matchTemplate(field, patch, cv2.TM_CCOEFF_NORMED).max())

    pairs = [(a, b) for a, b in itertools.pairwise(films) if a.patient == b.patient and not b.findings][:40]
    same = [similarity(a, b) for a, b in pairs]
    others = [similarity(a, b) for (a, _), (_, b) in itertools.pairwise(pairs)]
    assert np.mean(same) > np.mean(others) + 0.05


def contrast(label: str) -> dict[int, float]:
    """Root mean square of the change that the finding alone makes on a film, by resolution."""

    def film(seed: int, *findings: str) -> NDArray[np.float32]:
        body, day = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
        return draw_film(body, day, female=bool(seed % 2), supine=False, findings=frozenset(findings))

    changes = [film(seed, label) - film(seed) for seed in range(20)]
    return {
        side: float(
            np.median([cv2.resize(change, (side, side), interpolation=cv2.INTER_AREA).std() for change in changes])
        )
        for side in (32, 64, 128)
    }


def test_enlarged_heart_has_the_same_contrast_at_32_px_as_at_128() -> None:
    by_resolution = contrast("Cardiomegaly")
    assert by_resolution[32] > 0.85 * by_resolution[128]


def test_nodules_keep_their_contrast_at_64_px_and_lose_half_at_32() -> None:
    by_resolution = contrast("Nodule")
    assert by_resolution[64] > 0.75 * by_resolution[128]
    assert by_resolution[32] < 0.6 * by_resolution[128]


def test_fibrosis_averages_away_at_64_px() -> None:
    by_resolution = contrast("Fibrosis")
    assert by_resolution[64] < 0.12 * by_resolution[128]
    assert by_resolution[32] < 0.12 * by_resolution[128]


def test_brightness_of_the_lungs_does_not_predict_small_findings(films: list[Phantom]) -> None:
    brightness = pixels_at(films, 128)[lungs(128, top=0.3, bottom=0.62)].mean(axis=(1, 2))
    for label in ("Fibrosis", "Nodule"):
        assert abs(auc(targets(films, label), brightness) - 0.5) < 0.08


def test_smallest_adequate_resolutions_follow_from_the_measured_aucs_beyond_chance() -> None:
    assert set(TRUTH) == set(LABELS)
    for truth in TRUTH.values():
        loss = {resolution: max(truth.auc.values()) - area for resolution, area in truth.auc.items()}
        assert truth.smallest_adequate == min(resolution for resolution, lost in loss.items() if lost < MARGIN)
        for resolution, lost in loss.items():
            clear = 2 * (2**0.5) * truth.standard_error[resolution]
            assert lost + clear < MARGIN if resolution >= truth.smallest_adequate else lost - clear > 2 * MARGIN
        assert max(truth.auc.values()) < 0.99

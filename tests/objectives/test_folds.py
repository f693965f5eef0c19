"""Folds: each patient outside validation is in one fold and keeps it, and each fold has its share of every label."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acuity.objectives.errors import InputError
from acuity.objectives.index.image_index import ImageIndex, read_index
from acuity.objectives.split.file import PARTS
from acuity.objectives.split.folds import NO_FOLD, Folds, check_label_in_folds, folds_path, read_or_make_folds
from acuity.objectives.split.split import Split, exclude_rows, read_or_make_split

Rows = list[tuple[str, str]]
"""Patient and findings, one an image."""


def write_index(folder: Path, rows: Rows) -> ImageIndex:
    path = folder / "index.csv"
    lines = [f"{number}.png,{findings or 'No Finding'},{patient}" for number, (patient, findings) in enumerate(rows)]
    path.write_text("\n".join(["Image Index,Finding Labels,Patient ID", *lines]) + "\n")
    return read_index(path, images=folder)


def random_rows(seed: int, patients: int) -> Rows:
    random = np.random.default_rng(seed)
    return [
        (
            f"{patient:05}",
            "|".join(name for name, rate in (("Effusion", 0.3), ("Hernia", 0.1)) if random.random() < rate),
        )
        for patient in range(patients)
        for _ in range(int(random.integers(1, 5)))
    ]


def make(index: ImageIndex, path: Path, *, count: int = 5, **options: object) -> tuple[Split, Folds]:
    split = read_or_make_split(index, path=path)
    rows = np.arange(len(index.table))
    return split, read_or_make_folds(index, split, split, rows=rows, count=count, **options)  # type: ignore[arg-type]


def patients_of(index: ImageIndex, rows: np.ndarray) -> set[str]:
    return set(index.table["patient"].iloc[rows])


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(30, 120))
def test_patient_outside_validation_is_in_one_fold_and_no_network_of_the_fold_sees_them(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, patients: int
) -> None:
    folder = tmp_path_factory.mktemp("folds")
    index = write_index(folder, random_rows(seed, patients))
    split, folds = make(index, folder / "split.csv", count=count)
    validation = patients_of(index, split.rows("validation"))
    tested: set[str] = set()
    for fold in range(count):
        test, training = (patients_of(index, rows) for rows in (folds.test_rows(fold), folds.training_rows(fold)))
        assert not test & training
        assert not test & tested, "a patient is a test patient once"
        assert not (test | training) & validation
        assert test | training | validation == set(index.table["patient"])
        tested |= test
    shutil.rmtree(folder)


def test_folds_have_equal_shares_of_every_label(tmp_path: Path) -> None:
    index = write_index(tmp_path, random_rows(3, 800))
    _, folds = make(index, tmp_path / "split.csv")
    for label in ("Effusion", "Hernia"):
        positive = index.target(label) == 1
        counts = [index.table["patient"][positive & (folds.fold == fold)].nunique() for fold in range(5)]
        assert max(counts) - min(counts) <= 3, (label, counts)


def test_folds_lie_beside_the_split_and_are_the_same_when_read_and_when_made_anew(tmp_path: Path) -> None:
    index = write_index(tmp_path, random_rows(1, 100))
    _, folds = make(index, tmp_path / "nih.split.csv")
    assert folds.path == tmp_path / "nih.split.folds-5.csv" == folds_path(tmp_path / "nih.split.csv", 5)
    _, again = make(index, tmp_path / "nih.split.csv")
    folds.path.unlink()
    _, anew = make(index, tmp_path / "nih.split.csv")
    for other in (again, anew):
        assert other.sha256 == folds.sha256
        assert (other.fold == folds.fold).all()
    _, three = make(index, tmp_path / "nih.split.csv", count=3)
    assert three.sha256 != folds.sha256


def test_added_patients_move_no_patient_and_filters_change_no_fold(tmp_path: Path) -> None:
    rows = random_rows(2, 200)
    fewer = [row for row in rows if row[0] < "00150"]
    index = write_index(tmp_path, fewer)
    _, before = make(index, tmp_path / "split.csv")
    old = dict(zip(index.table["patient"], before.fold.tolist(), strict=True))
    index = write_index(tmp_path, rows)
    split, after = make(index, tmp_path / "split.csv")
    new = dict(zip(index.table["patient"], after.fold.tolist(), strict=True))
    assert {patient: new[patient] for patient in old} == old
    kept = np.flatnonzero(index.target("Effusion") == 1)
    part = Split(path=split.path, part=split.part[kept], sha256="of these", whole_sha256=split.sha256)
    filtered = read_or_make_folds(index, split, part, rows=kept, count=5)
    assert (filtered.fold == after.fold[kept]).all()
    assert filtered.sha256 == after.sha256


def test_excluded_images_and_pictures_of_an_earlier_fold_are_in_no_fold(tmp_path: Path) -> None:
    index = write_index(tmp_path, random_rows(4, 100))
    split, folds = make(index, tmp_path / "split.csv")
    first, later = folds.test_rows(0)[0], folds.test_rows(3)[0]
    duplicates = [sorted(map(int, (first, later)))]
    excluded = folds.test_rows(2)[:2]
    without = read_or_make_folds(
        index, split, exclude_rows(split, excluded), rows=np.arange(len(index.table)), count=5, duplicates=duplicates
    )
    changed = np.flatnonzero(without.fold != folds.fold)
    assert sorted(changed) == sorted([later, *excluded])
    assert (without.fold[changed] == NO_FOLD).all()


def test_patients_with_a_common_picture_get_one_fold(tmp_path: Path) -> None:
    index = write_index(tmp_path, random_rows(5, 100))
    split = read_or_make_split(index, path=tmp_path / "s.csv")
    outside = sorted(patients_of(index, np.flatnonzero(split.part != PARTS.index("validation"))))
    groups = [set(outside[start : start + 4]) for start in range(0, 40, 4)]
    _, folds = make(index, tmp_path / "s.csv", keep_together=groups)
    by_patient = dict(zip(index.table["patient"], folds.fold.tolist(), strict=True))
    assert all(len({by_patient[patient] for patient in group}) == 1 for group in groups)


def test_changed_file_or_file_of_another_split_is_rejected(tmp_path: Path) -> None:
    index = write_index(tmp_path, random_rows(6, 100))
    split, folds = make(index, tmp_path / "split.csv")
    written = folds.path.read_text()
    folds.path.write_text(written.replace(",1\n", ",2\n", 1))
    with pytest.raises(InputError, match="SHA-256 differs"):
        make(index, tmp_path / "split.csv")
    folds.path.write_text(written.replace(",1\n", ",9\n", 1))
    with pytest.raises(InputError, match="one of 1, 2, 3, 4, 5"):
        make(index, tmp_path / "split.csv")
    folds.path.write_text(written)
    other = read_or_make_split(index, path=tmp_path / "other.csv", seed=7)
    assert (other.part != split.part).any()
    folds.path.rename(folds_path(tmp_path / "other.csv", 5))
    with pytest.raises(InputError, match=r"\d+ validation patients of the split in its folds"):
        make(index, tmp_path / "other.csv")


def test_label_with_too_few_patients_for_the_folds_is_rejected(tmp_path: Path) -> None:
    rows = [(f"{patient:03}", "Hernia" if patient < 9 else "Mass") for patient in range(200)]
    index = write_index(tmp_path, rows)
    _, folds = make(index, tmp_path / "split.csv")
    with pytest.raises(InputError, match=r"label Hernia: patients with a positive image in the 5 folds: .*Lower"):
        check_label_in_folds(index, folds, "Hernia")

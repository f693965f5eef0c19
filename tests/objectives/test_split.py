"""Each patient is in one part and keeps it; each part has about its share of every label."""

import csv
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acuity.objectives.errors import InputError
from acuity.objectives.index.image_index import ImageIndex, read_index
from acuity.objectives.split import split as split_module
from acuity.objectives.split.file import PARTS, SplitFile, read_split_file, write_split_file
from acuity.objectives.split.split import check_label, read_or_make_split

FRACTIONS = (0.64, 0.16, 0.20)

Rows = list[tuple[str, str]]
"""Patient and findings, one an image."""


def write_index(folder: Path, rows: Rows, name: str = "index.csv") -> ImageIndex:
    path = folder / name
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Image Index", "Finding Labels", "Patient ID"])
        writer.writerows((f"{i}.png", findings or "No Finding", patient) for i, (patient, findings) in enumerate(rows))
    return read_index(path, images=folder)


def random_rows(seed: int, patients: int) -> Rows:
    """An image set like NIH's: few patients have many images, and findings are correlated."""
    random = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        illness = random.random()
        for _ in range(min(int(random.pareto(1.2)) + 1, 60)):
            found = [
                name
                for name, rate in (("Edema", 0.05), ("Effusion", 0.2), ("Hernia", 0.02), ("Mass", 0.1))
                if random.random() < rate * 2 * illness
            ]
            rows.append((f"{patient:05}", "|".join(found)))
    return rows


def parts_by_patient(index: ImageIndex, part: np.ndarray) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for patient, position in zip(index.table["patient"], part.tolist(), strict=True):
        found.setdefault(patient, set()).add(position)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_patients_and_images_of_every_label_are_near_their_shares(tmp_path: Path, seed: int) -> None:
    index = write_index(tmp_path, random_rows(seed, 2000))
    split = read_or_make_split(index, path=tmp_path / "split.csv", seed=seed)
    patients = index.table["patient"]
    for column in (np.ones(len(patients)), *(index.target(label) for label in index.labels)):
        positive = column == 1
        for position, fraction in enumerate(FRACTIONS):
            mine = positive & (split.part == position)
            of_patients = patients[mine].nunique() / patients[positive].nunique()
            of_images = mine.sum() / positive.sum()
            # One patient of the rarest label is about 1 % of it, and brings several images.
            assert abs(of_patients - fraction) < 0.02
            assert abs(of_images - fraction) < 0.04


def test_patients_with_many_images_are_spread_over_the_parts(tmp_path: Path) -> None:
    index = write_index(tmp_path, random_rows(5, 3000))
    split = read_or_make_split(index, path=tmp_path / "split.csv")
    images = index.table["patient"].value_counts()
    many = images[images >= 20].index
    shares = [index.table["patient"][split.rows(part)].drop_duplicates().isin(many).sum() / len(many) for part in PARTS]
    np.testing.assert_allclose(shares, FRACTIONS, atol=0.06)


@settings(max_examples=60)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 40).map(str), st.sampled_from(["", "Mass", "Edema", "Edema|Mass"])),
        min_size=1,
        max_size=120,
    ),
    seed=st.integers(0, 3),
)
def test_no_patient_is_in_two_parts_and_every_image_is_in_one(
    tmp_path_factory: pytest.TempPathFactory, rows: Rows, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("split")
    index = write_index(folder, rows)
    split = read_or_make_split(index, path=folder / "split.csv", seed=seed)
    assert all(len(parts) == 1 for parts in parts_by_patient(index, split.part).values())
    assert sorted(np.concatenate([split.rows(part) for part in PARTS]).tolist()) == list(range(len(rows)))
    assert split.part.dtype == np.uint8
    assert split.rows("test").dtype == np.int64
    counts = np.array([index.table["patient"][split.rows(part)].nunique() for part in PARTS])
    # Sainte-Laguë's rule alone would stay within one patient; labels and unequal numbers of images cost a few more.
    assert np.abs(counts - counts.sum() * np.array(FRACTIONS)).max() <= 1 + 0.15 * counts.sum()


@settings(max_examples=40)
@given(
    first=st.lists(st.tuples(st.integers(0, 30).map(str), st.sampled_from(["", "Mass"])), min_size=1, max_size=60),
    later=st.lists(
        st.tuples(st.integers(0, 60).map(str), st.sampled_from(["", "Mass", "Hernia", "Hernia|Mass"])), max_size=60
    ),
)
def test_labels_and_patients_that_are_added_later_move_no_patient(
    tmp_path_factory: pytest.TempPathFactory, first: Rows, later: Rows
) -> None:
    folder = tmp_path_factory.mktemp("split")
    path = folder / "split.csv"
    before = write_index(folder, first)
    old = read_or_make_split(before, path=path)
    # The old images with a new label, new images of old patients, and new patients.
    relabelled = [(patient, "Fibrosis" if i % 2 else findings) for i, (patient, findings) in enumerate(first)]
    after = write_index(folder, later + relabelled)
    new = read_or_make_split(after, path=path, seed=9, fractions=(0.2, 0.2, 0.6))
    moved = parts_by_patient(after, new.part)
    assert all(moved[patient] == parts for patient, parts in parts_by_patient(before, old.part).items())
    assert all(len(parts) == 1 for parts in moved.values())
    again = read_or_make_split(before, path=path)
    assert again.sha256 == old.sha256, "the hash depends on other patients of the file"
    np.testing.assert_array_equal(again.part, old.part)


def test_appended_patients_restore_the_shares(tmp_path: Path) -> None:
    rows = random_rows(2, 600)
    path = tmp_path / "split.csv"
    read_or_make_split(write_index(tmp_path, [row for row in rows if row[0] < "00300"]), path=path)
    index = write_index(tmp_path, rows)
    split = read_or_make_split(index, path=path)
    shares = [index.table["patient"][split.rows(part)].nunique() / 600 for part in PARTS]
    np.testing.assert_allclose(shares, FRACTIONS, atol=0.02)


def test_split_depends_on_the_seed_and_not_on_the_order_of_the_rows(tmp_path: Path) -> None:
    rows = random_rows(1, 200)
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    hashes = [
        read_or_make_split(write_index(tmp_path, lines), path=tmp_path / f"{name}.csv", seed=seed).sha256
        for name, lines, seed in (("a", rows, 0), ("b", shuffled, 0), ("c", rows, 1))
    ]
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_subset_of_the_patients_is_read_from_the_same_file(tmp_path: Path) -> None:
    rows = random_rows(3, 100)
    path = tmp_path / "split.csv"
    index = write_index(tmp_path, rows)
    whole = read_or_make_split(index, path=path)
    text = path.read_bytes()
    fewer = write_index(tmp_path, [row for row in rows if row[0] < "00050"])
    split = read_or_make_split(fewer, path=path)
    assert path.read_bytes() == text, "reading a subset wrote the file"
    assert split.sha256 != whole.sha256
    in_all = parts_by_patient(index, whole.part)
    assert all(in_all[patient] == parts for patient, parts in parts_by_patient(fewer, split.part).items())


def test_file_has_a_title_and_each_patient_once(tmp_path: Path) -> None:
    index = write_index(tmp_path, [("a, b", "Mass"), ('q"q', ""), ("a, b", "")])
    path = tmp_path / "deep" / "er" / "split.csv"
    split = read_or_make_split(index, path=path, seed=4)
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# acuity split 1: each patient's part; do not edit; seed 4; fractions 0.64 0.16 0.2; ")
    assert lines[1] == "patient,part"
    table = dict(csv.reader(lines[2:]))
    assert table == {"a, b": PARTS[split.part[0]], 'q"q': PARTS[split.part[1]]}
    assert {file.name for file in path.parent.iterdir()} == {"split.csv", ".split.csv.lock"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda _: "", "is not a split"),
        (lambda _: "patient,part\n1,training\n", "is not a split"),
        (lambda text: text.replace("split 1", "split 2"), "is not a split that this version"),
        (lambda text: text[: len(text) // 2], "Put back the file as it was"),
        (lambda text: text + "new,test\n", "SHA-256 differs"),
        (lambda text: text.replace(",test", ",validation", 1), "SHA-256 differs"),
        (lambda text: text + "new,exam\n", "line 53 must be a patient not named before, a comma, and one of training"),
        (lambda text: text + text.splitlines()[2] + "\n", "line 53 must be a patient not named before"),
    ],
)
def test_damaged_or_foreign_file_is_refused(tmp_path: Path, damage: Callable[[str], str], message: str) -> None:
    index = write_index(tmp_path, random_rows(0, 50))
    path = tmp_path / "split.csv"
    read_or_make_split(index, path=path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=message) as caught:
        read_or_make_split(index, path=path)
    assert "\n" not in str(caught.value)
    assert "00000" not in str(caught.value), "the message names a patient"


def test_line_ends_changed_by_version_control_are_no_damage(tmp_path: Path) -> None:
    index = write_index(tmp_path, random_rows(0, 50))
    path = tmp_path / "split.csv"
    split = read_or_make_split(index, path=path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert read_or_make_split(index, path=path).sha256 == split.sha256


def test_folder_that_cannot_be_written_is_refused_with_the_option_to_change(tmp_path: Path) -> None:
    index = write_index(tmp_path, random_rows(0, 20))
    for path in (
        Path("/proc/split.csv"),
        tmp_path / "index.csv" / "split.csv",
    ):  # neither can be made, not even by root
        with pytest.raises(InputError, match=r'\[data\] split = "PATH"'):
            read_or_make_split(index, path=path)


def test_written_split_needs_no_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = write_index(tmp_path, random_rows(0, 20))
    path = tmp_path / "split.csv"
    split = read_or_make_split(index, path=path)

    def refuse(*_: object) -> None:
        raise AssertionError("took the lock of a file that holds every patient")

    monkeypatch.setattr("acuity.objectives.split.split.write_lock", refuse)
    assert read_or_make_split(index, path=path).sha256 == split.sha256


def test_workers_that_start_together_make_one_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = write_index(tmp_path, random_rows(0, 100))

    def assign_slowly(*arguments: Any, **options: Any) -> dict[str, int]:
        time.sleep(0.1)  # long enough for the others to reach the lock
        return assign(*arguments, **options)

    assign = split_module.assign_new_patients
    monkeypatch.setattr(split_module, "assign_new_patients", assign_slowly)
    with ThreadPoolExecutor(4) as pool:
        splits = pool.map(lambda seed: read_or_make_split(index, path=tmp_path / "split.csv", seed=seed), range(4))
    assert len({split.sha256 for split in splits}) == 1


def test_label_with_too_few_patients_is_refused_with_the_counts(tmp_path: Path) -> None:
    rows = [(str(patient), "Mass" if patient < 40 else "Hernia" if patient < 48 else "") for patient in range(200)]
    index = write_index(tmp_path, rows)
    split = read_or_make_split(index, path=tmp_path / "split.csv")
    check_label(index, split, "Mass")
    with pytest.raises(
        InputError, match="label Hernia: patients with a positive image: 5 in training, 1 in validation, 2 in test"
    ):
        check_label(index, split, "Hernia")
    check_label(index, split, "Hernia", min_patients=1)
    with pytest.raises(InputError, match="is not a label"):
        check_label(index, split, "Hernias")


def test_label_that_every_patient_has_is_refused(tmp_path: Path) -> None:
    index = write_index(tmp_path, [(str(patient), "Mass") for patient in range(100)])
    split = read_or_make_split(index, path=tmp_path / "split.csv")
    with pytest.raises(InputError, match="patients with a negative image: 0 in training, 0 in validation, 0 in test"):
        check_label(index, split, "Mass")


def test_many_images_of_one_patient_count_once(tmp_path: Path) -> None:
    rows = [("long", "Hernia")] * 100 + [(str(patient), "") for patient in range(100)]
    index = write_index(tmp_path, rows)
    split = read_or_make_split(index, path=tmp_path / "split.csv")
    with pytest.raises(InputError, match="label Hernia"):
        check_label(index, split, "Hernia", min_patients=2)


def test_full_nih_set_keeps_its_shares(tmp_path: Path) -> None:
    path = Path(os.environ.get("ACUITY_NIH_DIR", "../shared/data")) / "nih-metadata" / "Data_Entry_2017_v2020.csv.gz"
    if not path.exists():
        pytest.skip(f"needs NIH's index: {path} is not there")
    index = read_index(path, images=path.parent)
    split = read_or_make_split(index, path=tmp_path / "split.csv")
    patients = index.table["patient"]
    for label in index.labels:
        check_label(index, split, label)
        positive = index.target(label) == 1
        test = split.part == PARTS.index("test")
        assert abs(patients[positive & test].nunique() / patients[positive].nunique() - 0.20) < 0.005
        assert abs((positive & test).sum() / positive.sum() - 0.20) < 0.01


@pytest.mark.parametrize("patient", ["7\r8", "7\r", '7"8', "7,8", "7\u2028", "7\x0b8"])
def test_any_patient_id_is_read_back_from_the_split_file(tmp_path: Path, patient: str) -> None:
    parts = {patient: 0, "9": 2}
    write_split_file(tmp_path / "split.csv", SplitFile(seed=0, fractions=(0.64, 0.16, 0.2), parts=parts))
    read = read_split_file(tmp_path / "split.csv")
    assert read is not None
    assert read.parts == parts

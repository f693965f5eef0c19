"""A picture that occurs under several file names is found and is in one part only."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acuity.objectives.index.image_index import ImageIndex, read_index
from acuity.objectives.split.duplicates import (
    count_duplicates,
    duplicates_across_parts,
    find_cached_duplicates,
    find_duplicates,
    patients_sharing_pictures,
)
from acuity.objectives.split.file import PARTS
from acuity.objectives.split.split import exclude_rows, read_or_make_split
from support.index_files import read_lines


def pictures(which: list[int], side: int = 32) -> np.ndarray:
    """uint8 [N, side, side]: equal pictures for equal numbers. All pictures have the same middle."""
    drawn = np.random.default_rng(0).integers(0, 256, (max(which) + 1, side, side), dtype=np.uint8)
    drawn[:, side // 4 : -(side // 4)] = 7
    return drawn[which]


def index_of(folder: Path, patients: list[int], name: str = "index.csv") -> ImageIndex:
    lines = [f"{i}.png,p{patient},{patient % 2}" for i, patient in enumerate(patients)]
    return read_lines(folder, "file,patient,Mass", *lines, name=name)


@pytest.mark.parametrize("side", [16, 128])
def test_duplicates_are_equal_in_every_pixel(side: int) -> None:
    pixels = pictures([0, 1, 0, 2, 3, 2, 0], side)
    assert find_duplicates(pixels) == [[0, 2, 6], [3, 5]]
    pixels[6, 0, 0] ^= 1
    assert find_duplicates(pixels) == [[0, 2], [3, 5]]
    assert find_duplicates(pixels, bad=[2]) == [[3, 5]], "a bad image has no picture"


def test_duplicates_of_an_array_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key-32px.npy"
    np.save(path, pictures([0, 1, 0]))
    pixels = np.lib.format.open_memmap(path, mode="r")
    assert find_cached_duplicates(pixels) == [[0, 2]]
    with monkeypatch.context() as patch:
        patch.setattr("acuity.objectives.split.duplicates.find_duplicates", None)
        assert find_cached_duplicates(pixels) == [[0, 2]]
    np.save(path, pictures([0, 1, 1]))
    os.utime(path, ns=(1, 1))
    assert find_cached_duplicates(np.lib.format.open_memmap(path, mode="r")) == [[1, 2]], "the array was built again"


@settings(max_examples=60)
@given(
    images=st.lists(st.tuples(st.integers(0, 25), st.integers(0, 30)), min_size=2, max_size=80),
    old=st.just(0) | st.integers(0, 80),
)
def test_no_picture_is_in_two_parts(
    tmp_path_factory: pytest.TempPathFactory, images: list[tuple[int, int]], old: int
) -> None:
    folder = tmp_path_factory.mktemp("duplicates")
    patients, which = zip(*images, strict=True)
    path = folder / "split.csv"
    before = {}
    if images[:old]:  # a split that was made before the duplicates were known
        earlier = index_of(folder, list(patients[:old]), "earlier.csv")
        before = dict(zip(earlier.table["patient"], read_or_make_split(earlier, path=path).part, strict=True))
    index = index_of(folder, list(patients))
    duplicates = find_duplicates(pictures(list(which)))
    split = read_or_make_split(index, path=path, keep_together=patients_sharing_pictures(index, duplicates))
    assert all(before[p] == part for p, part in zip(index.table["patient"], split.part, strict=True) if p in before)
    rows = duplicates_across_parts(split, duplicates)
    if not before:
        assert not len(rows), "a new split keeps patients with a common picture together"
    used = exclude_rows(split, rows)
    sides = {part: {which[row] for row in used.rows(part)} for part in PARTS}
    assert not any(sides[a] & sides[b] for a, b in itertools.combinations(PARTS, 2))
    assert not set(rows) & set(split.rows("training")), "copies are excluded from the later part"
    assert set().union(*sides.values()) == set(which), "one copy remains"
    assert used.sha256 == split.sha256


def test_duplicates_are_counted_for_the_report(tmp_path: Path) -> None:
    index = index_of(tmp_path, [1, 1, 3, 2, 4])
    split = read_or_make_split(index, path=tmp_path / "split.csv")
    split.part[:] = [0, 0, 0, 2, 1]
    counts = count_duplicates(index, split, [[0, 1], [2, 3, 4]])
    assert (counts.pictures, counts.images, counts.left_out) == (2, 5, 2)
    assert (counts.pictures_of_several_patients, counts.pictures_with_different_labels) == (1, 1)


def test_duplicates_among_real_radiographs_are_found() -> None:
    folder = Path(os.environ.get("ACUITY_NIH_DIR", "../shared/data")) / "nih-cxr-128"
    if not folder.is_dir():
        pytest.skip(f"needs the real radiographs: {folder} is not there")
    cv2 = pytest.importorskip("cv2")
    index = read_index(folder / "Data_Entry.csv", images=folder / "images")
    pixels = np.stack([cv2.imread(str(index.image_path(row)), cv2.IMREAD_GRAYSCALE) for row in range(len(index.table))])
    named = [[index.names[row].removesuffix(".png") for row in rows] for rows in find_duplicates(pixels)]
    assert ["00001989_004", "00001989_005"] in named
    assert ["00002658_001", "00002658_002"] in named
    assert len(named) < 10


def test_pictures_of_one_grey_level_are_no_repeats() -> None:
    pixels = np.stack([np.full((8, 8), level, np.uint8) for level in (0, 0, 255, 255)])
    pixels = np.concatenate([pixels, np.eye(8, dtype=np.uint8)[np.newaxis].repeat(2, axis=0)])
    assert find_duplicates(pixels) == [[4, 5]]

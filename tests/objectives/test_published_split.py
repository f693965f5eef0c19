"""A published split is used unchanged. Training and validation are divided by patient if it leaves them open."""

import os
from pathlib import Path

import numpy as np
import pytest

from acuity.objectives.errors import InputError
from acuity.objectives.index.image_index import ImageIndex, read_index
from acuity.objectives.split.file import PARTS
from acuity.objectives.split.published import TRAIN_VAL, published_parts
from acuity.objectives.split.split import Split, read_or_make_split
from support.index_files import read_lines


def nih(folder: Path, patients: int = 50, images: int = 2) -> ImageIndex:
    lines = [
        f"{patient:08}_{image:03}.png,{'Mass' if patient % 3 else 'No Finding'},{patient}"
        for patient in range(patients)
        for image in range(images)
    ]
    return read_lines(folder, "Image Index,Finding Labels,Patient ID", *lines)


def write_lists(folder: Path, index: ImageIndex, test: set[str]) -> dict[str, Path]:
    """NIH's two lists, with Windows line ends and without one at the end."""
    in_test = index.table["patient"].isin(test)
    lists = {"train_val_list": folder / "train_val_list.txt", "test_list": folder / "test_list.txt"}
    for path, mine in zip(lists.values(), (~in_test, in_test), strict=True):
        path.write_bytes("\r\n".join(index.table["file"][mine]).encode())
    return lists


def patients_in(index: ImageIndex, split: Split, part: str) -> set[str]:
    return set(index.table["patient"].iloc[split.rows(part)])


def test_lists_decide_the_test_patients_and_validation_is_drawn_from_the_others(tmp_path: Path) -> None:
    index = nih(tmp_path)
    test = {str(patient) for patient in range(7)}
    lists = write_lists(tmp_path, index, test)
    published = published_parts(index, **lists)
    split = read_or_make_split(index, path=tmp_path / "split.csv", published=published)
    assert patients_in(index, split, "test") == test
    counts = [len(patients_in(index, split, part)) for part in PARTS]
    assert counts[2] == 7
    assert abs(counts[1] - 43 * 0.2) <= 2
    again = read_or_make_split(index, path=tmp_path / "split.csv", published=published)
    assert again.sha256 == split.sha256
    for name in lists:  # images that one list does not name are in the other
        assert published_parts(index, **{name: lists[name]}) == published


def test_patients_that_come_later_go_where_the_lists_put_them(tmp_path: Path) -> None:
    few, many = nih(tmp_path, 20), nih(tmp_path, 40)
    lists = write_lists(tmp_path, many, {str(patient) for patient in range(0, 40, 4)})
    path = tmp_path / "split.csv"
    first = read_or_make_split(few, path=path, published=published_parts(few, **lists))
    later = read_or_make_split(many, path=path, published=published_parts(many, **lists))
    assert patients_in(many, later, "test") == {str(patient) for patient in range(0, 40, 4)}
    for part in PARTS:
        assert patients_in(few, first, part) <= patients_in(many, later, part)


def test_lists_match_images_that_were_converted_and_moved(tmp_path: Path) -> None:
    index = nih(tmp_path)
    lists = write_lists(tmp_path, index, {"1"})
    text = (tmp_path / "index.csv").read_text().replace(".png", ".jpg").replace("\n0", "\nimages/0")
    (tmp_path / "index.csv").write_text(text)
    moved = read_index(tmp_path / "index.csv", images=tmp_path)
    assert published_parts(moved, **lists) == published_parts(index, **lists)


def test_lists_distinguish_names_with_dots(tmp_path: Path) -> None:
    lines = [f"1.2.826.0.{i}.DCM,{'Mass' if i % 2 else 'No Finding'},{i}" for i in range(40)]
    index = read_lines(tmp_path, "Image Index,Finding Labels,Patient ID", *lines)
    test_list = tmp_path / "test_list.txt"
    for ending in ("", ".dcm", ".dicom.gz", ".dcm.png", ".JPEG"):  # as published, packed, converted
        test_list.write_text("\n".join(f"series/1.2.826.0.{i}{ending}" for i in (3, 4)))
        parts = published_parts(index, test_list=test_list)
        assert {patient for patient, part in parts.items() if part == "test"} == {"3", "4"}


def test_an_existing_split_with_other_parts_is_refused_and_kept(tmp_path: Path) -> None:
    index = nih(tmp_path)
    path = tmp_path / "split.csv"
    read_or_make_split(index, path=path)
    before = path.read_bytes()
    published = published_parts(index, **write_lists(tmp_path, index, {"1", "2", "3"}))
    with pytest.raises(InputError, match=r"in other parts than the published split.*\[data\] split = "):
        read_or_make_split(index, path=path, published=published)
    assert path.read_bytes() == before


def test_lists_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    index = nih(tmp_path)
    lists = write_lists(tmp_path, index, {"1"})
    test_list, train_val_list = lists["test_list"], lists["train_val_list"]
    good = test_list.read_text()
    test_list.write_text("\n".join(good.split()[1:]))
    with pytest.raises(InputError, match=r"index line 4 is in neither of .* \(1 such lines in all\)"):
        published_parts(index, **lists)
    with pytest.raises(InputError, match="index line 4 is in train_val and index line 5, of the same patient, in test"):
        published_parts(index, test_list=test_list)
    test_list.write_text(good + "\n" + train_val_list.read_text().split()[0])
    with pytest.raises(InputError, match="index line 2 is in both of"):
        published_parts(index, **lists)
    test_list.write_text("other.png\n")
    with pytest.raises(InputError, match="names no test image of the index"):
        published_parts(index, test_list=test_list)
    test_list.write_text("\n")
    with pytest.raises(InputError, match="is empty; a list has one image name per line"):
        published_parts(index, test_list=test_list)
    with pytest.raises(InputError, match="cannot be read"):
        published_parts(index, test_list=tmp_path / "none.txt")


COLUMN = ("file,patient,Mass,split", "a.png,p1,1,train", "b.png,p2,0,Valid", "c.png,p3,1,test", "d.png,p1,0,training")


def test_a_split_column_is_used_unchanged(tmp_path: Path) -> None:
    index = read_lines(tmp_path, *COLUMN)
    published = published_parts(index)
    assert published == {"p1": "training", "p2": "validation", "p3": "test"}
    split = read_or_make_split(index, path=tmp_path / "split.csv", published=published)
    np.testing.assert_array_equal(split.part, [0, 1, 2, 0])


def test_validation_is_drawn_from_training_if_the_column_has_none(tmp_path: Path) -> None:
    lines = [f"{i}.png,p{i},{i % 2},{'test' if i < 10 else 'train'}" for i in range(60)]
    index = read_lines(tmp_path, "file,patient,Mass,split", *lines)
    published = published_parts(index)
    assert set(published.values()) == {"test", TRAIN_VAL}
    split = read_or_make_split(index, path=tmp_path / "split.csv", published=published)
    assert patients_in(index, split, "test") == {f"p{i}" for i in range(10)}
    assert 8 <= len(patients_in(index, split, "validation")) <= 12


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("e.png,p2,0,test", "index line 3 is in validation and index line 6, of the same patient, in test"),
        ("e.png,p9,0,exam", "index line 6 has another word than training, validation, test or train_val"),
        ("e.png,p9,0,", "index line 6 has another word than training"),
    ],
)
def test_a_column_that_contradicts_itself_is_refused(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        published_parts(read_lines(tmp_path, *COLUMN, row))
    assert "p2" not in str(caught.value), "the message names a patient"


def test_a_column_without_test_images_or_beside_lists_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names no test image"):
        published_parts(read_lines(tmp_path, *COLUMN[:3]))
    with pytest.raises(InputError, match=r"has a split column, and .* lists as well"):
        published_parts(read_lines(tmp_path, *COLUMN), test_list=tmp_path / "test_list.txt")


def test_an_index_without_parts_has_none_published(tmp_path: Path) -> None:
    assert published_parts(nih(tmp_path)) == {}
    assert published_parts(read_lines(tmp_path, "file,patient,Mass,split", "a.png,p1,1,")) == {}


def spots(folder: Path, *names: str) -> ImageIndex:
    lines = [f"{name},p{number},{number % 2}" for number, name in enumerate(names)]
    return read_lines(folder, "file,patient,Mass", *lines)


def listed_as_test(index: ImageIndex, folder: Path, *entries: str, **lists: Path) -> list[int]:
    """Rows in the test part with this test list."""
    (folder / "test.txt").write_text("\n".join(entries))
    parts = published_parts(index, test_list=folder / "test.txt", **lists)
    return [row for row, patient in enumerate(index.table["patient"]) if parts[patient] == "test"]


RECURRING = ("train/pos_001.png", "train/pos_002.png", "test/pos_001.png", "test/pos_003.png")


@pytest.mark.parametrize("ending", [".png", ".jpg", ""])
def test_whole_paths_are_matched_before_base_names(tmp_path: Path, ending: str) -> None:
    index = spots(tmp_path, *RECURRING)
    entries = [f"test/pos_00{number}{ending}" for number in (1, 3)]
    assert listed_as_test(index, tmp_path, *entries) == [2, 3]
    assert listed_as_test(index, tmp_path, *(f".\\test\\pos_00{number}{ending}" for number in (1, 3))) == [2, 3]
    (tmp_path / "train.txt").write_text(f"train/pos_001{ending}\ntrain/pos_002{ending}")
    assert listed_as_test(index, tmp_path, *entries, train_val_list=tmp_path / "train.txt") == [2, 3]
    # An index without the row that an entry names: a row of the same base name is another image.
    index = spots(tmp_path, *RECURRING[:2], RECURRING[3])
    assert listed_as_test(index, tmp_path, *entries) == [2]


def test_names_that_fit_several_images_are_refused(tmp_path: Path) -> None:
    index = spots(tmp_path, *RECURRING)
    for entry in ("pos_001.png", "other/pos_001.png", "pos_001"):
        with pytest.raises(
            InputError, match=r"index line 2 of .* \(2 such lines in all\): write each path as the index"
        ):
            listed_as_test(index, tmp_path, entry, "pos_003.png")
    flat = spots(tmp_path, "pos_001.png", "pos_002.png")
    with pytest.raises(InputError, match=r"index line 2 of .* \(1 such lines in all\)"):
        listed_as_test(flat, tmp_path, "a/pos_001.png", "b/pos_001.png")
    ending = spots(tmp_path, "x.png", "x.jpg", "y.png")
    assert listed_as_test(ending, tmp_path, "x.jpg") == [1]
    with pytest.raises(InputError, match="index line 2 of"):
        listed_as_test(ending, tmp_path, "x.dcm")


def test_chexperts_paths_match_with_and_without_the_releases_folder(tmp_path: Path) -> None:
    paths = [f"{part}/patient0000{i}/study1/view1_frontal.jpg" for i, part in enumerate(("train", "train", "valid"))]
    lines = [f"CheXpert-v1.0-small/{path},Male,60,Frontal,AP,,{i % 2},0" for i, path in enumerate(paths)]
    index = read_lines(tmp_path, "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Fracture", *lines)
    for entry in (paths[2], f"CheXpert-v1.0-small/{paths[2]}"):
        assert listed_as_test(index, tmp_path, entry) == [2]


def test_a_pipe_as_list_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is not a regular file"):
        published_parts(nih(tmp_path), test_list=tmp_path / "pipe")

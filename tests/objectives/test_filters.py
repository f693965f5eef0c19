"""Filters leave images out and say how many; no filter moves a patient."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acuity.objectives.errors import InputError
from acuity.objectives.index.filters import Filters, apply_filters
from acuity.objectives.index.image_index import ImageIndex
from acuity.objectives.split.file import PARTS
from acuity.objectives.split.split import read_or_make_split, take_split
from support.index_files import read_lines

HEADER = "file,patient,view,age,No Finding,Mass,Edema"
ROWS = (
    "0.png,p1,PA,30,1,0,0",
    "1.png,p1,AP,31,,1,0",
    "2.png,p1,PA,32,,0,1",
    "3.png,p2,PA,17,,1,",
    "4.png,p2,L,,1,,",
    "5.png,p3,,100,,0,0",
)


@pytest.fixture
def index(tmp_path: Path) -> ImageIndex:
    return read_lines(tmp_path, HEADER, *ROWS)


@pytest.mark.parametrize(
    ("filters", "left", "left_out"),
    [
        (Filters(), [0, 1, 2, 3, 4, 5], {}),
        (Filters(views=("PA",)), [0, 2, 3], {"other view": 3}),
        (Filters(views=("PA", "AP")), [0, 1, 2, 3], {"other view": 2}),
        (Filters(ages=(18, 100)), [0, 1, 2, 5], {"age not known": 1, "other age": 1}),
        (Filters(no_finding="leave_out"), [1, 2, 3, 5], {"no finding": 2}),
        (Filters(no_finding="only_negatives"), [0, 1, 2, 3, 4, 5], {}),
        (Filters(one_image_per_patient=True), [0, 3, 5], {"further image of a patient": 3}),
        (
            Filters(views=("PA",), no_finding="leave_out", one_image_per_patient=True),
            [2, 3],
            {"other view": 3, "no finding": 1},
        ),
    ],
)
def test_images_are_left_out_for_the_first_reason_and_counted(
    index: ImageIndex, filters: Filters, left: list[int], left_out: dict[str, int]
) -> None:
    filtered = apply_filters(index, filters)
    assert filtered.rows.tolist() == left
    assert filtered.left_out == left_out
    assert filtered.index.table["file"].tolist() == [f"{row}.png" for row in left]
    assert len(left) + sum(left_out.values()) == len(ROWS)


def test_only_negatives_unsets_the_negatives_of_images_with_another_finding(index: ImageIndex) -> None:
    filtered = apply_filters(index, Filters(no_finding="only_negatives")).index
    nan = np.nan
    np.testing.assert_array_equal(filtered.target("Mass"), [0, 1, nan, 1, 0, nan])
    np.testing.assert_array_equal(filtered.target("Edema"), [0, nan, 1, nan, 0, nan])
    np.testing.assert_array_equal(index.target("Mass"), [0, 1, 0, 1, 0, 0])
    assert filtered.files_sha256 == index.files_sha256
    assert filtered.sha256 != index.sha256


def test_a_view_that_no_image_has_and_filters_that_leave_nothing_are_refused(index: ImageIndex) -> None:
    with pytest.raises(InputError, match=r'views has "pa", which no image of .* has. The nearest there is "PA"'):
        apply_filters(index, Filters(views=("pa",)))
    with pytest.raises(InputError, match=r"leave no image \(other view: 5, age not known: 1\); widen them"):
        apply_filters(index, Filters(views=("L",), ages=(0, 120)))


@settings(max_examples=40)
@given(
    patients=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    views=st.sampled_from([None, ("PA",), ("AP", "PA")]),
    ages=st.sampled_from([None, (18, 60), (0, 120)]),
    no_finding=st.sampled_from(["keep", "leave_out", "only_negatives"]),
    one=st.booleans(),
    data=st.data(),
)
def test_no_filter_moves_a_patient(
    tmp_path_factory: pytest.TempPathFactory, patients: list[int], views, ages, no_finding, one, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("filters")
    cells = st.tuples(st.sampled_from(["PA", "AP", "L"]), st.sampled_from(["5", "40", ""]), st.sampled_from("10"))
    drawn = data.draw(st.lists(cells, min_size=len(patients), max_size=len(patients)))
    rows = [
        f"{i}.png,p{patient},{view},{age},{healthy},{0 if healthy == '1' else 1},0"
        for i, (patient, (view, age, healthy)) in enumerate(zip(patients, drawn, strict=True))
    ]
    whole = read_lines(folder, HEADER, *rows)
    split = read_or_make_split(whole, path=folder / "split.csv")
    assert split.whole_sha256 == split.sha256
    filters = Filters(views=views, ages=ages, no_finding=no_finding, one_image_per_patient=one)
    try:
        filtered = apply_filters(whole, filters)
    except InputError:
        return
    mine = take_split(split, filtered.index, filtered.rows)
    np.testing.assert_array_equal(mine.part, split.part[filtered.rows])
    assert mine.whole_sha256 == split.sha256, "the test patients are the same for every filter"
    # The split of the filtered index, from the same file, is the same.
    alone = read_or_make_split(filtered.index, path=folder / "split.csv")
    assert alone.sha256 == mine.sha256
    np.testing.assert_array_equal(alone.part, mine.part)
    if one:
        assert filtered.index.table["patient"].is_unique
    assert sum(len(mine.rows(part)) for part in PARTS) == len(filtered.rows)

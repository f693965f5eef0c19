"""[data] columns read a table of any names, and the error for an unknown table shows the mapping to write."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from acuity.objectives.errors import InputError
from acuity.objectives.tables.column_mapping import ColumnMapping
from support.index_files import read_lines, refusal

HEADER = "image_id,PatientID,Mass,Nodule_l,Nodule_r,view"
ROWS = ("a,p1,YES,1,0,PA", "b,p2,NO,0,1,AP", "c,p2,,0,0,AP")


def test_names_patterns_lists_and_words(tmp_path: Path) -> None:
    mapping = ColumnMapping(
        file="{PatientID:.1}/{image_id}.png",
        patient="PatientID",
        labels=("Mass", "Nodule_*"),
        values={"YES": 1, "NO": 0},
    )
    index = read_lines(tmp_path, HEADER, *ROWS, mapping=mapping)
    assert list(index.names) == ["p/a.png", "p/b.png", "p/c.png"]
    assert index.table["patient"].tolist() == ["p1", "p2", "p2"]
    assert index.labels == ("Mass", "Nodule_l", "Nodule_r")
    np.testing.assert_array_equal(index.target("Mass"), [1, 0, np.nan])
    assert index.table["view"].tolist() == ["PA", "AP", "AP"], "view, age, sex, site and split as in a plain table"
    renamed = ColumnMapping(file="image_id", patient="PatientID", labels={"Left nodule": "Nodule_l"})
    index = read_lines(tmp_path, HEADER, *ROWS, mapping=renamed)
    assert index.labels == ("Left nodule",)


def test_each_file_may_be_a_patient(tmp_path: Path) -> None:
    index = read_lines(tmp_path, HEADER, *ROWS, mapping=ColumnMapping(file="image_id", patient="file"))
    assert index.table["patient"].tolist() == ["a", "b", "c"]
    assert not index.has_patients
    assert index.labels == ("Nodule_l", "Nodule_r")
    with pytest.raises(InputError, match=r"values = \{ YES = 1, NO = 0 \}"):
        index.target("Mass")


@pytest.mark.parametrize(
    ("rule", "means"), [("any", [1, 1, 0, np.nan]), ("majority", [1, np.nan, 0, np.nan]), ("all", [0, 0, 0, np.nan])]
)
def test_rows_of_an_image_are_combined(tmp_path: Path, rule: str, means: list[float]) -> None:
    cells = {"a": "1 1 0", "b": "1 0", "c": "0 0", "d": ", ,"}
    rows = [f"{file},p,{cell.strip(',')}" for file, several in cells.items() for cell in several.split(" ")]
    mapping = ColumnMapping(file="file", patient="patient", rows_per_image=rule)
    index = read_lines(tmp_path, "file,patient,Mass", *rows, mapping=mapping)
    np.testing.assert_array_equal(index.target("Mass"), means)
    assert index.table["line"].tolist() == [2, 5, 7, 9]


def test_rows_of_an_image_name_one_patient(tmp_path: Path) -> None:
    mapping = ColumnMapping(file="file", patient="patient", rows_per_image="any")
    with pytest.raises(InputError, match="index line 3 has another patient than line 2, which names the same image"):
        read_lines(tmp_path, "file,patient,Mass", "a,p1,1", "a,p2,1", mapping=mapping)


def test_findings_in_one_column(tmp_path: Path) -> None:
    mapping = ColumnMapping(file="f", patient="p", findings="dx", separator=";", no_finding="healthy")
    index = read_lines(tmp_path, "f,p,dx", "a,1,Mass; Edema", "b,2,healthy", "c,3,", mapping=mapping)
    assert index.labels == ("Edema", "Mass")
    np.testing.assert_array_equal(index.targets, [[1, 1], [0, 0], [np.nan, np.nan]])
    assert index.table["no_finding"].tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (ColumnMapping(file="image", patient="PatientID"), 'no column "image", which [data] columns.file names. The n'),
        (ColumnMapping(file="{img}.png", patient="PatientID"), 'no column "img", which [data] columns.file names'),
        (
            ColumnMapping(file="image_id", patient="PatientID", labels=("Mas",)),
            "columns.labels names. The nearest",
        ),
        (ColumnMapping(file="image_id", patient="PatientID", labels="X_*"), "no column fits [data] columns.labels"),
        (ColumnMapping(file="image_id", patient="PatientID", only={"view": "X"}), "has no row with view = X"),
        (ColumnMapping(rows_per_image="any"), "For other names write under [data]: columns"),
    ],
)
def test_mistakes_of_a_mapping(tmp_path: Path, mapping: ColumnMapping, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_lines(tmp_path, HEADER, *ROWS, mapping=mapping)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("header", "file", "patient"),
    [
        ("image_id,Subject ID,Mass", "image_id", "Subject ID"),
        ("img_path,case,Mass", "img_path", "case"),
        ("dicom,Mass", "dicom", "..."),
    ],
)
def test_the_error_for_an_unknown_table_shows_a_mapping_that_parses(
    tmp_path: Path, header: str, file: str, patient: str
) -> None:
    message = refusal(tmp_path, header, ",".join("x" * len(header.split(","))))
    found = re.search(r"columns = \{.*?\}", message)
    assert found
    assert tomllib.loads(found[0])["columns"] == {"file": file, "patient": patient}


def test_a_first_line_that_is_no_header_is_not_quoted(tmp_path: Path) -> None:
    refusal(tmp_path, "image7.png,patient 12 Doe,1", "b.png,p2,0", secrets=("image7", "Doe"))


def test_a_fixed_format_takes_no_other_columns(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="whose columns are fixed"):
        read_lines(tmp_path, "Path,Mass", "train/patient1/x.jpg,1", mapping=ColumnMapping(age="Age"))


def test_a_table_with_a_path_but_no_chexpert_patient_shows_its_mapping(tmp_path: Path) -> None:
    assert 'columns = { file = "Path", patient = "..." }' in refusal(tmp_path, "Path,Mass", "a/b.jpg,1", "a/c.jpg,0")

"""CheXpert, PadChest and plain tables are detected and read as published; a faulty line is refused by its number."""

import csv
import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acuity.objectives.errors import InputError
from acuity.objectives.index.image_index import read_index, take_rows
from acuity.objectives.index.missing_images import check_images_present
from acuity.objectives.tables.cells import LabelPolicy
from acuity.objectives.tables.column_mapping import FormatName
from acuity.objectives.tables.formats import FORMATS
from support.index_files import read_lines, refusal

CHEXPERT = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Support Devices"
CHEXPERT_ROWS = (
    "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,",
    "CheXpert-v1.0-small/train/patient00002/study2/view1_frontal.jpg,Male,87,Frontal,PA,,-1.0,",
    "CheXpert-v1.0-small/train/patient00002/study2/view2_lateral.jpg,Male,87,Lateral,,,1.0,0.0",
    "CheXpert-v1.0-small/train/patient00003/study1/view1_frontal.jpg,Unknown,0,Frontal,AP,,0.0,-1.0",
)
PADCHEST = "ImageID,ImageDir,StudyDate_DICOM,PatientID,PatientBirth,PatientSex_DICOM,Projection,Labels"
PADCHEST_ROWS = (
    "a.png,0,20140915,p1,1930.0,F,PA,['normal']",
    """b.png,0,20140915,p2,1930.0,M,L,"['cardiomegaly', ' pleural effusion', '']" """,
    "c.png,7,20140915,p2,1930.0,M,AP_horizontal,\"['unchanged', 'suboptimal study']\"",
    "d.png,7,20140915,p3,,O,UNK,nan",
    "e.png,7,20140915,p3,2015.0,O,UNK,\"['unchanged', 'cardiomegaly']\"",
)


def published(name: str) -> Path:
    """A published table, from a package that contains it."""
    package = find_spec("torchxrayvision")
    if package is None or package.origin is None:
        pytest.skip("needs the published tables in torchxrayvision (pip install '.[dev]')")
    return Path(package.origin).parent / "data" / name


def test_chexpert_blank_and_uncertain_are_left_out_of_that_label_alone(tmp_path: Path) -> None:
    index = read_lines(tmp_path, CHEXPERT, *CHEXPERT_ROWS)
    assert index.labels == ("Edema", "Support Devices")
    # No Finding means that Edema is absent. It does not cover support devices.
    np.testing.assert_array_equal(index.target("Edema"), [0, np.nan, 1, 0])
    np.testing.assert_array_equal(index.target("Support Devices"), [np.nan, np.nan, 0, np.nan])
    assert index.table["no_finding"].tolist() == [True, False, False, False]
    assert index.table["patient"].tolist() == ["patient00001", "patient00002", "patient00002", "patient00003"]
    assert index.table["view"].tolist() == ["AP", "PA", "L", "AP"]
    assert index.table["sex"].tolist() == ["F", "M", "M", ""]
    np.testing.assert_array_equal(index.table["age"], [68, 87, 87, np.nan])


@pytest.mark.parametrize(("uncertain", "means"), [("positive", 1), ("negative", 0), ("leave_out", np.nan)])
def test_uncertain_cells_get_the_target_of_the_policy(tmp_path: Path, uncertain: str, means: float) -> None:
    index = read_lines(tmp_path, CHEXPERT, *CHEXPERT_ROWS, policy=LabelPolicy(uncertain=uncertain))
    np.testing.assert_array_equal(index.target("Edema"), [0, means, 1, 0])
    np.testing.assert_array_equal(index.target("Support Devices"), [np.nan, np.nan, 0, means])


def test_no_finding_does_not_change_an_uncertain_cell(tmp_path: Path) -> None:
    index = read_lines(tmp_path, CHEXPERT, CHEXPERT_ROWS[0].removesuffix(",,") + ",-1.0,", *CHEXPERT_ROWS[1:])
    assert index.table["no_finding"].iat[0]
    np.testing.assert_array_equal(index.target("Edema"), [np.nan, np.nan, 1, 0])


def test_blank_cells_are_negative_with_that_policy(tmp_path: Path) -> None:
    index = read_lines(tmp_path, CHEXPERT, *CHEXPERT_ROWS, policy=LabelPolicy(blank="negative"))
    np.testing.assert_array_equal(index.target("Support Devices"), [0, 0, 0, np.nan])


@pytest.mark.parametrize("inside", [True, False])
def test_chexpert_files_are_found_from_the_releases_folder_or_the_one_above(tmp_path: Path, inside: bool) -> None:
    release = tmp_path / "images" if inside else tmp_path / "images" / "CheXpert-v1.0-small"
    for row in CHEXPERT_ROWS:
        file = release / row.split(",")[0].removeprefix("CheXpert-v1.0-small/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    index = read_lines(tmp_path, CHEXPERT, *CHEXPERT_ROWS)
    check_images_present(index)
    assert index.image_path(0).is_file()


def test_padchest_lists_become_labels(tmp_path: Path) -> None:
    index = read_lines(tmp_path, PADCHEST, *PADCHEST_ROWS)
    assert index.labels == ("cardiomegaly", "pleural effusion")
    unknown = [np.nan, np.nan]
    np.testing.assert_array_equal(index.targets, [[0, 0], [1, 1], unknown, unknown, [1, 0]])
    assert index.table["no_finding"].tolist() == [True, False, False, False, False]
    assert index.table["view"].tolist() == ["PA", "L", "AP_horizontal", "", ""]
    np.testing.assert_array_equal(index.table["age"], [84, 84, 84, np.nan, np.nan])


def test_a_plain_table_keeps_site_age_sex_and_view(tmp_path: Path) -> None:
    index = read_lines(
        tmp_path,
        "patient,file,site,age,sex,view,Mass,remark,Edema,never",
        "p1,a.png,Bonn,7,female,PA,1,seen twice,,",
        "p2,b.png,Ulm,,m,AP,0,,true,",
    )
    assert index.labels == ("Mass", "Edema")
    np.testing.assert_array_equal(index.targets, [[1, np.nan], [0, 1]])
    assert index.table["site"].tolist() == ["Bonn", "Ulm"]
    assert index.table["sex"].tolist() == ["F", "M"]
    with pytest.raises(InputError, match=r'"remark" is a column of .* but no label: index line 2 has something else'):
        index.target("remark")
    with pytest.raises(InputError, match=r'"never" is a column of .* but no label: there is nothing in it'):
        index.target("never")


def test_parquet_reads_as_the_same_csv_does(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "file": ["a.png", "b.png", "c.png"],
            "patient": [1, 1, 2],
            "Mass": [1.0, None, 0.0],
            "Edema": [True, False, True],
            "age": [7.0, 8.0, None],
        }
    )
    table.to_csv(tmp_path / "index.csv", index=False)
    table.to_parquet(tmp_path / "index.parquet")
    one, other = (read_index(tmp_path / name, images=tmp_path) for name in ("index.csv", "index.parquet"))
    assert one.labels == other.labels == ("Mass", "Edema")
    pd.testing.assert_frame_equal(one.table, other.table)
    assert one.sha256 == other.sha256
    (tmp_path / "index.parquet").write_bytes(b"PAR1" + b"x" * 99)
    with pytest.raises(InputError, match="the Parquet file is damaged"):
        read_index(tmp_path / "index.parquet", images=tmp_path)


def test_a_named_format_is_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "index.csv"
    path.write_text("Path,file,patient,Mass\npatient1/x.jpg,a.png,p1,1\n")
    assert read_index(path, images=tmp_path).names == ("a.png",)  # more of its columns are there
    assert read_index(path, images=tmp_path, format_name="chexpert").names == ("patient1/x.jpg",)
    with pytest.raises(InputError, match=r"first line has none of the columns of an index \(an NIH index: Image Index"):
        read_index(path, images=tmp_path, format_name="nih")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((CHEXPERT, CHEXPERT_ROWS[0], "train/nobody/x.jpg,Male,87,Frontal,PA,,,"), "index line 3 has no patient id"),
        ((CHEXPERT, "/data/patient1/x.jpg,Male,87,Frontal,PA,,,"), "index line 2 has an absolute path"),
        ((CHEXPERT, "train/../../patient1/x.jpg,Male,87,Frontal,PA,,,"), "index line 2 has a path with `..`"),
        ((PADCHEST, "../a.png,0,20140915,p1,1930.0,F,PA,['normal']"), "index line 2 has a path with `..`"),
        ((PADCHEST, PADCHEST_ROWS[0], "b.png,0,20140915,,1930.0,F,PA,['normal']"), "index line 3 has no patient id"),
        (("file,patient,Mass", "a.png,p1,1", "D:\\a.png,p1,1"), "index line 3 has an absolute path"),
        (("file,patient,Mass", "a.png,p1,1", "a.png,p1,1"), "index line 3 names the same file as line 2"),
        (("file,Patient,Mass", "a.png,p1,1"), 'no column "patient", which a plain table needs. The nearest there is'),
        (
            ('file,patient,"Mass, any",Nodule,Hernia', "a.png,p1,1,0,1", "b.png,Doe, J,1,0,1"),
            "index line 3 has 6 fields and the header 5",
        ),
        (
            ('file,patient,Nodule,"Mass [left,right]"', "a.png,p1,0,1", "b.png,Doe, J,0,1"),
            "index line 3 has 5 fields and the header 4",
        ),
        (
            ("file,patient,age,Nodule,Hernia", "a.png,p1,58,0,1", "b.png,p2,58,0,1,"),  # blank at its end
            "index line 3 has 6 fields and the header 5",
        ),
        (
            ("file,patient,age,Nodule,Hernia", "a.png,p1,58,0,1,", "b.png,p2,58,0,1"),
            "index line 2 has 6 fields and the header 5",
        ),
        (("file,patient,Mass,Mass", "a.png,p1,1,0"), 'more than one column "Mass"'),
        (("a.png;p1;1", "b.png;p2;1"), "it must be the header"),
    ],
)
def test_faulty_tables_are_refused_with_line_and_rule(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    assert message in refusal(tmp_path, *lines)


def test_bare_names_are_found_in_the_publishers_folders(tmp_path: Path) -> None:
    lines = ("Image Index,Finding Labels,Patient ID", "1.png,Mass,1", "2.png,Edema,2")
    for name, folder in (("1.png", "images_001/images"), ("2.png", "images_002/images")):
        (tmp_path / "images" / folder).mkdir(parents=True)
        (tmp_path / "images" / folder / name).touch()
    index = read_lines(tmp_path, *lines)
    check_images_present(index)
    assert index.table["file"].tolist() == ["images_001/images/1.png", "images_002/images/2.png"]
    flat = tmp_path / "flat"
    flat.mkdir()
    assert read_lines(flat, *lines).sha256 == index.sha256, "the hash depends on the folders"
    (tmp_path / "images" / "thumbnails").mkdir()
    (tmp_path / "images" / "thumbnails" / "1.png").touch()
    with pytest.raises(InputError, match="an image of the same name in images_001/images and in thumbnails"):
        read_lines(tmp_path, *lines)
    (tmp_path / "images" / "2.png").touch()  # images in the folder itself: subfolders are not searched
    assert read_lines(tmp_path, *lines).table["file"].tolist() == ["1.png", "2.png"]


def test_rows_that_are_taken_keep_their_lines_and_have_their_own_hash(tmp_path: Path) -> None:
    index = read_lines(tmp_path, CHEXPERT, *CHEXPERT_ROWS)
    some = take_rows(index, np.array([1, 3]))
    assert some.row_name(1) == "index line 5"
    np.testing.assert_array_equal(some.targets, index.targets[[1, 3]])
    assert some.sha256 != index.sha256
    alike = read_lines(tmp_path, CHEXPERT, *CHEXPERT_ROWS, policy=LabelPolicy(uncertain="positive"))
    assert alike.files_sha256 == index.files_sha256, "the same files"
    assert alike.sha256 != index.sha256


def test_published_chexpert_table_is_read_as_counted() -> None:
    path = published("chexpert_train.csv.gz")
    index = read_index(path, images=path.parent)
    # Independent count: pandas reads the same file.
    raw = pd.read_csv(path)
    assert len(index.table) == len(raw) == 223_414
    assert index.table["patient"].nunique() == 64_540
    assert index.labels == tuple(raw.columns[6:])
    assert index.names[0] == "train/patient00001/study1/view1_frontal.jpg"
    for label in index.labels:
        target = index.target(label)
        assert (target == 1).sum() == (raw[label] == 1).sum()
        healthy = (raw["No Finding"] == 1) & raw[label].isna() & (label != "Support Devices")
        assert (target == 0).sum() == (raw[label] == 0).sum() + healthy.sum()
    assert index.table["view"].value_counts()[["AP", "PA", "L"]].tolist() == [161_590, 29_420, 32_387]
    assert index.table["no_finding"].sum() == 22_381


def test_published_padchest_table_is_read_as_counted() -> None:
    path = published("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz")
    index = read_index(path, images=path.parent)
    assert len(index.table) == 160_861
    assert index.table["patient"].nunique() == 67_625
    assert len(index.labels) == 189
    assert not {"normal", "unchanged", "exclude", "suboptimal study", "", "nan"} & set(index.labels)
    # Independent count: the quoted name in the cell, with or without a leading space.
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        cells = [row["Labels"] for row in csv.DictReader(file)]
    for label in ("cardiomegaly", "COPD signs", "pleural effusion", "pneumonia"):
        named = sum(f"'{label}'" in cell or f"' {label}'" in cell for cell in cells)
        assert index.target(label).sum(where=np.isfinite(index.target(label))) == named
    ignored = {"", "unchanged", "exclude", "suboptimal study", "nan"}
    words = [{word.strip(" '") for word in cell.strip("[]").split(",")} for cell in cells]
    assert np.isnan(index.targets).all(axis=1).sum() == sum(listed <= ignored for listed in words)
    assert index.table["age"].max() == 105


def test_published_nih_table_is_read_as_counted() -> None:
    path = published("Data_Entry_2017_v2020.csv.gz")
    index = read_index(path, images=path.parent)
    assert (len(index.table), index.table["patient"].nunique(), len(index.labels)) == (112_120, 30_805, 14)
    assert index.table["no_finding"].sum() == 60_361


_CELLS = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "": np.nan, "-1": np.nan, "True": 1.0, "nan": np.nan}


@settings(max_examples=40)
@given(rows=st.lists(st.lists(st.sampled_from(sorted(_CELLS)), min_size=2, max_size=2), min_size=1, max_size=12))
def test_any_label_columns_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    path = tmp_path_factory.mktemp("table") / "index.csv"
    lines = [f"{i}.png,p{i % 3},{','.join(cells)}" for i, cells in enumerate(rows)]
    path.write_text("\n".join(["file,patient,A,B", *lines]))
    index = read_index(path, images=path.parent)
    for column, label in enumerate(("A", "B")):
        expected = [_CELLS[cells[column]] for cells in rows]
        if label in index.labels:
            np.testing.assert_array_equal(index.target(label), expected)
        else:
            assert {cells[column] for cells in rows} <= {"", "nan"}


@pytest.mark.parametrize("cell", ["2", "Yes", "No", "0.5"])
def test_no_finding_is_checked_as_labels_are(tmp_path: Path, cell: str) -> None:
    """One stray cell used to drop the column's meaning, which changed every prevalence."""
    row = "CheXpert-v1.0-small/train/patient00009/study1/view1_frontal.jpg,Male,50,Frontal,AP,{},,"
    message = refusal(tmp_path, CHEXPERT, *CHEXPERT_ROWS, row.format(cell), secrets=("patient00009",))
    assert "column No Finding: index line 6 has something else than 1, 0, -1 or nothing in it: correct it" in message
    plain = ("file,patient,No Finding,Mass", "a.png,p1,1,", f"b.png,p2,{cell},1")
    assert "column No Finding: index line 3" in refusal(tmp_path, *plain)
    assert read_lines(tmp_path, CHEXPERT, *CHEXPERT_ROWS, row.format("nan")).table["no_finding"].sum() == 1


def test_a_blank_no_finding_column_says_nothing(tmp_path: Path) -> None:
    index = read_lines(tmp_path, "file,patient,No Finding,Mass", "a.png,p1,,0", "b.png,p2,nan,1")
    assert index.table["no_finding"].tolist() == [True, False]


def test_sex_and_age_in_unknown_words_are_suspected(tmp_path: Path) -> None:
    header = "file,patient,Mass,sex,age"
    index = read_lines(tmp_path, header, "a.png,p1,1,weiblich,adult", "b.png,p2,0,m,", "c.png,p3,0,weiblich,")
    assert index.suspicions == (
        "Column sex: 2 of 3 cells are not M, F, male or female (index line 2, 4); they count as unknown.",
        "Column age: 1 of 1 cells are not an age of at most 120 years (index line 2); they count as unknown.",
    )
    assert read_lines(tmp_path, header, "a.png,p1,1,F,7", "b.png,p2,0,O,414", "c.png,p3,0,M,9").suspicions == ()


@pytest.mark.parametrize("name", ["chexpert_train.csv.gz", "Data_Entry_2017_v2020.csv.gz"])
def test_published_tables_are_not_suspected(name: str) -> None:
    path = published(name)
    assert read_index(path, images=path.parent).suspicions == ()


def test_text_of_parquet_may_be_bytes_and_blank_words(tmp_path: Path) -> None:
    table = {"file": [b"a.png", b"b.png", b"c.png"], "patient": [b"p1", "p\u00fc".encode(), b"p3"]}
    labels = {"Mass": [b"1", b"None", b"0"], "site": [b"Bonn", None, b"nan"]}
    path = tmp_path / "index.parquet"
    pd.DataFrame(table | labels).to_parquet(path)
    index = read_index(path, images=tmp_path)
    assert index.table["file"].tolist() == ["a.png", "b.png", "c.png"]
    assert index.table["patient"].tolist() == ["p1", "p\u00fc", "p3"]
    assert index.table["site"].tolist() == ["Bonn", "", ""]
    np.testing.assert_array_equal(index.target("Mass"), [1, np.nan, 0])
    pd.DataFrame(table | {"patient": [b"\xff", b"2", b"3"]}).to_parquet(path)
    with pytest.raises(InputError, match="not UTF-8"):
        read_index(path, images=tmp_path)


def test_every_format_of_the_experiment_file_has_a_reader() -> None:
    assert set(FORMATS) == set(get_args(FormatName))


def test_patients_written_in_several_ways_are_suspected(tmp_path: Path) -> None:
    header = "file,patient,Mass"
    rows = ("a.png,7,1", "b.png,7.0,0", "c.png,007,0", "d.png,Ab 1,0", "e.png,ab_1,1", "f.png,8,1", "g.png,10,0")
    (found,) = read_lines(tmp_path, header, *rows).suspicions
    assert found.startswith("2 patients are written in several ways")
    assert "(index line 2, 3, 4)" in found
    assert read_lines(tmp_path, header, "a.png,1,1", "b.png,10,0", "c.png,100,1").suspicions == ()


def test_rounded_and_placeholder_patients_are_suspected(tmp_path: Path) -> None:
    header = "file,patient,Mass"
    (found,) = read_lines(tmp_path, header, "a.png,1.23E+11,1", "b.png,4e+10,0", "c.png,E1,0").suspicions
    assert found.startswith("2 patient identifiers are numbers in scientific notation (index line 2, 3)")
    rows = [f"{i}.png,{'unknown' if i % 3 else f'p{i}'},1" for i in range(60)]
    (found,) = read_lines(tmp_path, header, *rows).suspicions
    assert found.startswith("One patient has 40 of 60 images (index line 3, 4, 6)")
    assert "unknown," not in found.split("placeholder")[0], "an identifier is not quoted"


def test_backslashes_of_a_table_written_on_windows(tmp_path: Path) -> None:
    index = read_lines(tmp_path, "file,patient,Mass", "train\\a.png,p1,1", ".\\train\\b.png,p2,0")
    assert list(index.names) == ["train/a.png", "train/b.png"]
    assert "has a path with `..`" in refusal(tmp_path, "file,patient,Mass", "..\\a.png,p1,1")


def test_an_archive_or_workbook_says_so(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(InputError, match="is a zip archive or an Excel workbook; unpack it"):
        read_index(tmp_path / "index.csv", images=tmp_path)


def test_a_link_to_itself_hides_no_other_image(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "b.png").touch()
    (folder / "a.png").symlink_to("a.png")
    index = read_lines(tmp_path, "file,patient,Mass", "a.png,p1,1", "b.png,p2,0")
    check_images_present(index)
    assert index.table["file"].tolist() == ["a.png", "b.png"]

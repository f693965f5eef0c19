"""NIH's index is read in every published spelling, and faulty rows are refused by line."""

import csv
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acuity.objectives.errors import InputError
from acuity.objectives.index.image_index import read_index
from acuity.objectives.index.missing_images import check_images_present, find_missing_images
from acuity.objectives.tables.content import read_content
from support.index_files import read_lines, refusal

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
ROWS = (
    "00000001_000.png,Cardiomegaly|Emphysema,0,1,58,M,PA,2682,2749,0.143,0.143",
    "00000001_001.png,No Finding,1,1,58,M,AP,2682,2749,0.143,0.143",
    "00000002_000.png,Hernia,0,2,81,F,PA,2500,2048,0.171,0.171",
)
SECRETS = ("00000001", "00000002")


def test_nih_rows_become_common_columns(tmp_path: Path) -> None:
    index = read_lines(tmp_path, HEADER, *ROWS)
    assert index.labels == ("Cardiomegaly", "Emphysema", "Hernia")
    np.testing.assert_array_equal(index.targets, np.array([[1, 1, 0], [0, 0, 0], [0, 0, 1]], np.float32))
    assert index.targets.dtype == np.float32
    assert index.table["line"].tolist() == [2, 3, 4]
    assert index.table["file"].tolist() == ["00000001_000.png", "00000001_001.png", "00000002_000.png"]
    assert index.table["patient"].tolist() == ["1", "1", "2"]
    assert index.table["view"].tolist() == ["PA", "AP", "PA"]
    assert index.table["age"].tolist() == [58, 58, 81]
    assert index.table["sex"].tolist() == ["M", "M", "F"]
    np.testing.assert_array_equal(index.target("Hernia"), [0, 0, 1])
    assert index.row_name(2) == "index line 4"


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param((HEADER.replace("Gender", "Sex"), *ROWS), id="the 2020 file's name of sex"),
        pytest.param((HEADER + ",", *(row + "," for row in ROWS)), id="every line ends in a comma"),
        pytest.param((HEADER + ",", *ROWS), id="the header ends in a comma"),
        pytest.param((HEADER, *(row + ",," for row in ROWS)), id="the rows end in commas"),
        pytest.param(("\ufeff" + HEADER, *ROWS), id="a byte order mark"),
        pytest.param(
            (
                HEADER.replace("OriginalImage[Width,Height]", '"OriginalImage[Width,Height]"').replace(
                    "OriginalImagePixelSpacing[x,y]", '"OriginalImagePixelSpacing[x,y]"'
                ),
                *ROWS,
            ),
            id="names with commas quoted",
        ),
        pytest.param(
            (
                'Image Index,Finding Labels,"OriginalImage[Width,Height]",Patient ID,Patient Age,Patient Gender,'
                "View Position",
                "00000001_000.png,Cardiomegaly|Emphysema,2682,2749,1,58,M,PA",
                "00000001_001.png,No Finding,2682,2749,1,58,M,AP",
                "00000002_000.png,Hernia,2500,2048,2,81,F,PA",
            ),
            id="a name with a comma quoted before others",
        ),
        pytest.param(
            (
                'Image Index,Finding Labels,"OriginalImage[Width,Height]",Patient ID,Patient Age,Patient Gender,'
                "View Position",
                '00000001_000.png,Cardiomegaly|Emphysema,"2682,2749",1,58,M,PA',
                '00000001_001.png,No Finding,"2682,2749",1,58,M,AP',
                '00000002_000.png,Hernia,"2500,2048",2,81,F,PA',
            ),
            id="names and values with commas quoted",
        ),
    ],
)
def test_every_spelling_of_the_file_reads_the_same(tmp_path: Path, lines: tuple[str, ...]) -> None:
    reference = read_lines(tmp_path, HEADER, *ROWS)
    other = read_lines(tmp_path, *lines)
    assert other.table.equals(reference.table)
    assert other.sha256 == reference.sha256


def test_windows_line_ends_blank_lines_and_gzip_keep_the_line_numbers(tmp_path: Path) -> None:
    text = "\r\n".join([HEADER, ROWS[0], "", ROWS[1], ROWS[2], ""])
    path = tmp_path / "index.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    assert read_index(path, images=tmp_path).table["line"].tolist() == [2, 4, 5]


def test_ages_of_the_first_release_and_impossible_ones(tmp_path: Path) -> None:
    ages = ("058Y", "006M", "414", "", "?")
    rows = [f"{i}.png,No Finding,0,{i},{age},M,PA,1,1,1,1" for i, age in enumerate(ages)]
    index = read_lines(tmp_path, HEADER, *rows)
    np.testing.assert_array_equal(index.table["age"], [58, 0.5, np.nan, np.nan, np.nan])


def test_columns_that_are_not_needed_may_be_absent(tmp_path: Path) -> None:
    index = read_lines(tmp_path, "Patient ID,Image Index,Finding Labels", "7,a/b.png,Mass", "8,a/c.png,")
    assert index.table["file"].tolist() == ["a/b.png", "a/c.png"]
    assert index.table["view"].tolist() == ["", ""]
    assert index.table["sex"].tolist() == ["", ""]
    assert index.table["age"].isna().all()
    np.testing.assert_array_equal(index.target("Mass"), [1, np.nan])  # in an empty cell every label is unknown


def test_hash_depends_on_the_content_and_not_on_the_folder(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    index = read_lines(tmp_path / "here", HEADER, *ROWS)
    assert read_lines(tmp_path / "there", HEADER, *ROWS).sha256 == index.sha256
    for changed in (
        (ROWS[1], ROWS[0], ROWS[2]),
        (*ROWS[:2], ROWS[2].replace("Hernia", "Emphysema")),
        (*ROWS[:2], ROWS[2].replace("Hernia", "Mass")),
        (*ROWS[:2], ROWS[2].replace(",2,", ",3,", 1)),
        (*ROWS[:2], ROWS[2].replace("_000", "_009")),
        (*ROWS[:2], ROWS[2].replace("Hernia", "")),
    ):
        assert read_lines(tmp_path / "there", HEADER, *changed).sha256 != index.sha256


def test_missing_empty_or_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone.csv: no such file"):
        read_index(tmp_path / "gone.csv", images=tmp_path)
    with pytest.raises(InputError, match="is a folder without readings"):
        read_index(tmp_path, images=tmp_path)
    path = tmp_path / "index.csv"
    for data, why in (
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"PK\x03\x04\xff\xfe", "is a zip archive or an Excel workbook"),
        (gzip.compress(b"x" * 999)[:-9], "gzip file is damaged"),
        (HEADER.encode() + b'\n"' + b"x" * 200_000, "index line 2 is not CSV"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=why):
            read_index(path, images=tmp_path)
    assert "has a header but no rows" in refusal(tmp_path, HEADER, secrets=SECRETS)


def test_missing_column_names_it_and_the_nearest(tmp_path: Path) -> None:
    message = refusal(tmp_path, HEADER.replace("Finding Labels", "finding_labels"), *ROWS, secrets=SECRETS)
    assert 'no column "Finding Labels"' in message
    assert 'nearest there is "finding_labels"' in message


def test_file_without_header_does_not_leak_its_first_row(tmp_path: Path) -> None:
    assert "must be the header" in refusal(tmp_path, *ROWS, secrets=SECRETS)
    assert "must be the header" in refusal(tmp_path, HEADER.replace(",", ";"), ROWS[0], secrets=SECRETS)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROWS[0], "index line 5 names the same file as line 2; "),
        ("x.png,Mass,0,,58,M,PA,1,1,1,1", "index line 5 has no patient id; "),
        (",Mass,0,7,58,M,PA,1,1,1,1", "index line 5 names no file; "),
        ("/data/x.png,Mass,0,7,58,M,PA,1,1,1,1", "index line 5 has an absolute path; "),
        ("C:\\x.png,Mass,0,7,58,M,PA,1,1,1,1", "index line 5 has an absolute path; "),
        ("../x.png,Mass,0,7,58,M,PA,1,1,1,1", "index line 5 has a path with `..`"),
        ("a/../../x.png,Mass,0,7,58,M,PA,1,1,1,1", "index line 5 has a path with `..`"),
        ("a\\..\\x.png,Mass,0,7,58,M,PA,1,1,1,1", "index line 5 has a path with `..`"),
        ("x.png,Mass,0", "index line 5 has 3 fields and the header 11"),
        ("x.png,Mass,Nodule,0,7,58,M,PA,1,1,1,1", "index line 5 has 12 fields and the header 11"),
    ],
)
def test_faulty_row_is_named_by_its_line(tmp_path: Path, row: str, message: str) -> None:
    assert message in refusal(tmp_path, HEADER, *ROWS, row, secrets=SECRETS)


def test_many_faulty_rows_are_counted(tmp_path: Path) -> None:
    message = refusal(tmp_path, HEADER, *ROWS, *ROWS, secrets=SECRETS)
    assert "index line 5 names the same file as line 2 (3 such lines in all)" in message


def test_the_same_file_by_another_path_is_a_repeat(tmp_path: Path) -> None:
    rows = ("a/x.png,Mass,0,7,58,M,PA,1,1,1,1", "./a//x.png,Mass,0,7,58,M,PA,1,1,1,1")
    assert "names the same file" in refusal(tmp_path, HEADER, *rows, secrets=SECRETS)


def test_unknown_label_names_the_nearest(tmp_path: Path) -> None:
    index = read_lines(tmp_path, HEADER, *ROWS)
    with pytest.raises(InputError, match=r'"hernia" is not a label .* The nearest there is "Hernia"'):
        index.target("hernia")
    with pytest.raises(InputError, match="There are: Cardiomegaly, Emphysema, Hernia"):
        index.target("No Finding")


def test_missing_images_are_counted_and_the_first_is_named_by_its_line(tmp_path: Path) -> None:
    rows = ("sub/x.png,Mass,0,7,58,M,PA,1,1,1,1", "no/x.png,Mass,0,7,58,M,PA,1,1,1,1")
    index = read_lines(tmp_path, HEADER, *ROWS, *rows)
    with pytest.raises(InputError, match="no such folder"):
        find_missing_images(index)
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("00000001_000.png", "00000002_000.png", "sub/x.png"):
        (tmp_path / "images" / name).touch()
    assert find_missing_images(index) == [1, 4]
    with pytest.raises(
        InputError, match=r"index line 3: its file is not in .*images \(2 of 5 files missing in all\)"
    ) as e:
        check_images_present(index)
    assert not any(secret in str(e.value) for secret in SECRETS)
    (tmp_path / "images" / "00000001_001.png").touch()
    (tmp_path / "images" / "no").mkdir()
    (tmp_path / "images" / "no" / "x.png").touch()
    check_images_present(index)


def test_full_nih_index_is_read() -> None:
    path = Path(os.environ.get("ACUITY_NIH_DIR", "../shared/data")) / "nih-metadata" / "Data_Entry_2017_v2020.csv.gz"
    if not path.exists():
        pytest.skip(f"needs NIH's index: {path} is not there")
    index = read_index(path, images=path.parent)
    assert len(index.table) == 112_120
    assert index.table["patient"].nunique() == 30_805
    assert len(index.labels) == 14
    assert index.target("Hernia").sum() == 227
    assert index.table["line"].iat[-1] == 112_121


@given(
    st.lists(
        st.tuples(st.sets(st.sampled_from(["Mass", "Nodule", "Edema", "No Finding"])), st.text("ab ,'\"é", min_size=1)),
        min_size=1,
        max_size=20,
    )
)
def test_any_quoted_table_round_trips(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[set[str], str]]
) -> None:
    path = tmp_path_factory.mktemp("index") / "index.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Image Index", "Finding Labels", "Patient ID"])
        writer.writerows((f"{i}.png", "|".join(names), "p" + patient) for i, (names, patient) in enumerate(rows))
    content = read_content(path)
    assert content.table["patient"].tolist() == [("p" + patient).strip() for _, patient in rows]
    for row, (names, _) in enumerate(rows):
        for column, label in enumerate(content.labels):
            expected = float(label in names) if names else np.nan
            np.testing.assert_equal(float(content.targets[row, column]), expected)


BLANKS = ("nan", "NaN", "None", "NULL", "null", "n/a", "<NA>", "", "  ")


@pytest.mark.parametrize("blank", BLANKS)
def test_blank_words_are_no_file_patient_finding_or_view(tmp_path: Path, blank: str) -> None:
    header = "Image Index,Finding Labels,Patient ID,View Position"
    assert "index line 3 has no patient id" in refusal(tmp_path, header, "a.png,Mass,1,PA", f"b.png,Mass,{blank},PA")
    assert "index line 3 names no file" in refusal(tmp_path, header, "a.png,Mass,1,PA", f"{blank},Mass,2,PA")
    index = read_lines(tmp_path, header, "a.png,Mass,1,PA", f"b.png,{blank},2,{blank}", f"c.png,Mass|{blank},3,AP")
    assert index.labels == ("Mass",)
    np.testing.assert_array_equal(index.target("Mass"), [1, np.nan, 1])
    assert index.table["view"].tolist() == ["PA", "", "AP"]


def test_words_that_only_begin_like_a_blank_are_kept(tmp_path: Path) -> None:
    index = read_lines(tmp_path, "Image Index,Finding Labels,Patient ID", "nan.png,Nodule,nan7", "b.png,None seen,0")
    assert index.table["patient"].tolist() == ["nan7", "0"]
    assert index.labels == ("Nodule", "None seen")


def test_labels_that_may_be_one_finding_are_suspected(tmp_path: Path) -> None:
    rows = [
        f"{i}.png,{finding},{i}" for i, finding in enumerate(("Mass", "mass", '"Mass, Nodule"', "Nodule", "Edema_x"))
    ]
    index = read_lines(tmp_path, "Image Index,Finding Labels,Patient ID", *rows)
    assert index.suspicions == (
        'Labels that differ by case or spaces only: "Mass" (1 images, index line 2) and "mass" (1 images, index line '
        "3). They count as different findings.",
        'Label "Mass, Nodule" (1 images, index line 4) contains the name of "Mass", which is a label too: its images '
        "do not count as images of that label. If the cell lists several findings, separate them as the format does.",
    )
    assert read_lines(tmp_path, HEADER, *ROWS).suspicions == ()


def test_a_name_too_long_for_a_file_system_is_refused_by_line(tmp_path: Path) -> None:
    long = "x" * 300 + ".png"
    rows = (f"{long},Mass,0,7,58,M,PA,1,1,1,1", f"a/{'ü' * 140}/b.png,Mass,0,7,58,M,PA,1,1,1,1")
    for lines in ((HEADER, *ROWS, *rows), (HEADER, *rows, *ROWS)):
        message = refusal(tmp_path, *lines, secrets=SECRETS)
        assert "has a path too long for a file system (2 such lines in all)" in message
        assert "xxxx" not in message


@pytest.mark.parametrize(
    ("written", "on_disk"),
    [
        ("a/B.png", "a/b.PNG"),
        ("a/b.png", "A/b.png"),
        ("a/u\u0308.png", "a/\u00fc.png"),
        ("\u00fc/x.png", "u\u0308/x.png"),
    ],
)
def test_missing_image_that_is_there_in_another_spelling_says_so(tmp_path: Path, written: str, on_disk: str) -> None:
    file = tmp_path / "images" / on_disk
    file.parent.mkdir(parents=True)
    file.touch()
    index = read_lines(tmp_path, "file,patient,Mass", f"{written},1,1", "gone/x.png,2,0")
    with pytest.raises(
        InputError, match=r"for 1 of them, the first index line 2, a file is there that differs by case"
    ):
        check_images_present(index)
    file.unlink()
    with pytest.raises(InputError, match=r"files missing in all\): complete the folder"):
        check_images_present(index)


def test_a_named_pipe_as_index_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "index.csv")
    with pytest.raises(InputError, match="is not a regular file"):
        read_index(tmp_path / "index.csv", images=tmp_path)

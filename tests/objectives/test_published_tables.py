"""The tables of public image sets are recognised by their columns and read as they are published."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from acuity.objectives.errors import InputError
from acuity.objectives.index.image_index import ImageIndex, read_index
from acuity.objectives.index.missing_images import check_images_present
from acuity.objectives.split.published import published_parts
from acuity.objectives.tables.cells import LabelPolicy
from acuity.objectives.tables.column_mapping import WITHOUT_PATIENTS, ColumnMapping
from support import published_tables
from support.published_tables import touch, write

NAN = np.nan


def read(path: Path, mapping: ColumnMapping | None = None) -> ImageIndex:
    return read_index(path, images=path.parent, mapping=mapping)


@pytest.mark.parametrize("kind", ["chexpert", "negbio"])
def test_mimic_joins_labels_metadata_and_split(tmp_path: Path, kind: str) -> None:
    path = published_tables.mimic(tmp_path, kind=kind)
    files = [
        "p10/p10000001/s50000001/aa-1.jpg",
        "p10/p10000001/s50000001/aa-2.jpg",
        "p10/p10000002/s50000002/bb-1.jpg",
        "p11/p11000003/s50000003/cc-1.jpg",
    ]
    touch(tmp_path / "files", *files)
    index = read(path)
    check_images_present(index)
    assert list(index.names) == files
    assert index.table["patient"].tolist() == ["10000001", "10000001", "10000002", "11000003"]
    assert index.table["view"].tolist() == ["PA", "LATERAL", "AP", "AP"]
    assert index.labels == ("Atelectasis", "Cardiomegaly")  # Support Devices is blank
    np.testing.assert_array_equal(index.target("Atelectasis"), [1, 1, 0, NAN])
    np.testing.assert_array_equal(index.target("Cardiomegaly"), [NAN, NAN, NAN, NAN])
    assert index.table["no_finding"].tolist() == [False, False, True, False]
    assert index.suspicions == ("1 images are of studies without labels; they are left out of each label.",)
    assert published_parts(index) == {"10000001": "training", "10000002": "test", "11000003": "validation"}
    assert index.has_patients


def test_mimic_without_its_other_tables(tmp_path: Path) -> None:
    path = published_tables.mimic(tmp_path, split=False)
    assert published_parts(read(path)) == {}
    blank = read_index(path, images=tmp_path, policy=LabelPolicy(blank="negative"))
    assert np.isnan(blank.target("Atelectasis")[3]), "a study without labels is unknown, not blank"
    (tmp_path / "mimic-cxr-2.0.0-metadata.csv").rename(tmp_path / "other.csv")
    with pytest.raises(InputError, match=r"has no table of metadata of MIMIC-CXR-JPG .* put it beside"):
        read(path)
    with pytest.raises(InputError, match=r"without labels; name the table of labels as \[data\] index"):
        read(tmp_path / "other.csv")


@pytest.mark.parametrize("prefix", ["CheXpert-v1.0/", "CheXpert-v1.0-small/", ""])
def test_chexpert_of_full_size_lies_in_batches(tmp_path: Path, prefix: str) -> None:
    rows = [
        f"{prefix}train/patient00001/study1/view1_frontal.jpg,1.0,0.0",
        "CheXpert-v1.0\\train\\patient00002\\study1\\view1_frontal.jpg,0.0,1.0",
        "CheXpert-v1.0/valid/patient64541/study1/view1_frontal.jpg,0.0,0.0",
    ]
    path = write(tmp_path / "train.csv", "Path,Edema,Mass", *rows)
    batches = tmp_path / "images"
    touch(
        batches,
        "CheXpert-v1.0 batch 2 (train 1)/patient00001/study1/view1_frontal.jpg",
        "CheXpert-v1.0 batch 3 (train 2)/patient00002/study1/view1_frontal.jpg",
        "CheXpert-v1.0 batch 1 (validate & csv)/valid/patient64541/study1/view1_frontal.jpg",
    )
    for images in (batches, tmp_path):
        index = read_index(path, images=images)
        check_images_present(index)
        assert index.names[1] == "train/patient00002/study1/view1_frontal.jpg"
        assert index.table["patient"].tolist() == ["patient00001", "patient00002", "patient64541"]
    touch(batches, "CheXpert-v1.0 batch 4 (train 3)/patient00001/study1/view1_frontal.jpg")
    with pytest.raises(InputError, match="has a patient's folder of the same name in"):
        read_index(path, images=batches)


def test_chexpert_plus_is_read_from_its_labels(tmp_path: Path) -> None:
    path = published_tables.chexpert_plus(tmp_path)
    paths = "train/patient00001/study1/view1_frontal.png", "valid/patient00002/study1/view1_lateral.png"
    touch(tmp_path / "PNG", *paths)
    index = read_index(path, images=tmp_path)
    check_images_present(index)
    assert index.labels == ("Atelectasis", "Edema")
    np.testing.assert_array_equal(index.targets, [[1, NAN], [0, NAN]])
    assert index.table["patient"].tolist() == ["patient00001", "patient00002"]
    assert index.table["view"].tolist() == ["AP", "L"]
    assert index.table["age"].tolist() == [68, 40]
    assert index.table["sex"].tolist() == ["F", "M"]
    with pytest.raises(InputError, match="is a table of CheXpert Plus without labels; name a file of its labels"):
        read(tmp_path / "df_chexpert_plus_240401.csv")
    with path.open("a") as file:
        file.write("[1]\n")
    with pytest.raises(InputError, match="line 3 is not a JSON object"):
        read(path)


def test_vindr_counts_the_majority_of_its_readers(tmp_path: Path) -> None:
    path = published_tables.vindr(tmp_path)
    index = read(path)
    assert list(index.names) == ["img1.dicom", "img2.dicom", "img3.dicom"]
    assert index.labels == ("Cardiomegaly", "Nodule/Mass")
    np.testing.assert_array_equal(index.target("Nodule/Mass"), [1, 0, 0])
    np.testing.assert_array_equal(index.target("Cardiomegaly"), [0, 0, 0])
    assert index.table["no_finding"].tolist() == [False, True, True]
    assert index.table["line"].tolist() == [2, 5, 8]
    assert not index.has_patients
    anyone = read(path, ColumnMapping(rows_per_image="any"))
    np.testing.assert_array_equal(anyone.target("Nodule/Mass"), [1, 1, 0])
    everyone = read(path, ColumnMapping(rows_per_image="all"))
    np.testing.assert_array_equal(everyone.targets, np.zeros((3, 2)))


def test_vindr_boxes_of_one_reader_count_once(tmp_path: Path) -> None:
    index = read(published_tables.vindr_boxes(tmp_path))
    assert index.labels == ("Cardiomegaly", "Nodule/Mass")
    np.testing.assert_array_equal(index.targets, [[0, 0], [1, 0], [0, 0]])
    assert index.table["no_finding"].tolist() == [True, False, True]


def test_rsna_siim_and_brax(tmp_path: Path) -> None:
    rsna = read(published_tables.rsna(tmp_path))
    assert (list(rsna.names), rsna.labels) == (["aa.dcm", "bb.dcm"], ("Pneumonia",))
    np.testing.assert_array_equal(rsna.targets, [[1], [0]])
    path = published_tables.siim(tmp_path)
    touch(tmp_path / "siim" / "dicom-images-train", "s1/e1/1.2.3.dcm", "s2/e1/1.2.4.dcm")
    siim = read_index(path, images=tmp_path / "siim")
    check_images_present(siim)
    np.testing.assert_array_equal(siim.target("Pneumothorax"), [0, 1])
    brax = read(published_tables.brax(tmp_path))
    assert brax.labels == ("Cardiomegaly", "Edema")
    np.testing.assert_array_equal(brax.targets, [[1, NAN], [0, 0]])
    assert brax.table["age"].tolist() == [85, 40]
    assert brax.table["patient"].tolist() == ["id_1", "id_2"]
    assert brax.rejected_columns == {}


def test_covid_leaves_out_other_modalities_and_splits_findings(tmp_path: Path) -> None:
    index = read(published_tables.covid(tmp_path))
    assert index.labels == ("COVID-19", "Pneumonia", "Viral")
    np.testing.assert_array_equal(index.targets, [[1, 1, 1], [0, 0, 0], [NAN] * 3])
    assert list(index.names) == ["a.jpg", "b.jpg", "c.jpg"]
    assert index.suspicions[0] == "1 rows are left out: modality = X-ray is in the others alone."


def test_shenzhen_and_montgomery_by_readings_or_table(tmp_path: Path) -> None:
    touch(tmp_path / "CXR_png", "CHNCXR_0001_0.png", "CHNCXR_0002_1.png", "MCUCXR_0003_1.png")
    readings = read_index(published_tables.shenzhen(tmp_path), images=tmp_path / "CXR_png")
    check_images_present(readings)
    assert readings.labels == ("Tuberculosis",)
    np.testing.assert_array_equal(readings.targets, [[0], [1], [1]])
    assert readings.table["age"].tolist() == [45, 30, 27]
    assert readings.table["sex"].tolist() == ["M", "F", "F"]
    assert readings.table["line"].tolist() == [1, 2, 3]
    path = write(tmp_path / "m.csv", "study_id,sex,age,findings", "CHNCXR_0001_0.png,Male,45.0,normal")
    assert read(path).table["age"].tolist() == [45]
    bad = write(tmp_path / "n.csv", "study_id,sex,age,findings", "CHNCXR_1.png,Male,45.0,normal")
    with pytest.raises(InputError, match=r"index line 2 has another name than CHNCXR_0001_0.png"):
        read(bad)


def test_converted_images_are_found_by_another_extension(tmp_path: Path) -> None:
    path = published_tables.vindr(tmp_path)
    touch(tmp_path / "png" / "train", "img1.png", "img2.png", "img3.png")
    touch(tmp_path / "both", "img1.png", "img1.jpg")
    index = read_index(path, images=tmp_path / "png")
    check_images_present(index)
    assert index.sha256 == read_index(path, images=tmp_path).sha256, "the hash depends on the extension"
    with pytest.raises(InputError, match="not in"):
        check_images_present(read_index(path, images=tmp_path / "both"))


def _published(name: str) -> Path:
    package = find_spec("torchxrayvision")
    if package is None or package.origin is None:
        pytest.skip("needs the published tables in torchxrayvision (pip install '.[dev]')")
    return Path(package.origin).parent / "data" / name


def test_the_published_siim_table_is_read_as_counted() -> None:
    path = _published("siim-pneumothorax-train-rle.csv.gz")
    index = read(path)
    raw = pd.read_csv(path)
    positive = raw[raw[" EncodedPixels"] != "-1"]["ImageId"].nunique()
    assert len(index.table) == raw["ImageId"].nunique()
    assert index.target("Pneumothorax").sum() == positive


def test_the_published_vindr_boxes_are_read_as_counted() -> None:
    path = _published("vinbigdata-train.csv.gz")
    index = read(path)
    raw = pd.read_csv(path)
    assert len(index.table) == raw["image_id"].nunique() == 15_000
    assert index.labels == tuple(sorted(set(raw["class_name"]) - {"No finding"}))
    votes = raw.drop_duplicates(["image_id", "rad_id", "class_name"]).groupby(["class_name", "image_id"]).size()
    for label in ("Nodule/Mass", "Cardiomegaly"):
        assert index.target(label).sum() == (votes[label] >= 2).sum()
    assert index.format_name == "vindr-boxes"


def test_adjudicated_labels_of_nih_by_columns() -> None:
    path = _published("google2019_nih-chest-xray-labels.csv.gz")
    mapping = ColumnMapping(
        file="Image Index",
        patient="Patient ID",
        labels=("Fracture", "Airspace opacity", "Nodule or mass"),
        values={"YES": 1, "NO": 0},
    )
    index = read(path, mapping)
    raw = pd.read_csv(path)
    assert index.labels == mapping.labels
    assert index.target("Nodule or mass").sum() == (raw["Nodule or mass"] == "YES").sum()


def test_formats_without_patients_are_those_that_say_so(tmp_path: Path) -> None:
    tables = ("vindr", "vindr_boxes", "rsna", "siim", "brax", "covid", "shenzhen", "mimic", "chexpert_plus")
    read_formats = {read(getattr(published_tables, table)(tmp_path / table)) for table in tables}
    assert {index.format_name for index in read_formats if not index.has_patients} == WITHOUT_PATIENTS

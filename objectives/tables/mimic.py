"""Read MIMIC-CXR-JPG: the chexpert or negbio table of studies, joined with the tables of metadata and split."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from acuity.objectives.errors import InputError
from acuity.objectives.tables.cells import ColumnError, Columns, IndexContent, LabelPolicy, image_table
from acuity.objectives.tables.labels import NO_FINDING, apply_no_finding, labels_from_columns
from acuity.objectives.tables.reader import read_columns

REQUIRED_COLUMNS = ("subject_id", "study_id")
_METADATA = ("dicom_id", "subject_id", "study_id", "ViewPosition")
_SPLIT = ("dicom_id", "split")


def read_mimic(columns: Columns, policy: LabelPolicy) -> IndexContent:
    """Content of MIMIC-CXR-JPG, in the order of the table of metadata, whose lines name the images.

    The tables of metadata and split lie beside the index. Without a table of the split, Acuity splits by patient. An
    image whose study has no labels is unknown for each label. ColumnError if the index has no labels. InputError if
    there is no table of metadata.
    """
    if NO_FINDING not in columns.text:
        raise ColumnError(
            "is a table of MIMIC-CXR-JPG without labels; name the table of labels as [data] index, such as "
            "mimic-cxr-2.0.0-chexpert.csv.gz or mimic-cxr-2.0.0-negbio.csv.gz"
        )
    metadata = _companion(columns.path, "metadata", _METADATA)
    if metadata is None:
        raise InputError(
            f"{columns.path.parent}: has no table of metadata of MIMIC-CXR-JPG (mimic-cxr-2.0.0-metadata.csv.gz), "
            f"which names the images of {columns.path.name}; put it beside"
        )
    named = {name: name for name in columns.text if name not in (*REQUIRED_COLUMNS, NO_FINDING)}
    labels, by_study, rejected = labels_from_columns(columns, named, policy)
    healthy = apply_no_finding(columns, named, labels, by_study)
    studies = _keys(columns)
    place = {study: row for row, study in enumerate(studies)}
    if len(place) < len(studies):
        raise ColumnError("names a study twice; each study has one line of labels")
    rows = np.array([place.get(study, -1) for study in _keys(metadata)], dtype=np.int64)
    targets = np.where(rows[:, np.newaxis] >= 0, by_study[rows], np.float32(np.nan))
    subjects, dicom_ids = metadata.text["subject_id"], metadata.text["dicom_id"]
    files = [
        f"p{subject[:2]}/p{subject}/s{study}/{dicom_id}.jpg" if dicom_id and subject and study else ""
        for subject, study, dicom_id in zip(subjects, metadata.text["study_id"], dicom_ids, strict=True)
    ]
    table = image_table(
        metadata,
        file=files,
        patient=subjects,
        view=metadata.first_of("ViewPosition"),
        split=_split(columns.path, dicom_ids),
        no_finding=(healthy[rows] == 1) & (rows >= 0),
    )
    without = int((rows < 0).sum())
    notes = (f"{without:,} images are of studies without labels; they are left out of each label.",) if without else ()
    return IndexContent(table, labels, targets, rejected, suspicions=notes, folder="files")


def _keys(columns: Columns) -> list[tuple[str, str]]:
    return list(zip(columns.text["subject_id"], columns.text["study_id"], strict=True))


def _split(index: Path, dicom_ids: Sequence[str]) -> Sequence[str]:
    """The published part of each image. Empty without a table of the split."""
    table = _companion(index, "split", _SPLIT)
    if table is None:
        return ()
    parts = dict(zip(table.text["dicom_id"], table.text["split"], strict=True))
    return [parts.get(dicom_id, "") for dicom_id in dicom_ids]


def _companion(index: Path, kind: str, names: Sequence[str]) -> Columns | None:
    """The table mimic-cxr-*-KIND.csv, also gzipped, beside the index. InputError if a column is missing."""
    paths = sorted(index.parent.glob(f"mimic-cxr-*-{kind}.csv*"))
    if not paths:
        return None
    table = read_columns(paths[-1], lambda _: names)
    missing = [name for name in names if name not in table.text and name != "ViewPosition"]
    if missing:
        raise InputError(
            f'{paths[-1]}: has no column "{missing[0]}", which MIMIC-CXR-JPG\'s table of {kind} has; put the published '
            "table there"
        )
    return table

"""The formats in which image sets are published.

A new format is a mapping of its columns in FORMATS. A format that no mapping describes is a module that turns columns
into `IndexContent`. Its name is in column_mapping.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from acuity.objectives.tables import chexpert, mimic, padchest, tuberculosis
from acuity.objectives.tables.cells import Columns, IndexContent, LabelPolicy
from acuity.objectives.tables.column_mapping import EACH_FILE, ColumnMapping, FormatName

_CHEXPERT_LABELS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip


@dataclass(frozen=True)
class Format:
    """The columns of a publisher's table, and how they are read: by a mapping or by a function."""

    description: str
    required: tuple[str, ...]
    mapping: ColumnMapping | None = None
    read: Callable[[Columns, LabelPolicy], IndexContent] | None = None
    optional: tuple[str, ...] | None = None
    """Columns that the function reads if present. None: every column, since any may be a label."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Another name of a column in some releases -> the name in the mapping."""


FORMATS: dict[FormatName, Format] = {
    "nih": Format(
        "an NIH index",
        ("Image Index", "Finding Labels", "Patient ID"),
        ColumnMapping(
            file="Image Index",
            patient="Patient ID",
            findings="Finding Labels",
            separator="|",
            view="View Position",
            age="Patient Age",
            sex="Patient Sex",
        ),
        aliases={"Patient Gender": "Patient Sex"},
    ),
    "chexpert": Format("a CheXpert index", chexpert.REQUIRED_COLUMNS, read=chexpert.read_chexpert),
    "chexpert-plus": Format(
        "a file of labels of CheXpert Plus", chexpert.PLUS_REQUIRED_COLUMNS, read=chexpert.read_chexpert_plus
    ),
    "padchest": Format(
        "a PadChest index",
        padchest.REQUIRED_COLUMNS,
        read=padchest.read_padchest,
        optional=padchest.OPTIONAL_COLUMNS,
    ),
    "mimic": Format("a table of MIMIC-CXR-JPG", mimic.REQUIRED_COLUMNS, read=mimic.read_mimic),
    "vindr": Format(
        "a VinDr-CXR table of readers",
        ("image_id", "No finding"),
        ColumnMapping(
            file="{image_id}.dicom",
            patient=EACH_FILE,
            no_finding="No finding",
            rows_per_image="majority",
            reader="rad_id",
        ),
        aliases={"rad_ID": "rad_id"},
    ),
    "vindr-boxes": Format(
        "a VinDr-CXR table of boxes",
        ("image_id", "class_name"),
        ColumnMapping(
            file="{image_id}.dicom",
            patient=EACH_FILE,
            findings="class_name",
            no_finding="No finding",
            rows_per_image="majority",
            reader="rad_id",
        ),
        aliases={"rad_ID": "rad_id"},
    ),
    "rsna": Format(
        "the RSNA pneumonia table",
        ("patientId", "Target"),
        ColumnMapping(file="{patientId}.dcm", patient=EACH_FILE, labels={"Pneumonia": "Target"}, rows_per_image="any"),
    ),
    "siim": Format(
        "the SIIM-ACR pneumothorax table",
        ("ImageId", "EncodedPixels"),
        ColumnMapping(
            file="{ImageId}.dcm",
            patient=EACH_FILE,
            labels={"Pneumothorax": "EncodedPixels"},
            values={"-1": 0, "*": 1},
            rows_per_image="any",
        ),
    ),
    "brax": Format(
        "a BRAX index",
        ("PngPath", "PatientID"),
        ColumnMapping(
            file="PngPath",
            patient="PatientID",
            labels=_CHEXPERT_LABELS,
            no_finding="No Finding",
            view="ViewPosition",
            age="PatientAge",
            sex="PatientSex",
        ),
    ),
    "covid": Format(
        "the table of covid-chestxray-dataset",
        ("patientid", "finding", "filename"),
        ColumnMapping(
            file="filename",
            patient="patientid",
            findings="finding",
            separator="/",
            view="view",
            age="age",
            sex="sex",
            site="location",
            only={"modality": "X-ray"},
        ),
    ),
    "tuberculosis": Format(
        "the table of the Shenzhen or Montgomery set",
        tuberculosis.REQUIRED_COLUMNS,
        read=tuberculosis.read_tuberculosis,
    ),
    "table": Format(
        "a plain table",
        ("file", "patient"),
        ColumnMapping(
            file="file",
            patient="patient",
            no_finding="No Finding",
            view="view",
            age="age",
            sex="sex",
            site="site",
            split="split",
        ),
    ),
}

"""Read the Shenzhen and Montgomery sets: a folder of clinical readings, or a table of them."""

import re
from collections.abc import Sequence

import numpy as np

from acuity.objectives.tables.cells import (
    ColumnError,
    Columns,
    IndexContent,
    LabelPolicy,
    age_years,
    image_table,
    map_distinct,
)

REQUIRED_COLUMNS = ("study_id", "findings")
LABEL = "Tuberculosis"
_NAME = re.compile(r"(?:CHNCXR|MCUCXR)_\d+_([01])(?:\.\w+)?")
_SEX = re.compile(r"\b(female|male|[FM])\b", re.IGNORECASE)
_AGE = re.compile(r"\b(\d+)\s*(Y|yrs?|years?|months?|days?|D|M)\b", re.IGNORECASE)


def read_tuberculosis(columns: Columns, _: LabelPolicy) -> IndexContent:
    """Content of the Shenzhen or Montgomery set, of which each image is another patient's.

    The last digit of a file's name is the label: 0 normal, 1 tuberculosis (Jaeger et al. 2014, Quant Imaging Med Surg
    4(6):475). A reading names sex and age in words. ColumnError if a name is not of this form.
    """
    names = columns.text["study_id"]
    found = [_NAME.fullmatch(name) for name in names]
    if None in found:
        raise ColumnError(
            f"index line {columns.lines[found.index(None)]:,} has another name than CHNCXR_0001_0.png or "
            "MCUCXR_0001_0.png, whose last digit is the label"
        )
    target = np.array([[float(match[1])] for match in found if match], dtype=np.float32)
    readings = columns.text["findings"]
    files = [name if "." in name else f"{name}.png" for name in names]
    table = image_table(
        columns,
        file=files,
        patient=files,
        view=["PA"] * len(files),
        age=map_distinct(_or_read(columns, "age", readings, _AGE), age_years),
        sex=_or_read(columns, "sex", readings, _SEX),
        no_finding=target[:, 0] == 0,
    )
    return IndexContent(table, (LABEL,), target, has_patients=False)


def _or_read(columns: Columns, name: str, readings: Sequence[str], pattern: "re.Pattern[str]") -> Sequence[str]:
    if name in columns.text:
        return columns.text[name]
    return [" ".join(found.groups()) if (found := pattern.search(reading)) else "" for reading in readings]

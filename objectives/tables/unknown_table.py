"""Propose a mapping for a table of no known format."""

import re
from collections.abc import Sequence

_FILE_WORDS = ("file", "filename", "image", "imageid", "path", "img", "dicom", "sopinstanceuid", "uid", "id")
_PATIENT_WORDS = ("patient", "patientid", "subject", "subjectid", "person", "case", "mrn", "pid")
_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z _./()-]{0,39}")
"""A first line that is no header may name a patient, so other texts are not quoted."""


def mapping_hint(header: Sequence[str]) -> str:
    """The mapping to write for a table with this header, ready to paste, as a sentence."""
    file, patient = _nearest(header, _FILE_WORDS, but=None), _nearest(header, _PATIENT_WORDS, but=None)
    if file == patient:
        file = _nearest(header, _FILE_WORDS, but=patient)
    mapping = f"columns = {{ file = {_quoted(file)}, patient = {_quoted(patient)} }}"
    return (
        f'For other names write under [data]: {mapping} (patient = "file" if each image is of another patient; see '
        "docs/image-sets.md)"
    )


def _nearest(header: Sequence[str], words: Sequence[str], *, but: str | None) -> str | None:
    """The column whose name is one of the words, else the first that contains one, by the order of the words."""
    plain = {
        re.sub(r"[^a-z]", "", name.lower()): name for name in header if _PLAIN_NAME.fullmatch(name) and name != but
    }
    for word in words:
        if word in plain:
            return plain[word]
    return next((name for word in words[:-1] for key, name in plain.items() if word in key), None)


def _quoted(name: str | None) -> str:
    return f'"{name}"' if name else '"..."'

"""Read an index file into text by column with a line number per row.

It is a CSV or JSON Lines file (also gzipped), a Parquet file, or a folder of texts with one reading of an image each.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path

from acuity.objectives.errors import InputError
from acuity.objectives.tables.cells import Columns, plain_cell

SelectColumns = Callable[[list[str]], Sequence[str]]
"""Chooses the columns to keep from the header. The other columns are not stored."""
_TWO_FIELDS = re.compile(r"OriginalImage\w*\[\w+, ?\w+\]")
"""NIH's `OriginalImage[Width,Height]` is one name for two fields. Without quotes it is two names in CSV. Some copies
quote the name but not the values."""


def read_columns(path: Path, select: SelectColumns) -> Columns:
    """The columns that select chooses. InputError for a file that is missing, damaged or not a table.

    The first row of a Parquet file has line number 2, as below a header. A folder's texts are the columns study_id (the
    file's name) and findings (its content), and line 1 is the first of them by name.
    """
    try:
        if path.is_dir():
            return _folder_columns(path, select)
        if path.exists() and not path.is_file():  # a pipe could block for ever
            raise InputError(f"{path}: is not a regular file; an index is a CSV or Parquet file")
        with path.open("rb") as file:
            start = file.read(4)
            if start == b"PAR1":
                return _parquet_columns(path, select)
            if start.startswith(b"PK"):
                raise InputError(
                    f"{path}: is a zip archive or an Excel workbook; unpack it, or save the sheet as CSV UTF-8"
                )
            file.seek(0)
            binary = gzip.GzipFile(fileobj=file) if start.startswith(b"\x1f\x8b") else file
            with io.TextIOWrapper(io.BufferedReader(binary), encoding="utf-8-sig", newline="") as text:
                is_json = text.buffer.peek(4).lstrip(b"\xef\xbb\xbf \r\n").startswith(b"{")
                return _json_columns(path, text, select) if is_json else _csv_columns(path, text, select)
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; [data] index names the image set's table (NIH's Data_Entry CSV)"
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise InputError(f"{path}: the gzip file is damaged; download it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); an index is a CSV or Parquet file") from None
    except UnicodeDecodeError:
        raise InputError(
            f"{path}: is not UTF-8 text; an index is a CSV file (save a spreadsheet as CSV UTF-8) or a Parquet file"
        ) from None


def _csv_columns(path: Path, text: io.TextIOWrapper, select: SelectColumns) -> Columns:
    rows = _rows(path, text)
    header = [name.strip() for name in next(rows, (1, []))[1]]
    while header and not header[-1]:
        header.pop()
    if not header:
        raise InputError(f"{path}: is empty; an index has a header line and one line per image")
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path}: has a header but no rows; an index has one line per image")
    header = _split_names(header, len(first[1]))
    places = {name: place for place, name in enumerate(header)}
    kept = [name for name in select(header) if name in places]
    _check_names(path, header, kept)
    pick = itemgetter(*(places[name] for name in kept), 0)  # with field 0 even one name gives a tuple
    lines, records = [], []
    for line, row in chain([first], rows):
        # Some copies end every line in a comma. A surplus field in one line alone means that its fields are shifted.
        if len(row) != len(first[1]) or len(row) < len(header) or any(field.strip() for field in row[len(header) :]):
            faulty, count = (line, len(row)) if len(row) != len(header) else (first[0], len(first[1]))
            raise InputError(
                f"{path}: index line {faulty:,} has {count} fields and the header {len(header)}: correct that line "
                "(a field with a comma in it needs quotes around it)"
            )
        lines.append(line)
        records.append(pick(row))
    return Columns(lines, {name: _plain_cells([record[i] for record in records]) for i, name in enumerate(kept)}, path)


def _json_columns(path: Path, text: io.TextIOWrapper, select: SelectColumns) -> Columns:
    """One object per line. The keys of the first are the columns."""
    kept: Sequence[str] = ()
    lines: list[int] = []
    records = []
    for line, content in enumerate(text, start=1):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise InputError(f"{path}: line {line:,} is not a JSON object; JSON Lines have one object in each line")
        if not lines:
            header = list(record)
            kept = [name for name in select(header) if name in header]
        lines.append(line)
        records.append([_text(record.get(name)) for name in kept])
    return Columns(lines, {name: [record[i] for record in records] for i, name in enumerate(kept)}, path)


def _folder_columns(path: Path, select: SelectColumns) -> Columns:
    """The texts (.txt) of a folder. InputError if it has none."""
    files = sorted(file for file in path.glob("*.txt") if file.is_file() and not file.name.startswith("."))
    if not files:
        raise InputError(
            f"{path}: is a folder without readings (.txt); [data] index names a CSV or Parquet file, or the "
            "ClinicalReadings folder of the Shenzhen or Montgomery set"
        )
    kept = select(["study_id", "findings"])
    texts = {
        "study_id": [file.stem for file in files],
        "findings": [plain_cell(file.read_text(encoding="utf-8-sig", errors="replace")) for file in files],
    }
    return Columns(range(1, len(files) + 1), {name: texts[name] for name in kept if name in texts}, path)


def _plain_cells(cells: list[str]) -> list[str]:
    plain = {cell: plain_cell(cell) for cell in set(cells)}
    return [plain[cell] for cell in cells]


def _split_names(header: list[str], fields: int) -> list[str]:
    """The header with one name per field, if the lines have as many fields as the unquoted header has names."""
    unquoted = [part for name in header for part in (name.split(",") if _TWO_FIELDS.fullmatch(name) else [name])]
    return unquoted if fields >= len(unquoted) else header


def _rows(path: Path, text: io.TextIOWrapper) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of each row that is not blank."""
    reader = csv.reader(text)
    try:
        for row in reader:
            if any(row):
                yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}: index line {reader.line_num:,} is not CSV ({error}): correct that line") from None


def _check_names(path: Path, header: list[str], kept: list[str]) -> None:
    for name in kept:
        if header.count(name) > 1:
            raise InputError(f'{path}: has more than one column "{name}": keep one of them, or rename the other')


def _parquet_columns(path: Path, select: SelectColumns) -> Columns:
    from pyarrow import ArrowException, parquet  # the import takes 0.5 s, and few indices need it

    try:
        header = parquet.read_schema(path).names
        kept = [name for name in select(header) if name in header]
        _check_names(path, header, kept)
        table = parquet.read_table(path, columns=kept)
    except ArrowException:
        raise InputError(f"{path}: the Parquet file is damaged; write it again") from None
    if not len(table):
        raise InputError(f"{path}: has columns but no rows; an index has one row per image")
    return Columns(
        range(2, len(table) + 2), {name: [_text(value) for value in table[name].to_pylist()] for name in kept}, path
    )


def _text(value: object) -> str:
    """The text of a cell. Bytes are UTF-8: older programs write text columns without saying that they are text."""
    is_missing = value is None or value != value
    text = value.decode() if isinstance(value, bytes) else str(value)
    return "" if is_missing else plain_cell(text)

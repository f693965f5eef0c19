"""Read and check an experiment file."""

import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from acuity.study.config.paths import resolve_paths
from acuity.study.config.rules import check_across_sections
from acuity.study.config.schema import Experiment
from acuity.study.config.validation_message import validation_message
from acuity.study.errors import UsageError

_ADAPTER = TypeAdapter(Experiment)


def load(path: Path) -> Experiment:
    """Read and check an experiment file. UsageError names the file, the key, the value and the rule."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror or error}. `acuity new {path}` writes a template to start from"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(
            f"{path}: is not UTF-8 text; an experiment file is TOML (`acuity new FILE` shows one)"
        ) from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: is not valid TOML: {error}") from None
    return resolve_paths(parse(table, source=str(path)), path.resolve().parent)


def parse(table: dict[str, Any], *, source: str) -> Experiment:
    """Check a table as read from TOML. Paths stay as written. source: the file's name, for messages."""
    try:
        # Strict mode on JSON accepts lists for tuples and strings for paths. Strict mode on Python objects does not.
        experiment = _ADAPTER.validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        raise UsageError(f"{source}: {validation_message(error)}") from None
    check_across_sections(experiment, source=source)
    return experiment


def to_table(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON types, for the database. `parse` reads it back."""
    table: dict[str, Any] = _ADAPTER.dump_python(experiment, mode="json")
    return table

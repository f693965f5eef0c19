"""Read and check an experiment file."""

import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from acuity.study.config.paths import resolve_paths
from acuity.study.config.rules import check_across_sections
from acuity.study.config.schema import Experiment
from acuity.study.config.validation_message import validation_messages
from acuity.study.errors import UsageError

_ADAPTER = TypeAdapter(Experiment)
_TOO_DEEP = "has brackets nested too deeply; `acuity new FILE` shows every key"


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
    except RecursionError:
        raise UsageError(f"{path}: {_TOO_DEEP}") from None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise UsageError(f"{path}: is not valid TOML: {error}. Correct that place") from None
    return resolve_paths(parse(table, source=str(path)), path.resolve().parent)


def parse(table: dict[str, Any], *, source: str) -> Experiment:
    """Check a table as read from TOML. Paths stay as written. source: the file's name, for messages.

    UsageError names every mistake in one line.
    """
    try:
        # Strict mode on JSON accepts lists for tuples and strings for paths. Strict mode on Python objects does not.
        experiment = _ADAPTER.validate_json(json.dumps(table, default=str), strict=True)
        check_across_sections(experiment)
    except RecursionError:
        raise UsageError(f"{source}: {_TOO_DEEP}") from None
    except ValidationError as error:
        raise UsageError(f"{source}: {_together(validation_messages(error))}") from None
    except ValueError as error:
        raise UsageError(f"{source}: {_together(str(error).splitlines())}") from None
    return experiment


def to_table(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON types, for the database. `parse` reads it back."""
    table: dict[str, Any] = _ADAPTER.dump_python(experiment, mode="json")
    return table


def _together(mistakes: list[str]) -> str:
    if len(mistakes) == 1:
        return mistakes[0]
    listed = "; ".join(f"({number}) {mistake}" for number, mistake in enumerate(mistakes, start=1))
    return f"has {len(mistakes)} mistakes: {listed}"

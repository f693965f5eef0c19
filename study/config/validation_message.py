"""One line for the first error in an experiment file that pydantic reports."""

import dataclasses
import difflib
import json
from typing import Any

from pydantic import ValidationError

from acuity.study.config.schema import Experiment
from acuity.study.config.value_types import RULE_ERROR

_SECTIONS: dict[str, Any] = {
    section.name: section.type for section in dataclasses.fields(Experiment) if dataclasses.is_dataclass(section.type)
}
_UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")
_MISSING = ("missing", "missing_argument")


def validation_message(report: ValidationError) -> str:
    """One error of a pydantic report as 'key has VALUE, must be RULE'.

    A misspelt key also makes the right key missing; the misspelt key is reported.
    """
    errors = report.errors(include_url=False)
    error = next((error for error in errors if error["type"] in _UNKNOWN_KEY), errors[0])
    location = error["loc"]
    key = ".".join(part for part in location if isinstance(part, str))
    kind, context = error["type"], error.get("ctx", {})
    if kind == "value_error":  # a validator of the schema raised it, as a whole sentence
        return str(context["error"])
    if kind in _UNKNOWN_KEY:
        keys = _known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), keys, n=1)
        return f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else f"; known are {', '.join(keys)}")
    if kind in _MISSING and isinstance(location[-1], int):
        return f"{key} has too few values; it takes two, the lowest and the highest"
    if kind in _MISSING:
        return f"{key} is missing (`acuity new FILE` shows every key)"
    return f"{key} has {shown(error['input'])}, must be {_rule(kind, error['msg'], context)}"


def shown(value: object) -> str:
    """A value as JSON, at most 60 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    table = _SECTIONS[str(location[0])] if location else Experiment
    return [known.name for known in dataclasses.fields(table)]


def _rule(kind: str, message: str, context: dict[str, Any]) -> str:
    if kind == RULE_ERROR:
        return message
    if kind == "too_short":
        return f"a list of at least {context['min_length']}"
    if kind == "too_long":
        return f"a list of at most {context['max_length']}"
    if kind in ("tuple_type", "list_type"):
        return "a list in [ ]"
    rule = str(context["error"]) if "error" in context else message.removeprefix("Input should be ")
    return f"{rule[:1].lower()}{rule[1:]}"

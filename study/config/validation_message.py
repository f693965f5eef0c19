"""One line for each error in an experiment file that pydantic reports."""

import dataclasses
import difflib
import json
from typing import Any

from pydantic import ValidationError

from acuity.study.config.schema import Columns, Experiment
from acuity.study.config.value_types import RULE_ERROR

_SECTIONS: dict[str, Any] = {
    section.name: section.type for section in dataclasses.fields(Experiment) if dataclasses.is_dataclass(section.type)
}
_TABLES: dict[str, Any] = {"": Experiment, **_SECTIONS, "data.columns": Columns}
"""Name of each table of the file, "" for its top -> its keys."""
_UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")
_MISSING = ("missing", "missing_argument")


def validation_messages(report: ValidationError) -> list[str]:
    """Each error of a pydantic report as 'key has VALUE, must be RULE'.

    A misspelt key, or a key in the wrong section, also makes the right key missing; only the written key is reported.
    """
    errors = report.errors(include_url=False)
    messages, written = [], set()
    for error in errors:
        if error["type"] in _UNKNOWN_KEY:
            message, meant = _unknown_key(error["loc"])
            messages.append(message)
            written.add(meant)
    for error in errors:
        kind, key = error["type"], _key(error["loc"])
        if kind == "value_error":  # a validator of the schema raised it, a whole sentence per line
            messages += str(error["ctx"]["error"]).splitlines()
        elif kind in _MISSING and isinstance(error["loc"][-1], int):
            messages.append(f"{key} has too few values; it takes two, the lowest and the highest")
        elif kind in _MISSING and not any(meant == key or meant.startswith(f"{key}.") for meant in written):
            messages.append(f"{key} is missing (`acuity new FILE` shows every key)")
        elif kind not in (*_UNKNOWN_KEY, *_MISSING):
            rule = _rule(kind, error["msg"], error.get("ctx", {}))
            messages.append(f"{key} has {shown(error['input'])}, must be {rule}")
    return list(dict.fromkeys(messages))


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(part for part in location if isinstance(part, str))


def _unknown_key(location: tuple[int | str, ...]) -> tuple[str, str]:
    """The message for a key that its table does not have, and the key that is meant, or "" if that is not known."""
    table, name = _key(location[:-1]), str(location[-1])
    unknown = f"unknown key {_key(location)}"
    homes = [home for home, keys in _TABLES.items() if home != table and name in _names(keys)]
    if homes:
        home = homes[0]
        where = f"in [{home}]" if home else "at the top of the file, before any section"
        return f"{unknown}; it belongs {where}", f"{home}.{name}" if home else name
    keys = _names(_TABLES.get(table, Experiment))
    near = difflib.get_close_matches(name, keys, n=1)
    if near:
        return f"{unknown}; did you mean {near[0]}?", f"{table}.{near[0]}" if table else near[0]
    return f"{unknown}; known are {', '.join(keys)}", ""


def _names(table: Any) -> list[str]:
    return [known.name for known in dataclasses.fields(table)]


def shown(value: object) -> str:
    """A value as JSON, at most 60 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


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

"""Read the Compose files as `docker compose` does, without Docker: substitute the variables and merge the files."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<text>[^}]*))?\}")
_RESET = object()


class _Loader(yaml.SafeLoader):
    """YAML with Compose's tag !reset, which removes a key of an earlier file."""


_Loader.add_constructor("!reset", lambda *_: _RESET)


def read_compose(files: Sequence[Path], variables: Mapping[str, str]) -> dict[str, Any]:
    """The project of these files. A later file overrides an earlier one. ValueError where a variable is missing.

    A later list replaces an earlier one, as Compose does with commands. The Compose files override no other lists.
    """
    project: dict[str, Any] = {}
    for file in files:
        table = yaml.load(file.read_text(encoding="utf-8"), _Loader)
        _merge(project, _filled_in(table, variables))
    return project


def _filled_in(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled_in(entry, variables) for key, entry in value.items()}
    if isinstance(value, list):
        return [_filled_in(entry, variables) for entry in value]
    return _VARIABLE.sub(lambda found: _value(found, variables), value) if isinstance(value, str) else value


def _value(found: re.Match[str], variables: Mapping[str, str]) -> str:
    given = variables.get(found["name"], "")
    if not given and found["kind"] == "?":
        raise ValueError(f"{found['name']} is not set: {found['text']}")
    return given or (found["text"] if found["kind"] == "-" else "")


def _merge(below: dict[str, Any], above: dict[str, Any]) -> None:
    for key, value in above.items():
        if value is _RESET:
            below.pop(key, None)
        elif isinstance(value, dict) and isinstance(below.get(key), dict):
            _merge(below[key], value)
        else:
            below[key] = value

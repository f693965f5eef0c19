"""Rules between sections of an experiment file, and pydantic's faults in plain sentences."""

import dataclasses
import difflib
import json
from typing import Any

from pydantic import ValidationError

from acuity.study.config.schema import Experiment
from acuity.study.errors import UsageError

_SECTIONS: dict[str, Any] = {
    known.name: known.type for known in dataclasses.fields(Experiment) if dataclasses.is_dataclass(known.type)
}


def check_across_sections(experiment: Experiment, *, source: str) -> None:
    """Raise UsageError where keys of two sections contradict each other. source: the file's name."""
    search = experiment.search
    for resolution in experiment.confirm.resolutions or ():
        if resolution not in search.resolutions:
            raise UsageError(
                f"{source}: confirm.resolutions has {resolution}, must be among search.resolutions: the search "
                "supplies the configurations to confirm"
            )
    if experiment.name in search.learn_from:
        raise UsageError(
            f"{source}: search.learn_from has {experiment.name}, this experiment's name; its labels learn from each "
            "other anyway, so leave it out"
        )


def explain(error: ValidationError) -> str:
    """One fault of a pydantic report as 'key has VALUE, RULE'.

    A misspelt key also makes the right key missing; the misspelt key is reported.
    """
    unknown = ("unexpected_keyword_argument", "extra_forbidden")
    faults = error.errors(include_url=False)
    fault = next((fault for fault in faults if fault["type"] in unknown), faults[0])
    location = [part for part in fault["loc"] if not _is_union_branch(part)]
    key = ".".join(str(part) for part in location if isinstance(part, str))
    kind, given, context = fault["type"], fault["input"], fault.get("ctx", {})
    if kind == "value_error":  # raised by a validator of the schema, as a whole sentence
        return str(context["error"])
    if kind in unknown:
        near = difflib.get_close_matches(str(location[-1]), _known_keys(location[:-1]), n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(_known_keys(location[:-1]))}"
        return f"unknown key {key}{hint}"
    if kind in ("missing", "missing_argument") and isinstance(fault["loc"][-1], int):
        return f"{key} has too few values; it takes two, the lowest and the highest"
    if kind in ("missing", "missing_argument"):
        return f"{key} is missing (`acuity new FILE` shows every key)"
    if key.endswith("search.resolutions") and isinstance(given, int):
        return f"{key} has {given}, must be a multiple of 8 between 16 and 2048"
    if key == "search.batch":
        return f'{key} is {shown(given)}, must be "search", "largest" or a number from 2'
    if kind == "string_pattern_mismatch":
        a_name = key in ("name", "search.learn_from")
        allowed = "letters, digits, '.', '_' and '-' (64 at most)" if a_name else "1 to 128 characters without '/'"
        return f"{key} has {shown(given)}, must be {allowed}"
    if kind in ("too_short", "too_long"):
        return f"{key} has {shown(given)}, must be a list of at {'least' if kind == 'too_short' else 'most'} " + str(
            context["min_length" if kind == "too_short" else "max_length"]
        )
    if kind in ("tuple_type", "list_type"):
        return f"{key} has {shown(given)}, must be a list in [ ]"
    rule = str(context["error"]) if "error" in context else fault["msg"].removeprefix("Input should be ")
    return f"{key} has {shown(given)}, must be {rule[:1].lower()}{rule[1:]}"


def _is_union_branch(part: object) -> bool:
    """Whether pydantic added this part of an error's location for the branch of a union, such as literal[...]."""
    branches = ("int", "float", "constrained-int", "path", "str", "bool")
    return isinstance(part, str) and ("[" in part or part in branches)


def _known_keys(location: list[Any]) -> list[str]:
    table = _SECTIONS[str(location[0])] if location else Experiment
    return [known.name for known in dataclasses.fields(table)]


def shown(value: object) -> str:
    """A value as JSON, at most 60 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."

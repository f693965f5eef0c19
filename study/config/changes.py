"""Find changes of an experiment file that would change the meaning of its trials."""

from typing import Any

from acuity.study.config.loading import to_table
from acuity.study.config.schema import Experiment
from acuity.study.config.validation_message import shown

# These keys may change under the same name: they set how much runs and where. A key that ends in "." is a section.
_FREE = (
    "data.index",
    "data.images",
    "data.format",
    "data.columns",  # the index's SHA-256 shows whether files, patients, labels or targets change
    "data.columns.",
    "data.split",
    "data.train_val_list",
    "data.test_list",
    "data.cache",
    "search.trials",
    "confirm.",
    "workers.",
    "cluster.",
    "tracking.",
)

_MOVABLE = "training.weights"
"""The file may have another path on another host. Adding or removing it changes where a trial starts."""


def changes_of_meaning(old: Experiment, new: Experiment) -> list[str]:
    """Changes between two experiments of one name that would change a trial's meaning, as 'key: old -> new'."""
    before, after = _flatten(to_table(old)), _flatten(to_table(new))
    if set(old.labels) <= set(new.labels):
        # A further label is a further study. It changes no existing trial.
        before["labels"] = after["labels"]
    return [
        f"{key}: {shown(before.get(key))} -> {shown(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not _may_change(key, before.get(key), after.get(key))
    ]


def _may_change(key: str, old: Any, new: Any) -> bool:
    if key == _MOVABLE:
        return old is not None and new is not None
    return any(key.startswith(free) if free.endswith(".") else key == free for free in _FREE)


def _flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat

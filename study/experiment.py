"""experiment.toml -> one frozen Experiment, checked once at the door."""

import dataclasses
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import TypeAdapter, ValidationError

from study.errors import UsageError
from study.experiment_rules import check_together, explain, shown
from study.sections import Experiment as Experiment

_ADAPTER = TypeAdapter(Experiment)

# These may change under an old name: they say how much and where, never what a trial means. An end in "." is a section.
_FREE = (
    "data.index",
    "data.images",
    "data.format",
    "data.split",
    "data.train_val_list",
    "data.test_list",
    "data.cache",
    "search.trials",
    "confirm.",
    "workers.",
    "cluster.",
)
_MOVABLE = "training.weights"
"""A file that may lie elsewhere on another host; whether there is one is what a trial starts from."""


def load(path: Path) -> Experiment:
    """Read and check an experiment file. UsageError names the file, the key, the value and the rule."""
    try:
        text = path.read_text(encoding="utf-8")
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


def parse(table: dict[str, Any], *, source: str, stored: bool = False) -> Experiment:
    """Check a table as read from TOML. Paths stay as written.

    stored: it comes from the database, where an earlier version may have let in what is refused now.
    """
    try:
        # Through JSON, since strict mode there takes lists for tuples and strings for paths, and nothing else.
        experiment = _ADAPTER.validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        raise UsageError(f"{source}: {explain(error)}") from None
    if not stored:
        check_together(experiment, source)
    return experiment


def to_table(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON's types, for the database; `parse` reads it back."""
    table: dict[str, Any] = _ADAPTER.dump_python(experiment, mode="json")
    return table


def resolve_paths(experiment: Experiment, folder: Path) -> Experiment:
    """Make every relative path start at folder."""
    return _map_paths(experiment, lambda path: folder / path.expanduser())


def move_paths(experiment: Experiment, folder: Path) -> Experiment:
    """The same experiment where the index's folder, with what lies in it, is at another place: on another host."""
    old = experiment.data.index.parent
    return _map_paths(experiment, lambda path: folder / path.relative_to(old) if path.is_relative_to(old) else path)


def _map_paths(experiment: Experiment, function: Callable[[Path], Path]) -> Experiment:
    def mapped(section: Any) -> Any:
        paths = {known.name: getattr(section, known.name) for known in dataclasses.fields(section)}
        return dataclasses.replace(
            section, **{name: function(path) for name, path in paths.items() if isinstance(path, Path)}
        )

    workers, at = experiment.workers, experiment.workers.checkpoints
    if at is not None and "://" not in at:
        workers = dataclasses.replace(workers, checkpoints=str(function(Path(at))))
    return dataclasses.replace(
        experiment,
        data=mapped(experiment.data),
        training=mapped(experiment.training),
        workers=workers,
        cluster=mapped(experiment.cluster),
    )


def changes_of_meaning(old: Experiment, new: Experiment) -> list[str]:
    """What differs between two experiments of one name that would change what a trial means: 'key: old -> new'."""
    before, after = _flatten(to_table(old)), _flatten(to_table(new))
    if set(old.labels) <= set(new.labels):
        # Another label is another study; it changes nothing of the trials that there are.
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


def split_path(experiment: Experiment) -> Path:
    """Where the split is kept: as the file says, else beside the index and shared by every experiment on it."""
    data = experiment.data
    kind = ".published" if data.train_val_list or data.test_list else ""
    kind += ".by-image" if data.split_by == "image" else ""
    kind += ".paper" if data.paper_split else ""
    return data.split or data.index.with_name(f"{data.index.name.split('.')[0]}{kind}.split.csv")


def cache_folder(experiment: Experiment, sha256: str) -> Path:
    """Where the arrays of these images are kept: experiments on the same ones share them."""
    return experiment.data.cache or Path(platformdirs.user_cache_dir("acuity")) / sha256[:16]


def _flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat

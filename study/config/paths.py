"""The paths of an experiment: relative to its file, on another host, and the defaults for split and cache."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs

from acuity.study.config.schema import Experiment
from acuity.study.errors import UsageError


def resolve_paths(experiment: Experiment, folder: Path) -> Experiment:
    """Make every relative path start at folder. UsageError for a path with a NUL character in it."""

    def resolve(path: Path) -> Path:
        if "\0" in str(path):
            raise UsageError(f"{str(path)!r}: a path cannot have a NUL character (\\u0000) in it; take it out")
        return folder / path.expanduser()

    return _map_paths(experiment, resolve)


def move_paths(experiment: Experiment, folder: Path) -> Experiment:
    """Replace the index's folder by another folder, as on another host. Paths outside the index's folder stay."""
    old = experiment.data.index.parent
    return _map_paths(experiment, lambda path: folder / path.relative_to(old) if path.is_relative_to(old) else path)


def _map_paths(experiment: Experiment, function: Callable[[Path], Path]) -> Experiment:
    def mapped(section: Any) -> Any:
        paths = {known.name: getattr(section, known.name) for known in dataclasses.fields(section)}
        return dataclasses.replace(
            section, **{name: function(path) for name, path in paths.items() if isinstance(path, Path)}
        )

    workers, checkpoints = experiment.workers, experiment.workers.checkpoints
    if checkpoints is not None and "://" not in checkpoints:
        workers = dataclasses.replace(workers, checkpoints=str(function(Path(checkpoints))))
    return dataclasses.replace(
        experiment,
        data=mapped(experiment.data),
        training=mapped(experiment.training),
        workers=workers,
        cluster=mapped(experiment.cluster),
        tracking=mapped(experiment.tracking),
    )


def split_path(experiment: Experiment) -> Path:
    """The split's file: data.split, else a file beside the index that all experiments on this index share."""
    data = experiment.data
    kind = ".published" if data.train_val_list or data.test_list else ""
    kind += ".by-image" if data.split_by == "image" else ""
    kind += ".paper" if data.paper_split else ""
    return data.split or data.index.with_name(f"{data.index.name.split('.')[0]}{kind}.split.csv")


def cache_folder(experiment: Experiment, sha256: str) -> Path:
    """The folder of the decoded arrays. Experiments on the same images share it. sha256: of the images' index."""
    return experiment.data.cache or Path(platformdirs.user_cache_dir("acuity")) / sha256[:16]

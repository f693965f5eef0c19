"""Find the image resolution that each diagnosis needs.

    import acuity

    acuity.Experiment.from_toml("nih.toml").launch(workers=2)
    nih = acuity.open("nih")
    nih.best()  # a pandas DataFrame, one row per label

A name is imported from its module at its first use, so that `import acuity` loads neither torch nor optuna.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acuity.objectives.errors import InputError
    from acuity.objectives.phantoms.generator import write_phantoms
    from acuity.objectives.training.own_training import TrainingTask
    from acuity.storage.errors import OutageError, StorageError
    from acuity.study.api import Experiment, OpenExperiment, experiments
    from acuity.study.api import open_experiment as open  # noqa: A004  # acuity.open
    from acuity.study.errors import UsageError
    from acuity.study.results.answer import best_resolution

__all__ = [
    "Experiment",
    "InputError",
    "OpenExperiment",
    "OutageError",
    "StorageError",
    "TrainingTask",
    "UsageError",
    "best_resolution",
    "experiments",
    "open",
    "write_phantoms",
]

_MODULES = {
    "Experiment": "acuity.study.api",
    "InputError": "acuity.objectives.errors",
    "OpenExperiment": "acuity.study.api",
    "OutageError": "acuity.storage.errors",
    "StorageError": "acuity.storage.errors",
    "TrainingTask": "acuity.objectives.training.own_training",
    "UsageError": "acuity.study.errors",
    "best_resolution": "acuity.study.results.answer",
    "experiments": "acuity.study.api",
    "open": "acuity.study.api",
    "write_phantoms": "acuity.objectives.phantoms.generator",
}
_NAMES = {"open": "open_experiment"}
"""Public name -> name in its module, where they differ: inside a module, `open` is Python's."""


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name == "__version__":
        from importlib.metadata import version

        return version("acuity-hpo")
    if name not in _MODULES:
        raise AttributeError(f"acuity has no public name {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_MODULES[name]), _NAMES.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted([*__all__, "__version__"])

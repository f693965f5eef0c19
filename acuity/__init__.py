"""Find the image resolution that each diagnosis needs.

    import acuity

    table = acuity.best_resolution("nih")  # a pandas DataFrame, one row per label

A name is imported from its module at its first use, so that `import acuity` loads neither torch nor optuna.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acuity.objectives.errors import InputError
    from acuity.storage.errors import StorageError
    from acuity.study.errors import UsageError
    from acuity.study.results.answer import best_resolution

__all__ = ["InputError", "StorageError", "UsageError", "best_resolution"]

_MODULES = {
    "InputError": "acuity.objectives.errors",
    "StorageError": "acuity.storage.errors",
    "UsageError": "acuity.study.errors",
    "best_resolution": "acuity.study.results.answer",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name == "__version__":
        from importlib.metadata import version

        return version("acuity-hpo")
    if name not in _MODULES:
        raise AttributeError(f"acuity has no public name {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted([*__all__, "__version__"])

"""Functions of the user's packages, named "module:function": where their source is, its SHA-256, and their calls."""

import hashlib
import importlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from acuity.objectives.errors import InputError, first_line

_PATTERN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class OwnFunctionError(Exception):
    """A function of the user's raised, or returned what it must not; the message names it and the rule."""


def is_own_function(name: str) -> bool:
    """Whether the name has the form "module:function"."""
    return _PATTERN.fullmatch(name) is not None


def source_sha256(name: str) -> str:
    """SHA-256 of the source file of the function's module, in hexadecimal. The module is not run, its packages are.

    InputError where there is no such module here, or where it has no source file.
    """
    module = name.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError as error:
        spec = None
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise _import_error(name, error) from error
    except Exception as error:  # a package above the module runs here
        raise _import_error(name, error) from error
    if spec is None:
        raise InputError(
            f'"{name}": there is no module {module} here. Install its package in this environment, or put its folder '
            "on PYTHONPATH, for each worker"
        )
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise InputError(f'"{name}": {module} has no source file, must be a module in Python: name that module')
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def load_function(name: str) -> Callable[..., Any]:
    """Import the function. InputError where there is none, or where its source is in another module."""
    source_sha256(name)
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module's code runs here
        raise _import_error(name, error) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(f'"{name}": {module_name} has no function {attribute}. Correct the name or write the function')
    home = getattr(function, "__module__", None)
    if hasattr(function, "__qualname__") and home != module_name:
        raise InputError(
            f'"{name}": {attribute} is written in {home}. Name "{home}:{attribute}", since the SHA-256 of that source '
            "is kept"
        )
    return function  # type: ignore[no-any-return]  # an attribute of a module has no type


def _import_error(name: str, error: Exception) -> InputError:
    return InputError(
        f'"{name}": {name.partition(":")[0]} cannot be imported ({type(error).__name__}: {first_line(error)}). '
        "Correct it, or install what it needs"
    )

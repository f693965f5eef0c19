"""The command group `acuity` and its common options."""

import logging
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from acuity.storage.database import Database

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@dataclass
class CommonOptions:
    """The values of the common options. Their callbacks set them while click parses the command line."""

    verbose: bool = False
    storage: str | None = None


def command(
    example: str, *, name: str | None = None, group: click.Group | None = None
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of `acuity`, or of a group in it, with the common options and an example in its help text.

    name: of the command. The default is the function's.

    The common options are not passed to the function: `open_database`, `named_storage` and `is_verbose` read them.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        for option in (_verbose_option, _storage_option):
            function = option(function)
        command: click.Command = (group or acuity).command(name, epilog=f"\b\nExample:\n  {example}")(function)
        return command

    return decorate


def open_database() -> AbstractContextManager["Database"]:
    """Open the storage that the command line names."""
    from acuity.storage.database import open_storage

    return open_storage(named_storage())


def named_storage() -> str | None:
    """The value of --storage. None is for $ACUITY_STORAGE, else the embedded server."""
    return _common_options(click.get_current_context()).storage


def is_verbose() -> bool:
    """Whether the command line has --verbose."""
    return _common_options(click.get_current_context()).verbose


def _common_options(context: click.Context) -> CommonOptions:
    return context.ensure_object(CommonOptions)


def _set_verbose(context: click.Context, _: click.Parameter, value: bool) -> None:
    _common_options(context).verbose = value
    if value:
        logging.getLogger().setLevel(logging.INFO)


def _set_storage(context: click.Context, _: click.Parameter, value: str | None) -> None:
    _common_options(context).storage = value


def _check_device(_: click.Context, __: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise click.BadParameter(f'"{value}" is no device: "auto", "cpu", "cuda", or one GPU as "cuda:1"')
    return value


_verbose_option = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=_set_verbose,
    help="Log more, and show the traceback of an error.",
)

_storage_option = click.option(
    "--storage",
    metavar="URL",
    expose_value=False,
    callback=_set_storage,
    help="postgresql://user@host/database; by default $ACUITY_STORAGE, else the embedded server.",
)

device_option = click.option(
    "--device", default="auto", show_default=True, callback=_check_device, help='"auto", "cpu", "cuda" or "cuda:1".'
)


@click.group(context_settings=_CONTEXT)
@click.version_option(package_name="acuity-hpo", prog_name="acuity")
def acuity() -> None:
    """Find the image resolution that each diagnosis needs."""

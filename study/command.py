"""The command group `acuity`, and the options that every command has."""

import re
from collections.abc import Callable

import click

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def command(example: str, *, group: click.Group | None = None) -> Callable[[Callable[..., None]], click.Command]:
    """A command with the options that every command has, and an example in its help; of `acuity` or a group in it."""

    def decorate(function: Callable[..., None]) -> click.Command:
        for option in (
            click.option("-v", "--verbose", is_flag=True, help="Log more, and show the traceback of an error."),
            click.option(
                "--storage",
                metavar="URL",
                help="postgresql://user@host/database; by default $ACUITY_STORAGE, else the embedded server.",
            ),
        ):
            function = option(function)
        command: click.Command = (group or acuity).command(epilog=f"\b\nExample:\n  {example}")(function)
        return command

    return decorate


def _check_device(_: click.Context, __: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise click.BadParameter(f'"{value}" is no device: "auto", "cpu", "cuda", or one GPU as "cuda:1"')
    return value


device_option = click.option(
    "--device", default="auto", show_default=True, callback=_check_device, help='"auto", "cpu", "cuda" or "cuda:1".'
)


@click.group(context_settings=_CONTEXT)
@click.version_option(package_name="acuity-hpo", prog_name="acuity")
def acuity() -> None:
    """Find the image resolution that each diagnosis needs."""

"""The command `acuity`: each command parses, makes one call and prints; the user's mistakes become one line."""

import logging
import os
import signal
import sys

import click

from study import commands_read, commands_run, commands_storage  # noqa: F401  (importing them registers their commands)
from study.command import acuity


def main() -> None:
    """Run a command; the user's mistakes become one line on stderr and exit status 1."""
    if os.getpid() == 1:  # of a container: the kernel drops a SIGTERM that process 1 has not asked for
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    verbose = bool({"-v", "--verbose"} & set(sys.argv))
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        acuity.main(prog_name="acuity")
    except Exception as error:
        if verbose or not _is_users(error):
            raise
        click.echo(f"acuity: {error}", err=True)
        sys.exit(1)


def _is_users(error: Exception) -> bool:
    """Whether this is a mistake that the message itself explains."""
    from objectives.errors import InputError
    from storage.errors import StorageError
    from study.errors import UsageError

    return isinstance(error, InputError | StorageError | UsageError)

"""The command `acuity`: it runs one command, and prints a mistake of the user as one line."""

import logging
import os
import signal
import sys

import click

from acuity.study.cli import read as commands_read  # noqa: F401  (importing them registers their commands)
from acuity.study.cli.options import CommonOptions, acuity


def main() -> None:
    """Run a command; a mistake of the user becomes one line on stderr and exit status 1."""
    if os.getpid() == 1:  # of a container: the kernel drops a SIGTERM for which process 1 has no handler
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    options = CommonOptions()
    try:
        acuity.main(prog_name="acuity", obj=options)
    except Exception as error:
        if options.verbose or not _is_users(error):
            raise
        click.echo(f"acuity: {error}", err=True)
        sys.exit(1)


def _is_users(error: Exception) -> bool:
    """Whether this is a mistake of the user, which the message explains."""
    from acuity.objectives.errors import InputError
    from acuity.storage.errors import StorageError
    from acuity.study.errors import UsageError

    return isinstance(error, InputError | StorageError | UsageError)

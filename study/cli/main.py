"""Run one command of `acuity`, and print a user's mistake as one line."""

import logging
import os
import signal
import sys

import click

from acuity.study.cli import read, run, storage  # noqa: F401  (their import registers their commands)
from acuity.study.cli.options import CommonOptions, acuity


def main() -> None:
    """Run a command. A user's mistake is one line on stderr and exit status 1."""
    if os.getpid() == 1:  # of a container; the kernel drops SIGTERM unless process 1 has a handler for it
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    options = CommonOptions()
    try:
        acuity.main(prog_name="acuity", obj=options)
    except Exception as error:
        if options.verbose or not is_user_error(error):
            raise
        click.echo(f"acuity: {error}", err=True)
        sys.exit(1)


def is_user_error(error: Exception) -> bool:
    """Whether the error is a mistake of the user. Its message then names the value, the rule and the next step."""
    from acuity.objectives.errors import InputError
    from acuity.storage.errors import StorageError
    from acuity.study.errors import UsageError

    return isinstance(error, InputError | StorageError | UsageError)

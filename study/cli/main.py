"""Run one command of `acuity`, and print a user's mistake as one line."""

import atexit
import codecs
import contextlib
import io
import logging
import os
import signal
import sys
import threading

import click

from acuity.study.cli import read, run, storage  # noqa: F401  (their import registers their commands)
from acuity.study.cli.options import CommonOptions, acuity

_ASCII = {"–": "-", "—": "-", "−": "-", "±": "+-", "…": "...", "×": "x", "≥": ">=", "≤": "<=", "━": "=", "╸": "="}


def main() -> None:
    """Run a command. A user's mistake is one line on stderr and exit status 1."""
    if os.getpid() == 1:  # of a container; the kernel drops SIGTERM unless process 1 has a handler for it
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    _accept_every_text()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    options = CommonOptions()
    try:
        acuity.main(prog_name="acuity", obj=options)
    except SystemExit as error:
        _exit(error.code)
    except Exception as error:
        if options.verbose or not is_user_error(error):
            raise
        click.echo(f"acuity: {error}", err=True)
        _exit(1)


def _exit(status: str | int | None) -> None:
    """End the process without taking PyTorch's modules apart, which took 10 s on a busy host.

    A worker has ten seconds from SIGTERM to its end. Functions registered with atexit run as usual.
    """
    others = [each for each in threading.enumerate() if not each.daemon and each is not threading.main_thread()]
    if "torch" not in sys.modules or others or isinstance(status, str):
        sys.exit(status)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a pipe whose reader has gone, a closed stream
            stream.flush()
    os._exit(status or 0)


def _accept_every_text() -> None:
    """Print on a terminal or a file of few characters (ASCII, Latin-1) too, with other characters where one is missing.

    A result must not be lost after hours of training because its "±" cannot be written.
    """
    codecs.register_error("acuity", _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="acuity")


def _replace(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    shown = "".join(_ASCII.get(each, each.encode("ascii", "backslashreplace").decode()) for each in missing)
    return shown, error.end


def is_user_error(error: Exception) -> bool:
    """Whether the error is a mistake of the user. Its message then names the value, the rule and the next step."""
    from acuity.objectives.errors import InputError
    from acuity.storage.errors import StorageError
    from acuity.study.errors import UsageError

    return isinstance(error, InputError | StorageError | UsageError)

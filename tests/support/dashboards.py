"""A running dashboard."""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from support.commands import ACUITY


@contextmanager
def running_dashboard(*arguments: str, environment: Mapping[str, str]) -> Iterator[str]:
    """Run `acuity dashboard` on a free port; yields the line that it prints first, which begins with its address."""
    command = [*ACUITY, "dashboard", "--port", "0", *arguments]
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        yield server.stderr.readline()
    finally:
        server.terminate()
        server.wait(timeout=10)
        server.stderr.close()

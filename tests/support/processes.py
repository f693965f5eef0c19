"""Processes of this host, found in /proc."""

import contextlib
from collections.abc import Callable
from pathlib import Path


def find_processes(matches: Callable[[Path], bool]) -> list[int]:
    """Ids of the processes whose folder in /proc matches. Processes that end during the search are left out."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if matches(folder):
                found.append(int(folder.name))
    return found

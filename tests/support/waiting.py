"""Wait for a condition."""

import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], object], seconds: float = 60, *, report: Callable[[], str] | None = None
) -> None:
    """Wait until the condition is true; AssertionError after the given seconds.

    report: the end of the error's message.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time" + (f":\n{report()}" if report else "")
        time.sleep(0.05)

"""A signal that comes at the worst moment."""

import subprocess
import sys

_TOLD_INSIDE_WAIT = """
import os, signal, time
from acuity.study.fleet.signals import stop_signals
with stop_signals() as stop:
    with stop._cond:  # as Event.wait holds it for a moment
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    assert stop.wait(5)
print("left")
"""


def test_a_signal_that_interrupts_a_wait_is_heard() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TOLD_INSIDE_WAIT], capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr

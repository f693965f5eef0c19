"""SIGTERM during a wait for the stop event."""

import subprocess
import sys

_SIGNAL_DURING_WAIT = """
import os, signal, time
from acuity.study.fleet.signals import stop_signals
with stop_signals() as stop:
    with stop._cond:  # Event.wait holds this lock for a moment
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    assert stop.wait(60)
print("left")
"""


def test_signal_that_interrupts_a_wait_sets_the_event() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SIGNAL_DURING_WAIT], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr

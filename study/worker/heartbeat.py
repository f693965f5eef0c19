"""Record the heartbeat of a running trial in a thread, also after outages of the database."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from acuity.storage.connection import OUTAGES
from acuity.storage.database import Database
from acuity.storage.trials import record_heartbeat

logger = logging.getLogger(__name__)


class DatabaseContact:
    """Measures for how long this process has reached the database without a break.

    longest_gap_s: time without a call after which the contact counts as broken: a process that was stopped (SIGSTOP)
    sees no error.
    """

    def __init__(self, *, longest_gap_s: float) -> None:
        self._longest_gap_s = longest_gap_s
        self._since = self._last = time.monotonic()
        self._lock = threading.Lock()

    def seen(self) -> None:
        """Record a call that succeeded."""
        with self._lock:
            now = time.monotonic()
            if now - self._last > self._longest_gap_s:
                self._since = now
            self._last = now

    def lost(self) -> None:
        """Record a call that failed, and measure from zero: other workers need time for a new heartbeat too."""
        with self._lock:
            self._since = self._last = time.monotonic()

    def unbroken_s(self) -> float:
        """Time from the first to the last successful call without a break."""
        with self._lock:
            return self._last - self._since


@contextmanager
def record_heartbeats(
    database: Database, trial_id: int, *, interval_s: float, contact: DatabaseContact
) -> Iterator[None]:
    """Record a heartbeat for the trial every interval_s while the block runs; an outage does not end this."""
    done = threading.Event()

    def record() -> None:
        pause_s = interval_s
        while not done.wait(pause_s):
            # A report carries a heartbeat too.
            pause_s = interval_s - database.storage.heartbeat_age_s(trial_id)
            if pause_s > 0:
                continue
            pause_s = interval_s
            try:
                record_heartbeat(database, trial_id)
                contact.seen()
            except OUTAGES as error:
                contact.lost()
                logger.warning("no heartbeat recorded (%s); the next one follows as usual", type(error).__name__)

    thread = threading.Thread(target=record, name=f"heartbeat of trial {trial_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()

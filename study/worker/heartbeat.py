"""The heartbeat of a running trial, recorded by a thread that survives outages of the database."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from acuity.storage.connection import OUTAGES
from acuity.storage.database import Database

logger = logging.getLogger(__name__)


class DatabaseContact:
    """How long this process has reached the database without a break.

    longest_gap_s: time without a call after which the contact counts as broken. A process that was stopped (SIGSTOP)
    sees no error.
    """

    def __init__(self, *, longest_gap_s: float) -> None:
        self._longest_gap_s = longest_gap_s
        self._since = self._last = time.monotonic()
        self._lock = threading.Lock()

    def seen(self) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._last > self._longest_gap_s:
                self._since = now
            self._last = now

    def lost(self) -> None:
        """Start again from zero: other workers lost the database too, and need time for a new heartbeat."""
        with self._lock:
            self._since = self._last = time.monotonic()

    def unbroken_s(self) -> float:
        with self._lock:
            return self._last - self._since


@contextmanager
def beating(database: Database, trial_id: int, *, interval_s: float, contact: DatabaseContact) -> Iterator[None]:
    """Record a heartbeat for the trial every interval_s while the block runs; an outage does not end it."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(interval_s):
            try:
                database.heartbeats.record_heartbeat(trial_id)
                contact.seen()
            except OUTAGES as error:
                contact.lost()
                logger.warning("no heartbeat recorded (%s); the next one is tried as usual", type(error).__name__)

    thread = threading.Thread(target=beat, name=f"heartbeat of trial {trial_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()

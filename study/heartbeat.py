"""A running trial's sign of life, kept up by a thread of its own that no outage of the database ends."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from storage.database import OUTAGES, Database

logger = logging.getLogger(__name__)


class Contact:
    """How long this process has been in unbroken touch with the database.

    longest_gap_s: silence after which touch counts as broken: a process that was stopped (SIGSTOP) has seen no error.
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
        """Start anew: others were cut off with us, and need the time to show that they live."""
        with self._lock:
            self._since = self._last = time.monotonic()

    def unbroken_s(self) -> float:
        with self._lock:
            return self._last - self._since


@contextmanager
def beating(database: Database, trial_id: int, *, interval_s: float, contact: Contact) -> Iterator[None]:
    """Record a heartbeat for the trial every interval_s while the block runs; outages are waited out."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(interval_s):
            try:
                database.heartbeats.record_heartbeat(trial_id)
                contact.seen()
            except OUTAGES as error:
                contact.lost()
                logger.warning("no heartbeat recorded, trying on: %s", type(error).__name__)

    thread = threading.Thread(target=beat, name=f"heartbeat of trial {trial_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()

"""Send runs to a tracker in a thread, so that a tracker that is slow, away or refuses never costs a trial."""

import logging
import queue
import threading
import time
from collections.abc import Callable

from acuity.objectives.errors import first_line
from acuity.study.tracking.interface import Tracker

logger = logging.getLogger(__name__)
_LONGEST_QUEUE = 1000
_PAUSE_S = 60.0
"""After a failure no run is begun for so long."""
Call = Callable[[Tracker], None]


class Sender:
    """A thread with a bounded queue of calls of one tracker.

    A run whose call fails, or does not fit the queue, loses its later calls; a later run is tried again. The log gets
    one warning in the process.
    """

    def __init__(self, name: str, open_tracker: Callable[[], Tracker]) -> None:
        """name: for the warning, such as "MLflow at http://host:5000". open_tracker is called in the thread."""
        self._name = name
        self._open = open_tracker
        self._queue: queue.Queue[tuple[Call, bool] | None] = queue.Queue(_LONGEST_QUEUE)
        self._lost = False  # the open run has lost a call
        self._has_warned = False
        self._thread = threading.Thread(target=self._send, name=name, daemon=True)
        self._thread.start()

    def put(self, call: Call, *, begins: bool = False) -> None:
        """Queue a call; returns at once. begins: the call begins a run."""
        if self._lost and not begins:
            return
        try:
            self._queue.put_nowait((call, begins))
            self._lost = False
        except queue.Full:
            self._lost = True
            self._warn(f"{_LONGEST_QUEUE} reports wait for it")

    def close(self, *, timeout_s: float) -> None:
        """Wait until all calls are made, for up to timeout_s."""
        until = time.monotonic() + timeout_s
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._warn(f"it has not answered for {timeout_s:g} s at the end of the process")

    def _send(self) -> None:
        tracker: Tracker | None = None
        skip, away_until = False, 0.0
        while (item := self._queue.get()) is not None:
            call, begins = item
            if begins:
                skip = time.monotonic() < away_until
            if skip:
                continue
            try:
                tracker = tracker or self._open()
                call(tracker)
            except Exception as error:  # clients raise errors of many types, and no trial depends on them
                skip, away_until = True, time.monotonic() + _PAUSE_S
                self._warn(f"{type(error).__name__}: {first_line(error)}")

    def _warn(self, why: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning("%s does not take the runs (%s); the trials continue without it", self._name, why)

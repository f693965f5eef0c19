"""How a worker is told to stop (SIGTERM, Ctrl-C), and how it leaves in time whatever it is waiting for."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

_LEAVE_S = 8.0
"""After SIGTERM; docker kills after ten seconds."""


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM (preemption, docker stop, Slurm's time limit) and Ctrl-C set.

    Python runs no handler before a call of libpq or CUDA returns, and whoever sent the signal will not wait: a thread
    that the signal itself wakes ends the process in time. The trial's checkpoint and its silence tell the others. That
    thread alone sets the event: a handler that did would wait for ever for the lock of a wait() that it interrupts.
    """
    stop = threading.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    earlier = [signal.signal(number, _leave_it_to_the_thread) for number in signals]
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    earlier_wake = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_leave_in_time, args=(woken, stop), name="leave in time", daemon=True).start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(earlier_wake)
        wake.close()
        for number, handler in zip(signals, earlier, strict=True):
            signal.signal(number, handler)


def _leave_it_to_the_thread(*_: object) -> None:
    """Python wakes the thread only for signals that have a handler."""


def _leave_in_time(woken: socket.socket, stop: threading.Event) -> None:
    with woken:
        if not woken.recv(1):
            return  # the block has ended
        stop.set()
        woken.settimeout(_LEAVE_S)
        try:
            while woken.recv(1):
                pass
        except TimeoutError:
            logger.warning("told to stop, and something has not returned for %.0f s: left where it is", _LEAVE_S)
            os._exit(0)

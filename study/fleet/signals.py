"""Stop a worker on SIGTERM or Ctrl-C within a few seconds, even while a call does not return."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)
_EXIT_S = 8.0
"""How long a worker may run after SIGTERM. Docker kills it after ten seconds."""


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM (preemption, docker stop, Slurm's time limit) and Ctrl-C set.

    Python runs a handler only after a call of libpq or CUDA has returned, which may be too late. The signal therefore
    wakes a thread, and the thread ends the process in time. Other workers notice the missing heartbeat and resume the
    trial from its checkpoint. Only the thread sets the event: a handler that interrupts a wait() would deadlock on the
    lock of the event.
    """
    stop = threading.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    earlier = [signal.signal(number, _do_nothing) for number in signals]
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    earlier_wake = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_exit_in_time, args=(woken, stop), name="exit in time", daemon=True).start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(earlier_wake)
        wake.close()
        for number, handler in zip(signals, earlier, strict=True):
            signal.signal(number, handler)


def _do_nothing(*_: object) -> None:
    """Python wakes the thread only for signals that have a handler."""


def _exit_in_time(woken: socket.socket, stop: threading.Event) -> None:
    with woken:
        if not woken.recv(1):
            return  # the block has ended
        stop.set()
        woken.settimeout(_EXIT_S)
        try:
            while woken.recv(1):
                pass
        except TimeoutError:
            logger.warning("a call has not returned %.0f s after the signal to stop, so the process ends", _EXIT_S)
            os._exit(0)

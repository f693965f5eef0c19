"""A running dashboard, as a command or in this process."""

import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from acuity.study.dashboard.listener import LimitedServer
from acuity.study.dashboard.middleware import Wsgi
from support.commands import ACUITY


@contextmanager
def running_dashboard(*arguments: str, environment: Mapping[str, str]) -> Iterator[str]:
    """Run `acuity dashboard` on a free port; yields the line that it prints first, which begins with its address."""
    command = [*ACUITY, "dashboard", "--port", "0", *arguments]
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        yield server.stderr.readline()
    finally:
        server.terminate()
        server.wait(timeout=60)
        server.stderr.close()


@contextmanager
def served(app: Wsgi, *, writable: bool = False) -> Iterator[int]:
    """Serve a WSGI application with the dashboard's web server; yields its port."""
    server = LimitedServer(app, host="127.0.0.1", port=0, writable=writable)
    stopped = threading.Event()

    def run() -> None:
        # The thread that polls also closes the sockets, so it never writes to a closed socket.
        while not stopped.is_set():
            server.serve_once(0.05)
        server.task_dispatcher.shutdown()
        server.asyncore.close_all(server._map)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield int(server.effective_port)
    finally:
        stopped.set()
        thread.join(timeout=60)
        assert not thread.is_alive()

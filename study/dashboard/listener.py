"""The dashboard's web server. Its limits hold before a request is complete, and so before the password is checked."""

import ipaddress
import socket
import time
from typing import Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher

from acuity.study.dashboard.middleware import Wsgi

_CONNECTIONS = 256
_CONNECTIONS_PER_ADDRESS = 64
"""A browser opens 6 to a server. Readers behind one proxy share its address."""
_REQUEST_S = 10.0
"""Longest time from a request's first byte to its last, and from a connection to its first byte."""
_IDLE_S = 60.0
"""Longest time between two requests on a connection."""
_RESPONSE_S = 60.0
"""Longest time in which a client reads no byte of a response."""
_BODY_BYTES = 64 * 1024
_WRITABLE_BODY_BYTES = 1024 * 1024
"""With --writable a request may hold the note of a study."""
_HEADER_BYTES = 32 * 1024
_POLL_S = 1.0


class _Connection(HTTPChannel):  # type: ignore[misc]  # waitress has no types
    """A connection that knows for how long it has waited for the rest of a request."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.waits_since: float | None = time.monotonic()
        self.active_at = time.monotonic()
        super().__init__(*arguments, **options)

    def received(self, data: bytes) -> bool:
        """Note the time of a request's first byte, and forget it after the last."""
        self.active_at = time.monotonic()
        if self.request is None and not self.requests:
            self.waits_since = self.active_at
        result: bool = super().received(data)
        if self.request is None:
            self.waits_since = None
        return result

    def send(self, data: bytes, do_close: bool = True) -> int:
        """Note the time at which the client's side took some bytes."""
        sent: int = super().send(data, do_close=do_close)
        if sent:
            self.active_at = time.monotonic()
        return sent

    def service(self) -> None:
        """Run a request. The wait for the next one begins at its end."""
        super().service()
        self.active_at = time.monotonic()

    def is_overdue(self) -> bool:
        """Whether the client has been too slow with a request or with reading a response, or has been idle."""
        now = time.monotonic()
        if self.total_outbufs_len:
            return now - self.active_at > _RESPONSE_S
        if self.requests:
            return False
        if self.waits_since is not None:
            return now - self.waits_since > _REQUEST_S
        return now - self.active_at > _IDLE_S


class LimitedServer(TcpWSGIServer):  # type: ignore[misc]  # waitress has no types
    """Serves a WSGI application with limits on connections, on each address, on bodies and on the time of a request.

    A connection beyond a limit replaces the one that has waited longest without a running request, so that slow clients
    keep nobody out.
    """

    channel_class = _Connection

    def __init__(self, app: Wsgi, *, host: str, port: int, writable: bool) -> None:
        adjustments = Adjustments(
            host=host,
            port=port,
            threads=8,
            ident="acuity",
            connection_limit=4 * _CONNECTIONS,  # the limit here holds earlier
            backlog=_CONNECTIONS,
            max_request_body_size=_WRITABLE_BODY_BYTES if writable else _BODY_BYTES,
            max_request_header_size=_HEADER_BYTES,
        )
        [listen] = adjustments.listen
        threads = ThreadedTaskDispatcher()
        super().__init__(app, map={}, dispatcher=threads, adj=adjustments, sockinfo=listen)
        threads.set_thread_count(adjustments.threads)

    def run(self) -> None:
        """Serve until interrupted."""
        try:
            while self._map:
                self.serve_once(_POLL_S)
        except (SystemExit, KeyboardInterrupt):
            self.task_dispatcher.shutdown()

    def serve_once(self, timeout_s: float) -> None:
        """Wait for at most timeout_s for clients, serve them, then close overdue connections."""
        wasyncore.loop(timeout=timeout_s, use_poll=True, map=self._map, count=1)  # select() fails at 1,024 open files
        for connection in list(self.active_channels.values()):
            if connection.is_overdue():
                connection.handle_close()

    def maintenance(self, now: float) -> None:
        """Nothing: serve_once closes overdue connections."""

    def accept(self) -> "tuple[socket.socket, Any] | None":
        """Accept a connection; beyond a limit, close the one that has waited longest, else the new one."""
        accepted: tuple[socket.socket, Any] | None = super().accept()
        if accepted is None:
            return None
        everyone = list(self.active_channels.values())
        neighbours = [each for each in everyone if _network(each.addr[0]) == _network(accepted[1][0])]
        for connections, most in ((neighbours, _CONNECTIONS_PER_ADDRESS), (everyone, _CONNECTIONS)):
            if len(connections) < most:
                continue
            waiting = [each for each in connections if not each.requests and not each.total_outbufs_len]
            if not waiting:
                accepted[0].close()
                return None
            min(waiting, key=lambda each: each.active_at).handle_close()
        return accepted


def _network(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Network:
    """What one client can choose its address from: an IPv4 address, or a /64 of IPv6."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv4Address):
        return parsed
    return ipaddress.IPv6Network((parsed, 64), strict=False)

"""`acuity dashboard`: serve the overview and optuna-dashboard on the storage, by default read-only and for this host.

With --host it also serves other hosts and requires a password.
"""

import ipaddress
import os
import platform
import socket
from collections.abc import Callable

from optuna_dashboard import wsgi

from acuity.storage.database import Database
from acuity.storage.passwords import read_password
from acuity.study.dashboard.listener import LimitedServer
from acuity.study.dashboard.middleware import USER, guard
from acuity.study.dashboard.overview import with_overview
from acuity.study.dashboard.studies_page import adapt_studies_page
from acuity.study.errors import UsageError

_VARIABLE = "ACUITY_DASHBOARD_PASSWORD"
_SHORTEST_PASSWORD = 20
"""In characters. The dashboard does not limit guesses: 20 random hexadecimal digits (80 bits) resist any rate."""


def serve_dashboard(
    database: Database, *, port: int, writable: bool, announce: Callable[[str], None], host: str = "127.0.0.1"
) -> None:
    """Serve the dashboard until interrupted. announce: called with the address once the server listens.

    UsageError where the port is in use, the password is too short, or other hosts can connect without a password.
    """
    address = _resolve(host, port)
    password = _read_password(host, required=not address.is_loopback)
    studies = adapt_studies_page(wsgi(database.storage), writable=writable)
    app = guard(with_overview(studies, database), writable=writable, password=password)
    try:
        server = LimitedServer(app, host=str(address), port=port, writable=writable)
    except OSError as error:
        raise UsageError(
            f"port {port} on {host} cannot be used ({error.strerror}); name a free one with --port, or --port 0 for any"
        ) from None
    login = f" (user {USER}, password as set)" if password else ""
    announce(f"http://{_shown(address)}:{server.effective_port}{login}")
    try:
        server.run()
    finally:
        server.close()


def _read_password(host: str, *, required: bool) -> str | None:
    password = read_password(os.environ, _VARIABLE)
    if password is None and required:
        raise UsageError(
            f"--host {host} admits other hosts, so this dashboard needs a password: set {_VARIABLE}, or "
            f"{_VARIABLE}_FILE to a file that has it (the user is {USER}). Or omit --host to serve only this host"
        )
    if password is not None and len(password) < _SHORTEST_PASSWORD:
        raise UsageError(
            f"{_VARIABLE} has {len(password)} characters, must have at least {_SHORTEST_PASSWORD}, since guesses are "
            "not limited: make one with `openssl rand -hex 24`"
        )
    return password


def _resolve(host: str, port: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address to listen on; the IPv4 address where a host name has both."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise UsageError(
            f"--host {host}: no host of that name is known; name an address of this host, 127.0.0.1 for this host only "
            "or 0.0.0.0 for all hosts"
        ) from None
    chosen = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return ipaddress.ip_address(chosen[4][0])


def _shown(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """The host of the printed URL."""
    if address.is_unspecified:
        return platform.node() or str(address)
    return f"[{address}]" if address.version == 6 else str(address)

"""optuna-dashboard on the experiment's own storage: cached, read-only unless told otherwise, for this host alone.

For other hosts too with --host, and then never without a password.
"""

import ipaddress
import os
import platform
import socket
from collections.abc import Callable

import waitress
from optuna_dashboard import wsgi

from storage.database import Database
from storage.passwords import read_password
from study.dashboard_guesses import Guesses
from study.dashboard_headers import safe_headers
from study.dashboard_password import USER, VARIABLE, Wsgi, ask_password
from study.dashboard_requests import loopback_names_only, own_pages_only, read_only
from study.errors import UsageError


def serve_dashboard(
    database: Database, *, port: int, writable: bool, announce: Callable[[str], None], host: str = "127.0.0.1"
) -> None:
    """Serve until interrupted. announce is called with the address once it can be opened.

    UsageError where others could reach it and no password is set.
    """
    address, password = _resolve(host, port), read_password(os.environ, VARIABLE)
    if password is None and not address.is_loopback:
        raise UsageError(
            f"--host {host} lets other hosts in, so this dashboard needs a password: set {VARIABLE}, or "
            f"{VARIABLE}_FILE to a file that holds it (the user is {USER}); or leave --host out, for this host alone"
        )
    app = guard(wsgi(database.storage), writable=writable, password=password)
    try:
        server = waitress.create_server(app, host=str(address), port=port, threads=8, ident="acuity")
    except OSError as error:
        raise UsageError(
            f"port {port} on {host} cannot be used ({error.strerror}); name a free one with --port, or --port 0 for any"
        ) from None
    asks = f" (user {USER}, password as set)" if password else ""
    announce(f"http://{_shown(address)}:{server.effective_port}/dashboard{asks}")
    try:
        server.run()
    finally:
        server.close()


def guard(app: Wsgi, *, writable: bool, password: str | None) -> Wsgi:
    """Put everything between a request and optuna-dashboard that it has nothing of itself."""
    app = own_pages_only(app) if writable else read_only(app)
    app = ask_password(app, password, guesses=Guesses()) if password else loopback_names_only(app)
    return safe_headers(app)


def _resolve(host: str, port: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The one address to listen on: of a name that has several the IPv4 one."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise UsageError(
            f"--host {host}: no host of that name is known; name an address of this host, 127.0.0.1 for itself alone "
            "or 0.0.0.0 for everybody"
        ) from None
    chosen = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return ipaddress.ip_address(chosen[4][0])


def _shown(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if address.is_unspecified:
        return platform.node() or str(address)
    return f"[{address}]" if address.version == 6 else str(address)

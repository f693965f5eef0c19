"""The dashboard's password, asked for with each request (HTTP basic)."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Iterable
from typing import Any

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

USER = "acuity"
VARIABLE = "ACUITY_DASHBOARD_PASSWORD"


def ask_password(app: Wsgi, password: str) -> Wsgi:
    """Let only requests through that bring the user's name and this password."""
    wanted = _digest(f"{USER}:{password}".encode())

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # Digests, so that the comparison takes as long for every length too.
        if hmac.compare_digest(_digest(_credentials(environ.get("HTTP_AUTHORIZATION", ""))), wanted):
            return app(environ, start_response)
        message = f'{{"reason": "This dashboard asks for its password; the user is {USER}."}}'.encode()
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(message))),
            ("WWW-Authenticate", f'Basic realm="Acuity dashboard (user {USER})", charset="UTF-8"'),
        ]
        start_response("401 Unauthorized", headers)
        return [message]

    return guarded


def _credentials(header: str) -> bytes:
    """`user:password` of a basic Authorization header, b"" of any other."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _digest(credentials: bytes) -> bytes:
    return hashlib.sha256(credentials).digest()

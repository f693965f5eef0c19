"""The dashboard's password, asked for with each request (HTTP basic)."""

import base64
import binascii
import hashlib
import hmac
import math
from collections.abc import Callable, Iterable
from typing import Any

from study.dashboard_guesses import Guesses

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

USER = "acuity"
VARIABLE = "ACUITY_DASHBOARD_PASSWORD"


def ask_password(app: Wsgi, password: str, *, guesses: Guesses) -> Wsgi:
    """Let only requests through that bring the user's name and this password, and few guesses at it."""
    wanted = _digest(f"{USER}:{password}".encode())

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        given = environ.get("HTTP_AUTHORIZATION")
        if given is not None:
            # Digests, so that the comparison takes as long for every length too.
            right = hmac.compare_digest(_digest(_credentials(given)), wanted)
            wait_s = math.ceil(guesses.wait_s(environ["REMOTE_ADDR"], right=right))
            if wait_s:
                reason = f"Too many wrong passwords from this address: none counts for {wait_s} s."
                return _refuse(start_response, "429 Too Many Requests", reason, ("Retry-After", str(wait_s)))
            if right:
                return app(environ, start_response)
        reason = f"This dashboard asks for its password; the user is {USER}."
        challenge = f'Basic realm="Acuity dashboard (user {USER})", charset="UTF-8"'
        return _refuse(start_response, "401 Unauthorized", reason, ("WWW-Authenticate", challenge))

    return guarded


def _refuse(start_response: Callable[..., Any], status: str, reason: str, header: tuple[str, str]) -> list[bytes]:
    message = f'{{"reason": "{reason}"}}'.encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(message))), header])
    return [message]


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

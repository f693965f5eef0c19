"""The dashboard's password: where it comes from, and asking each request for it (HTTP basic)."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from study.errors import UsageError

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

USER = "acuity"
VARIABLE = "ACUITY_DASHBOARD_PASSWORD"
FILE_VARIABLE = f"{VARIABLE}_FILE"


def read_password(environment: Mapping[str, str]) -> str | None:
    """The password in the environment, or in the file that it names, as containers get secrets; None without one."""
    if VARIABLE in environment:
        return _not_empty(
            environment[VARIABLE], f"{VARIABLE} is empty: set it to the dashboard's password, or unset it"
        )
    if FILE_VARIABLE not in environment:
        return None
    file = Path(environment[FILE_VARIABLE])
    try:
        password = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(
            f"{FILE_VARIABLE} names {file}, which cannot be read ({reason}): name a file whose one line is the password"
        ) from None
    return _not_empty(
        password.rstrip("\r\n"), f"{FILE_VARIABLE} names {file}, which is empty: write the dashboard's password into it"
    )


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


def _not_empty(password: str, reason: str) -> str:
    if not password:
        raise UsageError(reason)
    return password


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

"""WSGI middleware of the dashboard: password, permitted requests, security headers, repeated reading, compression."""

import base64
import binascii
import gzip
import hashlib
import hmac
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
USER = "acuity"
_READING = ("GET", "HEAD")
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_POLICY = "Content-Security-Policy"
_NO_FOREIGN_FRAMES = "frame-ancestors 'self'"
_TEXTS = ("application/json", "text/html", "text/css", "text/csv", "text/javascript", "application/javascript")
_GZIP_LEVEL = 3
_TRIALS_OF_A_STUDY = re.compile(r"/api/studies/\d+")
_LARGE_BYTES = 256 * 1024
_FRESH_S = 5.0
"""Age up to which a large answer is sent again."""
_PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp")


def guard(app: Wsgi, *, writable: bool, password: str | None) -> Wsgi:
    """Wrap optuna-dashboard, which has no access control. writable: permit changes from its own pages."""
    app = own_pages_only(app) if writable else read_only(app)
    app = compressed(read_again(app))
    app = app if writable else share_large(app)
    app = ask_password(app, password) if password else loopback_names_only(app)
    return safe_headers(app)


def read_again(app: Wsgi) -> Wsgi:
    """Repeat a reading request once that ends with an error of the server: a restart of Postgres cuts connections."""

    def answered(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in _READING:
            return app(environ, start_response)
        started: list[tuple[Any, ...]] = []
        body = app(environ, lambda *arguments: started.append(arguments))
        if started and str(started[0][0]).startswith("500"):
            close(body)
            return app(environ, start_response)
        start_response(*started[0])
        return body

    return answered


def compressed(app: Wsgi) -> Wsgi:
    """Compress texts for clients that accept gzip: the trials of a study of 10,000 are 26 MB of JSON."""

    def answered(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if "gzip" not in environ.get("HTTP_ACCEPT_ENCODING", "") or environ["REQUEST_METHOD"] != "GET":
            return app(environ, start_response)
        started: list[tuple[Any, ...]] = []
        body = app(environ, lambda *arguments: started.append(arguments))
        status, headers, *exception = started[0]
        given = {name.title(): value for name, value in headers}
        kind = given.get("Content-Type", "").partition(";")[0].strip().lower()
        if not str(status).startswith("200") or "Content-Encoding" in given or kind not in _TEXTS:
            start_response(status, headers, *exception)
            return body
        try:
            packed = gzip.compress(b"".join(body), compresslevel=_GZIP_LEVEL, mtime=0)
        finally:
            close(body)
        kept = [(name, value) for name, value in headers if name.title() not in ("Content-Length", "Etag")]
        added = [("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding"), ("Content-Length", str(len(packed)))]
        start_response(status, kept + added, *exception)
        return [packed]

    return answered


def share_large(app: Wsgi) -> Wsgi:
    """Compute a large answer with a study's trials once for all who ask for it at the same time, or 5 s later.

    An answer with 10,000 trials takes 3 s of processor time (benchmarks/speed/dashboard.py).
    """
    kept: dict[tuple[str, ...], tuple[float, tuple[Any, ...], list[bytes]]] = {}
    computing: WeakValueDictionary[tuple[str, ...], threading.Lock] = WeakValueDictionary()
    changing = threading.Lock()

    def answered(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if environ["REQUEST_METHOD"] != "GET" or not _TRIALS_OF_A_STUDY.fullmatch(path):
            return app(environ, start_response)
        key = (path, environ.get("QUERY_STRING", ""), environ.get("HTTP_ACCEPT_ENCODING", ""))
        with changing:
            alone = computing.setdefault(key, threading.Lock())
        with alone:
            with changing:
                for old in [other for other, (at, *_) in kept.items() if time.monotonic() - at > _FRESH_S]:
                    del kept[old]
                found = kept.get(key)
            if found is None:
                found = _complete_answer(app, environ)
                if str(found[1][0]).startswith("200") and sum(map(len, found[2])) >= _LARGE_BYTES:
                    with changing:
                        kept[key] = found
        _, begun, body = found
        start_response(*begun)
        return body

    return answered


def _complete_answer(app: Wsgi, environ: dict[str, Any]) -> tuple[float, tuple[Any, ...], list[bytes]]:
    """The time after the app's answer, what it starts the response with, and its whole body."""
    started: list[tuple[Any, ...]] = []
    body = app(environ, lambda *arguments: started.append(arguments))
    try:
        parts = list(body)
    finally:
        close(body)
    return time.monotonic(), started[0], parts


def close(body: Iterable[bytes]) -> None:
    """End an answer that is not passed on, as WSGI demands."""
    if hasattr(body, "close"):
        body.close()


def ask_password(app: Wsgi, password: str) -> Wsgi:
    """Accept only requests with the user and this password (HTTP basic authentication)."""
    expected = _digest(f"{USER}:{password}".encode())

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # Digests have a fixed length, so the time of the comparison does not reveal the password's length.
        if hmac.compare_digest(_digest(_credentials(environ.get("HTTP_AUTHORIZATION", ""))), expected):
            return app(environ, start_response)
        challenge = f'Basic realm="Acuity dashboard (user {USER})", charset="UTF-8"'
        reason = f"This dashboard needs a password; the user is {USER}."
        return _refuse(start_response, "401 Unauthorized", reason, ("WWW-Authenticate", challenge))

    return guarded


def read_only(app: Wsgi) -> Wsgi:
    """Accept only requests that change nothing: optuna-dashboard lets every visitor delete a study."""
    return _only(
        app,
        lambda environ: environ["REQUEST_METHOD"] in _READING,
        "This dashboard is read-only. `acuity dashboard --writable` allows changes.",
    )


def own_pages_only(app: Wsgi) -> Wsgi:
    """Refuse changes that another site's page requests: the browser adds this dashboard's password to them.

    Programs other than browsers send neither header and are accepted.
    """
    return _only(
        app,
        lambda environ: environ["REQUEST_METHOD"] in _READING or _is_from_own_page(environ),
        "Another site's page requested this change. Behind a proxy, forward the browser's Host header unchanged.",
    )


def loopback_names_only(app: Wsgi) -> Wsgi:
    """Refuse requests for other host names, against DNS rebinding: a foreign name may resolve to 127.0.0.1."""
    return _only(
        app,
        lambda environ: _host_and_port(f"//{environ.get('HTTP_HOST', 'localhost')}")[0] in _LOOPBACK_NAMES,
        "This dashboard accepts only the names localhost and 127.0.0.1. Set ACUITY_DASHBOARD_PASSWORD for other names.",
    )


def safe_headers(app: Wsgi) -> Wsgi:
    """Add security headers to every response. An artifact is sent as a download, never as a page."""

    def answered(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        is_artifact = environ.get("PATH_INFO", "").lstrip("/").startswith("artifacts/")

        def start(status: str, headers: list[tuple[str, str]], *exception: Any) -> Any:
            return start_response(status, _completed(headers, is_artifact=is_artifact), *exception)

        return app(environ, start)

    return answered


def _only(app: Wsgi, allowed: Callable[[dict[str, Any]], bool], reason: str) -> Wsgi:
    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        return app(environ, start_response) if allowed(environ) else _refuse(start_response, "403 Forbidden", reason)

    return guarded


def _refuse(start_response: Callable[..., Any], status: str, reason: str, *headers: tuple[str, str]) -> list[bytes]:
    message = f'{{"reason": "{reason}"}}'.encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(message))), *headers])
    return [message]


def _credentials(header: str) -> bytes:
    """`user:password` of a basic Authorization header; b"" for any other header."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _digest(credentials: bytes) -> bytes:
    return hashlib.sha256(credentials).digest()


def _is_from_own_page(environ: dict[str, Any]) -> bool:
    site = environ.get("HTTP_SEC_FETCH_SITE")  # browsers send it to https and loopback addresses
    if site is not None:
        return site in ("same-origin", "none")
    origin = environ.get("HTTP_ORIGIN")
    return origin is None or _host_and_port(origin) == _host_and_port(f"//{environ.get('HTTP_HOST', '')}")


def _host_and_port(address: str) -> tuple[str | None, int | None]:
    """Host and port of an origin, or of `//` and a Host header. A default port (80, 443) is returned as None."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return None, None
    return parts.hostname, None if port in (80, 443) else port


def _completed(headers: list[tuple[str, str]], *, is_artifact: bool) -> list[tuple[str, str]]:
    """The response headers with the security headers added."""
    given = {name.title(): value for name, value in headers}
    policies = [given[_POLICY]] if _POLICY in given else []
    added = _ALWAYS | {_POLICY: ";".join([*policies, _NO_FOREIGN_FRAMES])}
    if is_artifact:
        # The uploader of an artifact chose its type.
        kind = given.get("Content-Type", "").partition(";")[0].strip().lower()
        added |= {_POLICY: "sandbox;default-src 'none'", "Content-Disposition": "attachment"}
        if kind not in _PICTURES:
            added["Content-Type"] = "application/octet-stream"
    replaced = {name.title() for name in added} | ({"Access-Control-Allow-Origin"} if is_artifact else set())
    return [(name, value) for name, value in headers if name.title() not in replaced] + list(added.items())

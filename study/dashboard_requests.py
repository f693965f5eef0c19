"""Which requests the dashboard answers: what reads, what comes from its own pages, what names this host."""

from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from study.dashboard_password import Wsgi

_READING = ("GET", "HEAD")
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def read_only(app: Wsgi) -> Wsgi:
    """Let only requests through that change nothing: optuna-dashboard itself would delete a study for anyone."""
    return _only(
        app,
        lambda environ: environ["REQUEST_METHOD"] in _READING,
        "This dashboard is read-only. `acuity dashboard --writable` allows changes.",
    )


def own_pages_only(app: Wsgi) -> Wsgi:
    """Refuse changes that another site's page asks for: the browser would send this dashboard's password along.

    Programs that are no browser send neither header, and pass.
    """
    return _only(
        app,
        lambda environ: environ["REQUEST_METHOD"] in _READING or _is_from_own_page(environ),
        "Another site's page asked for this change. Behind a proxy, pass the Host header on as the browser sent it.",
    )


def loopback_names_only(app: Wsgi) -> Wsgi:
    """Refuse requests for another host's name: a page whose name is made to mean 127.0.0.1 could read everything."""
    return _only(
        app,
        lambda environ: _host_and_port(f"//{environ.get('HTTP_HOST', 'localhost')}")[0] in _LOOPBACK_NAMES,
        "This dashboard answers to localhost and 127.0.0.1 alone. With ACUITY_DASHBOARD_PASSWORD set, to every name.",
    )


def _only(app: Wsgi, allowed: Callable[[dict[str, Any]], bool], reason: str) -> Wsgi:
    message = f'{{"reason": "{reason}"}}'.encode()

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if allowed(environ):
            return app(environ, start_response)
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(message)))]
        start_response("403 Forbidden", headers)
        return [message]

    return guarded


def _is_from_own_page(environ: dict[str, Any]) -> bool:
    site = environ.get("HTTP_SEC_FETCH_SITE")  # what browsers say themselves, to https and to loopback
    if site is not None:
        return site in ("same-origin", "none")
    origin = environ.get("HTTP_ORIGIN")
    return origin is None or _host_and_port(origin) == _host_and_port(f"//{environ.get('HTTP_HOST', '')}")


def _host_and_port(address: str) -> tuple[str | None, int | None]:
    """Of an origin or of `//` and a Host header; the ports that a scheme implies count as none."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return None, None
    return parts.hostname, None if port in (80, 443) else port

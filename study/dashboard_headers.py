"""Headers that keep what the dashboard serves from being framed, guessed at, or run as a page."""

from collections.abc import Callable, Iterable
from typing import Any

from study.dashboard_password import Wsgi

_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_POLICY = "Content-Security-Policy"
_NO_FOREIGN_FRAMES = "frame-ancestors 'self'"
_PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp")


def safe_headers(app: Wsgi) -> Wsgi:
    """Add the headers to every answer; an artifact is sent as a file to keep, never as a page or to another origin."""

    def answered(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        is_artifact = environ.get("PATH_INFO", "").lstrip("/").startswith("artifacts/")

        def start(status: str, headers: list[tuple[str, str]], *exception: Any) -> Any:
            return start_response(status, _completed(headers, is_artifact=is_artifact), *exception)

        return app(environ, start)

    return answered


def _completed(headers: list[tuple[str, str]], *, is_artifact: bool) -> list[tuple[str, str]]:
    given = {name.title(): value for name, value in headers}
    policies = [given[_POLICY]] if _POLICY in given else []
    added = _ALWAYS | {_POLICY: ";".join([*policies, _NO_FOREIGN_FRAMES])}
    if is_artifact:
        # An artifact's type is whatever its uploader said.
        kind = given.get("Content-Type", "").partition(";")[0].strip().lower()
        added |= {_POLICY: "sandbox;default-src 'none'", "Content-Disposition": "attachment"}
        if kind not in _PICTURES:
            added["Content-Type"] = "application/octet-stream"
    replaced = {name.title() for name in added} | ({"Access-Control-Allow-Origin"} if is_artifact else set())
    return [(name, value) for name, value in headers if name.title() not in replaced] + list(added.items())

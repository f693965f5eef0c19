"""Changes to optuna-dashboard's page: a link to the overview, and no controls that a read-only server refuses."""

from collections.abc import Callable, Iterable
from typing import Any

from acuity.study.dashboard.middleware import Wsgi, close

_LINK = (
    '<a href="/" style="position:fixed;right:14px;bottom:12px;z-index:2000;padding:5px 12px;border-radius:14px;'
    'background:#0072B2;color:#fff;font:14px system-ui,sans-serif;text-decoration:none">Acuity overview</a>'
)
# Selectors of optuna-dashboard 0.21: a change of its page shows the controls again, and the server still refuses them.
_WRITING_CONTROLS = (
    'button[aria-label="rename study"]',
    'button[aria-label="delete study"]',
    'button[aria-label="delete artifact"]',
    'button[aria-label="skip trial"]',
    'button:has([data-testid="AddBoxIcon"])',
    'button:has([data-testid="EditIcon"])',
)
_NO_WRITING = f"<style>{','.join(_WRITING_CONTROLS)} {{ display: none !important; }}</style>"


def adapt_studies_page(app: Wsgi, *, writable: bool) -> Wsgi:
    """Add the link to every HTML page of the app. Hide the controls that change something, unless writable."""
    head = b"" if writable else _NO_WRITING.encode()

    def served(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        begun: list[tuple[str, list[tuple[str, str]]]] = []

        def start(status: str, headers: list[tuple[str, str]], *exception: Any) -> Any:
            if _is_html(headers) and environ["REQUEST_METHOD"] == "GET":
                begun.append((status, headers))
                return lambda _: None
            return start_response(status, headers, *exception)

        body = app(environ, start)
        if not begun:
            return body
        page = b"".join(body)
        close(body)
        page = page.replace(b"</head>", head + b"</head>", 1).replace(b"</body>", _LINK.encode() + b"</body>", 1)
        status, headers = begun[0]
        others = [(name, value) for name, value in headers if name.title() != "Content-Length"]
        start_response(status, [*others, ("Content-Length", str(len(page)))])
        return [page]

    return served


def _is_html(headers: list[tuple[str, str]]) -> bool:
    return any(name.title() == "Content-Type" and value.startswith("text/html") for name, value in headers)

"""optuna-dashboard on the experiment's own storage: cached, read-only unless told otherwise, on this host alone."""

from collections.abc import Callable, Iterable
from typing import Any

import waitress
from optuna_dashboard import wsgi

from storage.database import Database
from study.errors import UsageError

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def serve_dashboard(
    database: Database, *, port: int, writable: bool, announce: Callable[[str], None], host: str = "127.0.0.1"
) -> None:
    """Serve until interrupted. announce is called with the address once it can be opened."""
    app: Wsgi = wsgi(database.storage)
    if not writable:
        app = read_only(app)
    try:
        server = waitress.create_server(app, host=host, port=port, threads=8, ident="acuity")
    except OSError as error:
        raise UsageError(
            f"port {port} on {host} cannot be used ({error.strerror}); name a free one with --port, or --port 0 for any"
        ) from None
    announce(f"http://{host}:{server.effective_port}/dashboard")
    try:
        server.run()
    finally:
        server.close()


def read_only(app: Wsgi) -> Wsgi:
    """Let only requests through that change nothing: optuna-dashboard itself would delete a study for anyone."""

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return app(environ, start_response)
        message = b'{"reason": "This dashboard is read-only. `acuity dashboard --writable` allows changes."}'
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(message)))]
        start_response("403 Forbidden", headers)
        return [message]

    return guarded

"""Health check of a container: exit status 0 while the dashboard answers, or any other command can reach its Postgres.

A worker continues to train during an outage of Postgres. If it is unhealthy, check Postgres. Do not restart the worker.
"""

import http.client
import os
import sys
from pathlib import Path

TIMEOUT_S = 5


def is_healthy(command: list[str]) -> bool:
    """Check the dashboard or the storage. command: the command line of the container's process 1."""
    return dashboard_answers(_port(command)) if "dashboard" in command else storage_answers()


def dashboard_answers(port: int) -> bool:
    """Whether the dashboard responds without a server error. The request for a password counts as a response."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("HEAD", "/dashboard/")
        return connection.getresponse().status < 500
    except OSError:
        return False
    finally:
        connection.close()


def storage_answers() -> bool:
    """Whether the Postgres of ACUITY_STORAGE accepts a connection."""
    import psycopg2

    from acuity.storage.errors import StorageError
    from acuity.storage.url import parse_url

    try:
        url = parse_url(os.environ.get("ACUITY_STORAGE", "")).set(drivername="postgresql")
        address = url.render_as_string(hide_password=False)
        psycopg2.connect(address, connect_timeout=TIMEOUT_S, application_name="acuity health").close()
    except (StorageError, psycopg2.Error) as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return False
    return True


def _port(command: list[str]) -> int:
    return int(command[command.index("--port") + 1]) if "--port" in command else 8080


if __name__ == "__main__":
    sys.exit(not is_healthy(Path("/proc/1/cmdline").read_text().split("\0")))

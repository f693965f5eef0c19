"""Exit with 0 while this container's `acuity` can do its work: a dashboard answers, any other reaches its Postgres.

A worker whose Postgres is away trains on for a while, so "unhealthy" is a reason to look there, not to restart workers.
"""

import http.client
import os
import sys
from pathlib import Path

TIMEOUT_S = 5


def is_healthy(command: list[str]) -> bool:
    """command: the container's process 1."""
    return dashboard_answers(_port(command)) if "dashboard" in command else storage_answers()


def dashboard_answers(port: int) -> bool:
    """Whether a page comes; being asked for the password is an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("HEAD", "/dashboard/")
        return connection.getresponse().status < 500
    except OSError:
        return False
    finally:
        connection.close()


def storage_answers() -> bool:
    """Whether the Postgres of ACUITY_STORAGE lets us in."""
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

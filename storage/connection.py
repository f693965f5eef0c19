"""Connection settings for Postgres, and the classification of connection errors."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from optuna.exceptions import StorageInternalError
from psycopg2.errors import InsufficientPrivilege, UndefinedColumn, UndefinedTable
from sqlalchemy import URL, Connection, CreateEnginePlugin, Engine, Row, TextClause, event, text
from sqlalchemy.dialects import plugins
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from acuity.storage.errors import OutageError, StorageError
from acuity.storage.url import embedded_arguments, masked

OUTAGES: tuple[type[Exception], ...] = (OperationalError, InterfaceError, PoolTimeoutError, StorageInternalError)
"""A storage call raises these during an outage, and rarely for other reasons: see is_outage."""
_TRUSTED_S = 1.0
"""A connection that was used within this time is not checked."""
_unchecked: ContextVar[bool] = ContextVar("unchecked", default=False)
"""Whether the next connection is taken from the pool without a check."""
_READ_ONLY = "25006"
"""SQLSTATE of a write to a standby: after a failover a connection may still reach the old server."""
OPTUNAS_SCHEMA = "public"
"""Schema of Optuna's tables."""
_DEFAULTS: dict[str, Any] = {
    "application_name": "acuity",
    "connect_timeout": 10,
    "client_encoding": "utf8",  # a role may set another one, or $PGCLIENTENCODING
    # Detects within a minute that a server has vanished without closing the connection (cable, NAT entry).
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}

# A role, a database or a server may set these otherwise. In repeatable read a claim would count the trials as they were
# before it had the lock. With less than 1 extra digit JSON rounds numbers to 15 digits or fewer.
_SETTINGS_TO_PIN = text(
    """
    select concat(
        case when current_setting('default_transaction_isolation') <> 'read committed'
            then 'set transaction isolation level read committed; ' end,
        case when cast(current_setting('extra_float_digits') as integer) < 1
            then 'set local extra_float_digits = 1; ' end
    )
    """
)

_EXPLANATIONS = (
    (r"password authentication failed|no password supplied", "the server does not accept that user and password",
     "Put them into the URL (postgresql://user:password@host/database; @ is written %40), or the password into the "
     "file that ACUITY_STORAGE_PASSWORD_FILE names"),
    (r'database "[^"]*" does not exist', "there is no such database", "Make it (createdb), or name another one"),
    (r'role "[^"]*" does not exist', "there is no such user", "Make it (createuser), or name another one"),
    (r"is not permitted to log in", "this user cannot log in",
     "Give it a password: `acuity storage grant-reader` with ACUITY_READER_PASSWORD, run by the tables' owner"),
    (r"could not translate host name", "no host of that name is known", "Check the host in the URL"),
    (r"Connection refused|No such file or directory",
     "nothing listens there", "Start it (docker compose up -d postgres) or drop --storage for the embedded one"),
    (r"timeout expired|timed out|No route to host|Network is unreachable", "the host does not answer",
     "Check host, port and firewall"),
    (r"too many clients|remaining connection slots|too many connections", "the server has no connection left",
     "Raise its max_connections, start fewer workers, or put PgBouncer between"),
    (r"permission denied", "this user may not read Acuity's tables",
     "Name their owner, or let it run `acuity storage grant-reader` for this user"),
    (r"no pg_hba\.conf entry", "the server refuses connections from here", "Add this host and user to its pg_hba.conf"),
    (r"the database system is (starting up|shutting down|in recovery)", "the server is starting or stopping",
     "Try again in a moment"),
    (r"\bSSL\b|certificate", "the encrypted connection failed", "Check sslmode and its files in the URL"),
    (r"invalid (connection option|URI query parameter|dsn)", "the URL has an option that Postgres does not know",
     "Check what follows the ? in the URL"),
)  # fmt: skip

_PASSING = (
    r"Connection refused|No such file or directory|timeout expired|timed out|No route to host|Network is unreachable"
    r"|too many clients|remaining connection slots|too many connections|terminat|closed the connection|reset by peer"
    r"|the database system is|not currently accepting connections"
)
"""Errors that end once the server is back: a worker that fails by one of them is restarted."""


def connection_arguments(url: URL) -> dict[str, Any]:
    """Arguments of every connection; the query of the URL overrides them.

    None of them sets the session: PgBouncer in transaction mode gives each transaction another session, and refuses
    the argument `options`.
    """
    return {name: value for name, value in _DEFAULTS.items() if name not in url.query} | embedded_arguments(url)


def engine_arguments(url: URL) -> dict[str, Any]:
    """Arguments of Optuna's engine. Its statements name the schema public, so that no search path changes their tables.

    The pool is small, since a fleet has many workers and Postgres few connections. A worker keeps one connection. It
    opens another for a moment where a heartbeat meets another call, and where a claim takes up a waiting trial.
    """
    return {
        "pool_size": 1,
        "max_overflow": 14,
        "connect_args": connection_arguments(url),
        "plugins": ["acuity_public_search_path"],
        "execution_options": {"schema_translate_map": {None: OPTUNAS_SCHEMA}},
    }


@contextmanager
def autocommitted(engine: Engine) -> Iterator[Connection]:
    """A connection without a transaction, for statements that are complete in themselves: one round trip each.

    psycopg2's attribute changes no setting of the session. SQLAlchemy's isolation level "AUTOCOMMIT" does: it took two
    statements `set` a call, and PgBouncer would hand the session to another worker.
    """
    with engine.connect() as connection:
        driver: Any = connection.connection.dbapi_connection
        driver.autocommit = True
        try:
            yield connection
        finally:
            if not driver.closed:
                driver.autocommit = False


def execute_alone(engine: Engine, statement: TextClause, parameters: Mapping[str, Any]) -> Sequence[Row[Any]]:
    """Execute a statement that may be repeated, in one round trip, and return its rows.

    A connection that was idle is not checked before. Where it has died, the statement is repeated on another one.
    """
    try:
        _unchecked.set(True)
        with autocommitted(engine) as connection:
            return connection.execute(statement, parameters).all()
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
    finally:
        _unchecked.set(False)
    with autocommitted(engine) as connection:
        return connection.execute(statement, parameters).all()


def ping_after_idleness(engine: Engine) -> None:
    """Replace connections that died while idle. Connections that were just used are not checked.

    SQLAlchemy's pool_pre_ping checks at every checkout: 40 round trips per trial, a tenth of a trial's cost.
    """

    def returned(_: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        record.info["returned"] = time.monotonic()

    def taken(connection: DBAPIConnection, record: ConnectionPoolEntry, _: PoolProxiedConnection) -> None:
        if _unchecked.get() or time.monotonic() - record.info.get("returned", time.monotonic()) < _TRUSTED_S:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error:
            raise DisconnectionError from None  # the pool opens another one

    event.listen(engine, "checkin", returned)
    event.listen(engine, "checkout", taken)


class PublicSearchPath(CreateEnginePlugin):
    """Begins every transaction of an engine with the search path public, until `end_public_search_path`.

    Optuna's constructor looks along the search path for the table alembic_version.
    """

    def update_url(self, url: URL) -> URL:
        """Return the URL as it is."""
        return url

    def engine_created(self, engine: Engine) -> None:
        """Set the search path in the engine's transactions."""
        event.listen(engine, "begin", _set_search_path)


plugins.register("acuity_public_search_path", __name__, PublicSearchPath.__name__)


def end_public_search_path(engine: Engine) -> None:
    """Leave the search path as it is from now on. This saves a statement in each transaction."""
    event.remove(engine, "begin", _set_search_path)


def _set_search_path(connection: Connection) -> None:
    connection.exec_driver_sql(f"set local search_path = {OPTUNAS_SCHEMA}")


def settings_to_pin(connection: Connection) -> str:
    """SQL that gives one transaction the settings that Acuity needs; empty where they are the session's already."""
    return str(connection.scalars(_SETTINGS_TO_PIN).one())


def pin_settings(engine: Engine, settings: str) -> None:
    """Run SQL of settings_to_pin in each transaction of the engine, and in the message of each lone statement.

    Nothing is set for a session: behind PgBouncer the next transaction runs in another one.
    """
    if not settings:
        return

    def begun(connection: Connection) -> None:
        if not _is_autocommitted(connection):
            connection.exec_driver_sql(settings)

    def executed(connection: Connection, _: Any, statement: str, parameters: Any, *__: Any) -> tuple[str, Any]:
        # Postgres runs the statements of one message in one transaction.
        return (settings + statement if _is_autocommitted(connection) else statement), parameters

    event.listen(engine, "begin", begun)
    event.listen(engine, "before_cursor_execute", executed, retval=True)


def _is_autocommitted(connection: Connection) -> bool:
    driver: Any = connection.connection.dbapi_connection
    return bool(driver.autocommit)


def leave_read_only_servers(engine: Engine) -> None:
    """Drop the connections to a server that has become a standby: new connections reach the new primary."""

    def listen(context: ExceptionContext) -> None:
        if getattr(context.original_exception, "pgcode", None) == _READ_ONLY:
            context.is_disconnect = True

    event.listen(engine, "handle_error", listen)


def is_outage(error: BaseException | None) -> bool:
    """Whether the same call may succeed later: the server is down, restarting, failing over or out of connections."""
    if isinstance(error, StorageInternalError):
        return is_outage(error.__cause__)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    if isinstance(error, PendingRollbackError):  # Optuna has used a lost connection again
        return error.code == "8s2b"
    return isinstance(error, OperationalError | InterfaceError | PoolTimeoutError)


def is_denied(error: BaseException | None) -> bool:
    """Whether this user lacks the permission for a statement, as a reader does for every write."""
    if isinstance(error, StorageInternalError):
        return is_denied(error.__cause__)
    return isinstance(error, DBAPIError) and isinstance(error.orig, InsufficientPrivilege)


def is_missing(error: BaseException | None) -> bool:
    """Whether the statement names a table or a column that the database does not have."""
    if isinstance(error, StorageInternalError):
        return is_missing(error.__cause__)
    return isinstance(error, DBAPIError) and isinstance(error.orig, UndefinedTable | UndefinedColumn)


def is_read_only(error: BaseException | None) -> bool:
    """Whether the server, or the session of this role, is read-only."""
    if isinstance(error, StorageInternalError):
        return is_read_only(error.__cause__)
    return isinstance(error, DBAPIError) and getattr(error.orig, "pgcode", None) == _READ_ONLY


def explain(error: DBAPIError, url: URL) -> StorageError:
    """Explain a failed connection in one line: the URL without its password, the reason, the next step."""
    message = str(error.orig)
    kind = OutageError if re.search(_PASSING, message) else StorageError
    for pattern, reason, next_step in _EXPLANATIONS:
        if re.search(pattern, message):
            return kind(f"{masked(url)}: {reason} ({first_line(error)}). {next_step}")
    return kind(f"{masked(url)}: {first_line(error)}. Check the URL, and that the server runs")


def first_line(error: BaseException) -> str:
    """The first line of the database's message; the wrapping error of Optuna is skipped."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    shown = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return (str(shown).strip().splitlines() or [type(shown).__name__])[0]

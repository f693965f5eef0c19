"""Copy the embedded server's database to another server, then rename the source."""

from sqlalchemy import URL, Connection, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from acuity.storage.admin.copy import Copied, check_no_other_move, copy_all
from acuity.storage.connection import connection_arguments, first_line
from acuity.storage.database import Database, open_storage
from acuity.storage.errors import StorageError


def copy_embedded(target: Database, source: URL) -> list[Copied]:
    """Copy the embedded server's database into an empty one; StorageError while another process uses the source.

    The copy is one transaction. Where the target has all rows from an earlier attempt it is left as it is.
    """
    with open_storage(source.render_as_string(hide_password=False)):
        pass  # checks the version of the tables
    engine = create_engine(source, poolclass=NullPool, connect_args=connection_arguments(source))
    repeatable = engine.execution_options(isolation_level="REPEATABLE READ")
    try:
        with repeatable.begin() as reading, target.engine.begin() as writing:
            check_no_other_move(reading, writing)
            _check_unused(reading)
            if not reading.scalar(text("select exists (select from acuity.experiments)")):
                raise StorageError("the embedded server holds no experiment: there is nothing to move")
            return copy_all(reading, writing)
    finally:
        engine.dispose()


def rename_source(source: URL) -> str:
    """Rename the embedded server's database, so that no worker uses it any more; return the new name.

    StorageError where a process has opened the database meanwhile.
    """
    engine = create_engine(
        source.set(database="postgres"),
        poolclass=NullPool,
        connect_args=connection_arguments(source),
        isolation_level="AUTOCOMMIT",
    )
    try:
        with engine.connect() as connection:
            name: str = connection.scalars(text("select to_char(now(), '\"acuity_moved_\"YYYYMMDD_HH24MISS')")).one()
            connection.execute(text(f'alter database "{source.database}" rename to "{name}"'))
    except DBAPIError as error:
        raise StorageError(
            f"all is copied, but another process still uses the embedded server ({first_line(error)}): end that "
            "process, and run this again at once"
        ) from None
    finally:
        engine.dispose()
    return name


def _check_unused(connection: Connection) -> None:
    query = text(
        "select count(*) from pg_stat_activity "
        "where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()"
    )
    users = connection.scalars(query).one()
    if not users:
        return
    running = text("select experiment from acuity.all_trials where state = 'RUNNING' group by experiment order by 1")
    names = list(connection.scalars(running))
    next_step = (
        "; ".join(f"`acuity stop {name}`" for name in names) + " ends those of a launch"
        if names
        else "close dashboards, notebooks and every other command of Acuity"
    )
    runs = f", trials of {', '.join(names)} run" if names else ""
    raise StorageError(f"the embedded server is in use ({users} connections{runs}): {next_step}. Then run this again")

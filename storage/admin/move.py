"""From the embedded server to a real one: what is there is copied, and only then put aside."""

from sqlalchemy import URL, Connection, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from acuity.storage.admin.copy import Copied, check_apart, copy_all
from acuity.storage.connection import connection_arguments, first_line
from acuity.storage.database import Database, open_storage
from acuity.storage.errors import StorageError


def move_into(target: Database, source: URL) -> list[Copied]:
    """Copy the embedded server's database into an empty one; StorageError while anybody else uses the source.

    All or nothing, and nothing twice: where the target has it all from an earlier attempt, that is found out.
    """
    with open_storage(source.render_as_string(hide_password=False)):
        pass  # its tables are brought up to this program's version
    engine = create_engine(source, poolclass=NullPool, connect_args=connection_arguments(source))
    repeatable = engine.execution_options(isolation_level="REPEATABLE READ")
    try:
        with repeatable.begin() as reading, target.engine.begin() as writing:
            check_apart(reading, writing)
            _check_unused(reading)
            if not reading.scalar(text("select exists (select from acuity.experiments)")):
                raise StorageError("the embedded server holds no experiment: there is nothing to move")
            return copy_all(reading, writing)
    finally:
        engine.dispose()


def put_aside(source: URL) -> str:
    """Give the embedded server's database another name, which is returned: a second copy must not be worked on.

    StorageError where somebody has opened it meanwhile.
    """
    engine = create_engine(
        source.set(database="postgres"),
        poolclass=NullPool,
        connect_args=connection_arguments(source),
        isolation_level="AUTOCOMMIT",
    )
    try:
        with engine.connect() as connection:
            aside: str = connection.scalars(text("select to_char(now(), '\"acuity_moved_\"YYYYMMDD_HH24MISS')")).one()
            connection.execute(text(f'alter database "{source.database}" rename to "{aside}"'))
    except DBAPIError as error:
        raise StorageError(
            f"all is copied, but the embedded server still works on its own copy ({first_line(error)}): end what uses "
            "it, and run this again at once"
        ) from None
    finally:
        engine.dispose()
    return aside


def _check_unused(connection: Connection) -> None:
    query = text(
        "select count(*) from pg_stat_activity "
        "where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()"
    )
    users = connection.scalars(query).one()
    if not users:
        return
    running = text("select experiment from acuity.trials where state = 'RUNNING' group by experiment order by 1")
    names = list(connection.scalars(running))
    way_out = (
        "; ".join(f"`acuity stop {name}`" for name in names) + " ends those of a launch"
        if names
        else "close dashboards, notebooks and every other command of Acuity"
    )
    runs = f", trials of {', '.join(names)} run" if names else ""
    raise StorageError(f"the embedded server is in use ({users} connections{runs}): {way_out}. Then run this again")

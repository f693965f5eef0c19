"""The fleet's table of feasible batch sizes: one worker measures, the others read."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass

from sqlalchemy import Connection, text

from acuity.storage.database import Database
from acuity.storage.locks import hold_lock

_LONGEST_MEASUREMENT_S = 300.0


@dataclass(frozen=True)
class FeasibleBatchKey:
    """Everything that a training step's memory depends on. A trial's other caps are not part of it."""

    device: str
    memory_budget_bytes: int
    architecture: str
    input_size: int
    precision: str
    channels_last: bool
    torch_version: str
    source_sha256: str = ""
    """Of the user's functions in the step; empty where there are none."""


_WHERE_KEY = (
    "where device = :device and memory_budget_bytes = :memory_budget_bytes and architecture = :architecture "
    "and input_size = :input_size and precision = :precision and channels_last = :channels_last "
    "and torch_version = :torch_version and source_sha256 = :source_sha256"
)


def find_or_measure(database: Database, key: FeasibleBatchKey, measure: Callable[[], int]) -> int:
    """The largest batch that fits the memory, from the table; where it is missing there, measure it and store it.

    Where several workers need a key at the same time, one measures and the others wait: a measurement occupies a
    device for seconds. A worker that dies during a measurement loses its connection and the lock. A worker that hangs
    (SIGSTOP) delays the others by the longest measurement at most. The transaction has no idle limit, since a
    measurement is long, and uses one connection only.
    """
    known = read_feasible_batch(database, key)
    if known is not None:
        return known
    name = f"feasible batch {hashlib.sha256(repr(astuple(key)).encode()).hexdigest()[:32]}"
    with hold_lock(database.engine, name, wait_s=_LONGEST_MEASUREMENT_S, longest_idle_s=0, nested=False) as connection:
        known = read_feasible_batch(database, key) if connection is None else _read(connection, key)
        if known is not None:
            return known
        largest = measure()
        if connection is None:
            write_feasible_batch(database, key, largest)
        else:
            _write(connection, key, largest, kept="excluded.largest")
        return largest


def read_feasible_batch(database: Database, key: FeasibleBatchKey) -> int | None:
    """The largest batch that fits the memory; None where it is not measured yet."""
    with database.autocommitted() as connection:
        return _read(connection, key)


def write_feasible_batch(database: Database, key: FeasibleBatchKey, largest: int) -> None:
    """Store a measurement; it replaces an earlier one."""
    with database.engine.begin() as connection:
        _write(connection, key, largest, kept="excluded.largest")


def lower_feasible_batch(database: Database, key: FeasibleBatchKey, largest: int) -> None:
    """Lower the stored size to one that ran, unless it is lower already."""
    with database.engine.begin() as connection:
        _write(connection, key, largest, kept="least(feasible_batches.largest, excluded.largest)")


def _read(connection: Connection, key: FeasibleBatchKey) -> int | None:
    query = text(f"select largest from acuity.feasible_batches {_WHERE_KEY}")
    return connection.scalars(query, asdict(key)).one_or_none()


def _write(connection: Connection, key: FeasibleBatchKey, largest: int, *, kept: str) -> None:
    columns = list(asdict(key))
    statement = text(
        f"insert into acuity.feasible_batches ({', '.join(columns)}, largest) "
        f"values ({', '.join(f':{column}' for column in columns)}, :largest) "
        f"on conflict ({', '.join(columns)}) do update set largest = {kept}, created = now()"
    )
    connection.execute(statement, asdict(key) | {"largest": largest})

"""The fleet's table of feasible batch sizes: one worker measures, the others read."""

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass

from sqlalchemy import text

from acuity.storage.database import Database

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


_WHERE_KEY = (
    "where device = :device and memory_budget_bytes = :memory_budget_bytes and architecture = :architecture "
    "and input_size = :input_size and precision = :precision and channels_last = :channels_last "
    "and torch_version = :torch_version"
)


def find_or_measure(database: Database, key: FeasibleBatchKey, measure: Callable[[], int]) -> int:
    """The largest batch that fits the memory, from the table; where it is missing there, measure it and store it.

    Where several workers need a key at the same time, one measures and the others wait: a measurement occupies a
    device for seconds.
    """
    known = read_feasible_batch(database, key)
    if known is not None:
        return known
    with _measuring(database, key) as known:
        if known is not None:
            return known
        largest = measure()
        write_feasible_batch(database, key, largest)
        return largest


def read_feasible_batch(database: Database, key: FeasibleBatchKey) -> int | None:
    """The largest batch that fits the memory; None where it is not measured yet."""
    with database.engine.connect() as connection:
        query = text(f"select largest from acuity.feasible_batches {_WHERE_KEY}")
        return connection.scalars(query, asdict(key)).one_or_none()


def write_feasible_batch(database: Database, key: FeasibleBatchKey, largest: int) -> None:
    """Store a measurement; it replaces an earlier one."""
    _write(database, key, largest, kept="excluded.largest")


def lower_feasible_batch(database: Database, key: FeasibleBatchKey, largest: int) -> None:
    """Lower the stored size to one that ran, unless it is lower already."""
    _write(database, key, largest, kept="least(feasible_batches.largest, excluded.largest)")


def _write(database: Database, key: FeasibleBatchKey, largest: int, *, kept: str) -> None:
    columns = list(asdict(key))
    statement = text(
        f"insert into acuity.feasible_batches ({', '.join(columns)}, largest) "
        f"values ({', '.join(f':{column}' for column in columns)}, :largest) "
        f"on conflict ({', '.join(columns)}) do update set largest = {kept}, created = now()"
    )
    with database.engine.begin() as connection:
        connection.execute(statement, asdict(key) | {"largest": largest})


@contextmanager
def _measuring(database: Database, key: FeasibleBatchKey) -> Iterator[int | None]:
    """Wait until the key is measured, and yield the size; or until this worker holds the key's lock, and yield None.

    A worker that dies during a measurement loses its connection and the lock. Its transaction has no idle limit, since
    a measurement is long. A worker that hangs (SIGSTOP) delays the others by the longest measurement at most.
    """
    deadline = time.monotonic() + _LONGEST_MEASUREMENT_S
    lock = int.from_bytes(hashlib.sha256(repr(astuple(key)).encode()).digest()[:8], signed=True)
    query = text(
        "select set_config('idle_in_transaction_session_timeout', '0', true), pg_try_advisory_xact_lock(:lock)"
    )
    while True:
        with database.engine.begin() as connection:
            _, locked = connection.execute(query, {"lock": lock}).one()
            free = locked or time.monotonic() > deadline
            known = read_feasible_batch(database, key) if free else None
            if free:
                yield known
                return
        time.sleep(random.uniform(0.05, 0.5))

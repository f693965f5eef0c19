"""Statements, trial counts and fresh databases on the tests' Postgres."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from sqlalchemy import URL, make_url


def query(url: str | URL, statement: str) -> list[tuple[Any, ...]]:
    """Run one statement, outside a transaction; returns its rows, none where it has no result."""
    connection = psycopg2.connect(libpq_url(url))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def count_trials(url: str | URL, where: str) -> int:
    """The number of trials t for which the condition holds."""
    [[number]] = query(url, f"select count(*) from acuity.all_trials t where {where}")
    return int(number)


@contextmanager
def fresh_database(server: URL, name: str, *, template: str | None = None) -> Iterator[str]:
    """Create a database and drop it afterwards; yields its URL with the password."""
    query(server, f"create database {name}" + (f" template {template} strategy file_copy" if template else ""))
    yield server.set(database=name).render_as_string(hide_password=False)
    query(server, f"drop database {name} with (force)")


def libpq_url(url: str | URL) -> str:
    """The URL as psycopg2 reads it, with the password."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)

"""A storage URL that is not Postgres is refused, and no message shows the password."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL

from acuity.storage.database import open_storage
from acuity.storage.errors import StorageError
from acuity.storage.url import is_of_this_host, masked, parse_url


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2", "postgresql+psycopg", "POSTGRES"])
def test_every_spelling_of_postgres_gets_the_driver(scheme: str) -> None:
    url = parse_url(f"{scheme}://anna:secret@db:5432/acuity?sslmode=require")
    assert url.drivername == "postgresql+psycopg2"
    assert (url.username, url.password, url.host, url.port, url.database) == ("anna", "secret", "db", 5432, "acuity")
    assert url.query == {"sslmode": "require"}


def test_socket_needs_no_host() -> None:
    assert parse_url("postgresql:///acuity?host=/run/postgresql").query == {"host": "/run/postgresql"}


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("postgresql://anna@localhost/acuity", "db", True),
        ("postgresql://anna@127.0.0.2:5433/acuity", "", True),
        ("postgresql://anna@[::1]/acuity", "", True),
        ("postgresql:///acuity?host=/run/postgresql", "", True),
        ("postgresql:///acuity?host=LocalHost:5433", "", True),
        ("postgresql:///acuity", "", True),
        ("postgresql:///acuity", "db", False),
        ("postgresql://anna@localhost/acuity?hostaddr=10.0.0.1", "", False),
        ("postgresql:///acuity?host=localhost:5433&host=db:5433", "", False),
        ("postgresql://anna@localhost.hospital.example/acuity", "", False),
        ("postgresql://anna@10.0.0.1/acuity", "", False),
    ],
)
def test_url_of_a_loopback_address_or_socket_is_of_this_host(
    text: str, environment: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGHOST", environment)
    assert is_of_this_host(parse_url(text)) is expected


def test_sqlite_is_refused_with_its_reason() -> None:
    with pytest.raises(StorageError, match="SQLite cannot") as caught:
        parse_url("sqlite:///study.db")
    assert "drop --storage" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("mysql://anna:secret@db/acuity", "only Postgres"),
        ("redis://:secret@db", "only Postgres"),
        ("study.db", "no scheme"),
        ("", "no scheme"),
        ("postgresql://anna:secret@db:port/acuity", "port"),
        ("postgresql://anna:se@secret@db/acuity", "%40"),
        ("postgresql://anna:p@secret/word@db/acuity", "%40"),
        ("postgresql://anna:p@ss:5/secret@db/acuity", "%40"),
        ("postgresql://anna:p@ss?secret@db/acuity", "%40"),
        ("postgresql://anna:secret@db", "names no database"),
    ],
)
def test_other_texts_are_refused_in_one_line_without_the_password(text: str, match: str) -> None:
    with pytest.raises(StorageError, match=match) as caught:
        parse_url(text)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize(
    "text", ["postgresql://anna:s%40crt@db/acuity", "postgresql://db/acuity?user=anna&password=s%40crt"]
)
def test_password_is_masked_in_every_part_of_the_url(text: str) -> None:
    url = parse_url(text)
    assert url.password == "s@crt"
    assert masked(url) == "postgresql://anna:***@db/acuity"
    assert "crt" not in repr(url) + str(url)


def test_password_of_a_client_key_is_masked_too() -> None:
    assert "opensesame" not in masked(parse_url("postgresql://db/acuity?sslpassword=opensesame"))


@given(password=st.text(st.characters(exclude_categories=["Cs"]), min_size=8).filter(lambda text: text.strip("*")))
def test_no_password_survives_masking(password: str) -> None:
    url = URL.create("postgresql", username="anna", password=password, host="db", database="acuity")
    read = parse_url(url.render_as_string(hide_password=False))
    assert read.password == password
    assert masked(read) == "postgresql://anna:***@db/acuity"


def test_password_comes_from_the_file_that_the_environment_names(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = parse_url(database_url)
    without = whole.render_as_string(hide_password=False).replace(f":{whole.password}@", "@")
    assert whole.password
    assert whole.password not in without
    with pytest.raises(StorageError, match="does not accept that user and password"), open_storage(without):
        pass
    file = tmp_path / "password"
    file.write_text(f"{whole.password}\n")
    monkeypatch.setenv("ACUITY_STORAGE_PASSWORD_FILE", str(file))
    with open_storage(without) as database:
        assert masked(database.url) == masked(whole)


def test_password_in_the_url_precedes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACUITY_STORAGE_PASSWORD_FILE", str(tmp_path / "none"))
    assert parse_url("postgresql://anna:secret@db/acuity").password == "secret"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, r"cannot be read \(No such file"),
        (b"\n", "is empty"),
        (b"\xff", r"cannot be read \(it is not UTF-8 text"),
    ],
)
def test_unusable_password_file_is_named_with_the_reason(
    content: bytes | None, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("ACUITY_STORAGE_PASSWORD_FILE", str(file))
    with pytest.raises(StorageError, match=f"ACUITY_STORAGE_PASSWORD_FILE names {file}, which {match}"):
        parse_url("postgresql://anna@db/acuity")

"""`acuity storage url`: psql and plain Optuna open the storage by the URL that it prints, which has no password."""

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import Confirmed
from sqlalchemy import make_url

from acuity.storage.admin.client_url import client_url
from acuity.storage.database import open_storage
from acuity.storage.embedded.account import server_binaries
from acuity.storage.url import parse_url
from support.commands import ACUITY, acuity
from support.confirmed_experiment import repeat_search


def test_the_url_of_a_named_server_has_no_password() -> None:
    url = parse_url("postgresql://me:s3cret@db.example:5433/nih?sslmode=require&sslpassword=other")
    found = client_url(url, embedded=False)
    assert found.psql == "postgresql://me@db.example:5433/nih?sslmode=require"
    assert found.optuna == "postgresql+psycopg2://me@db.example:5433/nih?sslmode=require"
    assert found.has_password
    assert not client_url(parse_url("postgresql://me@db.example/nih"), embedded=False).has_password


def test_a_space_in_the_folder_is_read_by_libpq_and_by_sqlalchemy(tmp_path: Path) -> None:
    folder = tmp_path / "my server" / "data"
    folder.mkdir(parents=True)
    url = parse_url("postgresql://acuity:word@/acuity").set(query={"host": str(folder)})
    found = client_url(url, embedded=True)
    assert "+" not in found.psql
    assert make_url(found.optuna).query["host"] == str(folder)
    file = folder.parent / "pgpass"
    assert file.read_text() == "*:*:*:acuity:word\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_command_names_the_ways_to_give_a_password(confirmed: Confirmed) -> None:
    password = make_url(confirmed.url).password
    shown = acuity("storage", "url", environment=os.environ | {"ACUITY_STORAGE": confirmed.url})
    assert password is not None
    assert password not in shown.stdout + shown.stderr
    assert "$PGPASSFILE" in shown.stderr


def test_psql_optuna_and_acuity_open_the_embedded_server_by_its_url(
    confirmed: Confirmed, nothing_of_the_users: Path
) -> None:
    place = Path(tempfile.mkdtemp(prefix="url-", dir=nothing_of_the_users))
    place.chmod(0o711)
    environment = os.environ | {"ACUITY_EMBEDDED_DIR": str(place / "server"), "PGPORT": "1", "PGPASSWORD": "wrong"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACUITY_EMBEDDED_DIR", str(place / "server"))
        with open_storage() as database:
            repeat_search(database, confirmed.registered)
            secret = database.url.password
    keep = [*ACUITY, "storage", "url", "--keep"]
    with (
        subprocess.Popen(keep, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as keeper,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(keeper.terminate)
        assert keeper.stdout is not None
        assert keeper.stderr is not None
        url = keeper.stdout.readline().strip()
        assert secret is not None
        assert secret not in url
        assert "until Ctrl-C" in keeper.stderr.readline()

        del environment["PGPASSWORD"]  # psql and Optuna would prefer it to the file
        psql = shutil.which("psql") or str(server_binaries(place / "server", None) / "psql")
        query = "select count(*) from acuity.all_trials"
        counted = subprocess.run(
            [psql, "-Atc", query, url], env=environment, capture_output=True, text=True, check=True
        )

        shown = acuity("storage", "url", "--optuna", environment=environment)
        assert "--keep" in shown.stderr
        script = (
            "import optuna, sys\n"
            "names = optuna.get_all_study_names(sys.argv[1])\n"
            "print(sum(len(optuna.load_study(study_name=name, storage=sys.argv[1]).trials) for name in names))"
        )
        loaded = subprocess.run(
            [sys.executable, "-c", script, shown.stdout.strip()],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(loaded.stdout) == int(counted.stdout) > 0

        listed = acuity("list", "--format", "json", "--storage", url, environment=environment)
        assert [row["experiment"] for row in json.loads(listed.stdout)] == ["tiny"]
    assert keeper.returncode == 0

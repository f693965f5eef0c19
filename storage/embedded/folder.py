"""Choose, check and initialise the folder of the embedded Postgres."""

import os
import platform
import pwd
import re
import secrets
import shlex
import shutil
import subprocess
from pathlib import Path

import platformdirs

from acuity.storage.embedded.account import process_user
from acuity.storage.errors import StorageError

DATABASE = "acuity"
USER = "acuity"
POSTGRES_VERSION = "18"
_NETWORK_FILE_SYSTEM = re.compile(
    r"nfs\d?|cifs|smb3|smbfs|afs|ceph|lustre|gpfs|beegfs|panfs|orangefs|pvfs2|glusterfs|ocfs2|gfs2|davfs"
    r"|fuse\.(sshfs|glusterfs|ceph|s3fs|gcsfuse|rclone|davfs2?|juicefs|moosefs|mfs|cvmfs2)"
)

# A Unix socket's path has at most 107 bytes on Linux and 103 on a Mac. It ends with /data/.s.PGSQL.5432.
_LONGEST_FOLDER_BYTES = 103 - len("/data/.s.PGSQL.5432")
_SHARED_MEMORY = Path("/dev/shm")
_LEAST_SHARED_MEMORY_BYTES = 16 * 2**20
_SETTINGS = {
    "listen_addresses": "",  # the server listens on a Unix socket in the data folder alone
    "unix_socket_directories": ".",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "io_method": "sync",  # three idle processes fewer; the data set fits the cache
    "max_parallel_workers_per_gather": "0",  # parallel queries need more /dev/shm than a container has
    "jit": "off",
}


def default_folder() -> Path:
    """ACUITY_EMBEDDED_DIR, else a folder in the user's data; for root a folder that the server's account can reach."""
    named = os.environ.get("ACUITY_EMBEDDED_DIR")
    if named:
        return Path(named).expanduser()
    host = platform.node()[:32] or "localhost"  # the socket's path has to stay short
    base = Path("/var/lib/acuity") if os.geteuid() == 0 else platformdirs.user_data_path("acuity")
    return base / f"postgres-{POSTGRES_VERSION}" / host


def make_folder(folder: Path, account: str | None) -> Path:
    """Make the folder, closed to other users, and return its full path; StorageError where no database can be in it."""
    folder = folder.absolute()
    refuse_network_file_system(folder)
    if len(os.fsencode(folder)) > _LONGEST_FOLDER_BYTES:
        raise StorageError(
            f"{folder} is too long for the embedded Postgres's socket: at most {_LONGEST_FOLDER_BYTES} bytes. "
            "Name a shorter folder with ACUITY_EMBEDDED_DIR"
        )
    try:
        for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
            if account is not None:
                missing.chmod(0o711)  # root owns it; the account passes through to data/, which the account owns
    except OSError as error:
        raise StorageError(
            f"{folder} cannot hold the embedded Postgres ({error.strerror}). "
            "Name another folder with ACUITY_EMBEDDED_DIR"
        ) from None
    _refuse_shared_folder(folder)
    return folder


def _refuse_shared_folder(folder: Path) -> None:
    """StorageError where another user owns the folder or may write to it: that user could exchange the database."""
    found = folder.stat()
    if found.st_uid != os.geteuid():
        try:
            owner = pwd.getpwuid(found.st_uid).pw_name
        except KeyError:
            owner = str(found.st_uid)
        raise StorageError(
            f"{folder} belongs to user {owner}, who could exchange the embedded Postgres's files. "
            "Name a folder of your own with ACUITY_EMBEDDED_DIR"
        )
    if found.st_mode & 0o022:
        raise StorageError(
            f"other users may write to {folder} and exchange the embedded Postgres's files: "
            f"run `chmod go-w {shlex.quote(str(folder))}`, or name another folder with ACUITY_EMBEDDED_DIR"
        )


def refuse_network_file_system(folder: Path, *, mounts: str | None = None) -> None:
    """StorageError where folder lies on a network file system: locks and fsync are not reliable there.

    mounts: content of the kernel's table, /proc/self/mounts by default; a system without it refuses nothing.
    """
    if mounts is None:
        table = Path("/proc/self/mounts")
        mounts = table.read_text(errors="surrogateescape") if table.exists() else ""
    real = folder.resolve()
    best_point, kind = Path("/"), ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        point = Path(re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), fields[1]))
        # Of several mounts on one point the last one counts.
        if real.is_relative_to(point) and len(point.parts) >= len(best_point.parts):
            best_point, kind = point, fields[2]
    if _NETWORK_FILE_SYSTEM.fullmatch(kind):
        raise StorageError(
            f"{folder} lies on a network file system ({kind}), which cannot hold a database safely. Name a folder on a "
            "local disk with ACUITY_EMBEDDED_DIR, or a Postgres for several hosts with --storage postgresql://…"
        )


def initialise_cluster(folder: Path, *, binaries: Path, account: str | None) -> None:
    """Run initdb unless the folder has a database cluster. The caller holds the folder's start lock."""
    data = folder / "data"
    if data.exists():
        _check_version(data)
        return
    unfinished = folder / "data.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    password_for_initdb = folder / "password.new"
    password_for_initdb.unlink(missing_ok=True)
    password_for_initdb.touch(mode=0o600)
    password_for_initdb.write_text(secrets.token_urlsafe(24))
    if account is not None:
        shutil.chown(unfinished, account, process_user(account)["group"])
        shutil.chown(password_for_initdb, account)
    command = [str(binaries / "initdb"), "-D", str(unfinished), f"--username={USER}", f"--pwfile={password_for_initdb}"]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
    settings = _SETTINGS | ({} if _has_shared_memory() else {"dynamic_shared_memory_type": "mmap"})
    command += [f"--set={name}={value}" for name, value in settings.items()]
    environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
    made = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", **process_user(account)
    )
    if made.returncode != 0:
        reason = error_lines(made.stderr or made.stdout)
        if "could not look up effective user ID" in reason:  # a container's user without a name, as on OpenShift
            raise StorageError(
                f"user {os.geteuid()} has no name on this host, which the embedded Postgres needs: add a line for it "
                f"to /etc/passwd (acuity:x:{os.geteuid()}:{os.getegid()}::/:/bin/sh), or name a server with --storage"
            )
        hint = f" Root's server runs as {account}, which must be able to reach that folder." if account else ""
        raise StorageError(
            f"{folder} cannot hold the embedded Postgres: {reason}.{hint} Name another folder with ACUITY_EMBEDDED_DIR"
        )
    if account is not None:
        shutil.chown(password_for_initdb, os.geteuid())
    password_for_initdb.rename(folder / "password")
    unfinished.rename(data)


def error_lines(output: str) -> str:
    """The first error in the output of initdb or the server, then its last three lines, in one line."""
    lines = [line.strip() for line in output.strip().splitlines()]
    errors = [line for line in lines if re.search(r"\b(FATAL|PANIC|ERROR): ", line)]
    return " | ".join(dict.fromkeys([*errors[:1], *lines[-3:]]))


def _has_shared_memory() -> bool:
    """Whether /dev/shm has room for Postgres; in some containers it has 1 MiB. Files in the cluster then replace it."""
    return not _SHARED_MEMORY.is_dir() or shutil.disk_usage(_SHARED_MEMORY).free >= _LEAST_SHARED_MEMORY_BYTES


def read_password(folder: Path) -> str:
    """The password that was drawn when the cluster was made."""
    try:
        return (folder / "password").read_text()
    except FileNotFoundError:
        raise StorageError(
            f"{folder / 'password'} is gone, and the embedded Postgres there accepts no user without it. "
            f"Restore it, or move {folder} away to start with an empty database"
        ) from None


def _check_version(data: Path) -> None:
    found = (data / "PG_VERSION").read_text().strip()
    if found != POSTGRES_VERSION:
        raise StorageError(
            f"{data} was made by Postgres {found}, this one is {POSTGRES_VERSION}. "
            "Name another folder with ACUITY_EMBEDDED_DIR, or move the data over with pg_dump"
        )

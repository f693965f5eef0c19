"""The logs of launches and workers on this host."""

from pathlib import Path

import platformdirs

from acuity.study.errors import UsageError


def log_folder(experiment: str) -> Path:
    """The folder of the logs of an experiment's launches and workers on this host."""
    return Path(platformdirs.user_log_dir("acuity")) / experiment


def make_folder(folder: Path, *, named_by: str = "XDG_STATE_HOME") -> None:
    """Make a folder; UsageError where that fails. named_by: the variable or key that names another folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be made ({error.strerror}). It is for logs and the lock files of launches: name another "
            f"folder with {named_by}"
        ) from None


def last_line(log: Path) -> str:
    """The last line of a log, where a command prints its error message."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("acuity: ") if lines else "no message"

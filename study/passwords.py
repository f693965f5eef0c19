"""Passwords that Acuity is given: by the environment or a file that it names, never on a command line."""

from collections.abc import Mapping
from pathlib import Path

from study.errors import UsageError


def read_password(environment: Mapping[str, str], variable: str) -> str | None:
    """The password in a variable, or in the file that `<variable>_FILE` names, as containers get theirs; else None."""
    if variable in environment:
        if not environment[variable]:
            raise UsageError(f"{variable} is empty: set it to a password, or unset it")
        return environment[variable]
    if f"{variable}_FILE" not in environment:
        return None
    file = Path(environment[f"{variable}_FILE"])
    try:
        password = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(
            f"{variable}_FILE names {file}, which cannot be read ({reason}): name a file whose one line is the password"
        ) from None
    if not password:
        raise UsageError(f"{variable}_FILE names {file}, which is empty: write a password into it")
    return password

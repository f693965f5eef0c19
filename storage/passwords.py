"""Read passwords from the environment, or from a file that the environment names."""

import os
from collections.abc import Mapping
from pathlib import Path

from acuity.storage.errors import StorageError


def read_password(environment: Mapping[str, str], variable: str) -> str | None:
    """The password in a variable, or in the file that `<variable>_FILE` names; None where neither is set."""
    if variable not in environment:
        return read_password_file(environment, f"{variable}_FILE")
    if not environment[variable]:
        raise StorageError(f"{variable} is empty: set it to a password, or unset it")
    return environment[variable]


def read_password_file(environment: Mapping[str, str], variable: str) -> str | None:
    """The password in the file that a variable names; None where the variable is unset or empty."""
    named = environment.get(variable)
    if not named:
        return None
    try:
        password = Path(named).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise StorageError(
            f"{variable} names {named}, which cannot be read ({reason}). "
            f"Let user {os.geteuid()} read it, or name another file"
        ) from None
    if not password:
        raise StorageError(f"{variable} names {named}, which is empty: write the password into it")
    return password

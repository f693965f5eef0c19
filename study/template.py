"""The commented experiment file that `acuity new` writes."""

from importlib.resources import files
from pathlib import Path

from study.errors import UsageError


def write_template(file: Path) -> None:
    """Write the template; a file that exists is never overwritten."""
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(files("study").joinpath("template.toml").read_text(encoding="utf-8"))
    except FileExistsError:
        raise UsageError(f"{file} exists and is not overwritten; name another file") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from None

"""Write a commented experiment file: the template, or the preset of a published study."""

from importlib.resources import files
from pathlib import Path

from acuity.study.errors import UsageError

PRESETS = ("sabottke2020",)


def write_template(file: Path, *, preset: str | None = None) -> None:
    """Write the template or a preset to a new file. An existing file is never overwritten."""
    assert preset is None or preset in PRESETS
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(
                files("acuity.study.config")
                .joinpath(f"templates/{preset or 'template'}.toml")
                .read_text(encoding="utf-8")
            )
    except FileExistsError:
        raise UsageError(f"{file} exists and is not overwritten; name another file") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}; name another file") from None

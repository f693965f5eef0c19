"""Write an index file and read it."""

from pathlib import Path
from typing import Any

import pytest

from acuity.objectives.errors import InputError
from acuity.objectives.index.image_index import ImageIndex, read_index


def read_lines(folder: Path, *lines: str, name: str = "index.csv", **options: Any) -> ImageIndex:
    """Write the lines to an index file in the folder and read it. The images lie in folder/images.

    options: of `read_index`.
    """
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return read_index(path, images=folder / "images", **options)


def refusal(folder: Path, *lines: str, secrets: tuple[str, ...] = ()) -> str:
    """The error's message for these lines: one line that names none of the secrets."""
    with pytest.raises(InputError) as caught:
        read_lines(folder, *lines)
    message = str(caught.value)
    assert "\n" not in message
    assert not any(secret in message for secret in secrets), "the message names a file or a patient"
    return message

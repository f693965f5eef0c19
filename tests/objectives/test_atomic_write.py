"""A file is replaced in one step, and no write follows a link that another user has planted."""

from pathlib import Path

import numpy as np
import pytest

from acuity.objectives.atomic_write import write_atomically
from acuity.objectives.images.arrays import CacheArray, create_draft, open_complete, publish


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    path = tmp_path / "theirs"
    path.write_bytes(b"another user's file")
    return path


def test_link_at_the_files_name_is_replaced(tmp_path: Path, theirs: Path) -> None:
    path = tmp_path / "split.csv"
    path.symlink_to(theirs)
    write_atomically(path, b"mine")
    assert theirs.read_bytes() == b"another user's file"
    assert path.read_bytes() == b"mine"
    assert sorted(tmp_path.iterdir()) == [path, theirs]


def test_link_at_the_temporary_name_is_refused(tmp_path: Path, theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    (tmp_path / ".split.csv.guessed").symlink_to(theirs)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "split.csv", b"mine")
    assert theirs.read_bytes() == b"another user's file"


def test_failed_write_leaves_the_earlier_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    (path / "kept").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        write_atomically(path, b"mine")
    assert list(tmp_path.iterdir()) == [path]


def test_link_at_the_name_of_an_arrays_draft_is_replaced(tmp_path: Path, theirs: Path) -> None:
    array = CacheArray(tmp_path, "key", count=2, resolution=16)
    array.draft.symlink_to(theirs)
    create_draft(array)
    publish(array)
    pixels = open_complete(array)
    assert pixels is not None
    np.testing.assert_array_equal(pixels, np.zeros((2, 16, 16), np.uint8))
    assert theirs.read_bytes() == b"another user's file"

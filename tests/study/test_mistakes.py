"""Each mistake in an experiment or its images is one line that names the value, the rule and the next step."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from acuity.study.cli.main import _is_users, acuity

EXPERIMENT = """
name = "mine"
labels = ["Cardiomegaly"]
[data]
index = "Data_Entry.csv"
images = "images"
cache = "cache"
[search]
resolutions = [32, 64]
architectures = ["test_resnet"]
trials = 12
[training]
epochs = 1
"""


@pytest.fixture
def folder(phantoms: Path, tmp_path: Path) -> Path:
    """An image set and an experiment file that are right."""
    shutil.copytree(phantoms.parent / "images", tmp_path / "images")
    shutil.copy(phantoms, tmp_path / "Data_Entry.csv")
    (tmp_path / "mine.toml").write_text(EXPERIMENT)
    return tmp_path


def launch(folder: Path, database_url: str) -> Result:
    return CliRunner().invoke(acuity, ["launch", str(folder / "mine.toml"), "--storage", database_url])


def edit(folder: Path, name: str, change: Callable[[str], str]) -> None:
    path = folder / name
    path.write_text(change(path.read_text()))


def first_image(folder: Path) -> Path:
    return sorted((folder / "images").iterdir())[0]


def drop_column(text: str) -> str:
    return text.replace("Finding Labels", "Findings", 1)


def one_class(text: str) -> str:
    return text.replace("Cardiomegaly|", "").replace("Cardiomegaly", "No Finding")


MISTAKES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "index missing": (lambda at: (at / "Data_Entry.csv").unlink(), ["Data_Entry.csv", "[data] index"]),
    "index empty": (lambda at: edit(at, "Data_Entry.csv", lambda _: ""), ["Data_Entry.csv", "empty"]),
    "column missing": (lambda at: edit(at, "Data_Entry.csv", drop_column), ["Finding Labels"]),
    "image missing": (lambda at: first_image(at).unlink(), ["1 of 240", "line"]),
    "image unreadable": (lambda at: first_image(at).write_bytes(b"no image"), ["line", "images"]),
    "label unknown": (
        lambda at: edit(at, "mine.toml", lambda text: text.replace("Cardiomegaly", "Cardiomegali")),
        ["Cardiomegali", "Cardiomegaly"],
    ),
    "label with one class": (lambda at: edit(at, "Data_Entry.csv", one_class), ["Cardiomegaly"]),
    "architecture unknown": (
        lambda at: edit(at, "mine.toml", lambda text: text.replace("test_resnet", "test_resnot")),
        ["test_resnot", "test_resnet"],
    ),
    "architecture that takes no such images": (
        lambda at: edit(
            at, "mine.toml", lambda text: text.replace('"test_resnet"', '"test_vit"').replace("32,", "24,")
        ),
        ["test_vit", "24 px", "resolution"],
    ),
    "resolution above the images": (
        lambda at: edit(at, "mine.toml", lambda text: text.replace("[32, 64]", "[32, 256]")),
        ["256", "64"],
    ),
    "pretrained weights not reachable": (
        lambda at: edit(at, "mine.toml", lambda text: text + "pretrained = true\n"),
        ["pretrained", "test_resnet", "weights = PATH"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line_before_anything_is_stored(
    folder: Path, database_url: str, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make, named = MISTAKES[mistake]
    make(folder)
    launched = launch(folder, database_url)
    assert launched.exception is not None
    assert _is_users(launched.exception), launched.exception
    message = str(launched.exception)
    assert "\n" not in message
    assert not [part for part in named if part not in message], message
    known = CliRunner().invoke(acuity, ["status", "mine", "--storage", database_url])
    assert "no experiment" in str(known.exception)

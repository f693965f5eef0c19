"""A mistake in an experiment or its images is one line with the value, the rule and the next step."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from acuity.study.cli.main import acuity, is_user_error
from support.phantom_experiment import copy_phantoms, experiment_text


@pytest.fixture
def folder(phantoms: Path, tmp_path: Path) -> Path:
    """An image set and an experiment file without a mistake."""
    copy_phantoms(phantoms, tmp_path)
    (tmp_path / "mine.toml").write_text(experiment_text())
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
def test_a_mistake_is_one_line_and_nothing_is_stored(
    folder: Path, database_url: str, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "weights"))
    make, named = MISTAKES[mistake]
    make(folder)
    launched = launch(folder, database_url)
    assert launched.exception is not None
    assert is_user_error(launched.exception), launched.exception
    message = str(launched.exception)
    assert "\n" not in message
    assert not [part for part in named if part not in message], message
    known = CliRunner().invoke(acuity, ["status", "mine", "--storage", database_url])
    assert "no experiment" in str(known.exception)

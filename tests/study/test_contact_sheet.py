"""`acuity prepare --look` draws the arrays that the networks get and the oddest images. It names no file or patient."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw

from acuity.study.cli.main import acuity
from acuity.study.config.loading import load
from acuity.study.dataset.image_set import ImageSet, open_image_set
from support.phantom_experiment import copy_phantoms, experiment_text

LABELS = '["Cardiomegaly", "Nodule"]'
SIDES = (32, 64)


@pytest.fixture
def experiment(phantoms: Path, tmp_path: Path) -> Path:
    """The phantoms with three odd images: nearly black, nearly white, and half of black bands."""
    copy_phantoms(phantoms, tmp_path)
    files = sorted((tmp_path / "images").iterdir())
    noise = np.random.default_rng(0).integers(0, 9, (64, 64), dtype=np.uint8)
    padded = np.zeros((64, 64), dtype=np.uint8)
    padded[:, 16:48] = np.random.default_rng(1).integers(60, 200, (64, 32), dtype=np.uint8)
    for file, pixels in zip(files[5:8], (noise, 255 - noise, padded), strict=True):
        Image.fromarray(pixels).save(file)
    file = tmp_path / "mine.toml"
    file.write_text(experiment_text(labels=LABELS))
    return file


def tiles_of(sheet: np.ndarray, picture: np.ndarray, side: int) -> list[tuple[int, int]]:
    """Top left corners of the places where the sheet shows the picture at this side."""
    method = cv2.INTER_NEAREST if len(picture) <= side else cv2.INTER_AREA
    tile = cv2.resize(picture, (side, side), interpolation=method)
    near = cv2.matchTemplate(sheet, tile, cv2.TM_SQDIFF) < 1e4  # its sums of squares are rounded
    return [(int(x), int(y)) for y, x in np.argwhere(near) if np.array_equal(sheet[y : y + side, x : x + side], tile)]


def test_sheet_shows_arrays_of_each_label_and_the_oddest_images(experiment: Path) -> None:
    path = experiment.with_name("look.png")
    done = CliRunner().invoke(acuity, ["prepare", str(experiment), "--look", str(path)])
    assert done.exit_code == 0, done.exception
    assert f"wrote {path}: it shows images of patients" in done.stderr
    image_set: ImageSet = open_image_set(load(experiment))
    with Image.open(path) as opened:
        sheet = np.asarray(opened.convert("L"))
    tile = 96  # the smallest: the largest resolution has 64 px

    def column(row: int, block: int) -> list[int]:
        """Columns in which the sheet shows this image, at each resolution below the other, in a block."""
        corners = [tiles_of(sheet, image_set.cache.open(side)[row], tile) for side in SIDES]
        height = sheet.shape[0] / 4
        below = [{x for x, y in found if block * height <= y < (block + 1) * height} for found in corners]
        return sorted(set.intersection(*below))

    half = sheet.shape[1] / 2
    dark, bright, padded = (column(5, 2), column(6, 2), column(7, 3))
    assert dark, "the darkest image is not there"
    assert dark[0] < tile, "the darkest image comes first"
    assert bright
    assert half - tile < bright[-1] < half + tile, "the brightest comes first in the right half"
    assert padded
    assert padded[-1] > half - tile
    training = set(image_set.split.rows("training").tolist())
    shown = {row for row in range(240) if column(row, 0)}
    assert len(shown) == 8
    assert shown <= training, "images of labels are of the training part"
    target = image_set.index.target("Cardiomegaly")
    assert {float(target[row]) for row in shown if column(row, 0)[0] < half - tile} == {1.0}


def test_sheet_names_no_file_and_no_patient(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def record(self: ImageDraw.ImageDraw, place: tuple[int, int], text: str, **options: object) -> None:
        written.append(text)
        draw(self, place, text, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    path = experiment.with_name("look.png")
    assert CliRunner().invoke(acuity, ["prepare", str(experiment), "--look", str(path)]).exit_code == 0
    with experiment.with_name("Data_Entry.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = {row["Image Index"] for row in rows} | {Path(row["Image Index"]).stem for row in rows}
    assert len(written) > 40
    assert not [text for text in written if any(name in text for name in names)]
    notes = [text for text in written if text.startswith("line ")]
    assert 28 < len(notes) <= 32, "a caption has the index line alone"
    assert any(text.endswith(": 50%") for text in notes), "half of one image is padding"
    with Image.open(path) as sheet:
        assert sheet.info == {}, "the file has no text of its own"


def test_a_folder_that_cannot_be_written_is_refused(experiment: Path) -> None:
    done = CliRunner().invoke(acuity, ["prepare", str(experiment), "--look", "/proc/nowhere/look.png"])
    assert done.exit_code == 1
    assert "name another file with --look" in str(done.exception)


def test_a_sheet_never_replaces_an_index(experiment: Path) -> None:
    index = experiment.with_name("Data_Entry.csv")
    before = index.read_bytes()
    done = CliRunner().invoke(acuity, ["prepare", str(experiment), "--look", str(index)])
    assert done.exit_code == 1
    assert "must end in .png" in str(done.exception)
    assert index.read_bytes() == before

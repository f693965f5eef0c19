"""The image set of an experiment: filters, repeated pictures and labels never move a test patient."""

import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acuity.objectives.errors import InputError
from acuity.objectives.split.file import PARTS
from acuity.storage.database import Database
from acuity.study.config.changes import changes_of_meaning
from acuity.study.config.loading import parse
from acuity.study.config.paths import resolve_paths
from acuity.study.config.schema import Experiment
from acuity.study.dataset.demographics import read_demographics
from acuity.study.dataset.image_set import open_image_set, training_images
from acuity.study.errors import UsageError
from acuity.study.registry.record import check_same_images, read_registered
from acuity.study.registry.register import register
from acuity.study.report.methods import write_methods
from acuity.study.results.answer import read_answer
from acuity.study.results.summary import summarise_search
from support.phantom_experiment import copy_phantoms, experiment_text


@pytest.fixture
def folder(phantoms: Path, tmp_path: Path) -> Path:
    copy_phantoms(phantoms, tmp_path)
    return tmp_path


def experiment(folder: Path, data: str = "") -> Experiment:
    text = experiment_text(data=data, resolutions="[32]", trials=6)
    return resolve_paths(parse(tomllib.loads(text), source="mine.toml"), folder)


def test_filters_choose_images_and_move_no_patient(folder: Path) -> None:
    filtered = open_image_set(experiment(folder, "ages = [0, 80]"))
    whole = open_image_set(experiment(folder))
    parts = dict(zip(whole.index.table["patient"], whole.split.part, strict=True))
    mine = filtered.index.table["patient"].map(parts).to_numpy()
    np.testing.assert_array_equal(filtered.split.part, mine)
    assert filtered.index.table["age"].max() <= 80
    assert sum(filtered.left_out.values()) == len(whole.index.table) - len(filtered.index.table) > 0
    assert filtered.cache.open(32).shape[0] == len(filtered.index.table), "filtered images are decoded"
    row = int(filtered.split.rows("test")[0])
    same = whole.index.names.index(filtered.index.names[row])
    np.testing.assert_array_equal(filtered.cache.open(32)[row], whole.cache.open(32)[same])


def test_images_of_a_table_of_labels_are_the_same_for_workers(folder: Path, database: Database) -> None:
    """Workers read the experiment from the database, which sorts the keys of a table by length."""
    columns = """
[data.columns]
file = "Image Index"
patient = "Patient ID"
labels = { "PA view" = "View Position", Male = "Patient Sex" }
values = { PA = 1, AP = 0, M = 1, F = 0 }
"""
    text = experiment_text(labels='["PA view", "Male"]', data=columns, resolutions="[32]", trials=6)
    mine = resolve_paths(parse(tomllib.loads(text), source="mine.toml"), folder)
    launched = open_image_set(mine)
    register(database, mine, launched.identity, training_images=training_images(launched, mine.labels))
    stored = read_registered(database, "mine").experiment
    assert list(stored.data.columns.labels) == ["Male", "PA view"]
    check_same_images(read_registered(database, "mine"), open_image_set(stored).identity)


def test_images_keep_their_parts_when_they_are_moved_into_folders(folder: Path) -> None:
    by_image = experiment(folder, "split_by = 'image'")
    flat = open_image_set(by_image)
    written = flat.split.path.read_bytes()
    for number, name in enumerate(flat.index.names):
        below = folder / "images" / f"images_{number % 3:03}" / "images"
        below.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).rename(below / name)
    moved = open_image_set(by_image)
    assert moved.index.table["file"].iat[0] == f"images_000/images/{flat.index.names[0]}"
    assert flat.split.path.read_bytes() == written, "the same images were added under other names"
    np.testing.assert_array_equal(moved.split.part, flat.split.part)
    assert moved.split.sha256 == flat.split.sha256
    filtered = open_image_set(experiment(folder, "split_by = 'image'\nages = [0, 80]"))
    parts = dict(zip(flat.index.names, flat.split.part, strict=True))
    np.testing.assert_array_equal(filtered.split.part, [parts[name] for name in filtered.index.names])


def test_a_label_of_another_meaning_uses_the_same_arrays(folder: Path) -> None:
    first = open_image_set(experiment(folder))
    second = open_image_set(experiment(folder, "no_finding = 'only_negatives'"))
    assert first.cache.key == second.cache.key
    assert second.cache.written_bytes == 0
    known = [int(np.isfinite(each.index.target("Cardiomegaly")).sum()) for each in (first, second)]
    assert known[1] < known[0] == len(first.index.table)


def test_a_picture_of_two_patients_is_in_one_part(folder: Path) -> None:
    table = (folder / "Data_Entry.csv").read_text().splitlines()
    files = [line.split(",")[0] for line in table[1:]]
    for copy in files[100:130]:  # of other patients
        shutil.copy(folder / "images" / files[0], folder / "images" / copy)
    together = open_image_set(experiment(folder))
    assert (together.repeats.pictures, together.repeats.images, together.repeats.left_out) == (1, 31, 0)
    assert (
        len({int(together.split.part[together.index.names.index(file)]) for file in (files[0], *files[100:130])}) == 1
    )
    # A second picture is repeated after the split was made.
    for copy in files[200:230]:
        shutil.copy(folder / "images" / files[1], folder / "images" / copy)
    (folder / "cache").rename(folder / "old")
    later = open_image_set(experiment(folder))
    assert later.repeats.pictures == 2
    assert later.repeats.left_out > 0
    rows = [later.index.names.index(file) for file in (files[1], *files[200:230])]
    used = {int(part) for part in later.split.part[rows]} - {len(PARTS)}
    assert len(used) == 1
    assert later.split.sha256 == together.split.sha256


def test_an_image_repaired_during_an_experiment_is_refused(folder: Path, database: Database) -> None:
    """Another experiment on the same images refuses bad images and decodes the repaired file."""
    dropping = experiment(folder, 'on_bad_image = "drop"')
    film = sorted((folder / "images").iterdir())[5]
    whole = film.read_bytes()
    film.write_bytes(b"no image")
    image_set = open_image_set(dropping)
    training = training_images(image_set, dropping.labels)
    registered = register(database, dropping, image_set.identity, training_images=training)
    check_same_images(registered, open_image_set(dropping).identity)
    film.write_bytes(whole)
    open_image_set(experiment(folder))
    with pytest.raises(
        UsageError, match=r"a file was repaired or lost since\. AUCs of other images are not comparable"
    ):
        check_same_images(registered, open_image_set(dropping).identity)


def test_the_methods_text_counts_unreadable_and_repeated_images(folder: Path, database: Database) -> None:
    mine = experiment(folder, 'ages = [0, 80]\non_bad_image = "drop"')
    before = open_image_set(mine)
    unseen, shown = (int(before.split.rows(part)[0]) for part in ("test", "training"))
    (folder / "images" / before.index.names[shown + 1]).write_bytes(b"no image")
    shutil.copy(*(folder / "images" / before.index.names[row] for row in (shown, unseen)))
    shutil.rmtree(folder / "cache")
    image_set = open_image_set(mine)
    training = training_images(image_set, mine.labels)
    registered = register(database, mine, image_set.identity, training_images=training)
    cohort = read_demographics(registered)
    assert cohort is not None
    assert sum(part.images for part in cohort.parts.values()) == len(image_set.index.table) - 2
    summaries = [summarise_search(database, registered, "Cardiomegaly")]
    data, *_ = write_methods(registered, read_answer(database, "mine"), summaries, cohort, None, None)
    assert "Left out because their files could not be read: 1." in data.text
    assert "Left out because an image of an earlier part shows the same picture: 1." in data.text


def test_a_published_split_has_its_own_file(folder: Path) -> None:
    ours = open_image_set(experiment(folder))
    table = ours.index.table
    listed = table["file"][table["patient"].isin(table["patient"].unique()[::3])]
    (folder / "test_list.txt").write_text("\n".join(listed))
    theirs = open_image_set(experiment(folder, "test_list = 'test_list.txt'"))
    assert set(table["file"].iloc[theirs.split.rows("test")]) == set(listed)
    assert theirs.split.path.name == "Data_Entry.published.split.csv"
    assert open_image_set(experiment(folder)).split.sha256 == ours.split.sha256


def test_filters_change_the_meaning_of_a_trial_and_the_format_does_not(folder: Path) -> None:
    plain = experiment(folder)
    assert changes_of_meaning(plain, experiment(folder, "format = 'nih'")) == []
    for data in ("views = ['PA']", "ages = [1, 2]", "no_finding = 'leave_out'", "uncertain = 'positive'"):
        key = data.split(" ")[0]
        (change,) = changes_of_meaning(plain, experiment(folder, data))
        assert change.startswith(f"data.{key}: ")


def test_a_filter_that_leaves_too_few_patients_says_so(folder: Path) -> None:
    with pytest.raises(InputError, match=r"label Cardiomegaly: patients with a positive .* widen \[data\]'s filters"):
        open_image_set(experiment(folder, "views = ['PA']\nages = [60, 70]"))


@pytest.mark.parametrize("key", ["paper_split = true", "split_by = 'image'"])
def test_a_split_column_is_refused_where_lists_are(folder: Path, key: str) -> None:
    rows = [line.split(",") for line in (folder / "Data_Entry.csv").read_text().splitlines()[1:]]
    lines = [
        f"{row[0]},{row[3]},{int('Cardiomegaly' in row[1])},{'test' if int(row[3]) % 4 == 0 else 'train'}"
        for row in rows
    ]
    table = "\n".join(["file,patient,Cardiomegaly,split", *lines])
    (folder / "Data_Entry.csv").write_text(table)
    with pytest.raises(InputError, match=r"has a split column, and \[data\] has (paper_split|split_by) as well"):
        open_image_set(experiment(folder, key))
    with pytest.raises(UsageError, match="and a published split"):
        experiment(folder, f"{key}\ntest_list = 'test_list.txt'")
    (folder / "Data_Entry.csv").write_text(table.replace(",split\n", ",part\n", 1))
    open_image_set(experiment(folder, key))


def test_constant_pictures_join_no_patients(folder: Path) -> None:
    """Black images of many patients used to be one picture that occurs more than once."""
    whole = open_image_set(experiment(folder))
    parts = dict(zip(whole.index.table["patient"], whole.split.part, strict=True))
    whole.split.path.unlink()
    black = np.flatnonzero(~whole.index.table["patient"].duplicated().to_numpy())[10:40]
    for row in black:
        Image.fromarray(np.zeros((128, 128), np.uint8)).save(folder / "images" / whole.index.names[row])
    shutil.rmtree(folder / "cache")
    with pytest.raises(
        InputError, match=r"30 of 240 images cannot be read: index line .* \(shows nothing: every pixel"
    ):
        open_image_set(experiment(folder))
    dropped = open_image_set(experiment(folder, 'on_bad_image = "drop"'))
    assert dropped.repeats.pictures == 0
    assert len(dropped.cache.bad) == 30
    assert dict(zip(dropped.index.table["patient"], whole.split.part, strict=True)) == parts
    assert {int(part) for part in dropped.split.part[black]} == {len(PARTS)}

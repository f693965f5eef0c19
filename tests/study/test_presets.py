"""Presets and splits of published studies, and the warnings that a weak split adds to every result."""

import csv
import io
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from acuity.objectives.index.image_index import read_index
from acuity.objectives.split.file import PARTS
from acuity.objectives.split.split import read_or_make_split, take_split
from acuity.study.config.caveats import BY_IMAGE, NO_TEST, caveats
from acuity.study.config.changes import changes_of_meaning
from acuity.study.config.loading import load, parse
from acuity.study.config.paths import resolve_paths, split_path
from acuity.study.config.schema import Experiment
from acuity.study.config.template import PRESETS, write_template
from acuity.study.confirmation.nomination import nominate
from acuity.study.dataset.demographics import read_demographics
from acuity.study.dataset.image_set import open_image_set, training_images
from acuity.study.display.answer_table import answer_table
from acuity.study.errors import UsageError
from acuity.study.registry.record import Registered
from acuity.study.registry.register import register
from acuity.study.results.answer import read_answer, read_best_resolution
from support.confirmed_experiment import EXPERIMENT, fill_search


def experiment_with(phantoms: Path, folder: Path, more: str) -> Experiment:
    table = EXPERIMENT.format(index=phantoms, images=phantoms.parent / "images").replace(
        'split = "tiny.split.csv"', f'split = "{folder}/other.split.csv"\n{more}'
    )
    return resolve_paths(parse(tomllib.loads(table), source="test"), folder)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_an_experiment(preset: str, tmp_path: Path) -> None:
    write_template(tmp_path / "x.toml", preset=preset)
    assert load(tmp_path / "x.toml").name == preset


def test_sabottke2020_has_the_papers_values_and_marks_the_others_as_ours(tmp_path: Path) -> None:
    file = tmp_path / "nih.toml"
    write_template(file, preset="sabottke2020")
    experiment = load(file)
    assert experiment.labels == (
        "Emphysema", "Cardiomegaly", "Hernia", "Atelectasis", "Edema", "Effusion", "Mass", "Nodule",
    )  # fmt: skip
    assert experiment.search.resolutions == (32, 64, 128, 224, 256, 320, 448, 512, 600)
    assert experiment.search.architectures == ("resnet34", "densenet121")
    assert caveats(experiment) == ()
    text = file.read_text().split("[search]")[1]
    for line in text.splitlines():
        if " = " in line and not line.startswith("#"):
            assert "# ours" in line or "# paper" in line, line
    paper = tmp_path / "paper.toml"
    paper.write_text(file.read_text().replace("# paper_split", "paper_split").replace("# split_by", "split_by"))
    assert caveats(load(paper)) == (BY_IMAGE, NO_TEST)


def test_the_papers_split_has_four_fifths_training_and_no_test_patient(phantoms: Path, tmp_path: Path) -> None:
    experiment = experiment_with(phantoms, tmp_path, "paper_split = true")
    image_set = open_image_set(experiment)
    counts = [len(image_set.split.rows(part)) for part in PARTS]
    assert counts[2] == 0
    assert counts[0] / sum(counts) == pytest.approx(0.8, abs=0.04)
    patients = image_set.index.table["patient"].to_numpy()
    assert not set(patients[image_set.split.rows("training")]) & set(patients[image_set.split.rows("validation")])
    again = open_image_set(experiment)
    assert again.split.sha256 == image_set.split.sha256


def test_an_image_level_split_divides_patients_and_moves_no_image(phantoms: Path, tmp_path: Path) -> None:
    index = read_index(phantoms, images=phantoms.parent / "images")
    split = read_or_make_split(index, path=tmp_path / "x.csv", unit="file")
    patients = index.table["patient"].to_numpy()
    training, test = (set(patients[split.rows(part)]) for part in ("training", "test"))
    assert len(training & test) > len(test) / 2
    rows = np.arange(0, len(patients), 2)
    assert (take_split(split, index, np.arange(len(patients))).part == split.part).all()
    assert (split.part[rows] == read_or_make_split(index, path=tmp_path / "x.csv", unit="file").part[rows]).all()
    lines = list(csv.reader(io.StringIO((tmp_path / "x.csv").read_text())))
    assert len(lines) - 2 == len(patients)


def test_each_kind_of_split_has_its_own_file_and_is_another_experiment(phantoms: Path) -> None:
    table = EXPERIMENT.format(index=phantoms, images=phantoms.parent / "images").replace(
        'split = "tiny.split.csv"', "{}"
    )
    ways = ("", "paper_split = true", 'split_by = "image"', 'paper_split = true\nsplit_by = "image"')
    experiments = [parse(tomllib.loads(table.format(way)), source="test") for way in ways]
    assert len({split_path(each) for each in experiments}) == 4
    assert changes_of_meaning(experiments[0], experiments[1]) == ["data.paper_split: false -> true"]
    with pytest.raises(UsageError, match=r"data.paper_split and a published split"):
        parse(tomllib.loads(table.format('paper_split = true\ntest_list = "x.txt"')), source="test")


@pytest.mark.parametrize(
    ("more", "warning"), [("paper_split = true", NO_TEST), ('split_by = "image"', BY_IMAGE)], ids=["paper", "image"]
)
def test_every_result_has_the_warning_and_the_papers_split_refuses_confirm(
    phantoms: Path, tmp_path: Path, database, more: str, warning: str
) -> None:
    experiment = experiment_with(phantoms, tmp_path, more)
    image_set = open_image_set(experiment)
    registered: Registered = register(
        database,
        experiment,
        image_set.identity,
        training_images=training_images(image_set, experiment.labels),
    )
    for label in experiment.labels:
        fill_search(database, registered, label, seed=0)
    answer = read_answer(database, "tiny")
    assert answer.to_json()["warnings"] == [warning]
    console = Console(file=io.StringIO(), width=300)
    console.print(answer_table(answer))
    assert warning in console.file.getvalue()  # type: ignore[attr-defined]
    assert "not finished" not in console.file.getvalue()  # type: ignore[attr-defined]
    console.print(answer_table(replace(answer, trials=30)))
    unfinished = "The search is not finished (Cardiomegaly has 24 of 30 trials; Nodule has 24 of 30 trials)."
    assert unfinished in console.file.getvalue()  # type: ignore[attr-defined]
    assert list(read_best_resolution(database, "tiny")["warning"]) == [warning, warning]
    cohort = read_demographics(registered)
    assert cohort is not None
    assert ("test" in cohort.parts) == (warning == BY_IMAGE)
    assert (cohort.labels[0].parts["test"].prevalence is None) == (warning == NO_TEST), "NaN is no JSON"
    if warning == NO_TEST:
        with pytest.raises(UsageError, match="has no test patients"):
            nominate(database, registered)
    else:
        assert len(nominate(database, registered)) == 2
    from acuity.study.report.report import write_report

    write_report(database, registered, tmp_path / "report")
    for name in ("report.html", "report.md"):
        text = (tmp_path / "report" / name).read_text().replace("&#34;", '"')
        assert warning in text
    methods = (tmp_path / "report" / "report.md").read_text()
    assert ("none for a test" in methods) == (warning == NO_TEST)
    assert ("by image and not by patient" in methods) == (warning == BY_IMAGE)

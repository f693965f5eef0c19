"""A table of readers without patients, and a label with a slash, go from the launch to the exported network."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from acuity.storage.database import Database
from acuity.storage.studies import create_study
from acuity.study.cli.main import acuity
from acuity.study.config.caveats import BY_FILE
from acuity.study.registry.names import confirm_study_name, study_name
from acuity.study.registry.record import read_registered
from acuity.study.results.answer import read_answer
from support.confirmed_experiment import work_here
from support.tiny_experiment import write_tiny_experiment

LABEL = "Nodule/Mass 100%"


@pytest.fixture
def experiment(phantoms: Path, tmp_path: Path) -> Path:
    """Two of three readers name what the phantoms' index names; the third finds nothing."""
    rows = []
    for line in phantoms.read_text().splitlines()[1:]:
        file, findings = line.split(",")[:2]
        positive = int("Nodule" in findings)
        rows += [f"{file.removesuffix('.png')},{reader},{positive},{1 - positive}" for reader in ("R1", "R2")]
        rows.append(f"{file.removesuffix('.png')},R3,0,1")
    index = tmp_path / "image_labels_train.csv"
    index.write_text("\n".join([f"image_id,rad_id,{LABEL},No finding", *rows]) + "\n")
    file = write_tiny_experiment(tmp_path, phantoms, labels=json.dumps([LABEL]), trials=4, epochs=1)
    file.write_text(file.read_text().replace(str(phantoms), str(index)))
    return file


def test_a_label_with_a_slash_goes_from_launch_to_export(database: Database, experiment: Path) -> None:
    storage = ["--storage", database.url.render_as_string(hide_password=False)]

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(acuity, [*arguments, *storage])
        assert done.exit_code == 0, (done.output, done.exception)
        return " ".join(done.output.split())

    prepared = run("prepare", str(experiment))
    assert BY_FILE in prepared
    assert "240 images of 240 patients" in prepared
    assert BY_FILE in run("launch", str(experiment), "--workers", "0")
    registered = read_registered(database, "tiny")
    assert registered.experiment.data.format == "vindr"
    work_here(database, registered)
    answer = read_answer(database, "tiny", label=LABEL)
    assert answer.labels[0].trials["complete"] + answer.labels[0].trials["pruned"] == 4
    assert answer.warnings == (BY_FILE,)
    best = json.loads(run("best", "tiny", "--label", LABEL, "--format", "json"))
    assert [entry["label"] for entry in best["labels"]] == [LABEL]
    assert LABEL in run("status", "tiny")
    assert LABEL in run("trials", "tiny", "--label", LABEL, "--format", "csv")
    out = experiment.parent / "network"
    run("export", "tiny", "--label", LABEL, "--out", str(out), "--device", "cpu")
    assert LABEL in (out / "README.md").read_text()
    run("report", "tiny", "--out", str(experiment.parent / "report"))
    assert LABEL in (experiment.parent / "report" / "report.md").read_text()
    with database.engine.connect() as connection:
        rows = connection.execute(text("select distinct experiment, label, confirm from acuity.all_trials")).all()
    assert [tuple(row) for row in rows] == [("tiny", LABEL, False)]


@pytest.mark.parametrize("label", ["Nodule/Mass", "a/confirm", "confirm", "/", "%2F", "100%", "a%2Fb/c", "%25"])
def test_names_of_studies_are_read_back_by_the_view(database: Database, label: str) -> None:
    for name, confirm in ((study_name("nih", label), False), (confirm_study_name("nih", label), True)):
        study = create_study(database, name, experiment="nih", label=label, confirm=confirm)
        database.storage.create_new_trial(study._study_id)
    with database.engine.connect() as connection:
        rows = connection.execute(text("select experiment, label, confirm from acuity.all_trials order by 3")).all()
    assert [tuple(row) for row in rows] == [("nih", label, False), ("nih", label, True)]

"""`acuity prepare` counts the images of an experiment and builds their arrays."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from acuity.objectives.statistics.power import estimate_power
from acuity.study.cli.main import acuity
from support.phantom_experiment import copy_phantoms, experiment_text

LABELS = '["Nodule", "Fibrosis"]'


@pytest.fixture
def experiment(phantoms: Path, tmp_path: Path) -> Path:
    file = tmp_path / "mine.toml"
    images = phantoms.parent / "images"
    file.write_text(experiment_text(labels=LABELS, index=phantoms, images=images, data='split = "split.csv"'))
    return file


def test_counts_agree_with_the_index_and_its_split(experiment: Path, phantoms: Path) -> None:
    done = CliRunner().invoke(acuity, ["prepare", str(experiment), "--json"])
    assert done.exit_code == 0
    answer = json.loads(done.output)
    lines = phantoms.read_text().splitlines()[1:]
    films = pd.DataFrame([line.split(",")[1:4:2] for line in lines], columns=["findings", "patient"])
    parts = pd.read_csv(experiment.with_name("split.csv"), comment="#", dtype=str).set_index("patient")["part"]
    films["part"] = films["patient"].map(parts)
    films["nodule"] = films["findings"].str.contains("Nodule")
    (nodule,) = (entry for entry in answer["cohort"] if entry["label"] == "Nodule")
    for part, rows in films.groupby("part"):
        assert nodule["parts"][part]["images"] == len(rows)
        assert nodule["parts"][part]["positive_images"] == rows["nodule"].sum()
        assert nodule["parts"][part]["positive_patients"] == rows[rows["nodule"]]["patient"].nunique()
        assert nodule["parts"][part]["negative_patients"] == rows[~rows["nodule"]]["patient"].nunique()
        assert nodule["parts"][part]["prevalence"] == rows["nodule"].mean()
    # Cross-fitted by default: the patients of the training and test parts are test patients.
    tested = [nodule["parts"][part] for part in ("training", "test")]
    positive, negative = (sum(part[key] for part in tested) for key in ("positive_patients", "negative_patients"))
    assert nodule["test_patients"] == sum(part["patients"] for part in tested) < positive + negative
    assert answer["design"]["kind"] == "cross-fitted"
    plan = estimate_power(positive, negative, seeds=4)
    assert nodule["plan"]["margin"] == plan.margin
    assert answer["cache_bytes"] == sum(path.stat().st_size for path in (experiment.parent / "cache").glob("*.npy"))


def test_second_run_decodes_nothing_and_needs_no_torch(experiment: Path) -> None:
    first = CliRunner().invoke(acuity, ["prepare", str(experiment)])
    assert "Nodule" in first.output
    before = {path: path.stat().st_mtime_ns for path in (experiment.parent / "cache").iterdir()}
    script = (
        "import sys\nfrom acuity.study.cli.main import acuity\n"
        f"acuity.main(['prepare', {str(experiment)!r}], standalone_mode=False)\n"
        "assert not {'torch', 'timm', 'optuna'} & set(sys.modules), 'heavy'"
    )
    elsewhere = os.environ | {"ACUITY_EMBEDDED_DIR": str(experiment.parent / "no-server")}
    second = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=elsewhere)
    assert second.stdout.split("label")[1] == first.output.split("label")[1]
    after = {path: path.stat().st_mtime_ns for path in (experiment.parent / "cache").iterdir()}
    assert {path: when for path, when in after.items() if path.suffix == ".npy"}.items() <= before.items()


def test_dropped_repeated_and_filtered_images_are_printed(phantoms: Path, tmp_path: Path) -> None:
    copy_phantoms(phantoms, tmp_path)
    files = sorted((tmp_path / "images").iterdir())
    files[0].write_bytes(b"no image")
    shutil.copy(files[9], files[20])
    file = tmp_path / "mine.toml"
    file.write_text(experiment_text(labels=LABELS, data='on_bad_image = "drop"\nages = [30, 120]'))
    ages = [int(film.split(",")[4]) for film in phantoms.read_text().splitlines()[1:]]
    young = sum(age < 30 for age in ages)
    assert young
    assert min(ages[0], ages[9], ages[20]) >= 30, "the changed files must pass the filter"
    done = CliRunner().invoke(acuity, ["prepare", str(file)])
    assert done.exit_code == 0, done.exception
    assert f"{240 - young} images of" in done.output
    assert f"Left out, other age: {young} images" in done.output
    assert "Dropped as bad: 1 images: index line 2 (" in done.output
    assert "Pictures that occur more than once: 1 (2 images; 1 under several patients" in done.output
    assert files[0].name not in done.output
    answer = json.loads(CliRunner().invoke(acuity, ["prepare", str(file), "--json"]).output)
    assert answer["bad_images"][0]["line"] == 2
    assert answer["repeats"]["pictures"] == 1


def test_prepare_finds_exchanged_files_and_says_how_to_use_them(phantoms: Path, tmp_path: Path) -> None:
    copy_phantoms(phantoms, tmp_path)
    file = tmp_path / "mine.toml"
    file.write_text(experiment_text(labels=LABELS))
    assert CliRunner().invoke(acuity, ["prepare", str(file)]).exit_code == 0
    files = sorted((tmp_path / "images").iterdir())
    for row in (5, 6):  # not in the sample that identifies the image set
        Image.fromarray(np.asarray(Image.open(files[row]))[::-1]).save(files[row])
    refused = CliRunner().invoke(acuity, ["prepare", str(file)])
    assert refused.exit_code != 0
    assert "2 of 240 files have another content than when the arrays were built: index line 7, index line 8." in str(
        refused.exception
    ) + refused.output.replace("\n", " ")


def test_different_depths_and_similar_labels_are_printed(phantoms: Path, tmp_path: Path) -> None:
    copy_phantoms(phantoms, tmp_path)
    files = sorted((tmp_path / "images").iterdir())
    for row, file in enumerate(files[:60]):
        deep = np.asarray(Image.open(file).convert("L")).astype(np.uint16) << (4 if row % 20 else 8)
        Image.fromarray(deep).save(file)
    index = tmp_path / "Data_Entry.csv"
    index.write_text(index.read_text().replace("Nodule", "nodule", 1))
    file = tmp_path / "mine.toml"
    file.write_text(experiment_text(labels='["Fibrosis"]'))
    answer = json.loads(CliRunner().invoke(acuity, ["prepare", str(file), "--json"]).output)
    labels, depths = answer["suspicions"]
    assert labels.startswith('Labels that differ by case or spaces only: "Nodule" (')
    assert "12 bits: 57 images (index line 3, 4, 5); 16 bits: 3 images (index line 2, 22, 42)" in depths
    output = " ".join(CliRunner().invoke(acuity, ["prepare", str(file)]).output.split())
    assert "16 bits: 3 images" in output
    assert files[0].name not in output


def test_small_images_are_dropped_and_listed(phantoms: Path, tmp_path: Path) -> None:
    copy_phantoms(phantoms, tmp_path)
    files = sorted((tmp_path / "images").iterdir())
    Image.open(files[3]).resize((24, 24)).save(files[3])
    file = tmp_path / "mine.toml"
    file.write_text(experiment_text(labels=LABELS))
    refused = CliRunner().invoke(acuity, ["prepare", str(file)])
    assert "index line 5 (24 px). Leave such images out with" in str(refused.exception) + refused.output
    file.write_text(experiment_text(labels=LABELS, data='on_bad_image = "drop"'))
    output = " ".join(CliRunner().invoke(acuity, ["prepare", str(file)]).output.split())
    assert "Dropped as bad: 1 images: index line 5 (24 px, smaller than the largest resolution of" in output


@pytest.mark.parametrize(
    ("changed", "message", "decodes"),
    [
        (("test_resnet", "test_resnt"), "test_resnt", False),
        (("[search]\n", "[search]\nbatch = 512\n"), "search.batch is 512, must be at most", True),
    ],
    ids=["architecture", "batch"],
)
def test_prepare_reports_an_unknown_network_before_decoding_and_a_batch_that_no_epoch_has_images_for(
    experiment: Path, changed: tuple[str, str], message: str, decodes: bool
) -> None:
    experiment.write_text(experiment.read_text().replace(*changed))
    done = CliRunner().invoke(acuity, ["prepare", str(experiment)])
    assert done.exit_code == 1
    assert message in str(done.exception)
    assert (experiment.parent / "cache").exists() == decodes

"""`acuity prepare` tells what an image set can decide, and leaves everything ready for training."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from objectives.planning import plan_label
from study.cli import acuity

EXPERIMENT = """
name = "mine"
labels = ["Nodule", "Fibrosis"]
[data]
index = "{index}"
images = "{images}"
split = "split.csv"
cache = "cache"
[search]
resolutions = [32, 64]
architectures = ["test_resnet"]
trials = 12
[training]
epochs = 1
"""


@pytest.fixture
def experiment(phantoms: Path, tmp_path: Path) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text(EXPERIMENT.format(index=phantoms, images=phantoms.parent / "images"))
    return file


def test_counts_are_those_of_the_index_and_its_split(experiment: Path, phantoms: Path) -> None:
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
        assert nodule["parts"][part]["prevalence"] == rows["nodule"].mean()
    test = nodule["parts"]["test"]
    plan = plan_label(test["positive_patients"], test["patients"] - test["positive_patients"])
    assert nodule["plan"]["margin"] == plan.margin
    assert answer["cache_bytes"] == sum(path.stat().st_size for path in (experiment.parent / "cache").glob("*.npy"))


def test_second_run_decodes_nothing_and_needs_no_torch(experiment: Path) -> None:
    first = CliRunner().invoke(acuity, ["prepare", str(experiment)])
    assert "Nodule" in first.output
    before = {path: path.stat().st_mtime_ns for path in (experiment.parent / "cache").iterdir()}
    script = (
        "import sys\nfrom study.cli import acuity\n"
        f"acuity.main(['prepare', {str(experiment)!r}], standalone_mode=False)\n"
        "assert not {'torch', 'timm', 'optuna'} & set(sys.modules), 'heavy'"
    )
    second = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert second.stdout.split("free)")[1] == first.output.split("free)")[1]
    after = {path: path.stat().st_mtime_ns for path in (experiment.parent / "cache").iterdir()}
    assert {path: when for path, when in after.items() if path.suffix == ".npy"}.items() <= before.items()

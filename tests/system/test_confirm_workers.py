"""Search and confirmation by real worker processes from the command line; Ctrl-C interrupts the confirmation."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from acuity.objectives.phantoms.generator import write_phantoms
from support.commands import ACUITY, acuity
from support.postgres import count_trials
from support.tiny_experiment import confirmable_experiment
from support.waiting import wait_until

EXPERIMENT = confirmable_experiment(name="tiny", index="Data_Entry.csv", images="images", epochs=3)


def trainings(database_url: str, state: str) -> int:
    """The number of trainings of the confirmation in this state."""
    return count_trials(database_url, f"confirm and state = '{state}'")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_confirmation_resumes_after_ctrl_c_and_ends_in_a_verdict(
    tmp_path: Path, environment: dict[str, str], database_url: str
) -> None:
    write_phantoms(tmp_path, images=1200, size=64, seed=3)
    file = tmp_path / "tiny.toml"
    file.write_text(EXPERIMENT)
    refused = acuity("confirm", "tiny", environment=environment, status=1)
    assert 'no experiment named "tiny"' in refused.stderr
    acuity("launch", str(file), "--workers", "2", environment=environment)

    command = [*ACUITY, "confirm", "tiny", "--yes", "--workers", "2"]
    started = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: trainings(database_url, "COMPLETE") >= 2, 120)
    os.killpg(started.pid, signal.SIGINT)
    assert started.wait(timeout=30) != 0
    assert trainings(database_url, "RUNNING") == 0
    assert trainings(database_url, "COMPLETE") < 6

    confirmed = acuity("confirm", "tiny", "--yes", "--workers", "2", environment=environment)
    assert trainings(database_url, "COMPLETE") == 6
    assert "Frozen before any score of a test patient is read" in confirmed.stderr
    assert "used once" in confirmed.stdout
    (entry,) = json.loads(acuity("best", "tiny", "--format", "json", environment=environment).stdout)["labels"]
    assert entry["smallest_adequate"]["verdict"] in ("shown", "undecided")
    assert entry["smallest_adequate"]["positive_patients"] >= 30
    assert (entry["best"]["split"], entry["best"]["seeds"]) == ("test", 3)
    assert "sex F" in acuity("best", "tiny", "--label", "Cardiomegaly", environment=environment).stdout

    file.write_text(EXPERIMENT.replace("margin = 0.1", "margin = 0.2"))
    again = acuity("confirm", str(file), "--yes", environment=environment)
    assert "used twice" in again.stdout
    assert trainings(database_url, "COMPLETE") == 6
    acuity("delete", "tiny", "--yes", environment=environment)

"""Search and confirmation by real worker processes from the command line, cut off by Ctrl-C on the way."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psycopg2
import pytest
from commands import ACUITY, acuity

from objectives.phantom import write_phantoms
from storage.url import parse_url

EXPERIMENT = """
name = "tiny"
labels = ["Cardiomegaly"]
[data]
index = "Data_Entry.csv"
images = "images"
cache = "cache"
[search]
resolutions = [16, 32]
architectures = ["test_resnet"]
trials = 4
min_complete_per_resolution = 2
learning_rate = [5e-3, 2e-2]
max_batch_size = 32
[training]
epochs = 3
augment = false
[confirm]
seeds = 3
margin = 0.1
[workers]
heartbeat_s = 1
grace_s = 3
"""


def trainings(database_url: str, state: str) -> int:
    url = parse_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("select count(*) from acuity.trials where confirm and state = %s", (state,))
            [[number]] = cursor.fetchall()
            return int(number)
    finally:
        connection.close()


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_confirmation_goes_on_after_ctrl_c_and_ends_in_a_verdict(
    tmp_path: Path, environment: dict[str, str], database_url: str
) -> None:
    write_phantoms(tmp_path, images=1200, size=64, seed=3)
    file = tmp_path / "tiny.toml"
    file.write_text(EXPERIMENT)
    refused = acuity("confirm", "tiny", environment=environment, status=1)
    assert 'no experiment named "tiny"' in refused.stderr
    acuity("launch", str(file), "--workers", "2", environment=environment)

    command = [*ACUITY, "confirm", "tiny", "--workers", "2"]
    started = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: trainings(database_url, "COMPLETE") >= 2, 120)
    os.killpg(started.pid, signal.SIGINT)
    assert started.wait(timeout=30) != 0
    assert trainings(database_url, "RUNNING") == 0
    assert trainings(database_url, "COMPLETE") < 8

    confirmed = acuity("confirm", "tiny", "--workers", "2", environment=environment)
    assert trainings(database_url, "COMPLETE") == 8
    assert "Frozen before any test patient is read" in confirmed.stderr
    assert "used once" in confirmed.stdout
    (entry,) = json.loads(acuity("best", "tiny", "--format", "json", environment=environment).stdout)["labels"]
    assert entry["smallest_adequate"]["verdict"] in ("shown", "undecided")
    assert entry["smallest_adequate"]["positive_patients"] >= 30
    assert (entry["best"]["split"], entry["best"]["seeds"]) == ("test", 3)
    assert "sex F" in acuity("best", "tiny", "--label", "Cardiomegaly", environment=environment).stdout

    file.write_text(EXPERIMENT.replace("margin = 0.1", "margin = 0.2"))
    again = acuity("confirm", str(file), environment=environment)
    assert "used twice" in again.stdout
    assert trainings(database_url, "COMPLETE") == 8
    acuity("delete", "tiny", "--yes", environment=environment)

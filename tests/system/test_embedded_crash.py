"""A launch on the embedded server outlives two crashes of the server in mid-trial."""

import os
import signal
import subprocess
import tempfile
from pathlib import Path

import psycopg2
import pytest

from acuity.storage.embedded.server import embedded_server
from support.commands import ACUITY
from support.postgres import count_trials
from support.tiny_experiment import write_tiny_experiment
from support.waiting import wait_until

pytestmark = pytest.mark.slow
_TRIALS = 6


def test_launch_ends_with_its_budget_though_the_server_is_killed_twice_in_mid_trial(
    nothing_of_the_users: Path, phantoms: Path, home: Path, tmp_path: Path
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="crash-", dir=nothing_of_the_users))
    folder.chmod(0o711)
    file = write_tiny_experiment(tmp_path, phantoms, trials=_TRIALS, epochs=12)
    environment = os.environ | {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "ACUITY_EMBEDDED_DIR": str(folder / "server"),
    }
    log = tmp_path / "launch.log"
    with log.open("w") as stream:
        launch = subprocess.Popen(
            [*ACUITY, "launch", str(file), "--workers", "2", "--device", "cpu"],
            env=environment,
            stdout=stream,
            stderr=stream,
        )
    try:
        for earlier in (0, 2):  # the second crash is in later trials
            wait_until(lambda: _running(folder / "server", launch, finished=earlier), 120, report=log.read_text)  # noqa: B023
            os.kill(_postmaster(folder / "server"), signal.SIGKILL)
        assert launch.wait(300) == 0, log.read_text()
    finally:
        launch.kill()
        launch.wait()
    with embedded_server(folder / "server") as url:
        for label in ("Cardiomegaly", "Nodule"):
            assert count_trials(url, f"label = '{label}' and state in ('COMPLETE', 'PRUNED')") == _TRIALS
        assert count_trials(url, "state = 'FAIL' and not requeued") == 0


def _running(folder: Path, launch: "subprocess.Popen[bytes]", *, finished: int) -> bool:
    """Whether trials report epochs, and more than `finished` have ended."""
    assert launch.poll() is None, "the launch has ended"
    if not (folder / "data" / "postmaster.pid").exists():
        return False
    epochs = "exists (select from public.trial_intermediate_values i where i.trial_id = t.trial_id)"
    try:
        with embedded_server(folder) as url:
            return (
                count_trials(url, f"state = 'RUNNING' and {epochs}") > 0
                and count_trials(url, "state in ('COMPLETE', 'PRUNED')") >= finished
            )
    except psycopg2.Error:  # the tables are not made yet
        return False


def _postmaster(folder: Path) -> int:
    return int((folder / "data" / "postmaster.pid").read_text().split()[0])

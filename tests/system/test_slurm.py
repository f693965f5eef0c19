"""Workers as jobs of a real Slurm on loopback: preempted, requeued, cancelled. Budgets are met exactly."""

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from acuity.storage.url import parse_url
from support import slurm_cluster
from support.commands import acuity
from support.postgres import count_trials
from support.processes import find_processes
from support.slurm_cluster import Cluster
from support.tiny_experiment import write_tiny_experiment
from support.waiting import wait_until

pytestmark = pytest.mark.slurm

TRAINS = "state = 'RUNNING' and exists (select from trial_intermediate_values i where i.trial_id = t.trial_id)"
_ATTRIBUTE = "exists (select from trial_user_attributes a where a.trial_id = t.trial_id and a.key = '{}' and {})"
TAKEN_UP = _ATTRIBUTE.format("attempt", "a.value_json::int > 1")
CLUSTER = """
[cluster]
partition = "low"
time_limit_min = 10
gpus_per_worker = 0
cpus_per_worker = 1
memory_gib = 0.25
max_requeues = 3
logs = "logs"
setup = ["echo the setup has run"]
extra = { nice = 5 }
"""
RESUMED = _ATTRIBUTE.format("resumed_epochs", "a.value_json::int > 0")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster of one node with four cores. Jobs in partition "high" preempt those in "low"."""
    reason = slurm_cluster.missing()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="acuity-slurm-") as folder, slurm_cluster.slurm_cluster(Path(folder)) as up:
        yield up


@dataclass(frozen=True)
class Site:
    """A user of the cluster: a home with the storage's password in ~/.pgpass, and an experiment."""

    cluster: Cluster
    home: Path
    database_url: str
    file: Path

    @property
    def password(self) -> str:
        password = parse_url(self.database_url).password
        assert password is not None
        return password

    @property
    def environment(self) -> dict[str, str]:
        storage = self.database_url.replace(f":{self.password}@", "@").replace("+psycopg2", "")
        assert self.password not in storage
        mine = {"HOME": str(self.home), "XDG_CACHE_HOME": str(self.home / "cache"), "ACUITY_STORAGE": storage}
        return os.environ | self.cluster.environment | mine

    def acuity(self, *arguments: str, status: int = 0) -> str:
        """The stderr of a command."""
        return acuity(*arguments, environment=self.environment, status=status).stderr

    def launch(self, workers: int) -> str:
        """Submit workers; returns the id of the job."""
        said = self.acuity("launch", str(self.file), "--cluster", "slurm", "--workers", str(workers))
        submitted = re.search(r"as job (\d+)", said)
        assert submitted is not None, said
        return submitted[1]

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted((self.file.parent / "logs").rglob("*.out")))

    def count(self, where: str) -> int:
        """The number of trials t that match a condition."""
        return count_trials(self.database_url, where)

    def wait_until(self, condition: Callable[[], bool], seconds: float = 90) -> None:
        wait_until(condition, seconds, report=lambda: f"{self.cluster.command('squeue', '--array')}\n{self.logs()}")


@pytest.fixture
def site(cluster: Cluster, phantoms: Path, tmp_path: Path, database_url: str) -> Iterator[Site]:
    home = tmp_path / "home"
    home.mkdir()
    url = parse_url(database_url)
    assert url.password is not None
    secret = home / ".pgpass"
    secret.write_text(f"*:*:{url.database}:{url.username}:{url.password.replace(':', chr(92) + ':')}\n")
    secret.chmod(0o600)
    file = write_tiny_experiment(tmp_path, phantoms, labels='["Nodule"]', trials=4, epochs=3000)
    with file.open("a") as stream:
        stream.write(CLUSTER)
    yield Site(cluster, home, database_url, file)
    slurm_cluster.cancel_everything(cluster)


def change(site: Site, before: str, after: str) -> None:
    text = site.file.read_text()
    assert before in text
    site.file.write_text(text.replace(before, after))


def test_two_jobs_preempted_and_requeued_during_trials_finish_the_budget_exactly(site: Site) -> None:
    change(site, "epochs = 3000", "epochs = 25")
    job = site.launch(2)
    site.wait_until(lambda: site.count(TRAINS) == 2)
    urgent = site.cluster.command("sbatch", "--partition=high", "-c4", "--output=/dev/null", "--wrap=true")
    site.wait_until(lambda: site.count("requeued") == 2)
    site.wait_until(lambda: urgent.split()[-1] not in site.cluster.jobs())
    site.wait_until(lambda: site.count(TRAINS) == 2)
    site.cluster.command("scontrol", "requeue", f"{job}_1")
    check_that_the_password_is_nowhere(site, job)
    site.wait_until(lambda: not site.cluster.jobs(), 150)
    assert site.count("state in ('COMPLETE', 'PRUNED')") == 4
    assert site.count("state in ('RUNNING', 'WAITING')") == 0
    assert site.count("state = 'FAIL' and not requeued") == 0
    assert site.count("requeued") >= 3
    assert site.count(RESUMED) >= 2
    assert site.logs().count("the setup has run") >= 4
    assert site.logs().count("is requeued (1 of 3)") == 2


def test_job_is_requeued_at_its_time_limit_until_it_is_cancelled(site: Site) -> None:
    change(site, "time_limit_min = 10", "time_limit_min = 1")
    job = site.launch(1)
    site.wait_until(lambda: site.count(f"{TRAINS} and {TAKEN_UP}") == 1, 120)
    assert re.search(r"Restarts=[1-9]", site.cluster.command("scontrol", "show", "job", f"{job}_0"))
    other = site.acuity("stop", "tiny", "--storage", "postgresql://nobody@elsewhere/acuity", status=1)
    assert "no launch of tiny runs" in other
    assert "cancelled" in site.acuity("stop", "tiny")
    assert site.cluster.jobs() == {}
    assert site.count("state = 'RUNNING'") == 0
    time.sleep(8)  # a requeued job would be back by now
    assert site.cluster.jobs() == {}


def test_job_is_not_requeued_more_often_than_its_limit(site: Site) -> None:
    change(site, "max_requeues = 3", "max_requeues = 0")
    job = site.launch(1)
    site.wait_until(lambda: site.count(TRAINS) == 1)
    site.cluster.command("scancel", "--signal=TERM", f"{job}_0")
    site.wait_until(lambda: not site.cluster.jobs())
    assert "which is the limit (max_requeues)" in site.logs()
    assert site.count("requeued") == 1


def test_error_of_slurm_is_reported_in_one_line(site: Site) -> None:
    change(site, 'partition = "low"', 'partition = "gpu"')
    said = site.acuity("launch", str(site.file), "--cluster", "slurm", "--workers", "2", status=1)
    assert "invalid partition specified: gpu" in said
    assert said.strip().splitlines()[-1].startswith("acuity: Slurm did not accept the workers of tiny")
    assert "Traceback" not in said


def check_that_the_password_is_nowhere(site: Site, job: str) -> None:
    """Neither in a file of Slurm nor in a script, log, command line or environment of a job."""
    secret = site.password.encode()
    folders = (site.cluster.folder, site.file.parent / "logs")
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any("job_environ" in path.name or path.name == "environment" for path in files), "no job's environment seen"
    for path in files:
        with contextlib.suppress(FileNotFoundError):  # Slurm writes a file as *.new and renames it
            assert secret not in path.read_bytes(), f"the password is in {path}"
    script = site.cluster.command("scontrol", "write", "batch_script", f"{job}_0", "-")
    assert "ACUITY_STORAGE" in script
    assert site.password not in script

    def is_worker_of_the_site(process: Path) -> bool:
        command, variables = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        assert secret not in command
        if f"HOME={site.home}".encode() not in variables:
            return False
        assert secret not in variables
        return b"worker" in command

    assert len(find_processes(is_worker_of_the_site)) >= 2

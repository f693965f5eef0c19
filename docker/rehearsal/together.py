"""Finish one experiment with two Slurm jobs and a container on one Postgres, in the image that rehearse.py has built.

rehearse.py starts this script in separate network and process namespaces, with a Slurm of one node and a Postgres. The
jobs run this checkout and the container runs the image. All three share one folder of radiographs, decoded images and
checkpoints, as on a shared file system. The script prints which worker ran which trial. It fails unless every label has
exactly its trials, each of the three has finished at least one, and the trial of a requeued job was resumed.
"""

import json
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from compose_file import read_compose
from containers import Container, Engine, container_of, open_engine, start_as_process_1
from stage import expect, expect_no_password, finished_trials, postgres, set_stage, wait_until

sys.path.append(str(Path(__file__).parent.parent.parent / "tests"))
from support.commands import acuity
from support.slurm_cluster import missing, slurm_cluster

Trials = list[dict[str, Any]]

DOCKER = Path(__file__).parent.parent
STORAGE = "postgresql://acuity@postgres/acuity"
TRIALS, LABELS = 8, ("Cardiomegaly", "Nodule")
EXPERIMENT = f"""\
name = "together"
labels = {json.dumps(LABELS)}
[data]
index = "phantoms/Data_Entry.csv"
images = "phantoms/images"
split = "phantoms/together.split.csv"
cache = "phantoms/cache"
[search]
resolutions = [32, 64]
architectures = ["test_resnet"]
trials = {TRIALS}
min_complete_per_resolution = 2
min_updates_per_epoch = 5
[training]
epochs = 25
[workers]
checkpoints = "phantoms/checkpoints"
[cluster]
partition = "low"
time_limit_min = 20
gpus_per_worker = 0
cpus_per_worker = 1
memory_gib = 0.25
logs = "logs"
"""


def perform(folder: Path, image: str) -> None:
    """Start two jobs by `acuity launch --cluster slurm` and a container, and requeue one job during a trial."""
    engine, stage = open_engine(folder, image), folder / "stage"
    passwords = set_stage(stage, user=engine.user)
    environment = set_up_login_node(stage, password=passwords[0])
    with (
        postgres(folder, password_file=stage / "secrets" / "postgres_password") as ask,
        slurm_cluster(stage / "slurm") as cluster,
    ):
        os.umask(0)  # jobs inherit it: root runs them, the image's user runs the container, and both write checkpoints
        (stage / "phantoms" / "checkpoints").mkdir()
        said = acuity(
            "launch", str(stage / "together.toml"), "--cluster", "slurm", "--workers", "2", environment=environment
        ).stderr
        submitted = re.search(r"as job (\d+)", said)
        expect(submitted is not None, "launch: " + " ".join(said.split()))
        assert submitted is not None
        container = start_as_process_1(engine, joining_worker(engine, stage))

        names: dict[str, str] = {}

        def look() -> Trials:
            return read_trials(ask, names)

        wait_until(
            lambda: len(finished_by(look())) == 3, "both jobs and the container have finished a trial each", seconds=300
        )
        expect_no_password(engine, passwords, [])
        job = f"{submitted[1]}_1"
        wait_until(lambda: trains(look(), f"Slurm job {job}"), f"Slurm job {job} trains another trial")
        cluster.command("scontrol", "requeue", job)
        wait_until(lambda: bool(look()) and not cluster.jobs(), f"job {job} requeued; both jobs ended", seconds=600)
        expect(container.wait(timeout=120) == 0, "the container ended with status 0")

        trials = look()
        print(transcript(trials), flush=True)
        counted = finished_trials(ask, LABELS)
        expect(counted == [TRIALS] * len(LABELS), f"every label has exactly its {TRIALS} trials: {counted}")
        left = [trial for trial in trials if trial["state"] in ("RUNNING", "WAITING")]
        expect(not left, "no trial is left running or waiting")
        by = finished_by(trials)
        expect(len(by) == 3, ", ".join(f"{name}: {count} trials" for name, count in sorted(by.items())))
        resumed = [trial["resumed_epochs"] for trial in trials if trial["resumed_epochs"]]
        expect(
            bool(resumed), f"the trial that job {job} had to release was resumed after epoch {max(resumed, default=0)}"
        )


def set_up_login_node(stage: Path, *, password: str) -> dict[str, str]:
    """Write the experiment file and a home with the storage's password; returns the environment of the launch."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # Slurm resolves names with AI_ADDRCONFIG, which finds none on a host that has only loopback addresses.
    subprocess.run(["ip", "address", "add", "10.0.0.1/32", "dev", "lo"], check=True)
    subprocess.run(["mount", "--bind", str(stage / "hosts"), "/etc/hosts"], check=True)  # `postgres`, for jobs too
    (stage / "together.toml").write_text(EXPERIMENT)
    for name in ("home", "slurm"):
        (stage / name).mkdir()
    secret = stage / "home" / ".pgpass"
    secret.write_text(f"postgres:*:acuity:acuity:{password}\n")
    secret.chmod(0o600)
    return os.environ | {
        "HOME": str(stage / "home"),
        "XDG_CACHE_HOME": str(stage / "home" / "cache"),
        "ACUITY_STORAGE": STORAGE,
        "SLURM_CONF": str(stage / "slurm" / "slurm.conf"),
    }


def joining_worker(engine: Engine, stage: Path) -> Container:
    """The worker of compose.yaml with the folder that the jobs share."""
    variables = {"ACUITY_IMAGES": "phantoms", "ACUITY_EXPERIMENT": "together"}
    project = read_compose([DOCKER / "compose.yaml"], variables)
    worker = container_of(project, "worker", engine, folder=stage, hosts=stage / "hosts")
    command = [*worker.command, "--data", "/shared", "--device", "cpu", "--threads", "1"]
    return replace(worker, command=command, mounts=[*worker.mounts, (stage / "phantoms", "/shared", True)])


def read_trials(ask: Callable[[str], Any], names: dict[str, str]) -> Trials:
    """All attempts, each with its worker. names: of known workers; a worker's name can be read only while it runs."""
    trials: Trials = ask(
        """
        select coalesce(json_agg(r order by r.started, r.label, r.number), '[]') from (
            select t.label, t.number, t.resolution, t.state, t.value, t.requeued, t.started,
                (select max(i.step) from public.trial_intermediate_values i where i.trial_id = t.trial_id) as epochs,
                max(a.value_json) filter (where a.key = 'worker')::json #>> '{}' as worker,
                max(a.value_json) filter (where a.key = 'resumed_epochs')::integer as resumed_epochs
            from acuity.all_trials t left join public.trial_user_attributes a on a.trial_id = t.trial_id
            group by t.study_id, t.trial_id, t.label, t.number, t.resolution, t.state, t.value, t.requeued, t.started
        ) r
        """
    )
    for trial in trials:
        worker = trial["worker"]
        if worker is not None and worker not in names:
            names[worker] = name_of(worker)
        trial["by"] = names.get(worker, "no worker yet")
    return trials


def name_of(worker: str) -> str:
    """The Slurm job or the container of a worker. worker: host:process, as the trials store it."""
    host, _, process = worker.rpartition(":")
    if host != platform.node():
        return f"container {host}"
    variables = (Path("/proc") / process / "environ").read_text().split("\0")
    of = dict(variable.split("=", 1) for variable in variables if "=" in variable)
    return f"Slurm job {of['SLURM_ARRAY_JOB_ID']}_{of['SLURM_ARRAY_TASK_ID']}"


def finished_by(trials: Trials) -> Counter[str]:
    """The number of finished trials of each job and container."""
    return Counter(trial["by"] for trial in trials if trial["state"] in ("COMPLETE", "PRUNED"))


def trains(trials: Trials, name: str) -> bool:
    """Whether a job or container has a running trial with at least two epochs."""
    return any(trial["state"] == "RUNNING" and trial["by"] == name and (trial["epochs"] or 0) >= 2 for trial in trials)


def transcript(trials: Trials) -> str:
    """A table with one line per attempt, in the order of their start."""
    rows = ["began     trial           px  epochs  state        AUC    by"]
    for trial in trials:
        began, px = (trial["started"] or "")[11:19], trial["resolution"] or "-"
        state = "released" if trial["requeued"] else trial["state"].lower()
        auc = "-" if trial["value"] is None or trial["requeued"] else f"{trial['value']:.3f}"
        name, epochs = f"{trial['label']} {trial['number']}", trial["epochs"] or 0
        since = f", from epoch {trial['resumed_epochs']} on" if trial["resumed_epochs"] else ""
        rows.append(f"{began:8}  {name:14}  {px:>2}  {epochs:6}  {state:11}  {auc:5}  {trial['by']}{since}")
    return "\n".join(rows)


if __name__ == "__main__":
    reason = missing()
    if reason:
        sys.exit(reason)
    perform(Path(sys.argv[1]), sys.argv[2])

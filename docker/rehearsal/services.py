"""Run the services of compose.yaml in the image that rehearse.py has built, until the last trial of one experiment.

rehearse.py starts this script in separate network and process namespaces. There, `postgres` is on port 5432 and the
dashboard on port 8080. All processes end with this one.
"""

import base64
import json
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

from compose_file import read_compose
from containers import (
    Container,
    Engine,
    container_of,
    is_healthy,
    open_engine,
    start_as_process_1,
    start_by_buildah,
    terminate,
)
from stage import expect, expect_no_password, finished_trials, postgres, set_stage, wait_until

DOCKER = Path(__file__).parent.parent
TRIALS, LABELS = 6, ("Cardiomegaly", "Nodule")
EXPERIMENT = f"""\
name = "rehearsal"
labels = {json.dumps(LABELS)}
[data]
index = "/images/Data_Entry.csv"
images = "/images/images"
split = "/state/rehearsal.split.csv"
cache = "/cache/rehearsal"
[search]
resolutions = [32, 64]
architectures = ["test_resnet"]
trials = {TRIALS}
min_complete_per_resolution = 2
min_updates_per_epoch = 5
[training]
epochs = 8
[workers]
checkpoints = "/state/checkpoints"
"""


def perform(folder: Path, image: str) -> None:
    """Run every service of compose.yaml with compose.cpu.yaml until the experiment ends."""
    engine, stage = open_engine(folder, image), folder / "stage"
    variables = {"ACUITY_IMAGES": "phantoms", "ACUITY_EXPERIMENT": "rehearsal", "ACUITY_WORKERS": "2"}
    project = read_compose([DOCKER / "compose.yaml", DOCKER / "compose.cpu.yaml"], variables)
    passwords = set_stage(stage, user=engine.user)
    (stage / "rehearsal.toml").write_text(EXPERIMENT)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

    def container(service: str) -> Container:
        return container_of(project, service, engine, folder=stage, hosts=stage / "hosts")

    with postgres(folder, password_file=stage / "secrets" / "postgres_password") as ask:
        expect(run(engine, container("launch")) == 0, "launch: the experiment is registered, its images decoded")
        dashboard = start_as_process_1(engine, container("dashboard"))
        wait_until(lambda: answer(None) == 401, "dashboard: requests a password")
        expect(answer("wrong") == 401, "dashboard: refuses another password")
        expect(answer(passwords[1]) == 200, "dashboard: accepts the password")
        expect(is_healthy(engine, dashboard), "dashboard: is healthy")

        first = start_as_process_1(engine, container("worker"))
        epochs = "select count(*) from public.trial_intermediate_values"
        wait_until(lambda: ask(epochs) >= 2, "worker: trains as process 1 on a read-only file system")
        expect(is_healthy(engine, first), "worker: is healthy")
        status, seconds = terminate(first)
        expect(status == 0 and seconds < 10, f"worker: SIGTERM, status {status} after {seconds:.1f} s")
        expect(ask("select count(*) from public.trials where state = 'RUNNING'") == 0, "worker: its trial is released")

        expect_no_password(engine, passwords, workers := [start_by_buildah(engine, container("worker")) for _ in "12"])
        expect([worker.wait(timeout=600) for worker in workers] == [0, 0], "worker: two more workers end with status 0")
        counted = finished_trials(ask, LABELS)
        expect(counted == [TRIALS] * len(LABELS), f"every label has exactly its {TRIALS} trials: {counted}")
        resumed = ask("select max(value_json::numeric) from public.trial_user_attributes where key = 'resumed_epochs'")
        expect((resumed or 0) >= 1, f"the released trial was resumed after epoch {resumed}")

        best = replace(container("worker"), command=[*engine.settings["Entrypoint"], "best", "rehearsal"])
        expect(run(engine, best) == 0, "best: prints its answer")
        expect(run(engine, replace(best, environment={})) == 1, "without ACUITY_STORAGE a command ends with status 1")
        status, seconds = terminate(dashboard)
        expect(status == 0 and seconds < 10, f"dashboard: SIGTERM, status {status} after {seconds:.1f} s")
        expect_no_password(engine, passwords, [])


def run(engine: Engine, container: Container) -> int:
    """Run a container to its end and return its exit status."""
    return start_by_buildah(engine, container).wait(timeout=600)


def answer(password: str | None) -> int:
    """The HTTP status of the dashboard for a request with this password; 0 without a response."""
    request = urllib.request.Request("http://127.0.0.1:8080/dashboard/")
    if password is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"acuity:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


if __name__ == "__main__":
    perform(Path(sys.argv[1]), sys.argv[2])

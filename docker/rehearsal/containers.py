"""Run a container of a Compose service without Docker: by buildah, or as process 1 of a read-only root file system."""

import json
import shlex
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = "/opt/acuity/bin/acuity"


@dataclass(frozen=True)
class Container:
    """The settings that Compose passes to the container of a service."""

    command: list[str]
    environment: dict[str, str]
    mounts: list[tuple[Path, str, bool]]
    """Path on the host, path in the container, whether it is writable."""


@dataclass(frozen=True)
class Engine:
    """buildah with its folder, the image with its settings, and the common log of all containers."""

    buildah: list[str]
    image: str
    settings: dict[str, Any]
    log: Path

    @property
    def user(self) -> int:
        """The user id of the image's processes."""
        return int(self.settings["User"].partition(":")[0])

    def new_root(self) -> str:
        """Create a container of the image and return its name."""
        command = [*self.buildah, "from", "--pull-never", "--add-host", "postgres:127.0.0.1", self.image]
        return subprocess.check_output(command, text=True).strip()


def open_engine(folder: Path, image: str) -> Engine:
    buildah = ["buildah", "--root", str(folder / "images"), "--runroot", str(folder / "run")]
    described = json.loads(subprocess.check_output([*buildah, "inspect", "--type", "image", image]))
    return Engine(buildah, image, described["Docker"]["config"], folder / "containers.log")


def container_of(project: dict[str, Any], service: str, engine: Engine, *, folder: Path, hosts: Path) -> Container:
    """A container of the service. folder: the base of the project's relative paths and the parent of its volumes."""
    entry = project["services"][service]
    mounts = [(hosts, "/etc/hosts", False)]
    for volume in entry.get("volumes", []):
        source, target, *mode = volume.split(":")
        here = folder / "volumes" / source if source in project["volumes"] else folder / source
        mounts.append((here, target, mode != ["ro"]))
    for name in entry.get("secrets", []):
        mounts.append((folder / project["secrets"][name]["file"], f"/run/secrets/{name}", False))
    for config in entry.get("configs", []):
        mounts.append((folder / project["configs"][config["source"]]["file"], config["target"], False))
    return Container([*engine.settings["Entrypoint"], *entry["command"]], entry.get("environment", {}), mounts)


def start_by_buildah(engine: Engine, container: Container) -> subprocess.Popen[bytes]:
    """Start the container with `buildah run`, as the image's user."""
    command = [*engine.buildah, "run", "--isolation", "chroot"]
    for key, value in container.environment.items():
        command += ["--env", f"{key}={value}"]
    for here, there, writable in container.mounts:
        command += ["--volume", f"{here}:{there}" + ("" if writable else ":ro")]
    with engine.log.open("ab") as log:
        return subprocess.Popen([*command, engine.new_root(), "--", *container.command], stdout=log, stderr=log)


def start_as_process_1(engine: Engine, container: Container) -> subprocess.Popen[bytes]:
    """Start the container as Docker and Kubernetes do: as process 1, with a host name, on a read-only file system."""
    name = engine.new_root()
    root = Path(subprocess.check_output([*engine.buildah, "mount", name], text=True).strip())
    steps = [f"hostname {name}", f"mount --bind {root} {root}", f"mount -t tmpfs none {root}/tmp"]
    for here, there, writable in [(Path("/dev"), "/dev", True), *container.mounts]:
        target = root / there.removeprefix("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if here.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.touch()
        steps.append(f"mount --bind {here} {target}")
        steps += [] if writable else [f"mount -o remount,bind,ro {target}"]
    steps += [f"mount -o remount,bind,ro {root}", f"mount -t proc proc {root}/proc"]
    inside = dict(line.split("=", 1) for line in engine.settings["Env"]) | {"HOME": "/state"} | container.environment
    assignments = [f"{key}={value}" for key, value in inside.items()]
    program = ["chroot", f"--userspec={engine.settings['User']}", str(root), "env", "-i"]
    program += [*assignments, PROGRAM, *container.command[1:]]
    script = "\n".join(["set -e", *steps, f"cd / && exec {shlex.join(program)}"])
    with engine.log.open("ab") as log:
        apart = ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child"]
        return subprocess.Popen([*apart, "sh", "-c", script], stdout=log, stderr=log)


def is_healthy(engine: Engine, process: subprocess.Popen[bytes]) -> bool:
    """Run the image's health check in a container that start_as_process_1 started."""
    kind, *check = engine.settings["Healthcheck"]["Test"]
    assert kind == "CMD"
    number = acuity_process(process)
    environment = (Path("/proc") / str(number) / "environ").read_text().strip("\0").split("\0")
    user, group = engine.settings["User"].split(":")
    enter = [
        "nsenter",
        f"--target={number}",
        "--mount",
        "--pid",
        "--root",
        "--wd",
        f"--setuid={user}",
        f"--setgid={group}",
    ]
    with engine.log.open("ab") as log:
        done = subprocess.run([*enter, "env", "-i", *environment, *check], stdout=log, stderr=log, check=False)
    return done.returncode == 0


def terminate(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Send SIGTERM to the container's `acuity`; returns its exit status and the seconds until it ended."""
    began = time.monotonic()
    subprocess.run(["kill", f"-{signal.SIGTERM:d}", str(acuity_process(process))], check=True)
    return process.wait(timeout=60), time.monotonic() - began


def acuity_process(process: subprocess.Popen[bytes]) -> int:
    """The descendant of this process that runs the program; buildah and unshare start processes in between."""
    below = {process.pid}
    for number in sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        try:
            parent = int((Path("/proc") / str(number) / "stat").read_text().rpartition(")")[2].split()[1])
            command = (Path("/proc") / str(number) / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if parent in below:
            below.add(number)
            if command[1:2] == [PROGRAM]:
                return number
    raise LookupError(f"no {PROGRAM} runs below process {process.pid}")

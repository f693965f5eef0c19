"""Test docker/ without Docker: build the image with buildah and run the services of compose.yaml to the last trial.

Where Slurm is installed, two Slurm jobs and a container then finish another experiment together. debootstrap makes the
base image from this host's package mirror. Containers, Postgres, dashboard and Slurm run in a separate network
namespace, use no port of the host, and end with this process. Needs root, buildah and debootstrap.

    .venv/bin/python docker/rehearsal/rehearse.py                      # everything is removed at the end
    .venv/bin/python docker/rehearsal/rehearse.py --folder /tmp/kept   # images are kept; the next run is quicker
    .venv/bin/python docker/rehearsal/rehearse.py --only together      # only the jobs and the container
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent
BASE, IMAGE = "localhost/acuity-rehearsal-base", "localhost/acuity-rehearsal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="Keep the images here.")
    parser.add_argument("--only", choices=("services", "together"), help="One of the two experiments.")
    given = parser.parse_args()
    named, parts = given.folder, [given.only] if given.only else ["services", "together"]
    for program in ("buildah", "debootstrap", "unshare"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is not installed: apt-get install {program}")
    folder = named.absolute() if named else Path(tempfile.mkdtemp(prefix="acuity-rehearsal-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        make_base(folder)
        build(folder)
        if not given.only and shutil.which("slurmctld") is None:
            print("left out: together.py, since Slurm is not installed (apt-get install slurm-wlm munge)")
            parts.remove("together")
        for part in parts:
            perform(part, folder)
    finally:
        subprocess.run([*buildah(folder), "rm", "--all"], check=False, stdout=subprocess.DEVNULL)
        if named is None:
            subprocess.run([*buildah(folder), "rmi", "--all", "--force"], check=False, stdout=subprocess.DEVNULL)
            shutil.rmtree(folder)


def perform(part: str, folder: Path) -> None:
    """Run services.py or together.py in separate network, process and mount namespaces; its processes end with it."""
    began = time.monotonic()
    apart = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
    script = Path(__file__).with_name(f"{part}.py")
    status = subprocess.run([*apart, sys.executable, str(script), str(folder), IMAGE], check=False).returncode
    if status != 0:
        for log in (folder / "containers.log", *(folder / "stage").glob("logs/**/*.out")):
            if log.exists():
                print(f"{log}:", *log.read_text(errors="replace").splitlines()[-40:], sep="\n", file=sys.stderr)
        sys.exit(status)
    print(f"{part}: {time.monotonic() - began:.0f} s", flush=True)


def buildah(folder: Path) -> list[str]:
    """The buildah command, which keeps all its files in this folder."""
    return ["buildah", "--root", str(folder / "images"), "--runroot", str(folder / "run")]


def make_base(folder: Path) -> None:
    """Make a minimal Debian without Python: NVIDIA's base images have no Python either."""
    if subprocess.run([*buildah(folder), "inspect", "--type", "image", BASE], capture_output=True).returncode == 0:
        return
    began, system = time.monotonic(), folder / "base"
    release = _os_release()["VERSION_CODENAME"]
    subprocess.run(
        ["debootstrap", "--variant=minbase", "--include=ca-certificates", release, str(system), _mirror(release)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    container = subprocess.check_output([*buildah(folder), "from", "scratch"], text=True).strip()
    subprocess.run([*buildah(folder), "copy", "--quiet", container, str(system), "/"], check=True)
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    subprocess.run([*buildah(folder), "config", "--env", path, container], check=True)
    subprocess.run([*buildah(folder), "commit", "--quiet", "--rm", container, BASE], check=True)
    shutil.rmtree(system)
    print(f"base of Debian {release}: {time.monotonic() - began:.0f} s", flush=True)


def build(folder: Path) -> None:
    """Build the Dockerfile with this host's certificates and pip settings, which may name a package mirror."""
    began = time.monotonic()
    command = [*buildah(folder), "bud", "--isolation", "chroot", "--format", "docker", "--layers", "--pull-never"]
    command += ["--file", "docker/Dockerfile", "--tag", IMAGE, "--build-arg", f"BASE={BASE}"]
    for settings in ("/etc/ssl/certs", "/etc/pip.conf"):
        command += ["--volume", f"{settings}:{settings}:ro"] if Path(settings).exists() else []
    log = folder / "build.log"
    with log.open("w") as stream:
        done = subprocess.run([*command, "."], cwd=REPOSITORY, stdout=stream, stderr=stream, check=False)
    if done.returncode != 0:
        sys.exit("\n".join(log.read_text(errors="replace").splitlines()[-30:]))
    print(f"image: {time.monotonic() - began:.0f} s", flush=True)


def _mirror(release: str) -> str:
    """The address from which this host's apt gets the release."""
    targets = subprocess.check_output(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"], text=True
    )
    return next(line.split()[0] for line in targets.splitlines() if line.split()[1] == release)


def _os_release() -> dict[str, str]:
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("buildah's chroot isolation needs root here")
    main()

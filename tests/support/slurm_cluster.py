"""A Slurm cluster of one node on loopback, with its own munged, slurmctld and slurmd."""

import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
_ADMIN_PATH = "/usr/sbin:/sbin"
_START_S = 20.0
_END_S = 10.0


@dataclass(frozen=True)
class Cluster:
    """A running cluster."""

    folder: Path
    """Configuration, state, spool and logs."""

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables by which Slurm's commands find this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def command(self, *arguments: str) -> str:
        """Run a Slurm command; returns its output."""
        done = subprocess.run(arguments, env=os.environ | self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def jobs(self) -> dict[str, str]:
        """The state of each job that has not ended, by its id: '7_0' -> 'RUNNING'."""
        rows = self.command("squeue", "--noheader", "--array", "--format", "%i|%T").split()
        return dict(row.split("|") for row in rows)


def missing() -> str | None:
    """The reason why no cluster can start on this host; None if it can."""
    lacking = [program for program in _PROGRAMS if _find(program) is None]
    if lacking:
        return f"{', '.join(lacking)}: not installed (apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "only root can start the daemons of a cluster"


@contextmanager
def slurm_cluster(folder: Path, *, cpus: int = 4) -> Iterator[Cluster]:
    """Start a cluster whose files lie in the folder, and end its processes afterwards."""
    cluster = Cluster(folder)
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o755)
    (folder / "slurm.conf").write_text(_configuration(folder, cpus=cpus))
    environment = os.environ | cluster.environment
    with ExitStack() as stack:
        stack.enter_context(_daemon(_munged(folder / "munge"), folder / "munged.out", environment))
        _wait_for(lambda: (folder / "munge" / "socket").exists(), "munged", folder)
        for program in ("slurmctld", "slurmd"):
            stack.enter_context(_daemon([_program(program), "-D"], folder / f"{program}.out", environment))
        _wait_for(lambda: _is_idle(environment), "the node", folder)
        try:
            yield cluster
        finally:
            cancel_everything(cluster)


def _configuration(folder: Path, *, cpus: int) -> str:
    host = platform.node()
    controller, node = _free_ports(2)
    return f"""
ClusterName=acuity
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
AuthType=auth/munge
# A requeued job waits for cred_expire before it starts: 2 minutes by default, at least 5 s.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=20
MinJobAge=60
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1024 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=20 MaxTime=60 State=UP
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=off MaxTime=60 State=UP
"""


def _munged(folder: Path) -> list[str]:
    key = folder / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    return [
        _program("munged"), "--foreground", "--force", f"--socket={folder}/socket", f"--key-file={key}",
        f"--pid-file={folder}/pid", f"--seed-file={folder}/seed", f"--log-file={folder}/log",
    ]  # fmt: skip


@contextmanager
def _daemon(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[None]:
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def cancel_everything(cluster: Cluster) -> None:
    """Cancel all jobs and wait until they have ended."""
    jobs = {job.partition("_")[0] for job in cluster.jobs()}
    if jobs:
        cluster.command("scancel", *jobs)
    deadline = time.monotonic() + 40
    while cluster.jobs():
        assert time.monotonic() < deadline, f"jobs do not end: {cluster.jobs()}"
        time.sleep(0.2)


def _is_idle(environment: dict[str, str]) -> bool:
    asked = subprocess.run(
        ["sinfo", "--noheader", "--format", "%t"], env=environment, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() == "idle"


def _wait_for(condition, what: str, folder: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not condition():
        logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.[lo][ou][gt]"))
        assert time.monotonic() < deadline, f"{what} did not start:\n{logs}"
        time.sleep(0.1)


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_ADMIN_PATH}")


def _program(name: str) -> str:
    found = _find(name)
    assert found is not None
    return found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]
    finally:
        for opened in sockets:
            opened.close()

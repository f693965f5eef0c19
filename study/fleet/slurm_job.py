"""The program of a Slurm job: it runs a worker, restarts it after a failure, and requeues itself after a preemption."""

import argparse
import logging
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

from acuity.study.fleet.mps import shared_gpu_of_job
from acuity.study.fleet.restarts import NextStep, RestartPolicy

logger = logging.getLogger(__name__)
_EXIT_S = 12
"""How long a worker has to end. It needs ten seconds at most."""
_OUTAGE_PAUSE_S = 30.0
"""Longer than on one host: the jobs of a whole cluster may wait for the same database."""
_RUNNING_STATES = ("RUNNING", "SIGNALING")


@dataclass
class _Worker:
    """The worker of this job. Each restart is a new process."""

    arguments: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    stopping: bool = False
    """Not a threading.Event: a handler that interrupts a wait() would deadlock on the lock of the event."""

    def run(self) -> int:
        """Run a process to its end; returns its exit status, negative where a signal ended it."""
        self.process = subprocess.Popen([sys.executable, "-m", "acuity", *self.arguments], env=self.environment)
        if self.stopping:
            self.process.terminate()
        return self.process.wait()

    def pause(self, seconds: float) -> bool:
        """Wait for some seconds or until this job has to stop; returns whether it has to stop."""
        until = time.monotonic() + seconds
        while not self.stopping and time.monotonic() < until:
            time.sleep(0.5)
        return self.stopping

    def stop(self, *_: object) -> None:
        """Handler of SIGTERM, which Slurm may also send to the worker. A second SIGTERM has no effect on a worker."""
        self.stopping = True
        if self.process is not None:
            self.process.terminate()
            signal.alarm(_EXIT_S)

    def kill(self, *_: object) -> None:
        """Handler of SIGALRM. Slurm kills the job soon after."""
        if self.process is not None:
            self.process.kill()


def run_job(arguments: list[str], *, requeues: int, patience_s: float, sharing: int = 1) -> int:
    """Run `acuity` with these arguments until its experiment has no more work; returns the job's exit status.

    requeues: the limit of requeues of this job. patience_s: the longest outage of the database. sharing: number of
    workers of this job, each a task of Slurm, on its GPU.
    """
    worker = _Worker(arguments, {**os.environ})
    signal.signal(signal.SIGTERM, worker.stop)
    signal.signal(signal.SIGALRM, worker.kill)
    with shared_gpu_of_job(sharing) as variables:
        worker.environment |= variables
        return _run_worker(worker, requeues=requeues, patience_s=patience_s)


def _run_worker(worker: _Worker, *, requeues: int, patience_s: float) -> int:
    restarts = RestartPolicy(patience_s)
    while True:
        began = time.monotonic()
        status = worker.run()
        step = restarts.next_step(status, began=began, now=time.monotonic())
        if step is NextStep.REPORT_MISTAKE:
            return status
        if worker.stopping:
            return _requeue(requeues)
        match step:
            case NextStep.FINISH:
                return 0
            case NextStep.RESTART:
                logger.warning("the worker crashed (exit status %d) and is restarted", status)
            case NextStep.RESTART_LATER:
                if worker.pause(_OUTAGE_PAUSE_S):
                    return _requeue(requeues)
            case NextStep.GIVE_UP_OUTAGE:
                logger.error("the database has been away for %.0f s; bring it back and launch again", patience_s)
                return status
            case NextStep.GIVE_UP_CRASHES:
                logger.error("the worker crashed %d times (exit status %d)", len(restarts.crashes), status)
                return 1


def _requeue(requeues: int) -> int:
    """Requeue this job, unless it was cancelled or Slurm itself requeues it; returns the exit status.

    Of several workers of a job the first does it.
    """
    if os.environ.get("SLURM_PROCID", "0") != "0":
        return 0
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    # Not SLURM_JOB_ID: the last task of an array has the id of the whole array there.
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    shown = subprocess.run(
        ["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True, check=False
    ).stdout
    state, restarts = re.search(r"\bJobState=(\w+)", shown), re.search(r"\bRestarts=(\d+)", shown)
    if state is None or restarts is None:
        logger.error("job %s is not requeued: scontrol does not know it", job)
        return 1
    if state[1] not in _RUNNING_STATES:
        return 0
    if int(restarts[1]) >= requeues:
        logger.error("requeued %s times, which is the limit (max_requeues): launch again to continue", restarts[1])
        return 1
    requeued = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if requeued.returncode != 0:
        logger.error("job %s is not requeued: %s", job, requeued.stderr.strip())
        return 1
    logger.warning("job %s is requeued (%d of %d)", job, int(restarts[1]) + 1, requeues)
    return 0


def main() -> None:
    """Parse the command line that `acuity.study.fleet.slurm` wrote into the job script."""
    parser = argparse.ArgumentParser(prog="python -m acuity.study.fleet.slurm_job", description=__doc__)
    parser.add_argument("--requeues", type=int, required=True)
    parser.add_argument("--patience-min", type=float, required=True)
    parser.add_argument("--sharing", type=int, default=1)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of acuity: worker NAME ...")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    patience_s = 60 * given.patience_min
    sys.exit(run_job(given.arguments, requeues=given.requeues, patience_s=patience_s, sharing=given.sharing))


if __name__ == "__main__":
    main()

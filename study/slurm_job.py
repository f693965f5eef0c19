"""What a Slurm job runs: a worker, started again while that helps, and its job requeued while there is work to do."""

import argparse
import logging
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

logger = logging.getLogger(__name__)

_EXIT_S = 12
"""What a worker has to leave in; it needs ten seconds at most."""
_OUTAGE_PAUSE_S = 30.0
_WORKED_S = 60.0
"""A worker that ran for longer had found the database."""
_MOST_CRASHES = 3
_CRASHES_COUNT_FOR_S = 15 * 60
_GOES_ON = ("RUNNING", "SIGNALING")


@dataclass
class _Worker:
    """The worker of this job, whichever process it is at the moment."""

    arguments: list[str]
    process: subprocess.Popen[bytes] | None = None
    told_to_stop: bool = False
    """No threading.Event: a handler that sets one waits for ever for the lock of a wait() that it interrupts."""

    def run(self) -> int:
        """Run a process to its end; its exit status, negative where a signal ended it."""
        self.process = subprocess.Popen([sys.executable, "-m", "study", *self.arguments])
        if self.told_to_stop:
            self.process.terminate()
        return self.process.wait()

    def pause(self, seconds: float) -> bool:
        """Wait, but no longer than until this job is told to stop; returns whether it is."""
        until = time.monotonic() + seconds
        while not self.told_to_stop and time.monotonic() < until:
            time.sleep(0.5)
        return self.told_to_stop

    def leave(self, *_: object) -> None:
        """On SIGTERM. Slurm tells this process alone, or the worker too; to be told twice does no harm."""
        self.told_to_stop = True
        if self.process is not None:
            self.process.terminate()
            signal.alarm(_EXIT_S)

    def end(self, *_: object) -> None:
        """On SIGALRM: whoever preempts us will not wait longer."""
        if self.process is not None:
            self.process.kill()


def run_job(arguments: list[str], *, requeues: int, patience_s: float) -> int:
    """Run `acuity` with these arguments until its experiment needs it no more; the job's exit status.

    requeues: how often this job may have been requeued before it no longer does so itself. patience_s: with a database
    that is away when the worker starts.
    """
    worker = _Worker(arguments)
    signal.signal(signal.SIGTERM, worker.leave)
    signal.signal(signal.SIGALRM, worker.end)
    away_since: float | None = None
    crashes: list[float] = []
    while True:
        began = time.monotonic()
        status = worker.run()
        now = time.monotonic()
        if status in (1, 2):
            return status  # a mistake that the log explains; another try would end the same
        if worker.told_to_stop:
            return _come_back(requeues)
        if status == 0:
            return 0
        if status == os.EX_TEMPFAIL:
            if away_since is None or now - began > _WORKED_S:
                away_since = now
            if now - away_since >= patience_s:
                logger.error("the database has been away for %.0f s; bring it back and launch again", patience_s)
                return status
            if worker.pause(_OUTAGE_PAUSE_S):
                return _come_back(requeues)
            continue
        crashes = [crash for crash in crashes if now - crash < _CRASHES_COUNT_FOR_S] + [now]
        if len(crashes) > _MOST_CRASHES:
            logger.error("the worker has crashed %d times (exit status %d)", len(crashes), status)
            return 1
        logger.warning("the worker crashed (exit status %d) and is started again", status)


def _come_back(requeues: int) -> int:
    """Requeue this job where it was preempted or is out of time; not where it was cancelled, or Slurm requeues it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    # SLURM_JOB_ID would not do: that of an array's last task is the whole array's.
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    shown = subprocess.run(
        ["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True, check=False
    ).stdout
    state, restarts = re.search(r"\bJobState=(\w+)", shown), re.search(r"\bRestarts=(\d+)", shown)
    if state is None or restarts is None:
        logger.error("told to stop, and scontrol does not know job %s: it is not requeued", job)
        return 1
    if state[1] not in _GOES_ON:
        return 0
    if int(restarts[1]) >= requeues:
        logger.error("requeued %s times, which is the limit (max_requeues): launch again to go on", restarts[1])
        return 1
    requeued = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if requeued.returncode != 0:
        logger.error("job %s is not requeued: %s", job, requeued.stderr.strip())
        return 1
    logger.warning("job %s goes back into the queue (%d of %d)", job, int(restarts[1]) + 1, requeues)
    return 0


def main() -> None:
    """Parse what `study.slurm` wrote into the script."""
    parser = argparse.ArgumentParser(prog="python -m study.slurm_job", description=__doc__)
    parser.add_argument("--requeues", type=int, required=True)
    parser.add_argument("--patience-min", type=float, required=True)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of acuity: worker NAME ...")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    sys.exit(run_job(given.arguments, requeues=given.requeues, patience_s=60 * given.patience_min))


if __name__ == "__main__":
    main()

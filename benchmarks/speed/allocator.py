"""Claim: the allocator's setting of a CPU worker costs no time against glibc's own and survives out of memory.

Each setting of glibc's malloc has its own processes, in turn, with one thread:

- time: user and system CPU time of training steps, which other programs on the host change less than wall time;
- recovery: a worker's memory limit (RLIMIT_DATA), a step that runs out of memory, the release that precedes a retry,
  then the largest batch that fits, found by bisection in the same process. It is compared with the largest batch of a
  process that never ran out of memory.

The settings are: mapped (blocks of 4 MiB and more are mapped and returned one by one), glibc (its own moving
threshold, up to 32 MiB), trimmed (glibc's, and malloc_trim after a step that ran out of memory), and acuity (what
workers use). All but "glibc small pages" ask for huge pages. About 15 minutes. Arguments: names of settings.
"""

import ctypes
import json
import os
import resource
import statistics
import sys
from functools import partial
from pathlib import Path

import torch

from acuity.objectives.device.allocator import return_large_blocks
from acuity.objectives.device.memory import is_out_of_memory, process_memory_bytes, release_failed_step
from acuity.objectives.training.augmentation import draw_augmentation
from acuity.objectives.training.interface import Hyperparameters
from acuity.objectives.training.learner import Learner, make_learner, train_batches

sys.path.append(str(Path(__file__).parents[1]))
from child_process import run_script
from result_line import goal_of_runs, print_result

CPU = torch.device("cpu")
SETTINGS = ("mapped", "glibc", "trimmed", "acuity")
CELLS = (("resnet10t", 128, 32), ("mobilenetv3_small_050", 128, 64), ("densenet121", 64, 32), ("test_resnet", 128, 64))
ROUNDS, STEPS = 5, 12
BUDGET_BYTES = 350 * 2**20
SLACK_BYTES = 2**27
_MMAP_THRESHOLD = -3


def main() -> None:
    """Measure each cell with each setting in turn, print the table and one line of JSON."""
    settings = sys.argv[1:] or list(SETTINGS)
    cells, goals = [], []
    for architecture, side, batch in CELLS:
        runs: dict[str, list[dict]] = {setting: [] for setting in settings}
        for _ in range(ROUNDS):
            for setting in settings:
                runs[setting].append(run_script(__file__, setting, architecture, str(side), str(batch)))
        row = {"architecture": architecture, "resolution": side, "batch": batch, "settings": {}}
        for setting, values in runs.items():
            row["settings"][setting] = {
                key: sorted(value[key] for value in values) for key in ("user_s", "system_s", "wall_s", "fault_count")
            } | {
                "largest_batch": sorted(value["fresh"] for value in values),
                "largest_after_out_of_memory": sorted(value["after"] for value in values),
            }
            medians = {key: statistics.median(numbers) for key, numbers in row["settings"][setting].items()}
            print(
                f"{architecture:<24}{side:>4}{batch:>5}  {setting:<10} user {medians['user_s']:6.2f} s  system "
                f"{medians['system_s']:6.2f} s  wall {medians['wall_s']:6.2f} s  largest batch "
                f"{medians['largest_batch']:.0f}, {medians['largest_after_out_of_memory']:.0f} after out of memory",
                flush=True,
            )
        cells.append(row)
        if "acuity" in runs and "glibc" in runs:
            ratios = [
                (ours["user_s"] + ours["system_s"]) / (theirs["user_s"] + theirs["system_s"])
                for ours, theirs in zip(runs["acuity"], runs["glibc"], strict=True)
            ]
            kept = [run["after"] / run["fresh"] for run in runs["acuity"]]
            name = f"{architecture}_{side}px"
            time_met, kept_met = statistics.median(ratios) <= 1.05, min(kept) >= 0.9
            goals.append(goal_of_runs(f"{name}_cpu_time_against_glibc", ratios, "<= 1.05", met=time_met))
            goals.append(goal_of_runs(f"{name}_batch_after_out_of_memory", kept, ">= 0.9 in each run", met=kept_met))
    print_result("allocator", n=ROUNDS, goals=goals, steps=STEPS, torch=torch.__version__, cells=cells)


def _measure(setting: str, architecture: str, side: int, batch: int) -> dict:
    """Time the steps in this process; find the largest batches in two children of it that have not trained yet."""
    _apply(setting)
    torch.set_num_threads(1)
    found = {kind: _in_child(partial(_largest, setting, architecture, side, kind == "after")) for kind in _KINDS}
    learner = _learner(architecture, side, batch)
    _step(learner, batch, steps=3)
    before, began = resource.getrusage(resource.RUSAGE_SELF), _wall()
    _step(learner, batch, steps=STEPS)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return found | {
        "user_s": after.ru_utime - before.ru_utime,
        "system_s": after.ru_stime - before.ru_stime,
        "fault_count": after.ru_minflt - before.ru_minflt,
        "wall_s": _wall() - began,
    }


_KINDS = ("fresh", "after")


def _apply(setting: str) -> None:
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"
    if setting == "mapped":
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 4 * 2**20)
    if setting == "acuity":
        return_large_blocks()


def _in_child(function) -> int:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.write(writer, json.dumps(function()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as answer:
        number = answer.read()
    os.waitpid(pid, 0)
    return json.loads(number)


def _largest(setting: str, architecture: str, side: int, after_failure: bool) -> int:
    """The largest batch whose step fits the limit, to a multiple of 8."""
    limit = process_memory_bytes("VmData") + BUDGET_BYTES + SLACK_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    if after_failure:
        assert not _fits(setting, architecture, side, 512)
        high = 256
        while not _fits(setting, architecture, side, high):
            high //= 2
            if high < 8:
                return 0
        low, high = high, 2 * high
    else:
        low = 8
        while _fits(setting, architecture, side, 2 * low):
            low *= 2
        high = 2 * low
    while high - low > 8:
        middle = (low + high) // 16 * 8
        low, high = (middle, high) if _fits(setting, architecture, side, middle) else (low, middle)
    return low


def _fits(setting: str, architecture: str, side: int, batch: int) -> bool:
    """Whether a step of a new network fits, as for a trial that is retried at another batch size."""
    try:
        _step(_learner(architecture, side, batch), batch, steps=1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    else:
        return True
    release_failed_step(CPU)
    if setting == "trimmed":
        ctypes.CDLL(None).malloc_trim(0)
    return False


def _learner(architecture: str, side: int, batch: int) -> Learner:
    settings = Hyperparameters(architecture, side, batch, 1e-3, 1)
    return make_learner(settings, total_steps=10**4, device=CPU)


def _step(learner: Learner, batch: int, *, steps: int) -> None:
    images = torch.zeros(batch, 1, learner.side, learner.side, dtype=torch.uint8)
    for _ in train_batches(
        learner,
        partial(map, lambda positions: images[positions]),
        targets=(torch.arange(batch) % 2).float(),
        batches=torch.arange(batch).repeat(steps, 1),
        augmentation=draw_augmentation(batch, generator=torch.Generator().manual_seed(0)),
        positive_weight=1.0,
    ):
        pass


def _wall() -> float:
    return float(os.times().elapsed)


if __name__ == "__main__":
    if len(sys.argv) == 5:
        print(json.dumps(_measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()

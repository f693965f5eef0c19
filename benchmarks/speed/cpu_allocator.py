"""Claim: the allocator's settings for CPU workers cost at most 5 % of CPU time against glibc's own.

Training steps of three networks run on one thread in new processes, whose settings take turns:

- glibc: its defaults, where a block of up to 32 MiB stays in the heap once one of its size was freed;
- large blocks: blocks of 4 MiB and more are mapped alone, and torch asks for huge pages;
- acuity: the same, and up to 64 MiB stay at the end of the heap.

Times are CPU times of the process, since other programs may share the cores. The first two steps are not counted.

Run: python benchmarks/speed/cpu_allocator.py [--runs 5]   (6 minutes)
"""

import argparse
import ctypes
import json
import os
import resource
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from acuity.objectives.device import allocator
from acuity.objectives.training.augmentation import draw_augmentation
from acuity.objectives.training.interface import Hyperparameters
from acuity.objectives.training.learner import make_learner, train_batches

sys.path.append(str(Path(__file__).parents[1]))
from child_process import run_script
from result_line import goal_of_runs, print_result

SETTINGS = ("glibc", "large blocks", "acuity")
NETWORKS = {"test_resnet": (128, 16), "resnet10t": (96, 16), "densenet121": (64, 16)}
"""Network -> resolution in px, batch size."""
COUNTED_S, MOST_STEPS = 5.0, 1000


def main() -> None:
    """Run all settings in turn, print a table and one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--measure", nargs=2)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(_measure(*asked.measure)))
        return
    cells, ratios = [], {}
    for network in NETWORKS:
        runs: dict[str, list[dict[str, Any]]] = {setting: [] for setting in SETTINGS}
        for _ in range(asked.runs):
            for setting, taken in runs.items():
                taken.append(run_script(__file__, "--measure", setting, network))
        for setting, taken in runs.items():
            medians = {key: statistics.median(run[key] for run in taken) for key in taken[0]}
            cells.append({"network": network, "setting": setting} | medians)
            print(f"{network:<14}{setting:<14}" + "  ".join(f"{key} {value:.4g}" for key, value in medians.items()))
        ratios[network] = [
            mine["cpu_ms_a_step"] / theirs["cpu_ms_a_step"]
            for mine, theirs in zip(runs["acuity"], runs["glibc"], strict=True)
        ]
    goals = [
        goal_of_runs(f"cpu_time_of_glibcs_{network}", values, "<= 1.05", met=statistics.median(values) <= 1.05)
        for network, values in ratios.items()
    ]
    print_result("cpu_allocator", n=asked.runs, goals=goals, cells=cells)


def _measure(setting: str, network: str) -> dict[str, float]:
    if setting != "glibc":
        allocator.return_large_blocks()
    if setting == "large blocks":
        ctypes.CDLL(None).mallopt(allocator._TRIM_THRESHOLD, 128 * 2**10)  # glibc's default
    torch.set_num_threads(1)
    resolution, batch = NETWORKS[network]
    learner = make_learner(
        Hyperparameters(network, resolution, batch, 1e-3, 1), total_steps=MOST_STEPS, device=torch.device("cpu")
    )
    images = torch.randint(0, 256, (batch, 1, learner.side, learner.side), dtype=torch.uint8)
    steps = train_batches(
        learner,
        lambda batches: (images[positions] for positions in batches),
        targets=(torch.arange(batch) % 2).float(),
        batches=torch.arange(batch).repeat(MOST_STEPS, 1),
        augmentation=draw_augmentation(batch, generator=torch.Generator().manual_seed(0)),
        positive_weight=1.0,
    )
    for _ in range(2):
        next(steps)
    began, count = resource.getrusage(resource.RUSAGE_SELF), 0
    for _ in steps:
        count += 1
        now = resource.getrusage(resource.RUSAGE_SELF)
        if _cpu_s(now) - _cpu_s(began) > COUNTED_S:
            break
    return {
        "cpu_ms_a_step": 1000 * (_cpu_s(now) - _cpu_s(began)) / count,
        "system_ms_a_step": 1000 * (now.ru_stime - began.ru_stime) / count,
        "page_faults_a_step": (now.ru_minflt - began.ru_minflt) / count,
        "largest_mib": now.ru_maxrss / 1024,
    }


def _cpu_s(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()

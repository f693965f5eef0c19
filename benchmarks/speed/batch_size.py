"""Claim: Acuity finds at least 0.97 of the largest feasible batch in 3 real steps and a quarter of the peers' time.

The batch it finds is never above the largest feasible one. The peers are Lightning's BatchSizeFinder (power and
binsearch) and accelerate's find_executable_batch_size; install lightning and accelerate to run this script. There are
twelve cells: three networks at four resolutions. Every finder uses the training step of Acuity's trials, in a new
process with the same memory limit: RLIMIT_DATA on a CPU, the allocator's fraction on a GPU. The largest feasible batch
is found by bisection over the allowed sizes, with two steps in a new process for each size.

On a CPU every process frees large blocks at once, as Acuity's workers do. oneDNN's out-of-memory errors are raised
again with PyTorch's message, because the peers recognise no other message and two of them would crash.
"""

import functools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from acuity.objectives.device.allocator import return_large_blocks
from acuity.objectives.device.memory import is_out_of_memory, process_memory_bytes
from acuity.objectives.training.augmentation import augment, draw_augmentation, prepare_augmentation
from acuity.objectives.training.batch_probe import probe_batch
from acuity.objectives.training.interface import Hyperparameters
from acuity.objectives.training.learner import make_learner, train_batches
from acuity.objectives.training.network import make_network

sys.path.append(str(Path(__file__).parents[1]))
from child_process import run_script
from result_line import make_goal, print_result

ARCHITECTURES = ("test_resnet", "resnet10t", "mobilenetv3_small_050")
RESOLUTIONS = (32, 64, 96, 128)
MOST = 4096
BUDGET = 768 * 2**20
DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
FINDERS = ("acuity", "lightning power", "lightning binsearch", "accelerate")


def main() -> None:
    """Run every finder on every cell, print the table and one line of JSON."""
    rows = []
    print(f"{'network':<24}{'px':>4}{'true':>6}  " + "  ".join(f"{name:>26}" for name in FINDERS))
    for architecture in ARCHITECTURES:
        for side in RESOLUTIONS:
            found = {name: _in_fresh_process(name, architecture, side) for name in FINDERS}
            true = _bisect(architecture, side)
            rows.append({"architecture": architecture, "resolution": side, "true": true, **found})
            cells = [
                f"{run['batch']} ({run['batch'] / true:.2f}) {run['steps']} st {run['seconds']:.1f} s"
                for run in found.values()
            ]
            print(f"{architecture:<24}{side:>4}{true:>6}  " + "  ".join(f"{cell:>26}" for cell in cells), flush=True)
    gpu = torch.cuda.get_device_name() if DEVICE.type == "cuda" else None
    print_result("batch_size", n=len(rows), goals=_goals(rows), hardware=gpu, cells=rows)


def _goals(rows: list[dict]) -> list[dict]:
    shares = [row["acuity"]["batch"] / row["true"] for row in rows]
    steps = [row["acuity"]["steps"] for row in rows]
    times = [row["acuity"]["seconds"] / min(row[name]["seconds"] for name in FINDERS[1:]) for row in rows]
    measured = {
        "smallest_share_of_true": (min(shares), ">= 0.97", min(shares) >= 0.97),
        "median_share_of_true": (statistics.median(shares), ">= 0.97", statistics.median(shares) >= 0.97),
        "largest_share_of_true": (max(shares), "<= 1", max(shares) <= 1),
        "most_real_steps": (max(steps), "<= 3", max(steps) <= 3),
        "median_time_against_better_peer": (statistics.median(times), "<= 0.25", statistics.median(times) <= 0.25),
    }
    return [make_goal(name, value, goal, met=met) for name, (value, goal, met) in measured.items()]


def _in_fresh_process(finder: str, architecture: str, side: int) -> dict:
    try:
        return run_script(__file__, finder, architecture, str(side))
    except subprocess.CalledProcessError:
        return {"batch": 0, "steps": 0, "seconds": float("inf"), "out_of_memory": 0}


def _bisect(architecture: str, side: int) -> int:
    """The largest multiple of 8 for which two steps fit into memory; 1 if no multiple fits."""
    fits, fails = 0, MOST // 8 + 1
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if _in_fresh_process(f"try {middle * 8}", architecture, side)["batch"]:
            fits = middle
        else:
            fails = middle
    return max(fits * 8, 1)


def _find(finder: str, architecture: str, side: int) -> dict:
    """Run one finder in this process; returns its batch, real steps, seconds and number of out-of-memory errors."""
    counts = {"steps": 0, "out_of_memory": 0}
    _limit_memory(architecture)
    began = time.perf_counter()
    if finder == "acuity":
        fit = probe_batch(
            architecture, input_size=side, precision="fp32", device=DEVICE, budget_bytes=BUDGET, max_batch_size=MOST
        )
        batch, counts["steps"] = fit.verified, fit.steps
    elif finder.startswith("lightning"):
        batch = _lightning(architecture, side, finder.split()[1], counts)
    elif finder == "accelerate":
        batch = _accelerate(architecture, side, counts)
    else:
        batch = int(finder.split()[1])
        try:
            step = _plain_step(architecture, side, counts)
            step(batch)
            step(batch)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            batch = 0
    return {"batch": batch, "seconds": round(time.perf_counter() - began, 2), **counts}


def _limit_memory(architecture: str) -> None:
    """Load what a process loads once, then allow BUDGET more bytes."""
    if DEVICE.type == "cuda":
        total = torch.cuda.get_device_properties(DEVICE).total_memory
        torch.cuda.set_per_process_memory_fraction(BUDGET / total, DEVICE)
        return
    _plain_step(architecture, 32, {"steps": 0, "out_of_memory": 0})(2)
    limit = process_memory_bytes("VmData") + BUDGET
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


def _plain_step(architecture: str, side: int, counts: dict) -> Callable[[int], None]:
    """The training step of a trial, on random images."""
    learner = make_learner(Hyperparameters(architecture, side, 2, 1e-3, 1), total_steps=1000, device=DEVICE)

    @_in_pytorch_words
    def step(batch: int) -> None:
        counts["steps"] += 1
        images = torch.randint(0, 256, (batch, 1, side, side), dtype=torch.uint8).to(DEVICE)
        for loss in train_batches(
            learner,
            functools.partial(map, lambda positions: images[positions.to(DEVICE)]),
            targets=torch.zeros(batch, device=DEVICE),
            batches=torch.arange(batch).unsqueeze(0),
            augmentation=draw_augmentation(batch, generator=torch.Generator().manual_seed(0)),
            positive_weight=1.0,
        ):
            loss.item()

    return step


def _in_pytorch_words(function: Callable) -> Callable:
    """Raise out-of-memory errors with PyTorch's message.

    The error is a new one: the traceback of the first would keep the failed step's tensors alive.
    """

    @functools.wraps(function)
    def translated(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or not is_out_of_memory(error):
                raise
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    return translated


def _augmentation(batch: int) -> torch.Tensor:
    return prepare_augmentation(draw_augmentation(batch, generator=torch.Generator().manual_seed(0)))


def _accelerate(architecture: str, side: int, counts: dict) -> int:
    from accelerate.utils import find_executable_batch_size

    @find_executable_batch_size(starting_batch_size=MOST)
    def attempt(batch_size: int) -> int:
        counts["out_of_memory"] += 1
        _plain_step(architecture, side, counts)(batch_size)
        counts["out_of_memory"] -= 1
        return batch_size

    return attempt()


def _lightning(architecture: str, side: int, mode: str, counts: dict) -> int:
    import logging

    import lightning
    from lightning.pytorch.tuner import Tuner
    from torch.utils.data import DataLoader, TensorDataset

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.batch_size = 2
            self.network = make_network(architecture, input_size=side)
            if DEVICE.type == "cpu":
                self.network = self.network.to(memory_format=torch.channels_last)

        def train_dataloader(self) -> DataLoader:
            images = torch.zeros(1, 1, side, side, dtype=torch.uint8).expand(MOST * 4, -1, -1, -1)
            return DataLoader(TensorDataset(images, torch.zeros(MOST * 4)), batch_size=self.batch_size, num_workers=0)

        @_in_pytorch_words
        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            counts["steps"] += 1
            images = augment(batch[0].float().div_(255), _augmentation(len(batch[0])).to(self.device), side=side)
            images = (images - 0.5) / 0.25
            if DEVICE.type == "cpu":
                images = images.contiguous(memory_format=torch.channels_last)
            return F.binary_cross_entropy_with_logits(self.network(images).flatten(), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.network.parameters())

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:  # the finder writes the module's state there
        trainer = lightning.Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            default_root_dir=folder,
        )
        return Tuner(trainer).scale_batch_size(Module(), mode=mode, max_trials=12 if mode == "power" else 25) or 0


if __name__ == "__main__":
    if len(sys.argv) == 4:
        return_large_blocks()
        torch.set_num_threads(1)
        print(json.dumps(_find(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
    else:
        main()

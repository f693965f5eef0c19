"""Claim: a trial reaches at least 0.95 of the images/s of the same steps on one batch that stays on the device.

Acuity's training loop (shuffled batches of the stored images, augmentation, schedule) is compared at the same batch, in
turn, each time in a new process, with

- resident: the same network, optimiser and precision on one batch on the device. This is the upper bound;
- plain fp32 and plain autocast: a user's loop with timm, a DataLoader that augments image by image (torchvision v2) in
  its workers, and `loss.item()` for the log;
- the roofline: FLOPs of a step (counted by torch) times images/s, over the device's peak in that precision.

On an H100 or H200 the goals are 0.95 of resident at each resolution, 3 times plain fp32 and 1.3 times plain autocast at
64 px, and at least 1 at the other resolutions. The images/s of 1, 2, 4 and 8 workers together on one GPU are measured
at 64 and 320 px.

Two variants are measured on a GPU alone: captured, Acuity's loop with its step as one CUDA graph, which trials use at
small batches, and compiled, the resident batch with a compiled network (torch.compile), which trials do not use. Their
first step takes longer; its seconds are in the result.

On a GPU: resnet34 and densenet121 at 64, 128, 224, 320 and 448 px in bf16 (about 8 minutes). On a CPU: two small
networks at 64 and 128 px in fp32, and in bf16 against plain autocast. The goals of a GPU do not apply there (about 12
minutes). Arguments: resolutions.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

from acuity.objectives.training.augmentation import draw_augmentation
from acuity.objectives.training.captured_step import capture_training, replay_batches
from acuity.objectives.training.interface import Hyperparameters
from acuity.objectives.training.learner import Learner, make_learner, train_batches
from acuity.objectives.training.loader import open_loaders
from acuity.objectives.training.network import make_network
from acuity.objectives.training.prediction import compute_logits

sys.path.append(str(Path(__file__).parents[1]))
from child_process import PYTHON, last_json, run_script
from result_line import goal_of_runs, print_result

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
PRECISION = "bf16" if CUDA else "fp32"  # the default of [training] precision
ARCHITECTURES = ("resnet34", "densenet121") if CUDA else ("resnet10t", "mobilenetv3_small_050")
RESOLUTIONS = (64, 128, 224, 320, 448) if CUDA else (64, 128)
BATCHES = {64: 512, 128: 256, 224: 128, 320: 64, 448: 32} if CUDA else {64: 64, 128: 32}
KINDS = ("acuity", *(() if CUDA else ("acuity bf16",)), "resident", "plain fp32", "plain autocast")
# Not on a CPU: the first step of torch.compile took 5 minutes there, and later steps were no faster.
PROBES = ("compiled", "captured") if CUDA else ()
# Acuity's kind that is compared with each peer: the one in the peer's precision.
AGAINST = {"resident": "acuity", "plain fp32": "acuity", "plain autocast": "acuity" if CUDA else "acuity bf16"}
ROUNDS = 3
WARM_S, TIMED_S = (3.0, 5.0) if CUDA else (2.0, 8.0)
SHARED = {64: 512, 320: 32}  # resolution -> batch of each worker on the shared GPU
# Dense FLOP/s of the vendor's data sheets.
PEAKS = {"H200": {"bf16": 989e12, "fp32": 67e12}, "H100": {"bf16": 989e12, "fp32": 67e12}}


def main() -> None:
    """Measure every cell in turn, print the table and one line of JSON."""
    sides = [int(side) for side in sys.argv[1:]] or list(RESOLUTIONS)
    rows, goals = [], []
    kinds = (*KINDS, *PROBES)
    print(f"{'network':<24}{'px':>4}{'batch':>7}  " + "".join(f"{kind:>18}" for kind in kinds) + f"{'roofline':>10}")
    for architecture in ARCHITECTURES:
        for side in sides:
            row = _cell(architecture, side)
            rows.append(row)
            goals += _goals(row)
            speeds = "".join(f"{row['images_per_second'][kind]:>18,.0f}" for kind in kinds)
            share = "" if row["roofline"] is None else f"{row['roofline']:.0%}"
            print(f"{architecture:<24}{side:>4}{row['batch']:>7}  {speeds}{share:>10}", flush=True)
    together = _workers_together() if CUDA else []
    print_result(
        "throughput",
        n=ROUNDS,
        goals=goals,
        hardware=torch.cuda.get_device_name() if CUDA else None,
        versions={"torch": torch.__version__, "timm": timm.__version__},
        precision=PRECISION,
        cells=rows,
        workers_on_one_gpu=together,
    )


def _cell(architecture: str, side: int) -> dict:
    """Measure each kind ROUNDS times, in turn, so that other programs slow all kinds alike."""
    runs: dict[str, list[float]] = {kind: [] for kind in (*KINDS, *PROBES)}
    first_steps: dict[str, float] = {}
    flops = 0.0
    for round_ in range(ROUNDS):
        for kind in KINDS if round_ else (*KINDS, *PROBES):
            run = _in_fresh_process(kind, architecture, side, BATCHES[side])
            runs[kind].append(run["images_per_second"])
            first_steps[kind] = run["first_step_s"]
            flops = run["flops_per_image"] or flops
    peak = next((peaks[PRECISION] for name, peaks in PEAKS.items() if CUDA and name in torch.cuda.get_device_name()), 0)
    speeds = {kind: statistics.median(values) for kind, values in runs.items()}
    return {
        "architecture": architecture,
        "resolution": side,
        "batch": BATCHES[side],
        "images_per_second": speeds,
        "first_step_s": first_steps,
        "ratios": {
            peer: sorted(ours / theirs for ours, theirs in zip(runs[mine], runs[peer], strict=True))
            for peer, mine in AGAINST.items()
        },
        "gigaflops_per_image": flops / 1e9,
        "roofline": speeds["acuity"] * flops / peak if peak else None,
    }


def _goals(row: dict) -> list[dict]:
    """The goals of one cell. On a CPU: 0.95 of resident, and no slower than the plain loops."""
    small = CUDA and row["resolution"] == 64
    wanted = {"resident": 0.95, "plain fp32": 3.0 if small else 1.0, "plain autocast": 1.3 if small else 1.0}
    return [
        goal_of_runs(
            f"{row['architecture']}_{row['resolution']}px_against_{kind.replace(' ', '_')}",
            ratios,
            f">= {wanted[kind]}",
            met=statistics.median(ratios) >= wanted[kind],
        )
        for kind, ratios in row["ratios"].items()
    ]


def _workers_together() -> list[dict]:
    """Sum of images/s of 1, 2, 4 and 8 processes that train at the same time on one GPU."""
    rows = []
    for side, batch in SHARED.items():
        for workers in (1, 2, 4, 8):
            command = [*PYTHON, __file__, "acuity", "resnet34", str(side), str(batch)]
            processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(workers)]
            runs = [last_json(process.communicate()[0]) for process in processes]
            speed = sum(run["images_per_second"] for run in runs)
            rows.append({"resolution": side, "workers": workers, "images_per_second": speed})
            print(f"resnet34 {side:>4} px, {workers} workers on the GPU: {speed:>10,.0f} images/s in all", flush=True)
    return rows


def _in_fresh_process(kind: str, architecture: str, side: int, batch: int) -> dict:
    try:
        return run_script(__file__, kind, architecture, str(side), str(batch))
    except subprocess.CalledProcessError:
        if kind not in PROBES:
            raise
        return {"images_per_second": 0.0, "first_step_s": 0.0, "flops_per_image": 0}


def _measure(kind: str, architecture: str, side: int, batch: int) -> dict:
    """Run steps for WARM_S, then for TIMED_S. The device is synchronised before each reading of the clock."""
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (16 * batch, side, side), dtype=np.uint8)
    steps = VARIANTS[kind](architecture, images, batch)
    began = time.perf_counter()
    next(steps)
    _wait()
    first_step_s = time.perf_counter() - began
    while time.perf_counter() - began < first_step_s + WARM_S:
        next(steps)
    _wait()
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < TIMED_S:
        next(steps)
        done += 1
        if CUDA and done % 8 == 0:  # otherwise the host would run far ahead of the device
            _wait()
    _wait()
    speed = done * batch / (time.perf_counter() - began)
    return {
        "images_per_second": speed,
        "first_step_s": round(first_step_s, 2),
        "flops_per_image": _flops(architecture, side) if kind == "acuity" else 0,
    }


def _wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def _learner(architecture: str, side: int, batch: int, precision: str) -> Learner:
    settings = Hyperparameters(architecture, side, batch, 1e-3, 1, precision=precision)
    return make_learner(settings, total_steps=10**6, device=DEVICE)


def acuity_steps(
    architecture: str, images: np.ndarray, batch: int, *, precision: str = PRECISION, is_captured: bool = False
) -> Iterator[None]:
    """Train as a trial does, epoch after epoch, with or without a captured step."""
    learner = _learner(architecture, images.shape[1], batch, precision)
    (loader,) = open_loaders(images, np.arange(len(images)), device=DEVICE)
    targets = (torch.arange(len(images)) % 2).float()
    captured = None
    if is_captured:
        captured = capture_training(
            learner,
            loader,
            setting=True,
            targets=targets,
            batch_shape=(len(images) // batch, batch),
            epochs=1,
            augment=True,
            positive_weight=1.0,
        )
        assert captured is not None, "the log says why"
    targets, generator = targets.to(DEVICE), torch.Generator().manual_seed(0)
    while True:
        batches = torch.randperm(len(images), generator=generator).view(-1, batch)
        augmentation = draw_augmentation(len(images), generator=generator)
        if captured is not None:
            steps = replay_batches(captured, batches=batches, augmentation=augmentation)
        else:
            steps = train_batches(
                learner, loader, targets=targets, batches=batches, augmentation=augmentation, positive_weight=1.0
            )
        for _ in steps:
            yield


def resident_steps(architecture: str, images: np.ndarray, batch: int, *, is_compiled: bool = False) -> Iterator[None]:
    """Forward pass, backward pass and optimiser step on one batch of floats on the device."""
    learner, step = _resident_step(architecture, images, batch)
    if is_compiled:
        learner.network.compile()
    while True:
        step()
        yield


def _resident_step(architecture: str, images: np.ndarray, batch: int) -> tuple[Learner, Callable[[], None]]:
    learner = _learner(architecture, images.shape[1], batch, PRECISION)
    learner.network.train()
    ready = torch.from_numpy(images[:batch]).unsqueeze(1).float().div_(255).to(DEVICE)
    targets = (torch.arange(batch) % 2).float().to(DEVICE)

    def step() -> None:
        learner.optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(compute_logits(learner, ready), targets).backward()
        learner.optimiser.step()

    return learner, step


class _Images(Dataset):
    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        self.transform = v2.Compose(
            [
                v2.RandomAffine(10, translate=(0.05, 0.05), scale=(0.9, 1.1)),
                v2.ColorJitter(brightness=0.1, contrast=0.2),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5], [0.25]),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, float]:
        return self.transform(torch.from_numpy(self.images[index]).unsqueeze(0)), float(index % 2)


def plain_steps(architecture: str, images: np.ndarray, batch: int, *, has_autocast: bool = False) -> Iterator[None]:
    """A user's loop: DataLoader, AdamW, with or without autocast."""
    network = timm.create_model(architecture, in_chans=1, num_classes=1).to(DEVICE).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    workers = min(8, os.cpu_count() or 1) if CUDA else 0  # on a CPU, workers would take cores from the training
    loader = DataLoader(
        _Images(images),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=CUDA,
        persistent_workers=workers > 0,
    )
    while True:
        for inputs, targets in loader:
            inputs, targets = inputs.to(DEVICE), targets.float().to(DEVICE)
            optimiser.zero_grad()
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=has_autocast):
                logits = network(inputs).squeeze(1)
            loss = F.binary_cross_entropy_with_logits(logits.float(), targets)
            loss.backward()
            optimiser.step()
            assert math.isfinite(loss.item())
            yield


def _flops(architecture: str, side: int) -> float:
    """FLOPs of the forward and backward pass for one image. torch counts two for a multiplication with its addition."""
    with torch.device("meta"):
        network: torch.nn.Module = make_network(architecture, input_size=side)
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(2, 1, side, side)).sum().backward()
    return counter.get_total_flops() / 2


VARIANTS: dict[str, Callable[[str, np.ndarray, int], Iterator[None]]] = {
    "acuity": acuity_steps,
    "acuity bf16": partial(acuity_steps, precision="bf16"),
    "captured": partial(acuity_steps, is_captured=True),
    "resident": resident_steps,
    "compiled": partial(resident_steps, is_compiled=True),
    "plain fp32": plain_steps,
    "plain autocast": partial(plain_steps, has_autocast=True),
}
"""Each takes one step of a network on images (uint8 [N, R, R]) whenever its iterator is asked."""


if __name__ == "__main__":
    if len(sys.argv) == 5:
        print(json.dumps(_measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()

"""Claim: a trial trains as fast as its network computes: 0.95 of the same steps on a batch that never moves.

Images/s of Acuity's loop (shuffled batches out of the stored images, augmentation, schedule), each in a process of its
own and in turn, at the same batch, against

- resident: the same network, optimiser and precision on one batch that is on the device and ready, the upper bound;
- plain fp32 and plain autocast: what a user writes today, timm with a DataLoader whose workers augment image by image
  (torchvision v2), `loss.item()` for the log;
- the roofline: FLOPs of a step (counted by torch) times images/s, over the device's peak in that precision.

On an H100 or H200 the goals are 0.95 of resident at each resolution, 3 times plain fp32 and 1.3 times plain autocast at
64 px, and nowhere below 1. And what 1, 2, 4 and 8 workers on one GPU train together at 64 and 320 px.

Two more, which the trials do not use, say whether they should: the resident batch with its network compiled
(torch.compile), and its whole step captured as a CUDA graph; with the seconds that the first step takes, which a trial
must win back.

On a GPU: resnet34 and densenet121 at 64, 128, 224, 320 and 448 px in bf16 (about 8 minutes). On a CPU: two small
networks at 64 and 128 px in fp32, and in bf16 against plain autocast, without goals for a GPU's figures (about 12
minutes). Arguments: resolutions.
"""

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

from acuity.objectives.training.augmentation import draw_augmentation
from acuity.objectives.training.interface import Hyperparameters
from acuity.objectives.training.learner import Learner, make_learner, train_batches
from acuity.objectives.training.loader import open_feeds
from acuity.objectives.training.network import make_network
from acuity.objectives.training.prediction import compute_logits

ROOT = Path(__file__).parents[2]
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
PRECISION = "bf16" if CUDA else "fp32"  # what a trial trains in, unless [training] precision says otherwise
ARCHITECTURES = ("resnet34", "densenet121") if CUDA else ("resnet10t", "mobilenetv3_small_050")
RESOLUTIONS = (64, 128, 224, 320, 448) if CUDA else (64, 128)
BATCHES = {64: 512, 128: 256, 224: 128, 320: 64, 448: 32} if CUDA else {64: 64, 128: 32}
KINDS = ("acuity", *(() if CUDA else ("acuity bf16",)), "resident", "plain fp32", "plain autocast")
# On a CPU torch.compile is out of the question: its first step took 5 minutes here, and it was no faster after it.
PROBES = ("compiled", "captured") if CUDA else ()
# Whose images/s are held against a peer's: those in the peer's own precision, where a CPU trains in either.
AGAINST = {"resident": "acuity", "plain fp32": "acuity", "plain autocast": "acuity" if CUDA else "acuity bf16"}
ROUNDS = 3
WARM_S, TIMED_S = (3.0, 5.0) if CUDA else (2.0, 8.0)
SHARED = {64: 512, 320: 32}  # batch of each of the workers that share a GPU
# Dense, FLOP/s, as the makers' data sheets have them.
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
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    print(
        json.dumps(
            {
                "benchmark": "throughput",
                "hardware": torch.cuda.get_device_name() if CUDA else f"{_processor()}, {os.cpu_count()} cores",
                "versions": {"torch": torch.__version__, "timm": timm.__version__},
                "commit": commit.stdout.strip(),
                "precision": PRECISION,
                "n": ROUNDS,
                "cells": rows,
                "workers_on_one_gpu": together,
                "goals": goals,
            }
        )
    )


def _cell(architecture: str, side: int) -> dict:
    """Each kind ROUNDS times in turn, so that what else the machine does falls on all of them."""
    runs: dict[str, list[float]] = {kind: [] for kind in (*KINDS, *PROBES)}
    first_steps: dict[str, float] = {}
    flops = 0.0
    for round_ in range(ROUNDS):
        for kind in KINDS if round_ else (*KINDS, *PROBES):
            told = _in_fresh_process(kind, architecture, side, BATCHES[side])
            runs[kind].append(told["images_per_second"])
            first_steps[kind] = told["first_step_s"]
            flops = told["flops_per_image"] or flops
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
    """What the claim says of this cell; of a CPU only the share of the resident batch, and never to be slower."""
    small = CUDA and row["resolution"] == 64
    wanted = {"resident": 0.95, "plain fp32": 3.0 if small else 1.0, "plain autocast": 1.3 if small else 1.0}
    return [
        {
            "name": f"{row['architecture']}_{row['resolution']}px_against_{kind.replace(' ', '_')}",
            "value": round(statistics.median(ratios), 3),
            "low": round(ratios[0], 3),
            "high": round(ratios[-1], 3),
            "goal": f">= {wanted[kind]}",
            "met": statistics.median(ratios) >= wanted[kind],
        }
        for kind, ratios in row["ratios"].items()
    ]


def _workers_together() -> list[dict]:
    """Images/s of 1, 2, 4 and 8 processes that train at once on one GPU."""
    rows = []
    for side, batch in SHARED.items():
        for workers in (1, 2, 4, 8):
            command = [sys.executable, __file__, "acuity", "resnet34", str(side), str(batch)]
            processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(workers)]
            told = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
            speed = sum(run["images_per_second"] for run in told)
            rows.append({"resolution": side, "workers": workers, "images_per_second": speed})
            print(f"resnet34 {side:>4} px, {workers} workers on the GPU: {speed:>10,.0f} images/s in all", flush=True)
    return rows


def _in_fresh_process(kind: str, architecture: str, side: int, batch: int) -> dict:
    command = [sys.executable, __file__, kind, architecture, str(side), str(batch)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=kind not in PROBES)
    if done.returncode != 0:  # its error is on the terminal
        return {"images_per_second": 0.0, "first_step_s": 0.0, "flops_per_image": 0}
    told: dict = json.loads(done.stdout.splitlines()[-1])
    return told


def _measure(kind: str, architecture: str, side: int, batch: int) -> dict:
    """Steps for WARM_S, then for TIMED_S; the device is waited for before the clock is read."""
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (16 * batch, side, side), dtype=np.uint8)
    if kind in ("resident", "compiled"):
        steps = _resident(architecture, images, batch, is_compiled=kind == "compiled")
    elif kind == "captured":
        steps = _captured(architecture, images, batch)
    elif kind.startswith("acuity"):
        steps = _acuity(architecture, images, batch, "bf16" if kind == "acuity bf16" else PRECISION)
    else:
        steps = _plain(architecture, images, batch, kind)
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
        if CUDA and done % 8 == 0:  # the host would otherwise run far ahead of the device
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


def _acuity(architecture: str, images: np.ndarray, batch: int, precision: str) -> Iterator[None]:
    """The training loop of a trial, epoch after epoch."""
    learner = _learner(architecture, images.shape[1], batch, precision)
    (feed,) = open_feeds(images, np.arange(len(images)), device=DEVICE)
    targets = (torch.arange(len(images)) % 2).float().to(DEVICE)
    generator = torch.Generator().manual_seed(0)
    while True:
        for _ in train_batches(
            learner,
            feed,
            targets=targets,
            batches=torch.randperm(len(images), generator=generator).view(-1, batch),
            augmentation=draw_augmentation(len(images), generator=generator),
            positive_weight=1.0,
        ):
            yield


def _resident(architecture: str, images: np.ndarray, batch: int, *, is_compiled: bool) -> Iterator[None]:
    """Forward, backward and optimiser step on one batch of floats that is there already."""
    learner, step = _resident_step(architecture, images, batch)
    if is_compiled:
        learner.network.compile()
    while True:
        step()
        yield


def _captured(architecture: str, images: np.ndarray, batch: int) -> Iterator[None]:
    """The same step as one CUDA graph (PyTorch's notes on CUDA graphs: warm up on a side stream, then capture)."""
    learner, step = _resident_step(architecture, images, batch)
    for group in learner.optimiser.param_groups:
        group["capturable"] = True
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    while True:
        graph.replay()
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


def _plain(architecture: str, images: np.ndarray, batch: int, kind: str) -> Iterator[None]:
    """A loop as a user writes it: DataLoader, AdamW, autocast or not."""
    network = timm.create_model(architecture, in_chans=1, num_classes=1).to(DEVICE).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    workers = min(8, os.cpu_count() or 1) if CUDA else 0  # on a CPU they would take the cores that train
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
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=kind == "plain autocast"):
                logits = network(inputs).squeeze(1)
            loss = F.binary_cross_entropy_with_logits(logits.float(), targets)
            loss.backward()
            optimiser.step()
            assert math.isfinite(loss.item())
            yield


def _flops(architecture: str, side: int) -> float:
    """Of forward and backward for one image, as torch counts them (two a multiplication with its addition)."""
    with torch.device("meta"):
        network: torch.nn.Module = make_network(architecture, input_size=side)
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(2, 1, side, side)).sum().backward()
    return counter.get_total_flops() / 2


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    if len(sys.argv) == 5:
        print(json.dumps(_measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()

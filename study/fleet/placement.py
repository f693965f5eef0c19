"""Place the workers of a fleet on the GPUs or cores of this host."""

import itertools
import math
import os
from dataclasses import dataclass, field

import torch

from acuity.objectives.device.device import check_driver
from acuity.study.errors import UsageError


@dataclass(frozen=True)
class FleetOptions:
    """The options of a command that starts workers."""

    workers: int | None = None
    """Number of workers; by default one per GPU, or two on a host without a GPU. 0 starts none."""
    per_gpu: int | None = None
    """Number of workers per GPU, in place of workers; by default 1."""
    device: str = "auto"
    cluster: str | None = None
    """"slurm" submits the workers as jobs. None starts them on this host."""

    def __post_init__(self) -> None:
        """UsageError for numbers of workers that exclude each other or that no host can start."""
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"workers is {self.workers}, must be at least 0")
        if self.per_gpu is not None and self.per_gpu < 1:
            raise UsageError(f"workers per GPU is {self.per_gpu}, must be at least 1")
        if self.workers and self.per_gpu and self.cluster is None:
            raise UsageError("workers and workers per GPU are both given; name one of the two")


@dataclass(frozen=True)
class Placement:
    """The device and the cores of one worker."""

    device: str
    sharing: int
    """Number of workers that share the device."""
    threads: int
    environment: dict[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] = ()
    """The cores that the worker may run on; empty for all of this process."""


def place_workers(options: FleetOptions) -> list[Placement]:
    """Spread the workers of this host over its GPUs, or over its cores where it has no GPU.

    Empty where the workers run on a cluster, or where this command starts none. UsageError for a missing device,
    InputError for a driver that PyTorch cannot use.
    """
    device, workers, per_gpu = options.device, options.workers, options.per_gpu
    if options.cluster is not None or workers == 0:
        return []
    check_driver(device)
    cores = len(os.sched_getaffinity(0))
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device {device} cannot be used here: PyTorch sees no GPU; use --device cpu or another host")
    gpus = _visible_gpus(device)
    if not gpus:
        if per_gpu is not None:
            raise UsageError(f"--workers-per-gpu {per_gpu}: there is no GPU here; use --workers for CPU workers")
        count = workers or min(2, cores)
        return [Placement(device=device, sharing=count, threads=max(1, cores // count))] * count
    count = workers or len(gpus) * (per_gpu or 1)
    sharing, threads = math.ceil(count / len(gpus)), max(1, cores // count)
    return [
        Placement("cuda", sharing, threads, environment={"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]})
        for number in range(count)
    ]


def _visible_gpus(device: str) -> list[str]:
    """The GPUs of "auto", "cuda" or "cuda:1", under their names in CUDA_VISIBLE_DEVICES."""
    if device == "cpu" or not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = _named_gpus(named) if named else [str(number) for number in range(torch.cuda.device_count())]
    _, separator, number = device.partition(":")
    if not separator:
        return gpus
    if not number.isdecimal() or int(number) >= len(gpus):
        raise UsageError(f"device {device} cannot be used here: there are {len(gpus)}, from cuda:0")
    return [gpus[int(number)]]


def _named_gpus(named: str) -> list[str]:
    """The GPUs in CUDA_VISIBLE_DEVICES. CUDA ignores the first invalid entry and all entries after it."""
    return list(itertools.takewhile(lambda gpu: gpu and not gpu.startswith("-"), map(str.strip, named.split(","))))

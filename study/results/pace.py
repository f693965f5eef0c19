"""Rough duration of a trial at each resolution before any trial has run: operations of the networks, and their speed.

The speed is measured for about a second with one of the networks and kept in the user's cache.
"""

import contextlib
import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import platformdirs

from acuity.objectives.atomic_write import write_atomically
from acuity.study.config.schema import Experiment

_LARGEST_FLOPS = 0.5e9
"""Operations of a forward pass of one image up to which a network is measured: half a second a step on a slow core."""


def rough_trial_seconds(experiment: Experiment, *, training_images: int, validation_images: int) -> dict[int, float]:
    """Seconds of a complete trial of one worker of this host, by resolution; the mean over the networks.

    The worker is one of two that share the cores, as a launch starts them. Reading images, checkpoints and small
    batches are left out, so a trial takes longer. Empty on a host with a GPU: a measurement there would take memory
    and time from workers.
    """
    training, search = experiment.training, experiment.search
    images = 3 * training_images + validation_images  # a training image costs three forward passes
    passes = training.epochs * images
    per_image = _seconds_per_image(experiment)
    if not per_image:
        return {}
    return {
        resolution: passes
        * sum(
            per_image[f"{architecture} {training.network_input or resolution}"] for architecture in search.architectures
        )
        / len(search.architectures)
        for resolution in search.resolutions
    }


def _seconds_per_image(experiment: Experiment) -> dict[str, float]:
    """Seconds of a forward pass of one image, by architecture and input size in px: from the cache, or measured.

    Empty on a host with a GPU. The cache is read first: without PyTorch a command answers in a second less.
    """
    file = Path(platformdirs.user_cache_dir("acuity")) / f"pace-{_digest(experiment)}.json"
    with contextlib.suppress(OSError, ValueError):
        kept: dict[str, float] = json.loads(file.read_bytes())
        return kept
    import torch

    if torch.cuda.is_available():
        return {}
    measured = _measure(*_settings(experiment))
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(measured).encode())
    return measured


def _settings(experiment: Experiment) -> tuple[tuple[str, ...], list[int], str]:
    training, search = experiment.training, experiment.search
    sizes = [training.network_input] if training.network_input else sorted(search.resolutions)
    return search.architectures, sizes, training.precision


def _measure(architectures: tuple[str, ...], input_sizes: list[int], precision: str) -> dict[str, float]:
    import torch

    from acuity.objectives.training.step_time import forward_flops, measure_flops_per_second

    flops = {
        f"{architecture} {size}": forward_flops(architecture, input_size=size)
        for architecture in architectures
        for size in input_sizes
    }
    settings = [(architecture, size) for architecture in architectures for size in input_sizes]
    settings.sort(key=lambda setting: flops[f"{setting[0]} {setting[1]}"])
    # At a small size, the overhead of the operations is most of the time; a large one takes long.
    architecture, size = max(
        settings[:1] + [each for each in settings if flops[f"{each[0]} {each[1]}"] < _LARGEST_FLOPS],
        key=lambda setting: flops[f"{setting[0]} {setting[1]}"],
    )
    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    torch.set_num_threads(max(1, cores // min(2, cores)))
    try:
        speed = measure_flops_per_second(architecture, input_size=size, precision=precision)
    finally:
        torch.set_num_threads(threads)
    return {setting: count / speed for setting, count in flops.items()}


def _digest(experiment: Experiment) -> str:
    gpus = [Path("/dev/nvidiactl").exists(), os.environ.get("CUDA_VISIBLE_DEVICES")]
    host = [platform.node(), len(os.sched_getaffinity(0)), version("torch"), version("timm"), *gpus]
    return hashlib.sha256(json.dumps([*_settings(experiment), *host]).encode()).hexdigest()[:16]

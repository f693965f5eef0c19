"""`acuity fit`: find the largest batch size of one network, or of every network that an experiment searches."""

import itertools
from dataclasses import asdict, dataclass
from typing import Any

from acuity.objectives.device.allocator import return_large_blocks
from acuity.objectives.device.device import Device, check_precision, limit_memory, open_device
from acuity.objectives.device.processes import spawned_pool
from acuity.objectives.training.batch_probe import BatchProbe, probe_batch
from acuity.study.config.schema import Experiment


@dataclass(frozen=True)
class NetworkSetting:
    """One network at one resolution."""

    architecture: str
    resolution: int
    """px"""
    input_size: int
    """px; differs from the resolution where the experiment enlarges every image to one size."""
    precision: str
    max_batch_size: int
    """No larger batch size is tried."""
    augmentation: str | None = None
    """The user's function, as in `Hyperparameters`."""
    loss: str | None = None
    """The user's function, as in `Hyperparameters`."""


@dataclass(frozen=True)
class ProbedBatches:
    """The largest batch sizes on one device."""

    device: Device
    probes: tuple[tuple[int, BatchProbe], ...]
    """Resolution in px, and the result there, for each network setting."""

    def to_json(self) -> dict[str, Any]:
        fits = [{"resolution": resolution} | asdict(probe) for resolution, probe in self.probes]
        return {"device": self.device.name, "fits": fits}


def searched_settings(experiment: Experiment) -> list[NetworkSetting]:
    """Every network and resolution of the experiment's search space."""
    search, training = experiment.search, experiment.training
    return [
        NetworkSetting(
            architecture,
            resolution,
            training.network_input or resolution,
            training.precision,
            search.max_batch_size,
            training.augmentation,
            training.loss,
        )
        for architecture, resolution in itertools.product(search.architectures, sorted(search.resolutions))
    ]


def probe_batches(settings: list[NetworkSetting], *, device_name: str, memory_gib: float | None) -> ProbedBatches:
    """Find the largest batch size of each network setting.

    Each setting has a new process, since memory that an allocator caches for one network is missing for the next. This
    process does not open the device, since its CUDA context would take memory of the GPU.
    device_name: as `open_device` takes it. memory_gib: the budget of a training step; None for that of a worker.
    InputError for an architecture that is unknown or takes no such images.
    """
    with spawned_pool(1, max_tasks_per_child=1) as processes:
        futures = [processes.submit(_probe, setting, device_name, memory_gib) for setting in settings]
        try:
            results = [future.result() for future in futures]
        except BaseException:
            processes.shutdown(cancel_futures=True)
            raise
    resolutions = [setting.resolution for setting in settings]
    probes = [probe for _, probe in results]
    return ProbedBatches(results[0][0], tuple(zip(resolutions, probes, strict=True)))


def _probe(setting: NetworkSetting, device_name: str, memory_gib: float | None) -> tuple[Device, BatchProbe]:
    return_large_blocks()  # as a worker does
    device = open_device(device_name, workers=1, memory_budget_gib=memory_gib)
    check_precision(device.torch_device, setting.precision)
    limit_memory(device)
    probe = probe_batch(
        setting.architecture,
        input_size=setting.input_size,
        precision=setting.precision,
        device=device.torch_device,
        budget_bytes=device.memory_budget_bytes,
        max_batch_size=setting.max_batch_size,
        augmentation=setting.augmentation,
        loss=setting.loss,
    )
    return device, probe

"""`acuity fit`: the largest batch of one network or of all that an experiment searches."""

import itertools
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

from rich.table import Table

from acuity.objectives.device.allocator import return_large_blocks
from acuity.objectives.device.device import Device, limit_memory, open_device
from acuity.objectives.training.batch_probe import BatchProbe, probe_batch
from acuity.study.config.schema import Experiment
from acuity.study.units import format_bytes


@dataclass(frozen=True)
class Cell:
    """One network at one resolution."""

    architecture: str
    resolution: int
    input_size: int
    precision: str
    most: int


def cells_of(experiment: Experiment) -> list[Cell]:
    """All that an experiment's search may train."""
    search, training = experiment.search, experiment.training
    return [
        Cell(architecture, resolution, training.network_input or resolution, training.precision, search.max_batch_size)
        for architecture, resolution in itertools.product(search.architectures, sorted(search.resolutions))
    ]


def fit_cells(
    cells: list[Cell], *, choice: str, memory_gib: float | None
) -> tuple[Device, list[tuple[int, BatchProbe]]]:
    """Fit each cell in a process of its own: what an allocator kept from one would be missing in the next.

    choice: the device, as `open_device` takes it. InputError for an architecture that is unknown or takes no such
    images.
    """
    device = open_device(choice, workers=1, memory_budget_gib=memory_gib)
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"), max_tasks_per_child=1) as fresh:
        futures = [fresh.submit(_fit_here, cell, choice, memory_gib) for cell in cells]
        try:
            return device, [(cell.resolution, future.result()) for cell, future in zip(cells, futures, strict=True)]
        except BaseException:
            fresh.shutdown(cancel_futures=True)
            raise


def _fit_here(cell: Cell, choice: str, memory_gib: float | None) -> BatchProbe:
    return_large_blocks()  # as a worker does
    device = open_device(choice, workers=1, memory_budget_gib=memory_gib)
    limit_memory(device)
    return probe_batch(
        cell.architecture,
        input_size=cell.input_size,
        precision=cell.precision,
        device=device.torch_device,
        budget_bytes=device.memory_budget_bytes,
        most=cell.most,
    )


def fit_table(fits: list[tuple[int, BatchProbe]], device: Device) -> Table:
    """A row a network and resolution."""
    title = f"{device.name}, budget {format_bytes(device.memory_budget_bytes)} for a training step"
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    table.add_column("architecture")
    for heading in ("px", "estimated\nbatch", "verified\nbatch", "real\nsteps", "peak\nMiB", "images/s"):
        table.add_column(heading, justify="right")
    for resolution, fit in fits:
        table.add_row(
            fit.architecture,
            str(resolution),
            str(fit.estimate),
            str(fit.verified) if fit.verified else "none fits",
            str(fit.steps),
            f"{fit.peak_memory_mib:,.0f}",
            f"{fit.images_per_second:,.0f}",
        )
    return table


def fits_to_json(fits: list[tuple[int, BatchProbe]], device: Device) -> dict[str, Any]:
    """The same for scripts."""
    return {"device": device.name, "fits": [{"resolution": resolution} | asdict(fit) for resolution, fit in fits]}

"""The output of `acuity fit`: the largest batch size of each network and resolution."""

from rich.table import Table

from acuity.study.display.plain_table import plain_table
from acuity.study.fit import ProbedBatches
from acuity.study.units import format_bytes


def batch_table(found: ProbedBatches) -> Table:
    """One row per network and resolution."""
    budget = format_bytes(found.device.memory_budget_bytes)
    table = plain_table(
        "architecture", "px", "estimated\nbatch", "verified\nbatch", "real\nsteps", "peak\nMiB", "images/s",
        title=f"{found.device.name}, budget {budget} for a training step",
    )  # fmt: skip
    table.title_justify = "left"
    for resolution, probe in found.probes:
        table.add_row(
            probe.architecture,
            str(resolution),
            str(probe.estimate),
            str(probe.verified) if probe.verified else "none fits",
            str(probe.steps),
            f"{probe.peak_memory_mib:,.0f}",
            f"{probe.images_per_second:,.0f}",
        )
    return table

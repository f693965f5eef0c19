"""What `acuity prepare` prints: labels by part, and what the test patients can decide."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from objectives.split import PARTS
from study.prepare import Preparation
from study.terminal import size


def preparation_table(preparation: Preparation) -> Group:
    """Labels by part, and what the test patients can decide."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("label")
    for part in PARTS:
        table.add_column(f"{part}\npositive", justify="right")
    table.add_column("preva-\nlence", justify="right")
    table.add_column("test\npatients", justify="right")
    table.add_column("AUC\n+-", justify="right")
    table.add_column("smallest\nmargin", justify="right")
    for entry in preparation.cohort:
        counts = [entry.parts[part] for part in PARTS]
        images, positive = sum(part.images for part in counts), sum(part.positive_images for part in counts)
        plan = entry.plan
        table.add_row(
            Text(entry.label),
            *(f"{part.positive_images:,} ({part.positive_patients:,})" for part in counts),
            f"{positive / images:.1%}",
            f"{entry.parts['test'].patients:,}",
            "-" if plan.auc_half_width is None else f"{plan.auc_half_width:.3f}",
            "-" if plan.margin is None else f"{plan.margin:.3f}" if plan.estimable else "not estimable",
        )
    said = (
        f"{preparation.images:,} images of {preparation.patients:,} patients. Arrays: {size(preparation.cache_bytes)} "
        f"in {preparation.cache} ({size(preparation.free_bytes)} free)."
    )
    note = (
        "positive: images (patients). +-: half of the 95 % interval that an AUC of .8 will have on the test patients. "
        "Smallest margin: what non-inferiority of an equally good resolution can be shown at, with 80 % power and 5 "
        "seeds."
    )
    return Group(Text(said), Text(), table, Text(), Text(note, style="italic"))

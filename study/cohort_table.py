"""What `acuity prepare` prints: labels by part, and what the test patients can decide."""

from collections.abc import Iterator

from rich.console import Group
from rich.table import Table
from rich.text import Text

from objectives.split import PARTS
from study.prepare import Preparation
from study.terminal import cost_line, size

_MOST_NAMED = 5


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
    said = "\n".join(_about_the_images(preparation))
    warnings = [Text(warning, style="bold") for warning in preparation.warnings]
    note = (
        "positive: images (patients). +-: half of the 95 % interval that an AUC of .8 will have on the test patients. "
        "Smallest margin: what non-inferiority of an equally good resolution can be shown at, with 80 % power and "
        f"{preparation.seeds} seeds."
    )
    return Group(Text(said), *warnings, Text(), table, Text(), Text(note, style="italic"))


def _about_the_images(preparation: Preparation) -> Iterator[str]:
    """A line each on what there is, what was left out and why, and where the arrays lie."""
    yield f"{preparation.images:,} images of {preparation.patients:,} patients."
    for reason, count in preparation.left_out.items():
        if count:
            yield f"Left out, {reason}: {count:,} images."
    if bad := preparation.bad_images:
        named = "; ".join(f"index line {image.line:,} ({image.reason})" for image in bad[:_MOST_NAMED])
        more = f"; and {len(bad) - _MOST_NAMED:,} more (--json names all)" if len(bad) > _MOST_NAMED else ""
        yield f"Dropped as bad: {len(bad):,} images: {named}{more}."
    repeats = preparation.repeats
    if repeats.pictures:
        yield (
            f"Pictures that occur more than once: {repeats.pictures:,} ({repeats.images:,} images; "
            f"{repeats.pictures_of_several_patients:,} under several patients, "
            f"{repeats.pictures_with_different_labels:,} with different labels); left out of a later part: "
            f"{repeats.left_out:,}."
        )
    yield f"Arrays: {size(preparation.cache_bytes)} in {preparation.cache} ({size(preparation.free_bytes)} free)."
    yield f"Search: {cost_line(preparation.cost)}"

"""The output of `acuity prepare`: the images, the labels by part, and the power of the test patients."""

from collections.abc import Iterator

from rich.console import Group
from rich.text import Text

from acuity.objectives.split.file import PARTS
from acuity.study.display.plain_table import plain_table
from acuity.study.prepare import Preparation
from acuity.study.units import format_bytes

_MOST_NAMED = 5


def preparation_table(preparation: Preparation) -> Group:
    """Facts about the images, the warnings, and a table with a row per label."""
    positive_headings = (f"{part}\npositive" for part in PARTS)
    table = plain_table("label", *positive_headings, "preva-\nlence", "tested\npatients", "AUC\n±", "smallest\nmargin")
    for entry in preparation.cohort:
        counts = [entry.parts[part] for part in PARTS]
        images, positive = sum(part.images for part in counts), sum(part.positive_images for part in counts)
        power = entry.plan
        table.add_row(
            Text(entry.label),
            *(f"{part.positive_images:,} ({part.positive_patients:,})" for part in counts),
            f"{positive / images:.1%}",
            f"{entry.test_patients:,} ({power.positive_patients:,})",
            "-" if power.auc_half_width is None else f"{power.auc_half_width:.3f}",
            "-" if power.margin is None else f"{power.margin:.3f}" if power.estimable else "not estimable",
        )
    facts = "\n".join(_facts(preparation))
    warnings = [Text(warning, style="bold") for warning in (*preparation.warnings, *preparation.suspicions)]
    note = (
        "positive: images (patients). Tested patients: those of the confirmation (positive ones). AUC ±: half the "
        "width of the 95 % interval for an AUC of 0.8 on them. Smallest margin: the smallest margin at which an "
        "equally good resolution is shown to be non-inferior to one larger resolution, with 80 % power and "
        f"{preparation.design.networks} networks{_of_folds(preparation)}. "
        f"Confirmation: {preparation.design.describe()}."
    )
    return Group(Text(facts), *warnings, Text(), table, Text(), Text(note, style="italic"))


def _of_folds(preparation: Preparation) -> str:
    return "" if preparation.design.folds is None else ", if all folds are trained"


def _facts(preparation: Preparation) -> Iterator[str]:
    """One line per fact: images, left-out images with the reason, repeated pictures, arrays, search time."""
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
    arrays, free = format_bytes(preparation.cache_bytes), format_bytes(preparation.free_bytes)
    yield f"Arrays: {arrays} in {preparation.cache} ({free} free)."
    yield f"Search: {preparation.cost.line()}"

"""Count the patients and images of each label and part, and estimate the power of the test patients."""

from dataclasses import dataclass

import numpy as np

from acuity.objectives.split.file import PARTS
from acuity.objectives.statistics.power import PowerEstimate, estimate_power
from acuity.study.dataset.design import Design
from acuity.study.dataset.image_set import ImageSet


@dataclass(frozen=True)
class PartCounts:
    """Images and patients of one label in one part. Images without a value of the label are not counted."""

    images: int
    positive_images: int
    patients: int
    positive_patients: int
    """Patients with at least one positive image."""
    negative_patients: int
    """Patients with at least one negative image."""

    @property
    def prevalence(self) -> float | None:
        """Share of the images that are positive. None in a part without images."""
        return self.positive_images / self.images if self.images else None


@dataclass(frozen=True)
class LabelCohort:
    """One label's counts by part, and the power of its test patients."""

    label: str
    parts: dict[str, PartCounts]
    test_patients: int
    """Patients that the confirmation's design tests at most: the test part, or all patients outside validation."""
    plan: PowerEstimate


def count_cohort(image_set: ImageSet, labels: tuple[str, ...], design: Design) -> tuple[LabelCohort, ...]:
    """Count each label. design: of the confirmation."""
    return tuple(_count_label(image_set, label, design) for label in labels)


def _count_label(image_set: ImageSet, label: str, design: Design) -> LabelCohort:
    target = image_set.index.target(label)
    patients = image_set.index.table["patient"].to_numpy()
    parts = {}
    for part in PARTS:
        rows = image_set.split.rows(part)
        rows = rows[np.isfinite(target[rows])]
        positive = rows[target[rows] == 1]
        parts[part] = PartCounts(
            images=len(rows),
            positive_images=len(positive),
            patients=len(set(patients[rows])),
            positive_patients=len(set(patients[positive])),
            negative_patients=len(set(patients[rows[target[rows] == 0]])),
        )
    tested = [parts[part] for part in (("test",) if design.folds is None else ("training", "test"))]
    positive, negative = (
        sum(each.positive_patients for each in tested),
        sum(each.negative_patients for each in tested),
    )
    return LabelCohort(
        label=label,
        parts=parts,
        test_patients=sum(each.patients for each in tested),
        plan=estimate_power(positive, negative, seeds=design.networks),
    )

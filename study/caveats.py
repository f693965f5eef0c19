"""What must stand beside every number of an experiment whose split is not by patient, or has no test part."""

from study.experiment import Experiment

BY_IMAGE = (
    'Split by image, not by patient (split_by = "image"): patients of one part are in the others too, so every AUC '
    "is optimistic and none holds for new patients."
)
NO_TEST = (
    "No test patients (paper_split = true): 80 % training and 20 % validation, so every AUC is of patients that it was "
    "chosen on, and nothing can be confirmed."
)


def caveats(experiment: Experiment) -> tuple[str, ...]:
    """Sentences; none for a split by patient into training, validation and test."""
    data = experiment.data
    return ((BY_IMAGE,) if data.split_by == "image" else ()) + ((NO_TEST,) if data.paper_split else ())

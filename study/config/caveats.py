"""Warnings that every result carries where the split cannot show what holds for new patients."""

from dataclasses import replace

from acuity.objectives.tables.column_mapping import EACH_FILE, WITHOUT_PATIENTS, FormatName
from acuity.study.config.schema import Experiment

BY_IMAGE = (
    'The split is by image, not by patient (split_by = "image"). Images of one patient are in several parts, so every '
    "AUC is optimistic and none holds for new patients."
)

NO_TEST = (
    "There are no test patients (paper_split = true): 80 % training and 20 % validation. Every AUC is measured on the "
    "patients that selected the configuration, and nothing can be confirmed."
)

BY_FILE = (
    "The index names no patients, so each image counts as another patient. A patient with several images may be in "
    "several parts. Then AUCs are optimistic and intervals too narrow."
)


def caveats(experiment: Experiment) -> tuple[str, ...]:
    """Warnings that every result of the experiment carries. Empty for a split by patient with test patients."""
    data = experiment.data
    patient = data.columns.patient if data.columns is not None else None
    by_file = patient == EACH_FILE or (patient is None and data.format in WITHOUT_PATIENTS)
    held = ((BY_IMAGE, data.split_by == "image"), (BY_FILE, by_file), (NO_TEST, data.paper_split))
    return tuple(caveat for caveat, is_held in held if is_held)


def with_found_format(experiment: Experiment, found: FormatName) -> Experiment:
    """The experiment with the format that its index was found to have, so that its caveats are known without it."""
    return replace(experiment, data=replace(experiment.data, format=experiment.data.format or found))

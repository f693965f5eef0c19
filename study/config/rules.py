"""Rules between two sections of an experiment file."""

from acuity.study.config.schema import Experiment
from acuity.study.errors import UsageError


def check_across_sections(experiment: Experiment, *, source: str) -> None:
    """Raise UsageError where keys of two sections contradict each other. source: the file's name."""
    search = experiment.search
    for resolution in experiment.confirm.resolutions or ():
        if resolution not in search.resolutions:
            raise UsageError(
                f"{source}: confirm.resolutions has {resolution}, must be among search.resolutions: the search "
                "supplies the configurations to confirm"
            )
    if experiment.name in search.learn_from:
        raise UsageError(
            f"{source}: search.learn_from has {experiment.name}, this experiment's name; its labels learn from each "
            "other anyway, so leave it out"
        )

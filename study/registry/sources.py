"""The sources of the user's functions in an experiment, in SHA-256 sums: every worker needs the same."""

from acuity.objectives.training.own_function import source_sha256
from acuity.study.config.schema import Experiment
from acuity.study.errors import UsageError
from acuity.study.registry.record import Registered
from acuity.study.search.networks import own_functions


def read_sources(experiment: Experiment) -> dict[str, str]:
    """SHA-256 of the source of each of the user's functions here, by the function's name.

    InputError where a module is not here.
    """
    names = own_functions(experiment.training, experiment.search.architectures)
    return {name: source_sha256(name) for name in names}


def check_same_sources(registered: Registered) -> None:
    """UsageError where a source here differs from the experiment's; InputError where a module is not here."""
    for name, sha256 in read_sources(registered.experiment).items():
        expected = registered.sources[name]
        if sha256 != expected:
            raise UsageError(
                f'the source of "{name}" here (SHA-256 {sha256[:12]}) is not the one of experiment '
                f"{registered.experiment.name} ({expected[:12]}): trials of both would not be comparable. Install that "
                "version here, or give the experiment another name"
            )

"""Status of an experiment at one moment: what `acuity status` and the table of a launch show."""

from dataclasses import dataclass

from storage.confirmations import find_confirmation
from storage.database import Database
from study.config_schema import Experiment
from study.progress import LabelProgress, read_progress
from study.retraining import Retraining, read_retraining
from study.running import Running, read_running


@dataclass(frozen=True)
class ExperimentStatus:
    """An experiment's trials by state, its running trials, and its confirmation's trainings, if that has begun."""

    experiment: Experiment
    progress: list[LabelProgress]
    running: list[Running]
    retraining: list[Retraining]
    confirmed: bool
    """Whether the confirmation has its results."""

    @property
    def finished(self) -> int:
        """Number of finished trials and complete trainings."""
        return sum(entry.finished for entry in self.progress) + sum(entry.complete for entry in self.retraining)

    @property
    def remaining(self) -> int:
        """Number of trials and trainings that the budgets, and a confirmation that has begun, still need."""
        search = sum(max(0, self.experiment.search.trials - entry.finished) for entry in self.progress)
        return search if self.confirmed else search + sum(entry.planned - entry.complete for entry in self.retraining)


def read_status(database: Database, experiment: Experiment) -> ExperimentStatus:
    """A few statements over all trials: a tenth of a second at 100,000 of them."""
    retraining = read_retraining(database, experiment)
    stored = find_confirmation(database, experiment.name) if retraining else None
    return ExperimentStatus(
        experiment=experiment,
        progress=read_progress(database, experiment),
        running=read_running(database, experiment),
        retraining=retraining,
        confirmed=stored is not None and all(entry.seeds <= stored.protocol["seeds"] for entry in retraining),
    )

"""The protocol, frozen before a test patient is read: finalists, seeds, reference, margin, SHA-256 of the split."""

from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial
from pydantic import TypeAdapter

from acuity.study.confirmation.nomination import Nomination
from acuity.study.confirmation.plan import Chosen
from acuity.study.registry.record import Registered, checkpoint_name


@dataclass(frozen=True)
class Run:
    """One training of a finalist, with the location of its network."""

    trial_id: int
    checkpoint_study: str
    origin: int
    attempt: int
    seed: int
    validation_auc: float


@dataclass(frozen=True)
class Finalist:
    """A resolution's configuration, trained once a seed."""

    resolution: int
    architecture: str
    batch_size: int
    feasible_batch_size: int
    learning_rate: float
    trials: int
    """Number of finished trials of the search at this resolution, from which it was chosen."""
    runs: tuple[Run, ...]

    @property
    def validation_auc(self) -> float:
        """Mean over the seeds."""
        return sum(run.validation_auc for run in self.runs) / len(self.runs)


@dataclass(frozen=True)
class LabelProtocol:
    """The comparison to make on a label's test patients."""

    label: str
    reference: int
    """px; the highest mean validation AUC over the seeds, of equals the smaller."""
    finalists: tuple[Finalist, ...]

    def finalist(self, resolution: int) -> Finalist:
        return next(each for each in self.finalists if each.resolution == resolution)


@dataclass(frozen=True)
class Protocol:
    """Everything that determines a verdict, except the test patients themselves."""

    experiment: str
    index_sha256: str
    split_sha256: str
    margin: float
    seeds: int
    labels: tuple[LabelProtocol, ...]

    def to_table(self) -> dict[str, Any]:
        """As JSON types for the database. `read_protocol` is the inverse."""
        table: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        return table


_ADAPTER = TypeAdapter(Protocol)


def read_protocol(table: dict[str, Any]) -> Protocol:
    """The protocol in its stored form."""
    return _ADAPTER.validate_python(table)


def write_protocol(
    registered: Registered,
    nominations: tuple[Nomination, ...],
    chosen: dict[str, dict[int, Chosen]],
    study_ids: dict[str, tuple[str, int]],
    *,
    seeds: int,
) -> Protocol:
    """From finished trainings; chosen: each label's finalists by resolution, study_ids: its study's name and id."""
    return Protocol(
        experiment=registered.experiment.name,
        index_sha256=registered.identity.index_sha256,
        split_sha256=registered.identity.split_sha256,
        margin=registered.experiment.confirm.margin,
        seeds=seeds,
        labels=tuple(
            _label_protocol(
                nomination, chosen[nomination.label], checkpoint_name(registered, *study_ids[nomination.label])
            )
            for nomination in nominations
        ),
    )


def _label_protocol(nomination: Nomination, chosen: dict[int, Chosen], checkpoint_study: str) -> LabelProtocol:
    finalists = tuple(
        _finalist(each, checkpoint_study, trials=nomination.trials[resolution])
        for resolution, each in sorted(chosen.items())
    )
    reference = max(finalists, key=lambda each: (each.validation_auc, -each.resolution))
    return LabelProtocol(label=nomination.label, reference=reference.resolution, finalists=finalists)


def _finalist(chosen: Chosen, checkpoint_study: str, *, trials: int) -> Finalist:
    nominee = chosen.nominee
    return Finalist(
        resolution=nominee.resolution,
        architecture=nominee.parameters["architecture"],
        batch_size=nominee.batch_size,
        feasible_batch_size=nominee.feasible_batch_size,
        learning_rate=nominee.parameters["learning_rate"],
        trials=trials,
        runs=tuple(_run(run, checkpoint_study) for run in chosen.runs),
    )


def _run(trial: FrozenTrial, checkpoint_study: str) -> Run:
    assert trial.value is not None
    known = trial.user_attrs
    return Run(
        trial_id=trial._trial_id,
        checkpoint_study=checkpoint_study,
        origin=known.get("origin", trial.number),
        attempt=known.get("attempt", 1),
        seed=known["seed"],
        validation_auc=trial.value,
    )

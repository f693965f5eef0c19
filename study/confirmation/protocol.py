"""Protocol of a confirmation, frozen before any test patient is read: finalists, reference, margin and split."""

from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial
from pydantic import TypeAdapter

from acuity.study.confirmation.nomination import Nomination, SkippedResolution
from acuity.study.confirmation.plan import TrainedFinalist
from acuity.study.dataset.design import Design
from acuity.study.registry.record import Registered, checkpoint_name


@dataclass(frozen=True)
class Run:
    """One training of a finalist, and the key of its checkpoint."""

    trial_id: int
    checkpoint_study: str
    origin: int
    attempt: int
    seed: int
    validation_auc: float
    fold: int | None = None
    """The fold that the network was not trained with and is tested on. None for held-out test patients."""


@dataclass(frozen=True)
class Finalist:
    """The configuration of a resolution with its trainings."""

    resolution: int
    architecture: str
    batch_size: int
    feasible_batch_size: int
    learning_rate: float
    trials: int
    """Number of finished trials of the search at this resolution."""
    nominees: int
    """Number of configurations of this resolution that were retrained. The finalist is the best of them."""
    runs: tuple[Run, ...]

    @property
    def validation_auc(self) -> float:
        """Mean over trainings."""
        return sum(run.validation_auc for run in self.runs) / len(self.runs)


@dataclass(frozen=True)
class LabelProtocol:
    """The finalists and the reference of one label."""

    label: str
    reference: int
    """Resolution (px) with the highest mean validation AUC over trainings. The smallest of equals."""
    finalists: tuple[Finalist, ...]
    skipped: tuple[SkippedResolution, ...]
    """Searched resolutions that are not confirmed."""

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds whose patients test the networks, ascending. None of them if held-out."""
        return tuple(sorted({run.fold for each in self.finalists for run in each.runs if run.fold is not None}))

    @property
    def nominated(self) -> tuple[int, ...]:
        """The resolutions that were nominated, ascending: those of the finalists, and those that were not needed."""
        not_needed = (each.resolution for each in self.skipped if each.reason == "not_needed")
        return tuple(sorted({*(finalist.resolution for finalist in self.finalists), *not_needed}))

    def finalist(self, resolution: int) -> Finalist:
        """The finalist of a resolution."""
        return next(each for each in self.finalists if each.resolution == resolution)


@dataclass(frozen=True)
class Protocol:
    """All that determines the verdicts, apart from the scores of test patients."""

    experiment: str
    index_sha256: str
    split_sha256: str
    margin: float
    design: Design
    labels: tuple[LabelProtocol, ...]

    def to_table(self) -> dict[str, Any]:
        """Convert to JSON types for the database. `read_protocol` is the inverse."""
        table: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        return table


_ADAPTER = TypeAdapter(Protocol)


def read_protocol(table: dict[str, Any]) -> Protocol:
    """The protocol from its stored form."""
    return _ADAPTER.validate_python(table)


def build_protocol(
    registered: Registered,
    nominations: tuple[Nomination, ...],
    finalists: dict[str, dict[int, TrainedFinalist]],
    study_ids: dict[str, tuple[str, int]],
    *,
    design: Design,
) -> Protocol:
    """Build the protocol from complete trainings. A nominated resolution without a finalist was not needed.

    finalists: by label and resolution. study_ids: name and id of each label's confirm study.
    """
    return Protocol(
        experiment=registered.experiment.name,
        index_sha256=registered.identity.index_sha256,
        split_sha256=registered.identity.split_sha256,
        margin=registered.experiment.confirm.margin,
        design=design,
        labels=tuple(
            _label_protocol(
                nomination, finalists[nomination.label], checkpoint_name(registered, *study_ids[nomination.label])
            )
            for nomination in nominations
        ),
    )


def _label_protocol(
    nomination: Nomination, trained: dict[int, TrainedFinalist], checkpoint_study: str
) -> LabelProtocol:
    finalists = tuple(
        _finalist(
            each,
            checkpoint_study,
            trials=nomination.trials[resolution],
            nominees=sum(nominee.resolution == resolution for nominee in nomination.nominees),
        )
        for resolution, each in sorted(trained.items())
    )
    reference = max(finalists, key=lambda each: (each.validation_auc, -each.resolution))
    not_needed = (
        SkippedResolution(
            resolution,
            reason="not_needed",
            validation_auc=max(each.auc for each in nomination.nominees if each.resolution == resolution),
        )
        for resolution in nomination.resolutions
        if resolution not in trained
    )
    return LabelProtocol(
        label=nomination.label,
        reference=reference.resolution,
        finalists=finalists,
        skipped=tuple(sorted((*nomination.skipped, *not_needed), key=lambda each: each.resolution)),
    )


def _finalist(trained: TrainedFinalist, checkpoint_study: str, *, trials: int, nominees: int) -> Finalist:
    nominee = trained.nominee
    return Finalist(
        resolution=nominee.resolution,
        architecture=nominee.parameters["architecture"],
        batch_size=nominee.batch_size,
        feasible_batch_size=nominee.feasible_batch_size,
        learning_rate=nominee.parameters["learning_rate"],
        trials=trials,
        nominees=nominees,
        runs=tuple(_run(run, checkpoint_study) for run in trained.runs),
    )


def _run(trial: FrozenTrial, checkpoint_study: str) -> Run:
    assert trial.value is not None
    attributes = trial.user_attrs
    return Run(
        trial_id=trial._trial_id,
        checkpoint_study=checkpoint_study,
        origin=attributes.get("origin", trial.number),
        attempt=attributes.get("attempt", 1),
        seed=attributes["seed"],
        validation_auc=trial.value,
        fold=attributes.get("fold"),
    )

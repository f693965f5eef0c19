"""Answer of an experiment from the database: the best resolution of each label with its interval, and the verdict."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, text

from acuity.objectives.statistics.intervals import auc_interval
from acuity.storage.confirmations import count_test_uses, find_confirmation
from acuity.storage.database import Database, open_storage
from acuity.storage.schema.trials_view import FINITE_VALUE
from acuity.study.config.caveats import caveats
from acuity.study.config.schema import Experiment
from acuity.study.errors import UsageError
from acuity.study.registry.names import study_name
from acuity.study.registry.progress import LabelProgress, read_progress
from acuity.study.registry.record import read_registered
from acuity.study.results.doubts import confirmed_doubts, search_doubts

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class BestConfiguration:
    """The configuration with the highest AUC of a label."""

    resolution: int
    architecture: str
    batch_size: int
    feasible_batch_size: int
    learning_rate: float
    auc: float
    auc_low: float
    auc_high: float
    split: str
    """The patients behind the AUC: validation until the experiment is confirmed, then test."""
    seeds: int
    """Number of networks that the AUC averages. 0 for a single trial of the search."""


@dataclass(frozen=True)
class ResolutionAnswer:
    """The best AUC of a label at one resolution, and the number of trials from which it was chosen."""

    resolution: int
    auc: float | None
    auc_low: float | None
    auc_high: float | None
    split: str
    complete: int
    pruned: int
    seeds: int


@dataclass(frozen=True)
class LabelAnswer:
    """The answer for one label."""

    label: str
    best: BestConfiguration | None
    reference: dict[str, Any] | None
    """Resolution and AUC of the reference. None until confirmed."""
    smallest_adequate: dict[str, Any] | None
    """verdict, reason, resolution, against, auc_difference, margin, p_value, patients and sentence. None until
    confirmed."""
    by_resolution: tuple[ResolutionAnswer, ...]
    trials: dict[str, int]
    """Number of trials of the search by state."""
    confirmation: dict[str, Any] | None
    """All results from acuity.study.confirmation.verdict.conclude_label. None until confirmed."""
    warnings: tuple[str, ...]
    """Sentences to show before the result: it may be chance, or validation and test disagree."""


@dataclass(frozen=True)
class Answer:
    """The answer for all labels of an experiment."""

    experiment: str
    labels: tuple[LabelAnswer, ...]
    test_uses: int
    """Number of uses of the split's test patients by all experiments."""
    trials: int
    """Budget of trials of each label's search."""
    warnings: tuple[str, ...]
    """Caveats to show with the results. Empty for a split by patient with a test part."""

    def to_json(self) -> dict[str, Any]:
        """The JSON of `acuity best --format json`."""
        table = asdict(self)
        return table | {"labels": list(table["labels"]), "warnings": list(self.warnings)}


# The winners are found in Optuna's tables; the view decodes the parameters of the winners only. For 14 labels of 10,000
# trials this takes 0.5 s; the view over all trials takes 2 s.
_BY_RESOLUTION = text(
    f"""
    with finished as (
        select t.study_id, p.param_value,
            count(*) filter (where t.state = 'COMPLETE') as complete,
            count(*) filter (where t.state = 'PRUNED') as pruned,
            (array_agg(t.trial_id order by v.value desc, t.number)
                filter (where t.state = 'COMPLETE' and {FINITE_VALUE} is not null))[1] as winner,
            min(t.trial_id) as any_trial
        from public.studies s
        join public.trials t on t.study_id = s.study_id
        join public.trial_params p on p.trial_id = t.trial_id and p.param_name = 'resolution'
        left join public.trial_values v on v.trial_id = t.trial_id and v.objective = 0
        where s.study_name = any(:names) and t.state in ('COMPLETE', 'PRUNED')
        group by t.study_id, p.param_value
    )
    select b.label, b.resolution, f.complete, f.pruned, f.winner, b.architecture, b.batch_size, b.feasible_batch_size,
        b.learning_rate, b.value as auc, b.auc_se
    from finished f cross join lateral (
        select * from acuity.all_trials t where t.trial_id = coalesce(f.winner, f.any_trial)
    ) b
    """
)


def best_resolution(name: str, *, storage: str | None = None, label: str | None = None) -> "DataFrame":
    """The answer as a table with one row per label: the view acuity.best_resolution.

    The columns experiment, label, resolution (px), architecture, batch_size, feasible_batch_size, learning_rate, auc,
    auc_low, auc_high, split and seeds (number of networks) describe the best configuration, which is the reference once
    the experiment is confirmed. The columns design (cross-fitted or held-out), reference (px), verdict (shown,
    undecided or not_estimable), smallest_adequate (px), against (px), auc_difference, margin, p_value and sentence are
    missing until then. The column warning exists where a label has one: no AUC above chance, validation and test AUC
    that differ by more than their errors, a split by image or without a test part.

    storage: as for --storage. StorageError where no such experiment exists.
    """
    with open_storage(storage) as database:
        return read_best_resolution(database, name, label=label)


def read_best_resolution(database: Database, name: str, *, label: str | None = None) -> "DataFrame":
    """`best_resolution` from an open storage."""
    import pandas as pd

    experiment = read_registered(database, name).experiment
    labels = select_labels(experiment, label)
    query = text(
        "select * from acuity.best_resolution where experiment = :name and label = any(:labels) "
        "order by array_position(cast(:labels as text[]), label)"
    )
    with database.engine.connect() as connection:
        table = pd.read_sql(query, connection, params={"name": name, "labels": list(labels)})
    confirmed, general = _read_confirmed(database, name), caveats(experiment)
    rows = zip(table["label"], table["auc"], table["auc_low"], strict=True)
    doubts = [_row_doubts(label, auc, low, confirmed) for label, auc, low in rows]
    warnings = [" ".join([*each, *general]) for each in doubts]
    return table.assign(warning=warnings) if any(warnings) else table


def _row_doubts(label: str, auc: float, low: float, confirmed: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    return _reference_doubts(confirmed[label]) if label in confirmed else search_doubts(label, auc=auc, low=low)


def read_answer(database: Database, name: str, *, label: str | None = None) -> Answer:
    """The best configuration of each label and resolution, from the confirmation where one exists.

    label: read this label only. StorageError where no such experiment exists. UsageError for an unknown label.
    """
    registered = read_registered(database, name)
    experiment = registered.experiment
    labels = select_labels(experiment, label)
    confirmed = _read_confirmed(database, name)
    with database.engine.connect() as connection:
        names = [study_name(name, label) for label in labels]
        rows = connection.execute(_BY_RESOLUTION, {"names": names}).all()
    rows_at = {(row.label, row.resolution): row for row in rows}
    winners = {key: row for key, row in rows_at.items() if row.winner is not None}
    return Answer(
        experiment=name,
        labels=tuple(
            _label_answer(experiment, progress, winners, rows_at, confirmed.get(progress.label))
            for progress in read_progress(database, experiment)
            if progress.label in labels
        ),
        test_uses=count_test_uses(database, registered.identity.whole_split_sha256),
        trials=registered.experiment.search.trials,
        warnings=caveats(experiment),
    )


def _read_confirmed(database: Database, name: str) -> dict[str, dict[str, Any]]:
    """The results of the confirmation by label. Empty until confirmed."""
    stored = find_confirmation(database, name)
    return {each["label"]: each for each in (stored.results or {}).get("labels", [])} if stored else {}


def select_labels(experiment: Experiment, label: str | None) -> tuple[str, ...]:
    """The label alone, or all labels of the experiment. UsageError for a label that it does not have."""
    if label is None:
        return experiment.labels
    if label not in experiment.labels:
        raise UsageError(f'{experiment.name} has no label "{label}". There are: {", ".join(experiment.labels)}')
    return (label,)


_Rows = dict[tuple[str, int], Row[Any]]


def _label_answer(
    experiment: Experiment,
    progress: LabelProgress,
    winners: _Rows,
    rows_at: _Rows,
    confirmed: dict[str, Any] | None,
) -> LabelAnswer:
    keys = [(progress.label, resolution) for resolution in experiment.search.resolutions]
    top = max((winners[key] for key in keys if key in winners), key=lambda row: float(row.auc), default=None)
    best = None if top is None else _best(top)
    searched = tuple(_at_resolution(key[1], winners.get(key), rows_at.get(key)) for key in keys)
    answer = LabelAnswer(
        label=progress.label,
        best=best,
        reference=None,
        smallest_adequate=None,
        by_resolution=searched,
        trials={
            "complete": progress.complete,
            "pruned": progress.pruned,
            "running": progress.running,
            "failed": progress.failed,
            "waiting": progress.waiting,
        },
        confirmation=confirmed,
        warnings=() if best is None else search_doubts(progress.label, auc=best.auc, low=best.auc_low),
    )
    return answer if confirmed is None else _confirmed(answer, confirmed)


def _confirmed(answer: LabelAnswer, confirmed: dict[str, Any]) -> LabelAnswer:
    """The answer with the results on test patients in place of those on validation patients."""
    tested = {each["resolution"]: each for each in confirmed["by_resolution"]}
    keys = ("auc", "auc_low", "auc_high", "seeds")
    return replace(
        answer,
        best=BestConfiguration(**confirmed["best"]),
        reference=confirmed["reference"],
        warnings=_reference_doubts(confirmed),
        smallest_adequate=confirmed["smallest_adequate"],
        by_resolution=tuple(
            replace(at, split="test", **{key: tested[at.resolution][key] for key in keys})
            if at.resolution in tested
            else at
            for at in answer.by_resolution
        ),
    )


def _reference_doubts(confirmed: dict[str, Any]) -> tuple[str, ...]:
    at = confirmed["reference"]["resolution"]
    tested = next(each for each in confirmed["by_resolution"] if each["resolution"] == at)
    return confirmed_doubts(confirmed["label"], tested)


def _best(row: Row[Any]) -> BestConfiguration:
    low, high = auc_interval(row.auc, row.auc_se)
    return BestConfiguration(
        resolution=row.resolution,
        architecture=row.architecture,
        batch_size=row.batch_size,
        feasible_batch_size=row.feasible_batch_size,
        learning_rate=row.learning_rate,
        auc=row.auc,
        auc_low=low,
        auc_high=high,
        split="validation",
        seeds=0,
    )


def _at_resolution(resolution: int, row: Row[Any] | None, counts: Row[Any] | None) -> ResolutionAnswer:
    low, high = (None, None) if row is None else auc_interval(row.auc, row.auc_se)
    return ResolutionAnswer(
        resolution=resolution,
        auc=None if row is None else row.auc,
        auc_low=low,
        auc_high=high,
        split="validation",
        complete=0 if counts is None else counts.complete,
        pruned=0 if counts is None else counts.pruned,
        seeds=0,
    )

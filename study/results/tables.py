"""Tables of the storage as DataFrames: its experiments, an experiment's trials, its AUCs by resolution."""

from typing import TYPE_CHECKING

from sqlalchemy import text

from acuity.storage.database import Database
from acuity.storage.experiments import list_experiments, read_experiment
from acuity.study.registry.record import from_stored
from acuity.study.results.answer import select_labels
from acuity.study.results.status import read_status

if TYPE_CHECKING:
    from pandas import DataFrame

_LAST_SIGN = text(
    """
    select max(greatest(t.started, t.finished, h.heartbeat at time zone 'utc'))
    from acuity.all_trials t left join public.trial_heartbeats h on h.trial_id = t.trial_id
    where t.experiment = :name
    """
)


def read_experiments(database: Database) -> "DataFrame":
    """One row per experiment of the storage, the oldest first.

    Columns: experiment; labels (how many); finished (trials of the search, complete and pruned); trials (the budget of
    all labels); running (trials on all hosts); state (searching, searched, confirming, confirmed); last_sign (UTC, the
    last start, heartbeat or end of a trial; missing without a trial); created (UTC).
    """
    import pandas as pd

    rows = [_experiment_row(database, name) for name in list_experiments(database)]
    columns = ["experiment", "labels", "finished", "trials", "running", "state", "last_sign", "created"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(**{column: pd.to_datetime(table[column], utc=True) for column in ("last_sign", "created")})


def read_trials(database: Database, name: str, *, label: str | None = None) -> "DataFrame":
    """One row per trial of the experiment, by label and number: the view acuity.all_trials.

    docs/reference/sql.md describes the columns. StorageError where no such experiment exists. UsageError for an unknown
    label.
    """
    return _read_view(database, "all_trials", name, label, order="confirm, number")


def read_auc_by_resolution(database: Database, name: str, *, label: str | None = None) -> "DataFrame":
    """One row per label and resolution of the experiment: the view acuity.auc_by_resolution.

    docs/reference/sql.md describes the columns. StorageError where no such experiment exists. UsageError for an unknown
    label.
    """
    return _read_view(database, "auc_by_resolution", name, label, order="resolution")


def _read_view(database: Database, view: str, name: str, label: str | None, *, order: str) -> "DataFrame":
    import pandas as pd

    labels = select_labels(from_stored(read_experiment(database, name)).experiment, label)
    query = text(
        f"select * from acuity.{view} where experiment = :name and label = any(:labels) "
        f"order by array_position(cast(:labels as text[]), label), {order}"
    )
    with database.engine.connect() as connection:
        return pd.read_sql(query, connection, params={"name": name, "labels": list(labels)})


def _experiment_row(database: Database, name: str) -> tuple[object, ...]:
    stored = read_experiment(database, name)
    experiment = from_stored(stored).experiment
    status = read_status(database, experiment)
    with database.engine.connect() as connection:
        last_sign = connection.scalars(_LAST_SIGN, {"name": name}).one()
    budget = experiment.search.trials
    searched = len(status.progress) == len(experiment.labels) and all(
        entry.finished >= budget for entry in status.progress
    )
    if not searched:
        state = "searching"
    elif status.confirmed:
        state = "confirmed"
    else:
        state = "confirming" if status.confirmation else "searched"
    return (
        name,
        len(experiment.labels),
        sum(entry.finished for entry in status.progress),
        len(experiment.labels) * budget,
        len(status.running),
        state,
        last_sign,
        stored.created,
    )

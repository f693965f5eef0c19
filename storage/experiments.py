"""Read, write and delete experiments in the database."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
from optuna.storages._rdb.models import BaseModel
from sqlalchemy import delete, select, text

from acuity.storage.database import Database
from acuity.storage.errors import StorageError
from acuity.storage.locks import remove_study_locks


@dataclass(frozen=True)
class StoredExperiment:
    """An experiment's row. The package study decides what the definition holds."""

    name: str
    definition: dict[str, Any]
    created: datetime


def save_experiment(database: Database, name: str, definition: dict[str, Any]) -> None:
    """Write an experiment; an existing one of its name gets the new definition."""
    statement = text(
        "insert into acuity.experiments (name, definition) values (:name, :definition) "
        "on conflict (name) do update set definition = excluded.definition"
    )
    with database.engine.begin() as connection:
        connection.execute(statement, {"name": name, "definition": json.dumps(definition, allow_nan=False)})


def find_experiment(database: Database, name: str) -> StoredExperiment | None:
    """The experiment of that name; None where there is none."""
    query = text("select name, definition, created from acuity.experiments where name = :name")
    with database.engine.connect() as connection:
        row = connection.execute(query, {"name": name}).one_or_none()
    return None if row is None else StoredExperiment(*row)


def read_experiment(database: Database, name: str) -> StoredExperiment:
    """The experiment of that name; StorageError, which names the existing experiments, where there is none."""
    stored = find_experiment(database, name)
    if stored is None:
        names = list_experiments(database)
        there_are = f"There are: {', '.join(names)}" if names else "There is none yet: acuity launch FILE makes one"
        raise StorageError(f'no experiment named "{name}". {there_are}')
    return stored


def list_experiments(database: Database) -> list[str]:
    """Names of the experiments, the oldest first."""
    with database.engine.connect() as connection:
        return list(connection.scalars(text("select name from acuity.experiments order by created, name")))


def delete_experiment(database: Database, name: str) -> list[tuple[str, int]]:
    """Delete an experiment with its registered studies and their trials; return the names and ids of those studies.

    The fleet's feasible batches stay, and so do studies of other programs that are named like the experiment's. The
    experiment's row is deleted last, so that you can repeat an interrupted deletion.
    """
    read_experiment(database, name)
    query = text(
        "select s.study_id, s.study_name from public.studies s "
        "join acuity.registered_studies r on r.study_name = s.study_name where r.experiment = :name order by s.study_id"
    )
    with database.engine.connect() as connection:
        studies = connection.execute(query, {"name": name}).all()
    for study_id, study_name in studies:
        _delete_trials(database, study_id)
        optuna.delete_study(study_name=study_name, storage=database.storage)
        remove_study_locks(database.engine, study_id)
    with database.engine.begin() as connection:
        connection.execute(text("delete from acuity.registered_studies where experiment = :name"), {"name": name})
        connection.execute(text("delete from acuity.experiments where name = :name"), {"name": name})
    return [(study_name, study_id) for study_id, study_name in studies]


def _delete_trials(database: Database, study_id: int) -> None:
    """Delete a study's trials by SQL: Optuna reads every row that it deletes (112 s for 10,000 trials)."""
    trials = BaseModel.metadata.tables["trials"]
    of_study = select(trials.c.trial_id).where(trials.c.study_id == study_id)
    with database.engine.begin() as connection:
        for table in BaseModel.metadata.tables.values():
            if any(key.column is trials.c.trial_id for key in table.foreign_keys):
                connection.execute(delete(table).where(table.c.trial_id.in_(of_study)))
        connection.execute(delete(trials).where(trials.c.study_id == study_id))

"""Publish the note and the plots of a label in optuna-dashboard.

A read-only dashboard cannot write them. Workers write them after their trials, at most once a minute for each label.
"""

import json
import logging
import math

import optuna
from optuna_dashboard import get_note, save_note, save_plotly_graph_object
from sqlalchemy import Connection, text

from acuity.storage.confirmations import find_confirmation
from acuity.storage.database import Database
from acuity.storage.locks import hold_lock, note_lock
from acuity.study.dashboard.notes import is_written_by_acuity, note_text
from acuity.study.dashboard.plots import dashboard_plots
from acuity.study.registry.names import confirm_study_name, study_name
from acuity.study.registry.record import Registered
from acuity.study.results.answer import LabelAnswer, read_answer
from acuity.study.results.summary import summarise_search

logger = logging.getLogger(__name__)
_KEY = "acuity:shown"
_LONGEST_WAIT_S = 2.0
_LONGEST_IDLE_S = 60
"""The server ends the writer's transaction after this idle time, so that a stopped process does not keep the lock."""


def try_to_publish_label(database: Database, registered: Registered, label: str, *, every_s: float = 60) -> None:
    """publish_label for a worker: an error is logged and does not end the worker."""
    try:
        publish_label(database, registered, label, every_s=every_s)
    except Exception as error:  # a worker continues without the note
        logger.warning("the dashboard's note on %s was not written: %s: %s", label, type(error).__name__, error)


def publish_label(database: Database, registered: Registered, label: str, *, every_s: float = 60) -> bool:
    """Write the note and the plots of a label; returns whether they were written.

    Returns False where no trial is new, where the note is younger than every_s, and while another process writes.
    """
    studies = _find_studies(database, registered, label)
    search = studies.get(study_name(registered.experiment.name, label))
    if search is None:
        return False
    with hold_lock(
        database.engine, note_lock(search), wait_s=_LONGEST_WAIT_S, longest_idle_s=_LONGEST_IDLE_S, nested=True
    ) as connection:
        if connection is None:
            return False
        age_s, published = _last_published(connection, search)
        if age_s < every_s:  # before read_answer, which takes 0.1 s for 10,000 trials
            return False
        entry = read_answer(database, registered.experiment.name, label=label).labels[0]
        state = _state(database, registered, entry)
        if state == published:
            return False
        _write(database, registered, entry, studies)
        _store_time(connection, search, state)
    return True


def _find_studies(database: Database, registered: Registered, label: str) -> dict[str, int]:
    """Ids, by name, of the searches of all labels and of this label's confirmation: its note links them."""
    experiment = registered.experiment
    names = [study_name(experiment.name, each) for each in experiment.labels]
    names.append(confirm_study_name(experiment.name, label))
    query = text("select study_name, study_id from public.studies where study_name = any(:names)")
    with database.engine.connect() as connection:
        return {row.study_name: row.study_id for row in connection.execute(query, {"names": names})}


def _last_published(connection: Connection, study_id: int) -> tuple[float, str | None]:
    """Seconds since the note was written (infinite without a note), and the state that it describes."""
    query = text(
        "select extract(epoch from clock_timestamp()) - (value_json::json ->> 'at')::double precision, "
        "value_json::json ->> 'of' from public.study_system_attributes where study_id = :study_id and key = :key"
    )
    row = connection.execute(query, {"study_id": study_id, "key": _KEY}).one_or_none()
    return (math.inf, None) if row is None else (float(row[0]), row[1])


def _state(database: Database, registered: Registered, entry: LabelAnswer) -> str:
    """The state that the note describes: the counts of trials and the SHA-256 of the protocol."""
    stored = find_confirmation(database, registered.experiment.name)
    finished = [entry.trials[state] for state in ("complete", "pruned", "failed")]
    return json.dumps([*finished, stored.protocol_sha256 if stored else None])


def _write(database: Database, registered: Registered, entry: LabelAnswer, studies: dict[str, int]) -> None:
    summary = summarise_search(database, registered, entry.label, importance=False)
    plots = dashboard_plots(entry, summary) if summary.complete else {}
    name = registered.experiment.name
    search = optuna.load_study(storage=database.storage, study_name=study_name(name, entry.label))
    _save_note(search, note_text(registered, entry, studies))
    for plot, figure in plots.items():
        save_plotly_graph_object(search, figure, graph_object_id=plot)
    confirm_name = confirm_study_name(name, entry.label)
    if confirm_name in studies:
        confirmation = optuna.load_study(storage=database.storage, study_name=confirm_name)
        _save_note(confirmation, note_text(registered, entry, studies, confirms=True))
        if plots:
            save_plotly_graph_object(confirmation, plots["auc-by-resolution"], graph_object_id="auc-by-resolution")


def _save_note(study: optuna.Study, note: str) -> None:
    present = get_note(study)
    if not present or is_written_by_acuity(present):
        save_note(study, note)


def _store_time(connection: Connection, study_id: int, state: str) -> None:
    """Store the database's time and the state as JSON, which Optuna requires of an attribute."""
    statement = text(
        "insert into public.study_system_attributes (study_id, key, value_json) values (:study_id, :key, "
        "json_build_object('at', extract(epoch from clock_timestamp()), 'of', cast(:of as text))::text) "
        "on conflict (study_id, key) do update set value_json = excluded.value_json"
    )
    connection.execute(statement, {"study_id": study_id, "key": _KEY, "of": state})

"""The note and the plots that optuna-dashboard shows for a label, written by workers after their trials.

The dashboard may be read-only and cannot write them. Workers write them at most once a minute for each label.
"""

import json
import logging
import math

import optuna
from optuna_dashboard import get_note, save_note, save_plotly_graph_object
from sqlalchemy import Connection, text

from acuity.storage.confirmations import find_confirmation
from acuity.storage.database import Database
from acuity.study.config.schema import caveats
from acuity.study.dashboard.plots import dashboard_plots
from acuity.study.registry.names import confirm_study_name, study_name
from acuity.study.registry.record import Registered
from acuity.study.results.answer import AtResolution, LabelAnswer, read_answer
from acuity.study.results.summary import summarise_search
from acuity.study.units import escape_markdown

logger = logging.getLogger(__name__)
_MARK = "*Written by Acuity after each trial, at most once a minute; a note of yours in its place is kept.*"
_KEY = "acuity:shown"
_LOCK = 0x4143_554E  # first half of the advisory lock's key, the second is the study; "ACUN"


def show_in_dashboard(database: Database, registered: Registered, label: str, *, every_s: float = 60) -> bool:
    """Update the label's note and plots; False where nothing is new, or they are younger than every_s.

    One process writes at a time; the others return False.
    """
    names = [study_name(registered.experiment.name, label), confirm_study_name(registered.experiment.name, label)]
    studies = _find_studies(database, names)
    if names[0] not in studies:
        return False
    with database.engine.begin() as connection:
        lock = text("select pg_try_advisory_xact_lock(:lock, :study_id)")
        if not connection.scalars(lock, {"lock": _LOCK, "study_id": studies[names[0]]}).one():
            return False
        age_s, shown = _last_shown(connection, studies[names[0]])
        if age_s < every_s:  # asked after every trial: reading the answer of 10,000 takes a tenth of a second
            return False
        entry = read_answer(database, registered.experiment.name, label=label).labels[0]
        of = _content(database, registered, entry)
        if of == shown:
            return False
        _write(database, registered, entry, studies)
        _note_time(connection, studies[names[0]], of)
    return True


def show_quietly(database: Database, registered: Registered, label: str, *, every_s: float = 60) -> None:
    """show_in_dashboard for a worker: an error is logged and does not end the worker."""
    try:
        show_in_dashboard(database, registered, label, every_s=every_s)
    except Exception as error:  # whatever fails here, the worker continues
        logger.warning("the dashboard's note on %s was not written: %s: %s", label, type(error).__name__, error)


def _find_studies(database: Database, names: list[str]) -> dict[str, int]:
    query = text("select study_name, study_id from studies where study_name = any(:names)")
    with database.engine.connect() as connection:
        return {row.study_name: row.study_id for row in connection.execute(query, {"names": names})}


def _content(database: Database, registered: Registered, entry: LabelAnswer) -> str:
    """The state that the note describes: counts of trials, and the protocol."""
    stored = find_confirmation(database, registered.experiment.name)
    finished = [entry.trials[state] for state in ("complete", "pruned", "failed")]
    return json.dumps([*finished, stored.protocol_sha256 if stored else None])


def _last_shown(connection: Connection, study_id: int) -> tuple[float, str | None]:
    """Seconds since the note was written (infinite without a note), and the state that it describes."""
    query = text(
        "select extract(epoch from clock_timestamp()) - (value_json::json ->> 'at')::double precision, "
        "value_json::json ->> 'of' from study_system_attributes where study_id = :study_id and key = :key"
    )
    row = connection.execute(query, {"study_id": study_id, "key": _KEY}).one_or_none()
    return (math.inf, None) if row is None else (float(row[0]), row[1])


def _note_time(connection: Connection, study_id: int, of: str) -> None:
    """Store the time by the database's clock, as JSON, which Optuna expects of an attribute."""
    statement = text(
        "insert into study_system_attributes (study_id, key, value_json) values (:study_id, :key, "
        "json_build_object('at', extract(epoch from clock_timestamp()), 'of', cast(:of as text))::text) "
        "on conflict (study_id, key) do update set value_json = excluded.value_json"
    )
    connection.execute(statement, {"study_id": study_id, "key": _KEY, "of": of})


def _write(database: Database, registered: Registered, entry: LabelAnswer, studies: dict[str, int]) -> None:
    summary = summarise_search(database, registered, entry.label, importance=False)
    plots = dashboard_plots(entry, summary) if summary.complete else {}
    search, confirmation = (
        optuna.load_study(storage=database.storage, study_name=name) if name in studies else None
        for name in (
            study_name(registered.experiment.name, entry.label),
            confirm_study_name(registered.experiment.name, entry.label),
        )
    )
    siblings = _find_studies(
        database, [study_name(registered.experiment.name, each) for each in registered.experiment.labels]
    )
    assert search is not None
    _save_note(search, note_text(registered, entry, siblings | studies))
    for name, figure in plots.items():
        save_plotly_graph_object(search, figure, graph_object_id=name)
    if confirmation is not None:
        _save_note(confirmation, note_text(registered, entry, siblings | studies, confirms=True))
        if plots:
            save_plotly_graph_object(confirmation, plots["auc-by-resolution"], graph_object_id="auc-by-resolution")


def _save_note(study: optuna.Study, body: str) -> None:
    written = get_note(study)
    if not written or _MARK in written:
        save_note(study, body)


def note_text(registered: Registered, entry: LabelAnswer, studies: dict[str, int], *, confirms: bool = False) -> str:
    """Markdown with the sentence, the table and links. studies: ids by name of the studies to link."""
    experiment = registered.experiment
    heading = f"# {escape_markdown(entry.label)}" + (": confirmation" if confirms else "")
    rows = [
        "| px | AUC (95 %) | of | trials (pruned) |",
        "| ---: | :--- | :--- | ---: |",
        *map(_row, entry.by_resolution),
    ]
    others = [
        f"[{escape_markdown(each)}](/dashboard/studies/{studies[study_name(experiment.name, each)]})"
        for each in experiment.labels
        if study_name(experiment.name, each) in studies and (confirms or each != entry.label)
    ]
    confirmation = studies.get(confirm_study_name(experiment.name, entry.label))
    links = [f"Searches of the labels: {', '.join(others)}."] if others else []
    if confirmation is not None and not confirms:
        links.append(f"Its [confirmation](/dashboard/studies/{confirmation}).")
    commands = (
        f'`acuity best {experiment.name} --label "{entry.label}"`, `acuity report {experiment.name} --out report`'
    )
    return "\n\n".join(
        [
            heading,
            _sentence(registered, entry),
            *map("**{}**".format, caveats(experiment)),
            "\n".join(rows),
            " ".join([*links, f"More: {commands}."]),
            _MARK,
        ]
    )


def _sentence(registered: Registered, entry: LabelAnswer) -> str:
    finished = entry.trials["complete"] + entry.trials["pruned"]
    done = f"{finished} of {registered.experiment.search.trials} trials"
    if entry.smallest_adequate is not None:
        return f"**{escape_markdown(entry.smallest_adequate['sentence'])}** ({done})"
    if entry.best is None:
        return f"No complete trial yet ({done})."
    best = entry.best
    return (
        f"**Best so far: {best.resolution} px, AUC {best.auc:.3f} ({best.auc_low:.3f} to {best.auc_high:.3f})**, "
        f"{best.architecture}, batch {best.batch_size} of {best.feasible_batch_size} feasible; {done}. On the "
        f"validation patients that chose it: optimistic, no verdict: `acuity confirm {registered.experiment.name}` "
        "gives one."
    )


def _row(at: AtResolution) -> str:
    auc = "–" if at.auc is None else f"{at.auc:.3f} ({at.auc_low:.3f} to {at.auc_high:.3f})"
    of = f"test patients, {at.seeds} seeds" if at.split == "test" else "validation patients"
    return f"| {at.resolution} | {auc} | {of} | {at.complete + at.pruned} ({at.pruned}) |"

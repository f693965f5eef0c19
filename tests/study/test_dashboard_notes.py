"""What the dashboard shows of a label: a note and plots that follow the trials, never over a person's own note."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna
import pytest
from optuna.trial import TrialState
from optuna_dashboard import get_note, save_note, wsgi
from sqlalchemy import text

from acuity.storage.database import Database, open_storage
from acuity.study.dashboard import notes as dashboard_notes
from acuity.study.dashboard.notes import show_in_dashboard, show_quietly
from acuity.study.registry.names import confirm_study_name, study_name
from acuity.study.registry.record import Registered
from acuity.study.registry.register import register
from support.confirmed_experiment import fill_search

PLOTS = ("auc-by-resolution", "auc-by-training-time", "auc-by-batch-size")


@pytest.fixture
def searched(confirmed, database: Database) -> Registered:
    """The experiment's search in a database of this test's own."""
    registered: Registered = confirmed.registered
    mine = register(
        database,
        registered.experiment,
        registered.identity,
        training_images=150,
    )
    for label in mine.experiment.labels:
        fill_search(database, mine, label, seed=0)
    return mine


def _study(database: Database, label: str = "Nodule") -> optuna.Study:
    return optuna.load_study(storage=database.storage, study_name=study_name("tiny", label))


def _plots(study: optuna.Study) -> dict[str, str]:
    attributes = study._storage.get_study_system_attrs(study._study_id)
    chunks = {key: value for key, value in attributes.items() if key.startswith("dashboard:plot_data:")}
    names = {key.split(":")[2] for key in chunks}
    return {
        name: "".join(
            chunks[f"dashboard:plot_data:{name}:{i}"] for i in range(sum(f":{name}:" in key for key in chunks))
        )
        for name in names
    }


def test_a_label_gets_its_sentence_its_table_and_three_plots_with_units(
    searched: Registered, database: Database
) -> None:
    assert show_in_dashboard(database, searched, "Nodule")
    study = _study(database)
    note = get_note(study)
    assert "Best so far: " in note
    assert "optimistic, no verdict" in note
    assert note.count("validation patients |") == 3
    other = _study(database, "Cardiomegaly")
    assert f"[Cardiomegaly](/dashboard/studies/{other._study_id})" in note
    plots = {name: json.loads(figure) for name, figure in _plots(study).items()}
    assert sorted(plots) == sorted(PLOTS)
    units = ("(px)", "(s)", "(images")
    for name, unit in zip(PLOTS, units, strict=True):
        assert unit in plots[name]["layout"]["xaxis"]["title"]["text"]
        assert plots[name]["layout"]["yaxis"]["title"]["text"] == "AUC"
    assert get_note(other) == ""


def test_it_is_written_at_most_once_a_minute_and_only_when_there_is_news(
    searched: Registered, database: Database
) -> None:
    assert show_in_dashboard(database, searched, "Nodule")
    assert not show_in_dashboard(database, searched, "Nodule", every_s=0), "nothing new"
    _study(database).add_trial(optuna.trial.create_trial(value=None, state=TrialState.FAIL))
    assert not show_in_dashboard(database, searched, "Nodule"), "younger than a minute"
    assert show_in_dashboard(database, searched, "Nodule", every_s=0)


def test_while_another_process_writes_it_is_left_to_that(searched: Registered, database: Database) -> None:
    study_id = _study(database)._study_id
    with database.engine.begin() as connection:
        lock = text("select pg_advisory_xact_lock(:lock, :study_id)")
        connection.execute(lock, {"lock": dashboard_notes._LOCK, "study_id": study_id})
        assert not show_in_dashboard(database, searched, "Nodule")
    assert show_in_dashboard(database, searched, "Nodule")


def test_a_persons_note_stays_and_the_plots_come_all_the_same(searched: Registered, database: Database) -> None:
    study = _study(database)
    save_note(study, "Ask radiology about the laterals.")
    assert show_in_dashboard(database, searched, "Nodule")
    assert get_note(study) == "Ask radiology about the laterals."
    assert len(_plots(study)) == 3


def test_whatever_goes_wrong_with_it_ends_no_worker(
    searched: Registered, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dashboard_notes, "dashboard_plots", lambda *_: 1 / 0)
    show_quietly(database, searched, "Nodule")
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    assert show_in_dashboard(database, searched, "Nodule"), "what failed is tried again"


def test_a_confirmation_shows_its_verdict_in_both_studies(confirmed) -> None:
    with open_storage(confirmed.url) as database:
        notes = [
            get_note(optuna.load_study(storage=database.storage, study_name=name))
            for name in (study_name("tiny", "Nodule"), confirm_study_name("tiny", "Nodule"))
        ]
    for note in notes:
        assert "not estimable" in note
        assert "test patients, 3 seeds" in note
    assert "# Nodule: confirmation" in notes[1]


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(confirmed) -> Iterator[tuple[str, dict[str, int]]]:
    """The dashboard's own application on the confirmed experiment's storage, and its studies' numbers."""
    with open_storage(confirmed.url) as database:
        studies = {each.study_name: each._study_id for each in optuna.get_all_study_summaries(database.storage)}
        with make_server("127.0.0.1", 0, wsgi(database.storage), handler_class=_Quiet) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}/dashboard", studies
            server.shutdown()


_CUT_TITLES = """() => [...document.querySelectorAll(".gtitle")].filter(title => {
    const words = title.getBoundingClientRect(), plot = title.closest("svg").getBoundingClientRect()
    return words.left < plot.left || words.right > plot.right
}).map(title => title.textContent)"""


@pytest.mark.browser
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_a_browser_shows_note_and_plots_of_a_label(
    served: tuple[str, dict[str, int]], browser, tmp_path: Path, width: int, height: int
) -> None:
    address, studies = served
    page = browser.new_page(viewport={"width": width, "height": height})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{address}/studies/{studies['tiny/Nodule']}")
    page.get_by_text("AUC against resolution (95 % intervals)").first.wait_for()
    page.get_by_text("Pareto front").first.wait_for()
    page.screenshot(path=tmp_path / "study.png", full_page=True)
    assert page.evaluate(_CUT_TITLES) == []
    page.goto(f"{address}/studies/{studies['tiny/Nodule']}/note")
    page.get_by_text("not estimable").first.wait_for()
    page.screenshot(path=tmp_path / "note.png", full_page=True)
    assert errors == []
    assert shutil.which("chromium")

"""The note and the plots of a label in the dashboard are updated after trials. A person's note is kept."""

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

from acuity.storage.database import Database, open_storage
from acuity.storage.locks import hold_lock, note_lock
from acuity.study.dashboard import publishing
from acuity.study.dashboard.publishing import publish_label, try_to_publish_label
from acuity.study.registry.names import confirm_study_name, study_name
from acuity.study.registry.record import Registered
from support.confirmed_experiment import repeat_search

PLOTS = ("auc-by-resolution", "auc-by-training-time", "auc-by-batch-size")


@pytest.fixture
def searched(confirmed, database: Database) -> Registered:
    """The experiment with finished searches in a new database."""
    return repeat_search(database, confirmed.registered)


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


def test_note_of_a_label_has_a_sentence_and_a_table_and_its_three_plots_have_units(
    searched: Registered, database: Database
) -> None:
    assert publish_label(database, searched, "Nodule")
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


def test_note_is_written_at_most_once_a_minute_and_only_after_a_new_trial(
    searched: Registered, database: Database
) -> None:
    assert publish_label(database, searched, "Nodule")
    assert not publish_label(database, searched, "Nodule", every_s=0), "nothing new"
    _study(database).add_trial(optuna.trial.create_trial(value=None, state=TrialState.FAIL))
    assert not publish_label(database, searched, "Nodule"), "younger than a minute"
    assert publish_label(database, searched, "Nodule", every_s=0)


def test_only_one_process_writes_at_a_time(searched: Registered, database: Database) -> None:
    study_id = _study(database)._study_id
    lock = note_lock(study_id)
    with hold_lock(database.engine, lock, wait_s=0, longest_idle_s=60, nested=True) as held:
        assert held is not None
        assert not publish_label(database, searched, "Nodule")
    assert publish_label(database, searched, "Nodule")


def test_note_of_a_person_is_kept_and_the_plots_are_written(searched: Registered, database: Database) -> None:
    study = _study(database)
    save_note(study, "Ask radiology about the laterals.")
    assert publish_label(database, searched, "Nodule")
    assert get_note(study) == "Ask radiology about the laterals."
    assert len(_plots(study)) == 3


def test_error_in_publishing_does_not_end_the_worker(
    searched: Registered, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(publishing, "dashboard_plots", lambda *_: 1 / 0)
    try_to_publish_label(database, searched, "Nodule")
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    assert publish_label(database, searched, "Nodule"), "it is tried again after an error"


def test_verdict_of_a_confirmation_is_in_the_notes_of_both_studies(confirmed) -> None:
    with open_storage(confirmed.url) as database:
        notes = [
            get_note(optuna.load_study(storage=database.storage, study_name=name))
            for name in (study_name("tiny", "Nodule"), confirm_study_name("tiny", "Nodule"))
        ]
    for note in notes:
        assert "not estimable" in note
        assert "test patients, 3 networks" in note
    assert "# Nodule: confirmation" in notes[1]


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(confirmed) -> Iterator[tuple[str, dict[str, int]]]:
    """Address of optuna-dashboard on the confirmed experiment's storage, and the ids of the studies."""
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
def test_browser_shows_the_note_and_the_plots_of_a_label(
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

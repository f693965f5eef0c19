"""`acuity list`, `acuity trials` and `acuity best --by resolution` print the storage's tables."""

import csv
import io
import json
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import Confirmed

from acuity.storage.database import open_storage
from acuity.study.cli.main import acuity
from acuity.study.errors import UsageError
from acuity.study.results import tables as tables_module
from acuity.study.results.tables import read_auc_by_resolution, read_experiments, read_trials


def run(confirmed: Confirmed, *arguments: str) -> Result:
    return CliRunner().invoke(acuity, [*arguments, "--storage", confirmed.url])


def test_the_list_has_a_confirmed_experiment_with_its_counts(confirmed: Confirmed) -> None:
    experiment = confirmed.registered.experiment
    (row,) = json.loads(run(confirmed, "list", "--format", "json").stdout)
    budget = len(experiment.labels) * experiment.search.trials
    expected: dict[str, Any] = {"experiment": "tiny", "labels": len(experiment.labels), "state": "confirmed"}
    expected |= {"finished": budget, "trials": budget, "running": 0}
    assert {key: row[key] for key in expected} == expected
    assert row["last_sign"] >= row["created"]


def test_an_experiment_with_more_trials_to_run_than_at_its_confirmation_is_searching(
    confirmed: Confirmed, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = confirmed.registered.experiment
    raised = replace(confirmed.registered, experiment=replace(experiment, search=replace(experiment.search, trials=99)))
    monkeypatch.setattr(tables_module, "from_stored", lambda _: raised)
    with open_storage(confirmed.url) as database:
        assert read_experiments(database)["state"].tolist() == ["searching"]


def test_status_without_a_name_prints_the_list(confirmed: Confirmed) -> None:
    listed = run(confirmed, "status")
    assert listed.exit_code == 0
    assert "confirmed" in listed.stdout
    assert run(confirmed, "status", "--watch").exit_code == 2


def test_an_empty_storage_has_no_experiment(database_url: str) -> None:
    listed = CliRunner().invoke(acuity, ["list", "--storage", database_url])
    assert listed.exit_code == 0
    assert listed.stdout == ""
    assert "acuity launch FILE" in listed.stderr
    with open_storage(database_url) as database:
        assert read_experiments(database).empty


def test_the_csv_of_trials_has_a_row_for_each_trial_of_search_and_confirmation(confirmed: Confirmed) -> None:
    rows = list(csv.DictReader(io.StringIO(run(confirmed, "trials", "tiny", "--format", "csv").stdout)))
    with open_storage(confirmed.url) as database:
        table = read_trials(database, "tiny")
    assert len(rows) == len(table)
    experiment = confirmed.registered.experiment
    searched = [row for row in rows if row["confirm"] == "False" and row["state"] in ("COMPLETE", "PRUNED")]
    assert len(searched) == len(experiment.labels) * experiment.search.trials
    assert [row["label"] for row in rows] == sorted((row["label"] for row in rows), key=experiment.labels.index)


def test_the_table_of_trials_has_their_states_and_reasons(confirmed: Confirmed) -> None:
    label = confirmed.registered.experiment.labels[0]
    printed = run(confirmed, "trials", "tiny", "--label", label).stdout
    assert "complete" in printed
    assert "(confirm)" in printed
    assert "nan" not in printed


def test_best_by_resolution_has_a_row_for_each_label_and_resolution(confirmed: Confirmed) -> None:
    experiment = confirmed.registered.experiment
    printed = run(confirmed, "best", "tiny", "--by", "resolution", "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(printed)))
    expected = [(label, str(side)) for label in experiment.labels for side in sorted(experiment.search.resolutions)]
    assert [(row["label"], row["resolution"]) for row in rows] == expected
    table = run(confirmed, "best", "tiny", "--by", "resolution").stdout
    assert sum(line.startswith(experiment.labels) for line in table.splitlines()) >= len(expected)


def test_an_unknown_label_is_refused(confirmed: Confirmed) -> None:
    with open_storage(confirmed.url) as database, pytest.raises(UsageError, match='no label "None"'):
        read_auc_by_resolution(database, "tiny", label="None")

"""What others write into a file, a label or the database is shown as text, and breaks no output."""

import csv
import io
import json
import os
import subprocess
import sys

import optuna
import pytest
from click.testing import CliRunner
from conftest import Confirmed
from rich.console import Console
from sqlalchemy import text

from acuity.storage.database import Database
from acuity.study.cli.main import acuity
from acuity.study.config.loading import parse
from acuity.study.dashboard.notes import note_text
from acuity.study.display.answer_table import answer_table
from acuity.study.display.console import messages_console, results_console
from acuity.study.errors import UsageError
from acuity.study.results.answer import read_answer
from acuity.study.units import code, finite, inert_cell
from support.commands import ACUITY
from support.confirmed_experiment import repeat_search


def test_markup_and_emoji_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    label = "[red]Mass[/red] [/] :x: [link=file:///etc]"
    for console in (results_console(), messages_console()):
        console.print(f"{label}: 3 of 9", soft_wrap=True)
    printed = capsys.readouterr()
    assert f"{label}: 3 of 9" in printed.out
    assert f"{label}: 3 of 9" in printed.err


@pytest.mark.parametrize("label", ["M\x1b[2Jass", "Mass\u202essam", "Mass\u2028Nodule", "\ufeffMass", "Mass\x85"])
def test_label_that_would_change_what_is_shown_is_refused(label: str) -> None:
    table = {
        "name": "nih",
        "labels": [label],
        "data": {"index": "a.csv", "images": "images"},
        "search": {"resolutions": [32], "architectures": ["test_resnet"], "trials": 6},
        "training": {"epochs": 1},
    }
    with pytest.raises(UsageError, match="control characters and marks of direction"):
        parse(table, source="here")
    parse(table | {"labels": ["می\u200cخواهم"]}, source="here")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_results_are_printed_where_the_terminal_lacks_their_characters(confirmed: Confirmed, encoding: str) -> None:
    for arguments in (["best", "tiny", "--label", confirmed.registered.experiment.labels[0]], ["status", "tiny"]):
        done = subprocess.run(
            [*ACUITY, *arguments],
            env=os.environ | {"ACUITY_STORAGE": confirmed.url, "PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(encoding)
        assert done.stdout.decode(encoding)


def test_missing_characters_are_replaced_by_others_or_escaped() -> None:
    script = "from acuity.study.cli import main; main._accept_every_text(); print('0.9 ± 0.1 – Größe 肺')"
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONIOENCODING": "ascii"},
                          capture_output=True, check=True)  # fmt: skip
    assert done.stdout == b"0.9 +- 0.1 - Gr\\xf6\\xdfe \\u80ba\n"


def test_command_in_a_note_is_quoted_for_the_shell(confirmed: Confirmed, database: Database) -> None:
    registered = repeat_search(database, confirmed.registered)
    [entry, *_] = read_answer(database, "tiny").labels
    object.__setattr__(entry, "label", "`id` $(id) \"'x")
    note = note_text(registered, entry, {})
    assert """`` acuity best tiny --label '`id` $(id) "'"'"'x' ``""" in note


def test_code_span_shows_any_number_of_backticks() -> None:
    assert code("acuity best") == "`acuity best`"
    assert code("a ``b`` `c") == "``` a ``b`` `c ```"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_cell_that_a_spreadsheet_would_run_begins_with_an_apostrophe(start: str) -> None:
    assert inert_cell(f"{start}1+1") == f"'{start}1+1"
    assert inert_cell("Mass") == "Mass"
    assert inert_cell(-0.5) == -0.5


def test_csv_of_a_label_that_is_a_formula_is_inert(confirmed: Confirmed, database: Database, database_url: str) -> None:
    registered = repeat_search(database, confirmed.registered)
    label, formula = registered.experiment.labels[0], "=cmd|'A0'!B1"
    with database.engine.begin() as connection:
        connection.execute(
            text("update acuity.registered_studies set label = :new where label = :old"), {"new": formula, "old": label}
        )
        connection.execute(
            text(
                "update acuity.experiments set definition = "
                "jsonb_set(definition, '{experiment,labels,0}', to_jsonb(cast(:new as text)))"
            ),
            {"new": formula},
        )
    shown = CliRunner().invoke(acuity, ["best", "tiny", "--format", "csv", "--storage", database_url])
    rows = list(csv.DictReader(io.StringIO(shown.stdout)))
    assert f"'{formula}" in [row["label"] for row in rows]


def test_numbers_that_json_lacks_become_null() -> None:
    assert finite({"a": [float("nan"), 1.5, (float("inf"),)], "b": "NaN", "c": None}) == {
        "a": [None, 1.5, [None]],
        "b": "NaN",
        "c": None,
    }


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_value_that_is_no_number_is_never_the_best_and_breaks_no_output(
    number: str, confirmed: Confirmed, database: Database, database_url: str
) -> None:
    registered = repeat_search(database, confirmed.registered)
    before = read_answer(database, "tiny")
    worst = "(select trial_id from acuity.all_trials where state = 'COMPLETE' order by value limit 1)"
    with database.engine.begin() as connection:
        connection.execute(text(f"update public.trial_values set value = '{number}' where trial_id = {worst}"))
        connection.execute(text("update public.trial_user_attributes set value_json = :n where key = 'seconds'"),
                           {"n": number})  # fmt: skip
    after = read_answer(database, "tiny")
    assert [entry.best for entry in after.labels] == [entry.best for entry in before.labels]
    Console(file=io.StringIO()).print(answer_table(after))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for command in (["best", "tiny"], ["best", "tiny", "--by", "resolution"], ["trials", "tiny"], ["list"]):
        shown = CliRunner().invoke(acuity, [*command, "--format", "json", "--storage", database_url])
        assert shown.exit_code == 0, shown.output
        json.loads(shown.stdout, parse_constant=refuse)
    assert registered.experiment.name == "tiny"
    assert optuna.load_study(study_name="tiny/Nodule", storage=database.storage).trials

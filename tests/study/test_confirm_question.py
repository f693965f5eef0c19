"""`acuity confirm` asks before it spends test patients that can decide no label."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from acuity.objectives.statistics.power import estimate_power
from acuity.storage.confirmations import find_confirmation
from acuity.storage.database import Database
from acuity.study.cli.main import acuity
from acuity.study.confirm import _ask_where_nothing_can_be_decided
from acuity.study.dataset.cohort import LabelCohort
from support.confirmed_experiment import make_searched
from support.terminal import Terminal


def cohort(label: str, positive_patients: int) -> LabelCohort:
    patients = positive_patients, 20 * positive_patients
    return LabelCohort(label, {}, sum(patients), estimate_power(*patients, seeds=5))


def asked(*cohorts: LabelCohort, margin: float) -> list[str]:
    said: list[str] = []
    _ask_where_nothing_can_be_decided(cohorts, margin=margin, ask=said.append)
    return said


def test_it_asks_only_where_no_label_can_be_decided() -> None:
    few, many, none = cohort("Mass", 40), cohort("Nodule", 4000), cohort("Hernia", 3)
    assert many.plan.margin is not None
    assert few.plan.margin is not None
    assert asked(few, many, none, margin=many.plan.margin) == []
    assert asked(few, margin=few.plan.margin) == []
    (statement,) = asked(few, none, margin=0.02)
    assert f"Mass {few.plan.margin:.3f}, Hernia not estimable" in statement


@pytest.fixture
def searched(database: Database, tmp_path: Path, phantoms: Path) -> str:
    """The URL of a database with a finished search whose test patients decide nothing."""
    make_searched(database, tmp_path, phantoms)
    return database.url.render_as_string(hide_password=False)


def test_a_script_is_refused_in_one_line_without_yes(searched: str, database: Database) -> None:
    done = CliRunner().invoke(acuity, ["confirm", "tiny", "--storage", searched])
    assert done.exit_code == 1
    assert str(done.exception).endswith("Confirming uses them all the same: add --yes to confirm, or add test patients")
    assert "\n" not in str(done.exception)
    assert not any(name.endswith("/confirm") for name in _studies(database))


@pytest.mark.usefixtures("searched")
def test_on_a_terminal_no_ends_the_command_before_anything_is_trained(
    database: Database, environment: dict[str, str]
) -> None:
    terminal = Terminal(["confirm", "tiny"], environment)
    try:
        terminal.wait_for("Confirm? [y/N]", 120)
        terminal.type("n\n")
        assert terminal.wait() == 1
    finally:
        terminal.close()
    assert find_confirmation(database, "tiny") is None
    assert not any(name.endswith("/confirm") for name in _studies(database))


def _studies(database: Database) -> list[str]:
    return [study.study_name for study in database.storage.get_all_studies()]

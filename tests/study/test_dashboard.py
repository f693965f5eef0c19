"""`acuity dashboard` serves optuna-dashboard read-only, also in a real browser."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from playwright.sync_api import Browser, Page, expect

from acuity.storage.database import Database
from support.dashboards import running_dashboard


@pytest.fixture
def study(database: Database) -> optuna.Study:
    study = optuna.create_study(storage=database.storage, study_name="nih/Effusion", direction="maximize")
    resolutions = optuna.distributions.CategoricalDistribution([32, 64])
    for number in range(12):
        trial = optuna.trial.create_trial(
            params={"resolution": (32, 64)[number % 2]}, distributions={"resolution": resolutions}, value=0.6
        )
        study.add_trial(trial)
    return study


@pytest.fixture
def address(study: optuna.Study, database_url: str) -> Iterator[str]:  # noqa: ARG001
    """A running `acuity dashboard` on any free port."""
    with running_dashboard(environment=os.environ | {"ACUITY_STORAGE": database_url}) as announced:
        yield announced.split()[0]


def test_dashboard_listens_on_loopback_and_refuses_to_delete_a_study(address: str, study: optuna.Study) -> None:
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(f"{address}/api/studies") as answer:
        studies = json.load(answer)["study_summaries"]
    assert [entry["study_name"] for entry in studies] == ["nih/Effusion"]
    delete = urllib.request.Request(f"{address}/api/studies/{study._study_id}", method="DELETE")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(delete)
    assert len(study.get_trials()) == 12


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    page = browser.new_page()
    yield page
    page.screenshot(path=tmp_path / "dashboard.png")


@pytest.mark.browser
def test_browser_shows_the_studies_the_history_and_the_trials(address: str, page: Page) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{address}/dashboard")
    page.get_by_text("1. nih/Effusion").click()
    expect(page.get_by_role("heading", name="Hyperparameter Importance")).to_be_visible()
    expect(page.locator("#plot-history .scatterlayer").first).to_be_attached()
    page.locator("a[href$='/trials']").first.click()
    expect(page.get_by_text("12 Trials")).to_be_visible()
    expect(page.get_by_text("resolution 32")).to_be_visible()
    assert errors == []


@pytest.mark.browser
def test_a_read_only_page_has_no_controls_that_change_a_study(address: str, page: Page) -> None:
    page.goto(f"{address}/dashboard")
    expect(page.get_by_text("1. nih/Effusion")).to_be_visible()
    for name in ("delete study", "rename study", "Create"):
        assert page.get_by_role("button", name=name).count() == 0
    page.get_by_role("link", name="Acuity overview").click()
    expect(page.get_by_role("heading", name="Acuity")).to_be_visible()


@pytest.mark.browser
def test_a_writable_page_has_the_controls(study: optuna.Study, database_url: str, page: Page) -> None:  # noqa: ARG001
    with running_dashboard("--writable", environment=os.environ | {"ACUITY_STORAGE": database_url}) as announced:
        page.goto(f"{announced.split()[0]}/dashboard")
        expect(page.get_by_role("button", name="delete study")).to_be_visible()


def test_port_in_use_is_an_error_that_names_the_option(address: str, database_url: str) -> None:
    port = address.split(":")[2]
    second = subprocess.run(
        [sys.executable, "-m", "acuity", "dashboard", "--port", port],
        env=os.environ | {"ACUITY_STORAGE": database_url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1
    assert f"port {port}" in second.stderr
    assert "--port" in second.stderr

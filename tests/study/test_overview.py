"""The dashboard's first page shows every experiment, and a card for each label of one of them."""

import os
import re
from typing import Any

import pytest
from conftest import Confirmed
from playwright.sync_api import Browser, expect

from acuity.storage.database import Database, open_storage
from acuity.study.dashboard.overview import render_overview, with_overview
from acuity.study.results.answer import read_answer
from support.dashboards import running_dashboard
from support.postgres import query

DESKTOP, PHONE = 1200, 390


def test_a_confirmed_label_shows_its_sentence_verdict_and_test_aucs(confirmed: Confirmed) -> None:
    with open_storage(confirmed.url) as database:
        page, answer = render_overview(database, "tiny"), read_answer(database, "tiny")
    for entry in answer.labels:
        assert entry.smallest_adequate is not None
        assert entry.smallest_adequate["sentence"] in page
        assert entry.smallest_adequate["verdict"].replace("_", " ") in page
    tested = sum(at.split == "test" for entry in answer.labels for at in entry.by_resolution)
    assert len(re.findall("<title>.*test patients</title>", page)) == tested


def test_the_overview_is_the_first_page_and_the_app_serves_the_others(confirmed: Confirmed) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [f"the app: {environ['PATH_INFO']}".encode()]

    def ask(path: str, query: str = "") -> tuple[str, str]:
        answered: list[str] = []
        environ = {"PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": "GET"}
        body = served(environ, lambda status, _: answered.append(status))
        return answered[0], b"".join(body).decode()

    with open_storage(confirmed.url) as database:
        served = with_overview(app, database)
        assert ask("/dashboard") == ("200 OK", "the app: /dashboard")
        assert "tiny" in ask("/")[1]
        status, page = ask("/", "experiment=%3Cscript%3E")
    assert status == "404 Not Found"
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


def test_the_page_renews_itself_through_an_outage(database: Database, database_url: str, confirmed: Confirmed) -> None:
    served, answered = with_overview(lambda *_: [], database), []

    def ask() -> str:
        environ = {"PATH_INFO": "/", "REQUEST_METHOD": "GET"}
        return b"".join(served(environ, lambda status, _: answered.append(status))).decode()

    name = database_url.rsplit("/", 1)[1].partition("?")[0]
    query(confirmed.url, f"drop database {name} with (force)")
    page = ask()
    query(confirmed.url, f"create database {name}")
    assert answered == ["503 Service Unavailable"]
    assert "The database is away." in page
    assert 'http-equiv="refresh"' in page
    assert "127.0.0.1" not in page


def test_an_empty_storage_says_how_to_begin(database: Database) -> None:
    assert "acuity launch FILE" in render_overview(database, None)


@pytest.mark.browser
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_a_browser_shows_the_cards_and_leads_to_the_study(confirmed: Confirmed, browser: Browser, width: int) -> None:
    label = confirmed.registered.experiment.labels[0]
    errors: list[str] = []
    with running_dashboard("--storage", confirmed.url, environment=os.environ) as announced:
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(announced.split()[0])
        expect(page.get_by_role("heading", name=label)).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.get_by_role("link", name="Study in optuna-dashboard").first.click()
        expect(page.get_by_text("Hyperparameter Importance")).to_be_visible()
    assert errors == []

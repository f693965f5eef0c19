"""Access to the dashboard: password, requests of other sites, and names and artifacts that contain HTML."""

import base64
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from email.message import Message
from pathlib import Path

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna_dashboard import save_note, wsgi
from playwright.sync_api import Browser, expect
from playwright.sync_api import Error as BrowserError

from acuity.storage.database import Database
from acuity.study.dashboard.middleware import guard
from acuity.study.dashboard.server import serve_dashboard
from acuity.study.errors import UsageError
from support.dashboards import running_dashboard, served

Serve = Callable[..., AbstractContextManager[str]]
PASSWORD = "zwölf: Röntgen/Bilder"


def trial(value: float = 0.6) -> optuna.trial.FrozenTrial:
    resolutions = optuna.distributions.CategoricalDistribution([32, 64])
    return optuna.trial.create_trial(params={"resolution": 32}, distributions={"resolution": resolutions}, value=value)


@pytest.fixture
def study(database: Database) -> optuna.Study:
    study = optuna.create_study(storage=database.storage, study_name="nih/Effusion", direction="maximize")
    study.add_trial(trial())
    return study


@contextmanager
def dashboard(database_url: str, *arguments: str, **variables: str) -> Iterator[str]:
    """Run `acuity dashboard`; yields its address."""
    environment = os.environ | {"ACUITY_STORAGE": database_url} | variables
    with running_dashboard(*arguments, environment=environment) as announced:
        assert PASSWORD not in announced
        yield announced.split()[0]


@pytest.fixture
def serve(database: Database) -> Serve:
    """The protected dashboard in this process, as in `acuity dashboard`, with an artifact store."""

    @contextmanager
    def serve(*, password: str | None = None, writable: bool = False, artifacts: Path | None = None) -> Iterator[str]:
        store = FileSystemArtifactStore(artifacts) if artifacts else None
        app = guard(wsgi(database.storage, artifact_store=store), writable=writable, password=password)
        with served(app, writable=writable) as port:
            yield f"http://127.0.0.1:{port}"

    return serve


def ask(address: str, *, method: str = "GET", data: bytes | None = None, **headers: str) -> tuple[int, str, Message]:
    """Status, body and headers of a response. headers: names with _ in place of -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(address, method=method, data=data, headers=named)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def refusal(database_url: str, *arguments: str, **variables: str) -> str:
    """The error message of an `acuity dashboard` that ends with status 1."""
    done = subprocess.run(
        [sys.executable, "-m", "acuity", "dashboard", "--port", "0", *arguments],
        env=os.environ | {"ACUITY_STORAGE": database_url} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,  # ends a dashboard that serves
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_other_hosts_are_served_only_with_a_password(database_url: str, tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::"):
        said = refusal(database_url, "--host", host)
        assert "set ACUITY_DASHBOARD_PASSWORD, or ACUITY_DASHBOARD_PASSWORD_FILE" in said
        assert "the user is acuity" in said
    assert "is empty" in refusal(database_url, "--host", "0.0.0.0", ACUITY_DASHBOARD_PASSWORD="")
    empty = tmp_path / "empty"
    empty.write_text("\n")
    assert f"{empty}, which is empty" in refusal(database_url, ACUITY_DASHBOARD_PASSWORD_FILE=str(empty))
    missing = tmp_path / "none"
    assert f"{missing}, which cannot be read" in refusal(database_url, ACUITY_DASHBOARD_PASSWORD_FILE=str(missing))
    assert "no host of that name" in refusal(database_url, "--host", "nowhere.invalid", ACUITY_DASHBOARD_PASSWORD="x")


def test_short_password_is_refused_on_every_address(database_url: str, tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_text("nineteen characters\n")
    for host in ("127.0.0.1", "0.0.0.0"):
        said = refusal(database_url, "--host", host, ACUITY_DASHBOARD_PASSWORD_FILE=str(short))
        assert "ACUITY_DASHBOARD_PASSWORD has 19 characters, must have at least 20" in said
        assert "openssl rand -hex 24" in said
        assert "nineteen" not in said


def test_with_a_password_the_dashboard_listens_on_every_address(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(*_: object, host: str, **__: object) -> None:
        asked.append(host)
        raise OSError(98, "Address already in use")

    monkeypatch.setattr("acuity.study.dashboard.server.LimitedServer", refuse)  # tests listen on 127.0.0.1 alone
    monkeypatch.setenv("ACUITY_DASHBOARD_PASSWORD", PASSWORD)
    with pytest.raises(UsageError, match=r"port 8080 on 0\.0\.0\.0"):
        serve_dashboard(database, port=8080, writable=False, announce=print, host="0.0.0.0")
    monkeypatch.delenv("ACUITY_DASHBOARD_PASSWORD")
    with pytest.raises(UsageError, match="port 8080 on localhost"):
        serve_dashboard(database, port=8080, writable=False, announce=print, host="localhost")
    assert asked == ["0.0.0.0", "127.0.0.1"]


def test_every_path_requires_the_user_and_the_password(database_url: str, study: optuna.Study, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(PASSWORD + "\n")
    with dashboard(database_url, ACUITY_DASHBOARD_PASSWORD_FILE=str(secret)) as base:
        for path in ("/", "/dashboard", "/api/studies", "/csv/1", "/static/bundle.js", "/artifacts/1/0", "/nothing"):
            status, body, headers = ask(base + path)
            assert status == 401
            assert headers["WWW-Authenticate"].startswith("Basic ")
            assert "user is acuity" in body
        assert ask(base + "/api/studies", Authorization=basic("acuity", "wrong"))[0] == 401
        status, body, _ = ask(base + "/api/studies", Authorization=basic("acuity", PASSWORD))
        assert status == 200
        assert [entry["study_name"] for entry in json.loads(body)["study_summaries"]] == [study.study_name]
        delete = ask(f"{base}/api/studies/{study._study_id}", method="DELETE", Authorization=basic("acuity", PASSWORD))
        assert delete[0] == 403, "read-only with the password, too"


def test_other_credentials_are_refused(serve: Serve) -> None:
    wrong = ("", basic("acuity", ""), basic("", PASSWORD), basic("root", PASSWORD), basic("acuity", PASSWORD + "\n"))
    broken = ("Basic", "Basic ***", "Basic YQ", "Bearer " + PASSWORD)
    with serve(password=PASSWORD) as base:
        for credentials in wrong + broken:
            assert ask(base + "/api/studies", Authorization=credentials)[0] == 401, credentials
            assert ask(base + "/api/studies", method="DELETE", Authorization=credentials)[0] == 401, credentials


def test_changes_that_other_sites_request_are_refused(database: Database, serve: Serve, study: optuna.Study) -> None:
    note = json.dumps({"version": 1, "body": "seen"}).encode()
    kind = {"method": "PUT", "data": note, "Content_Type": "application/json"}
    with serve(writable=True) as base:
        path = f"{base}/api/studies/{study._study_id}/note"
        for headers in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://127.0.0.1:1"},
            {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "same-site", "Origin": base},
        ):
            status, body, _ = ask(path, **kind, **headers)
            assert (status, "Another site's page" in body) == (403, True), headers
        assert not database.storage.get_study_system_attrs(study._study_id).get("dashboard:note_ver")
        assert ask(path, **kind, Origin=base, Sec_Fetch_Site="same-origin")[0] == 204
        assert ask(path, **kind | {"data": note.replace(b"1", b"2")}, Origin=base)[0] == 204
        assert ask(path, **kind | {"data": note.replace(b"1", b"3")})[0] == 204, "a program other than a browser"


def test_other_host_names_are_accepted_only_with_a_password(serve: Serve, study: optuna.Study) -> None:  # noqa: ARG001
    with serve() as base:
        for host in ("rebound.example", "rebound.example:8080", "127.0.0.1.rebound.example", "[", "169.254.1.1"):
            assert ask(base + "/api/studies", Host=host)[0] == 403, host
        for host in ("localhost:8080", "127.0.0.1", "[::1]:8080", "LOCALHOST"):
            assert ask(base + "/api/studies", Host=host)[0] == 200, host
    with serve(password=PASSWORD) as base:
        given = {"Host": "dashboard.hospital.example", "Authorization": basic("acuity", PASSWORD)}
        assert ask(base + "/api/studies", **given)[0] == 200


def test_responses_forbid_framing_and_content_sniffing(serve: Serve, study: optuna.Study) -> None:  # noqa: ARG001
    with serve() as base:
        for path in ("/dashboard", "/api/studies", "/static/bundle.js"):
            _, _, headers = ask(base + path)
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "no-referrer"
            assert "frame-ancestors 'self'" in headers["Content-Security-Policy"]
        assert "script-src 'self'" in ask(base + "/dashboard")[2]["Content-Security-Policy"]


@pytest.mark.browser
def test_browser_has_to_send_the_password(
    database_url: str, study: optuna.Study, browser: Browser, tmp_path: Path
) -> None:
    with dashboard(database_url, ACUITY_DASHBOARD_PASSWORD=PASSWORD) as base:
        page = browser.new_page()
        # Chromium cancels the password prompt here, so the test checks the response header.
        with pytest.raises(BrowserError, match="ERR_INVALID_AUTH_CREDENTIALS"):
            page.goto(f"{base}/dashboard")
        wrong = browser.new_context(http_credentials={"username": "acuity", "password": "wrong"}).new_page()
        answer = wrong.goto(f"{base}/dashboard")
        assert answer is not None
        assert answer.status == 401
        assert answer.header_value("www-authenticate") == (
            'Basic realm="Acuity dashboard (user acuity)", charset="UTF-8"'
        )
        right = browser.new_context(http_credentials={"username": "acuity", "password": PASSWORD}).new_page()
        errors: list[str] = []
        right.on("pageerror", lambda error: errors.append(str(error)))
        right.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        right.goto(f"{base}/dashboard")
        right.get_by_text(f"1. {study.study_name}").click()
        expect(right.get_by_text("Hyperparameter Importance")).to_be_visible()
        right.screenshot(path=tmp_path / "with-password.png")
        assert errors == []


@pytest.mark.browser
def test_html_in_names_stays_text(database: Database, serve: Serve, browser: Browser) -> None:
    markup = "nih/<img src=x onerror=window.broken=1><script>window.broken=1</script>"
    study = optuna.create_study(storage=database.storage, study_name=markup, direction="maximize")
    study.add_trial(trial())
    study.set_user_attr("<b id=attribute>", "<img src=x onerror=window.broken=1>")
    save_note(study, f"# {markup}\n\n| px |\n| --- |\n| <b id=attribute>bold</b> |")
    with serve() as base:
        page = browser.new_page()
        page.goto(f"{base}/dashboard")
        page.get_by_text(f"1. {markup}").click()
        expect(page.get_by_text("Hyperparameter Importance")).to_be_visible()
        for tab in ("note", "trials", "trialTable", "analytics"):
            page.goto(f"{base}/dashboard/studies/{study._study_id}/{tab}")
            expect(page.get_by_text(markup).first).to_be_visible()
            if tab == "note":
                expect(page.get_by_text("<b id=attribute>bold</b>")).to_be_visible()
            assert page.locator("img[src=x], #attribute").count() == 0
        assert page.evaluate("window.broken") is None


@pytest.mark.browser
def test_artifact_is_downloaded_and_never_shown_as_a_page(
    serve: Serve, study: optuna.Study, browser: Browser, database: Database, tmp_path: Path
) -> None:
    kept, page_file = tmp_path / "artifacts", tmp_path / "report.html"
    kept.mkdir()
    page_file.write_text("<script>document.title = 'run'; fetch('/api/studies')</script>")
    artifact = upload_artifact(
        artifact_store=FileSystemArtifactStore(kept),
        file_path=str(page_file),
        study_or_trial=study,
        storage=database.storage,
    )
    with serve(artifacts=kept) as base:
        address = f"{base}/artifacts/{study._study_id}/{artifact}"
        status, _, headers = ask(address)
        assert status == 200
        assert headers["Content-Disposition"] == "attachment"
        assert headers["Content-Type"] == "application/octet-stream"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in headers["Content-Security-Policy"]
        assert headers["Access-Control-Allow-Origin"] is None
        page = browser.new_page()
        page.goto(f"{base}/dashboard")
        with page.expect_download() as download, pytest.raises(BrowserError, match="Download is starting"):
            page.goto(address)
        assert Path(download.value.path()).read_text() == page_file.read_text()
        assert page.title() != "run"

"""The overview page: every experiment of the storage, and a card for each label of one of them."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import log2
from typing import Any
from urllib.parse import parse_qs

import jinja2
import pandas as pd

from acuity.storage.connection import OUTAGES, first_line, is_outage
from acuity.storage.database import Database
from acuity.storage.errors import StorageError
from acuity.study.dashboard.middleware import Wsgi
from acuity.study.registry.record import read_registered
from acuity.study.results.answer import LabelAnswer, read_answer
from acuity.study.results.forecast import read_trial_seconds, time_left
from acuity.study.results.status import ExperimentStatus, read_status
from acuity.study.results.tables import read_experiments
from acuity.study.units import counted, format_age

logger = logging.getLogger(__name__)
_FRESH_S = 5.0
"""Age up to which a page is sent again. Reading the answer of 100,000 trials takes half a second."""
_REFRESH_S = 20
_WIDTH, _HEIGHT, _EDGE = 220.0, 72.0, 18.0
"""Size of the AUC plot in a card and its margin, in px."""


@dataclass(frozen=True)
class Point:
    """One resolution of the AUC plot, in the plot's coordinates."""

    x: float
    y: float
    low: float
    high: float
    resolution: int
    tested: bool
    """Whether the AUC is of test patients."""
    title: str


@dataclass(frozen=True)
class Card:
    """What the page shows of one label."""

    label: str
    study_id: int | None
    warnings: tuple[str, ...]
    sentence: str
    verdict: str
    """shown, undecided, not_estimable, or "" before the confirmation."""
    points: list[Point]
    chance_y: float
    finished: int
    trials: int
    pruned: int
    running: int
    failed: int


def with_overview(app: Wsgi, database: Database) -> Wsgi:
    """Serve the overview at /, and everything else by the app.

    /?experiment=NAME shows one experiment; without it the page shows the one with the last sign of life.
    """
    pages = _Pages(database)

    def served(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("PATH_INFO", "/") not in ("", "/") or environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return app(environ, start_response)
        names = parse_qs(environ.get("QUERY_STRING", "")).get("experiment", [])
        status, page = pages.read(names[0] if names else None)
        body = page.encode()
        policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
        headers = [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(body)))]
        start_response(status, [*headers, ("Content-Security-Policy", policy), ("Cache-Control", "no-store")])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    return served


class _Pages:
    """The rendered pages, each read from the database at most every few seconds."""

    def __init__(self, database: Database) -> None:
        self._database, self._lock = database, threading.Lock()
        self._kept: dict[str | None, tuple[float, str]] = {}

    def read(self, name: str | None) -> tuple[str, str]:
        """The status line and the page of the experiment. None is for the one with the last sign of life."""
        with self._lock:
            now = time.monotonic()
            self._kept = {key: page for key, page in self._kept.items() if now - page[0] < _FRESH_S}
            if name not in self._kept:
                try:
                    page = render_overview(self._database, name)
                except OUTAGES as error:
                    if not is_outage(error):
                        raise
                    logger.warning("the database is away (%s)", first_line(error))
                    away = f"The database is away. This page tries again every {_REFRESH_S} s."
                    return "503 Service Unavailable", _render(experiments=[], selected=None, message=away)
                except StorageError as error:
                    return "404 Not Found", _render(experiments=[], selected=None, message=str(error))
                self._kept[name] = (time.monotonic(), page)
            return "200 OK", self._kept[name][1]


def render_overview(database: Database, name: str | None) -> str:
    """The page as HTML. StorageError where no such experiment exists."""
    experiments = read_experiments(database)
    rows, now = experiments.to_dict("records"), pd.Timestamp.now("UTC")
    for row in rows:
        last = row["last_sign"]
        row["last_sign"] = "" if pd.isna(last) else format_age((now - last).total_seconds())
    if name is None and rows:
        name = experiments.sort_values("last_sign", na_position="first")["experiment"].iloc[-1]
    selected = None if name is None else _experiment(database, name)
    return _render(experiments=rows, selected=selected, message=None)


def _experiment(database: Database, name: str) -> dict[str, Any]:
    experiment = read_registered(database, name).experiment
    status, answer = read_status(database, experiment), read_answer(database, name)
    progress = {entry.label: entry for entry in status.progress}
    retraining = {entry.label: entry.running for entry in status.confirmation}
    cards = []
    for entry in answer.labels:
        counts = progress.get(entry.label)
        cards.append(
            Card(
                label=entry.label,
                study_id=None if counts is None else counts.study_id,
                warnings=entry.warnings,
                sentence=_sentence(entry),
                verdict="" if entry.smallest_adequate is None else entry.smallest_adequate["verdict"],
                points=_points(entry),
                chance_y=_y(0.5),
                finished=0 if counts is None else counts.finished,
                trials=answer.trials,
                pruned=0 if counts is None else counts.pruned,
                running=(0 if counts is None else counts.running) + retraining.get(entry.label, 0),
                failed=0 if counts is None else counts.failed,
            )
        )
    return {
        "name": name,
        "cards": cards,
        "activity": _activity(database, status),
        "confirmation": status.confirmation,
        "warnings": answer.warnings,
    }


def _activity(database: Database, status: ExperimentStatus) -> str:
    """The running trials and the time left, in words."""
    running = len(status.running)
    words = "no trial runs now" if not running else counted(running, "running trial")
    if not status.remaining:
        return "all trials are done" if not running else words
    if not running:
        return words
    timed = read_trial_seconds(database, status.experiment)
    return f"{words}, time left: {time_left(status, timed, rough={}, workers=running)}"


def _sentence(entry: LabelAnswer) -> str:
    if entry.smallest_adequate is not None:
        return str(entry.smallest_adequate["sentence"])
    if entry.best is None:
        return "No complete trial yet."
    return (
        f"Best so far: {entry.best.resolution} px, AUC {entry.best.auc:.3f} on validation patients, which selected it. "
        "No verdict before the confirmation."
    )


def _points(entry: LabelAnswer) -> list[Point]:
    measured = [at for at in entry.by_resolution if at.auc is not None]
    if not measured:
        return []
    sides = [at.resolution for at in entry.by_resolution]
    span = log2(max(sides) / min(sides)) or 1.0
    points = []
    for at in sorted(measured, key=lambda at: at.resolution):
        auc = at.auc or 0.0
        low, high = at.auc_low or auc, at.auc_high or auc
        part = "test" if at.split == "test" else "validation"
        points.append(
            Point(
                x=_EDGE + (_WIDTH - 2 * _EDGE) * log2(at.resolution / min(sides)) / span,
                y=_y(auc),
                low=_y(low),
                high=_y(high),
                resolution=at.resolution,
                tested=at.split == "test",
                title=f"{at.resolution} px: AUC {auc:.3f} ({low:.3f} to {high:.3f}), {part} patients",
            )
        )
    return points


def _y(auc: float) -> float:
    """Height of an AUC in the plot, which shows 0.4 to 1."""
    return _EDGE / 2 + (_HEIGHT - _EDGE) * (1.0 - min(1.0, max(0.4, auc))) / 0.6


def _render(**values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("acuity.study.dashboard"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("overview.html.jinja").render(
        refresh_s=_REFRESH_S, width=_WIDTH, height=_HEIGHT, **values
    )

"""`acuity status --watch`: show the progress of an experiment until it is complete."""

from datetime import datetime

from rich.console import Console

from acuity.storage.connection import OUTAGES, first_line, is_outage
from acuity.storage.database import Database
from acuity.study.display.live import live_progress
from acuity.study.fleet.signals import stop_signals
from acuity.study.registry.record import read_registered
from acuity.study.results.status import ExperimentStatus

_LOOK_EVERY_S = 0.5
_OUTAGE_PAUSE_S = 5.0


def watch(database: Database, name: str, console: Console) -> None:
    """Show the progress until nothing is left to run, or until Ctrl-C or SIGTERM.

    Waits through outages of the database without a limit. Reads the experiment at each look, since a launch may raise
    its budget. UsageError where the experiment is deleted.
    """
    away = False
    with stop_signals() as stop, live_progress(database, console) as live:
        while not stop.is_set():
            if not live.is_due():
                stop.wait(_LOOK_EVERY_S)
                continue
            try:
                status = live.look(read_registered(database, name).experiment)
            except OUTAGES as error:
                if not is_outage(error):
                    raise
                if not away:
                    live.show_message(
                        f"the database is away since {datetime.now():%H:%M:%S} ({first_line(error)}); next try "
                        f"every {_OUTAGE_PAUSE_S:.0f} s; workers continue their training"
                    )
                away = True
                stop.wait(_OUTAGE_PAUSE_S)
                continue
            away = False
            if _is_over(status):
                return
            stop.wait(_LOOK_EVERY_S)


def _is_over(status: ExperimentStatus) -> bool:
    return not status.remaining and not status.running

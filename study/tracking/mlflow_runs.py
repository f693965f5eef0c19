"""Runs in MLflow: Acuity's experiment is MLflow's, and a trial is a run."""

import os
import time

# Read at each request. MLflow's own are 120 s and 7 retries; the thread would wait for minutes at each trial.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout has the results of a command

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from acuity.study.tracking.interface import TrackedRun, Value

_STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED", "released": "KILLED"}
_LONGEST = 500
"""Characters of a parameter's value in every version of MLflow."""


class MlflowRuns:
    """A tracking server, or a database, at an MLflow URI; the user and password are in MLflow's variables."""

    def __init__(self, uri: str) -> None:
        self._client = MlflowClient(tracking_uri=uri)
        self._run = ""

    def start(self, run: TrackedRun) -> None:
        created = self._client.create_run(
            self._experiment(run.experiment),
            run_name=run.name,
            tags={"acuity.kind": run.kind} | ({"acuity.label": run.label} if run.label else {}),
        )
        self._run = created.info.run_id
        parameters = [Param(key, str(value)[:_LONGEST]) for key, value in run.parameters.items()]
        self._client.log_batch(self._run, params=parameters)

    def report(self, step: int, metrics: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(
            self._run, metrics=[Metric(_key(key), value, now, step) for key, value in metrics.items()]
        )

    def record(self, attributes: dict[str, Value]) -> None:
        measured = {key: value for key, value in attributes.items() if isinstance(value, float)}
        self.report(0, measured)  # MLflow sorts and plots metrics only
        tags = [RunTag(_key(key), str(value)) for key, value in attributes.items() if key not in measured]
        self._client.log_batch(self._run, tags=tags)

    def end(self, state: str) -> None:
        self._client.log_batch(self._run, tags=[RunTag("acuity.state", state)])
        self._client.set_terminated(self._run, status=_STATUS[state])

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except MlflowException:  # another worker has created it meanwhile
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)


def _key(text: str) -> str:
    """A name that MLflow accepts: letters, digits and "_-. /"."""
    return "".join(character if character.isalnum() or character in "_-. /" else "_" for character in text)

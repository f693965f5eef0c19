"""Trials as runs of MLflow, Weights & Biases and TensorBoard; a tracker that is away costs no trial."""

import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from acuity.storage.database import Database
from acuity.study.config.changes import changes_of_meaning
from acuity.study.config.schema import Experiment
from acuity.study.errors import UsageError
from acuity.study.tracking import trackers as trackers_module
from acuity.study.tracking.interface import TrackedRun, Value
from acuity.study.tracking.sending import Sender
from acuity.study.tracking.trackers import Trackers, check_trackers, open_trackers, tracked_trial
from acuity.study.worker import attempt
from acuity.study.worker.context import WorkerContext
from support.one_trial import registered_context, run_one, tiny_experiment

PAGE = Path(__file__).parents[2] / "docs" / "tracking.md"
RUN = TrackedRun("nih", "Nodule", "Nodule trial 1", "search", {"resolution": 64})


class Recorder:
    """A tracker that keeps its calls; call number `fails` raises."""

    def __init__(self, fails: int | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fails = fails

    def start(self, run: TrackedRun) -> None:
        self._keep("start", run.name, dict(run.parameters))

    def report(self, step: int, metrics: dict[str, float]) -> None:
        self._keep("report", step, metrics)

    def record(self, attributes: dict[str, Value]) -> None:
        self._keep("record", attributes)

    def end(self, state: str) -> None:
        self._keep("end", state)

    def _keep(self, *call: Any) -> None:
        self.calls.append(call)
        if len(self.calls) == self.fails:
            raise ConnectionRefusedError("nobody listens")


def experiment_with(phantoms: Path, folder: Path, tracking: str) -> Experiment:
    return tiny_experiment(phantoms, folder, rest=tracking)


def context_of(database: Database, experiment: Experiment, trackers: Trackers | None = None) -> WorkerContext:
    return replace(registered_context(database, experiment), trackers=trackers or open_trackers(experiment))


def run_and_send(context: WorkerContext) -> Any:
    """Run a trial, wait until its run is sent, and return the trial."""
    trial = run_one(context)
    context.trackers.close(timeout_s=240)
    return trial


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "acuity.study.tracking.sending"]


def test_a_trial_is_one_run_with_parameters_each_epochs_auc_and_attributes(
    database: Database, tmp_path: Path, phantoms: Path
) -> None:
    recorder = Recorder()
    experiment = experiment_with(phantoms, tmp_path, "")
    trial = run_and_send(context_of(database, experiment, Trackers([Sender("recorder", lambda: recorder)])))
    assert trial.state is TrialState.COMPLETE
    first, *others, last = recorder.calls
    assert first[0] == "start"
    assert first[1] in (f"Cardiomegaly trial {trial.number}", f"Nodule trial {trial.number}")
    assert trial.params.items() <= first[2].items()
    assert [call[1:] for call in others if call[0] == "report"] == [
        (epoch, {"auc": auc}) for epoch, auc in trial.intermediate_values.items()
    ]
    recorded = {key: value for call in others if call[0] == "record" for key, value in call[1].items()}
    assert {"batch_size", "auc_se", "seed", "seconds"} <= recorded.keys()
    assert all(trial.user_attrs[key] == value for key, value in recorded.items())
    assert "worker" not in recorded
    assert last == ("end", "complete")


def test_the_reason_of_a_failed_trial_is_not_sent(
    database: Database, tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("00000013_005.png is damaged")

    monkeypatch.setattr(attempt, "train_claimed", fail)
    recorder = Recorder()
    experiment = experiment_with(phantoms, tmp_path, "")
    trial = run_and_send(context_of(database, experiment, Trackers([Sender("recorder", lambda: recorder)])))
    assert trial.state is TrialState.FAIL
    assert recorder.calls[-1] == ("end", "failed")
    assert "00000013" not in repr(recorder.calls)


def test_a_run_that_fails_loses_its_later_calls_and_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(fails=2)
    trackers = Trackers([Sender("MLflow at http://x", lambda: recorder)])
    for _ in range(3):
        trackers.start(RUN)
        trackers.report(1, 0.5)
        trackers.end("complete")
    trackers.close(timeout_s=60)
    assert [call[0] for call in recorder.calls] == ["start", "report"]
    assert warnings_of(caplog) == [
        "MLflow at http://x does not take the runs (ConnectionRefusedError: nobody listens); the trials continue "
        "without it"
    ]


def test_a_tracker_that_hangs_holds_neither_a_trial_nor_the_end(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()

    class Hanging(Recorder):
        def start(self, run: TrackedRun) -> None:
            super().start(run)
            release.wait(60)

    recorder = Hanging()
    trackers = Trackers([Sender("Weights & Biases", lambda: recorder)])
    trackers.start(RUN)
    for epoch in range(3000):
        trackers.report(epoch, 0.5)
    trackers.start(RUN)
    trackers.close(timeout_s=0.1)
    assert len(recorder.calls) <= 1
    assert len(warnings_of(caplog)) == 1
    release.set()


def test_verdicts_are_a_run_with_the_sentence_and_the_auc_at_each_resolution(tmp_path: Path, phantoms: Path) -> None:
    recorder = Recorder()
    trackers = Trackers([Sender("recorder", lambda: recorder)])
    at = {"resolution": 16, "auc": 0.7, "auc_low": 0.6, "auc_high": None}
    result = {"label": "Nodule", "smallest_adequate": {"sentence": "16 px is adequate."}, "by_resolution": [at]}
    trackers.send_verdicts(experiment_with(phantoms, tmp_path, ""), [result])
    trackers.close(timeout_s=60)
    assert recorder.calls == [
        ("start", "verdicts", {"margin": 0.05}),
        ("record", {"Nodule verdict": "16 px is adequate."}),
        ("report", 16, {"Nodule auc": 0.7, "Nodule auc_low": 0.6}),
        ("end", "complete"),
    ]


class _Refusing(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_error(403)

    do_GET = do_POST  # noqa: N815  the name that http.server looks for

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name of the parent's parameter
        pass


@contextmanager
def server_that_refuses() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@contextmanager
def nobody_listening() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("service", [nobody_listening, server_that_refuses])
@pytest.mark.filterwarnings("ignore")
def test_an_mlflow_that_is_away_or_refuses_costs_no_trial(
    database: Database, tmp_path: Path, phantoms: Path, caplog: pytest.LogCaptureFixture, service: Any
) -> None:
    pytest.importorskip("mlflow", reason="needs pip install acuity-hpo[tracking-mlflow]")
    with service() as uri:
        experiment = experiment_with(phantoms, tmp_path, f'[tracking]\nmlflow = "{uri}"')
        trial = run_and_send(context_of(database, experiment))
    assert trial.state is TrialState.COMPLETE
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"MLflow at {uri} does not take the runs (")
    assert "\n" not in warning


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_shows_the_run_of_the_pages_example(database: Database, tmp_path: Path, phantoms: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs pip install acuity-hpo[tracking-tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    experiment = experiment_with(phantoms, tmp_path, '[tracking]\ntensorboard = "runs"')
    context = context_of(database, experiment)
    trial = run_and_send(context)
    (file,) = (tmp_path / "runs" / "tiny").rglob("events.*")
    events = EventAccumulator(str(file.parent)).Reload()
    assert {event.step: pytest.approx(event.value) for event in events.Scalars("auc")} == trial.intermediate_values
    assert set(events.Tags()["tensors"]) == {"attributes/text_summary"}
    kept = file.read_bytes()
    assert b"_hparams_/session_start_info" in kept
    assert b"learning_rate" in kept
    _assert_no_identifier(kept, context)


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_keeps_the_run_without_command_host_or_paths(
    database: Database, tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="needs pip install acuity-hpo[tracking-wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    experiment = experiment_with(phantoms, tmp_path, '[tracking]\nwandb = "resolution"')
    context = context_of(database, experiment)
    trial = run_and_send(context)
    assert trial.state is TrialState.COMPLETE
    (file,) = (tmp_path / "state").rglob("*.wandb")
    kept = file.read_bytes()
    for text in ("resolution", "learning_rate", "trial 0", "auc", "peak_memory_mib", "complete"):
        assert text.encode() in kept, text
    for text in (socket.gethostname(), "pytest", str(phantoms.parent)):
        assert text.encode() not in kept, text
    _assert_no_identifier(kept, context)


def _assert_no_identifier(kept: bytes, context: WorkerContext) -> None:
    index = context.image_set.index
    patients = {str(patient) for patient in index.table["patient"] if len(str(patient)) > 4}
    found = [name for name in {*index.names, *patients} if name.encode() in kept]
    assert found == []


def test_a_missing_client_is_refused_at_the_launch(
    tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers_module, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"tracking.wandb is given, but the package wandb is not installed here: run"):
        check_trackers(experiment_with(phantoms, tmp_path, '[tracking]\nwandb = "resolution"'))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('mlflow = "http://me:secret@host:5000"', "tracking.mlflow has a user or a password"),
        ('mlflow = "host"', 'tracking.mlflow has "host", must be MLflow\'s URI, such as http://host:5000'),
        ('wandb = "a/b"', 'tracking.wandb has "a/b", must be a project\'s name'),
        ('neptune = "x"', "unknown key tracking.neptune"),
    ],
)
def test_a_wrong_tracker_is_a_mistake_of_the_file(tmp_path: Path, phantoms: Path, line: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        experiment_with(phantoms, tmp_path, f"[tracking]\n{line}")
    assert "secret" not in str(raised.value)


def test_the_pages_trackers_may_be_added_under_the_same_name(tmp_path: Path, phantoms: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    tracked = experiment_with(phantoms, tmp_path, block)
    assert tracked.tracking.tensorboard == tmp_path / "runs"
    assert changes_of_meaning(experiment_with(phantoms, tmp_path, ""), tracked) == []


@pytest.mark.parametrize("label", ["..", "Nodule/Mass", "a\\b", "é" * 128])
def test_the_folder_of_a_run_stays_below_the_trackers_folder(label: str) -> None:
    path = replace(RUN, label=label, name=f"{label} trial 1").path()
    assert len(path.split("/")) == 3
    assert re.fullmatch(r"[A-Za-z0-9/_-]+", path)
    assert path != replace(RUN, label=label + "x", name=f"{label}x trial 1").path()


def test_functions_of_the_user_are_parameters_in_place_of_what_they_decide(tmp_path: Path, phantoms: Path) -> None:
    experiment = experiment_with(phantoms, tmp_path, "")
    own = replace(experiment, training=replace(experiment.training, train="mine:train"))

    def parameters(of: Experiment, architecture: str) -> Mapping[str, Value]:
        chosen = {"architecture": architecture}
        return tracked_trial(of, label="Nodule", number=1, is_confirmation=False, parameters=chosen).parameters

    trained = parameters(own, "resnet34")
    assert (trained["train"], trained["initial_weights"]) == ("mine:train", "random")
    assert not {"augment", "loss"} & trained.keys()
    built = parameters(experiment, "mine:net")
    assert (built["initial_weights"], built["loss"]) == ("its function's", "weighted cross entropy")
    assert "train" not in built

"""Trials and a confirmation that a function of the user's trains, with real workers and a real Postgres."""

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from rich.console import Console
from sqlalchemy import text

from acuity.objectives.errors import InputError
from acuity.storage.confirmations import find_confirmation
from acuity.storage.database import Database
from acuity.storage.experiments import find_experiment
from acuity.study import confirm as confirm_module
from acuity.study.confirm import confirm
from acuity.study.confirmation.protocol import read_protocol
from acuity.study.errors import UsageError
from acuity.study.fleet.placement import FleetOptions
from acuity.study.registry.sources import check_same_sources
from acuity.study.report.export import export_network
from acuity.study.search.networks import check_networks
from acuity.study.search.space import BELOW_THE_MEDIAN
from acuity.study.worker.context import WorkerContext
from support.confirmed_experiment import fill_search, work_here
from support.one_trial import registered_context, run_one
from support.own_functions import Write, own_experiment, own_package, page_modules
from support.threads import one_thread
from support.waiting import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*(srun|does not have many workers|LeafSpec)")  # Lightning's advice
OWN = 'train = "mypackage.training:train"'


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Write a module of mypackage, which has those of docs/extending.md."""
    with own_package(tmp_path / "packages") as write_module:
        yield write_module


@pytest.mark.usefixtures("write")
@pytest.mark.parametrize("module", ["training", "lightning_training"])
def test_the_pages_training_completes_a_trial_and_its_source_is_kept(
    database: Database, tmp_path: Path, phantoms: Path, module: str
) -> None:
    name = f"mypackage.{module}:train"
    experiment = own_experiment(phantoms, tmp_path, training=f'train = "{name}"')
    check_networks(experiment)
    context = registered_context(database, experiment)
    trial = run_one(context)
    assert trial.state is TrialState.COMPLETE, trial.user_attrs
    assert trial.intermediate_values[2] == trial.value
    stored = find_experiment(database, experiment.name)
    assert stored is not None
    assert set(stored.definition["sources"]) == {name}
    with database.engine.connect() as connection:
        (sha256,) = connection.scalars(text("select source_sha256 from acuity.feasible_batches"))
    assert re.fullmatch(r"[0-9a-f]{64}", sha256)


def test_a_worker_with_another_source_of_the_training_refuses(
    database: Database, tmp_path: Path, phantoms: Path, write: Write
) -> None:
    registered = registered_context(database, own_experiment(phantoms, tmp_path, training=OWN)).registered
    check_same_sources(registered)
    write("training.py", "def train(network, task): pass\n")
    with pytest.raises(UsageError, match=r'source of "mypackage.training:train" here .* is not the one of experiment'):
        check_same_sources(registered)


def finished_search(context: WorkerContext, *, auc: float) -> None:
    """Give the first label complete trials whose AUC was the same after every epoch, and no waiting trials."""
    experiment, study = context.experiment, context.studies[context.experiment.labels[0]]
    for waiting in study.get_trials(states=(TrialState.WAITING,)):
        context.database.storage.set_trial_state_values(waiting._trial_id, TrialState.FAIL)
    search = experiment.search
    for number in range(10):
        study.add_trial(
            create_trial(
                value=auc,
                params={
                    "resolution": search.resolutions[number % 3],
                    "architecture": search.architectures[0],
                    "learning_rate": 5e-3,
                    "batch_size_exponent": context.registered.exponents[0],
                },
                distributions={
                    "resolution": CategoricalDistribution(search.resolutions),
                    "architecture": CategoricalDistribution(search.architectures),
                    "learning_rate": FloatDistribution(*search.learning_rate, log=True),
                    "batch_size_exponent": IntDistribution(*context.registered.exponents),
                },
                intermediate_values=dict.fromkeys(range(1, experiment.training.epochs + 1), auc),
            )
        )


@pytest.mark.usefixtures("write")
@pytest.mark.parametrize("module", ["training", "lightning_training"])
def test_a_trial_below_the_median_is_pruned(database: Database, tmp_path: Path, phantoms: Path, module: str) -> None:
    experiment = own_experiment(phantoms, tmp_path, training=f'train = "mypackage.{module}:train"')
    experiment = replace(experiment, training=replace(experiment.training, epochs=6), labels=("Nodule",))
    context = registered_context(database, experiment)
    finished_search(context, auc=1.0)
    trial = run_one(context)
    assert trial.state is TrialState.PRUNED
    assert trial.user_attrs["reason"] == BELOW_THE_MEDIAN
    assert trial.user_attrs["epochs"] == len(trial.intermediate_values) == 3  # a fifth of the epochs, and one more


@pytest.mark.slow
@pytest.mark.parametrize("module", ["training", "lightning_training"])
def test_a_worker_stopped_by_sigterm_hands_the_trial_back_and_the_next_one_resumes_it(
    database: Database,
    environment: dict[str, str],
    tmp_path: Path,
    phantoms: Path,
    write: Write,
    module: str,
) -> None:
    source = page_modules()[f"{module}.py"]
    step = "logits = network(" if module == "training" else "images, targets = batch"
    assert step in source
    slower = source.replace(step, f"__import__('time').sleep(0.1); {step}")
    write(f"{module}.py", slower)
    experiment = own_experiment(phantoms, tmp_path, training=f'train = "mypackage.{module}:train"')
    experiment = replace(
        experiment,
        labels=("Nodule",),
        confirm=replace(experiment.confirm, resolutions=None),
        training=replace(experiment.training, epochs=4),
        search=replace(experiment.search, trials=1, resolutions=(16,), min_complete_per_resolution=1),
    )
    context = registered_context(database, experiment)
    command = [sys.executable, "-m", "acuity", "worker", "tiny", "--device", "cpu", "--threads", "1"]
    paths = [str(tmp_path / "packages"), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = environment | {"PYTHONPATH": os.pathsep.join(paths)}
    study = context.studies["Nodule"]

    def epochs_reported() -> int:
        return max((len(trial.intermediate_values) for trial in study.get_trials(deepcopy=False)), default=0)

    with subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as worker:
        wait_until(lambda: epochs_reported() >= 2 or worker.poll() is not None, seconds=120)
        worker.send_signal(signal.SIGTERM)
        log, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0, log
    assert "handed back" in log, log
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    [ended] = study.get_trials(states=(TrialState.COMPLETE,))
    assert ended.user_attrs["attempt"] == 2
    assert ended.user_attrs["resumed_epochs"] >= 2
    assert ended.user_attrs["epochs"] == len(ended.intermediate_values) == 4


@pytest.mark.usefixtures("write")
def test_confirmation_retrains_with_the_function_and_scores_the_test_patients_and_a_network_is_exported(
    database: Database, tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = own_experiment(phantoms, tmp_path, training=OWN)
    experiment = replace(
        experiment,
        labels=("Nodule",),
        search=replace(experiment.search, architectures=("test_resnet", "test_efficientnet")),
    )
    registered = registered_context(database, experiment).registered
    fill_search(database, registered, "Nodule", seed=0)
    monkeypatch.setattr(confirm_module, "run_fleet", work_here)
    console = Console(file=io.StringIO())
    confirm(database, registered, FleetOptions(workers=1, device="cpu"), seeds=None, console=console)
    stored = find_confirmation(database, "tiny")
    assert stored is not None
    [label] = read_protocol(stored.protocol).labels
    assert {finalist.resolution for finalist in label.finalists} == {16, 32}
    with database.engine.connect() as connection:
        scored = connection.scalar(text("select count(*) from acuity.scores"))
    assert scored == 2 * 3  # finalists x folds
    description = export_network(database, registered, "Nodule", tmp_path / "out", device="cpu")
    assert description["network"]["own_functions"] == registered.sources
    assert "by the function mypackage.training:train" in (tmp_path / "out" / "README.md").read_text()


def test_out_of_memory_halves_the_batch_and_the_fleet_keeps_the_size(
    database: Database, tmp_path: Path, phantoms: Path, write: Write
) -> None:
    source = page_modules()["training.py"]
    write(
        "training.py",
        source.replace(
            "    optimiser = ", "    if task.batch_size > 6:\n        raise MemoryError\n    optimiser = ", 1
        ),
    )
    context = registered_context(database, own_experiment(phantoms, tmp_path, training=OWN, search='batch = "largest"'))
    trial = run_one(context)
    assert trial.state is TrialState.COMPLETE, trial.user_attrs
    assert trial.user_attrs["batch_size"] <= 6
    assert trial.user_attrs["out_of_memory"] >= 1
    with database.engine.connect() as connection:
        largest = list(connection.scalars(text("select largest from acuity.feasible_batches")))
    assert largest == [trial.user_attrs["batch_size"]]


BAD = {
    "def train(network, task): raise KeyError('lungs')": (
        TrialState.FAIL,
        "OwnFunctionError: train \"mypackage.training:train\" raised KeyError: 'lungs'",
    ),
    "def train(network, task): pass": (TrialState.FAIL, "returned after 0 of 2 epochs, must call report() after each"),
    "def train(network, task):\n for p in network.parameters(): p.data.fill_(float('nan'))\n task.report(1)": (
        TrialState.PRUNED,
        "became NaN after epoch 1: lower the learning rate, or correct mypackage.training:train",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("source", "end"), BAD.items())
def test_a_function_that_goes_wrong_in_a_trial_ends_it_with_its_reason(
    database: Database, tmp_path: Path, phantoms: Path, write: Write, source: str, end: tuple[TrialState, str]
) -> None:
    write("training.py", source)
    trial = run_one(registered_context(database, own_experiment(phantoms, tmp_path, training=OWN)))
    assert trial.state is end[0]
    assert end[1] in trial.user_attrs["reason"]
    assert "\n" not in trial.user_attrs["reason"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def other(): pass", "mypackage.training has no function train"),
        ("def train(network, task): task.report(1)", "returned after 1 of 3 epochs, must call report"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_before_the_launch(
    tmp_path: Path, phantoms: Path, write: Write, source: str, message: str
) -> None:
    write("training.py", source)
    with pytest.raises(InputError, match=message):
        check_networks(own_experiment(phantoms, tmp_path, training=OWN))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"training": 'loss = "a:b"'}, "training.train and training.loss are both given; keep one of the two"),
        ({"training": 'augmentation = "a:b"'}, "training.train and training.augmentation are both given"),
        ({"training": "augment = false"}, "training.train and training.augment = false are both given"),
        ({"rest": "[workers]\ncapture_steps = true"}, "training.train and workers.capture_steps = true are both given"),
        ({"training": 'train = "train"'}, 'training.train has "train", must be a function as "module:function"'),
    ],
)
def test_parts_that_the_function_decides_are_refused_beside_it(
    tmp_path: Path, phantoms: Path, given: dict[str, str], message: str
) -> None:
    lines = given.get("training", "")
    lines = lines if "train =" in lines else f"{OWN}\n{lines}"
    with pytest.raises(UsageError, match=message):
        own_experiment(phantoms, tmp_path, **(given | {"training": lines}))

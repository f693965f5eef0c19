"""Acuity from Python: define and launch an experiment, open its results, list the experiments of a storage.

`import acuity` offers these names. Each command of `acuity` has its counterpart here. The functions import heavy
packages themselves, so that a first look at a storage does not wait for PyTorch.
"""

import os
import warnings
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from acuity.storage.errors import StorageError
from acuity.storage.url import masked
from acuity.study.config import loading
from acuity.study.config.paths import resolve_paths

if TYPE_CHECKING:
    import optuna
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from acuity.storage.database import Database
    from acuity.study.prepare import Preparation
    from acuity.study.registry.record import Registered


class Experiment:
    """An experiment: its labels, its images, the search and the training, as in an experiment file.

        experiment = acuity.Experiment.from_toml("nih.toml")
        experiment = acuity.Experiment(
            name="nih",
            labels=["Nodule", "Effusion"],
            data={"index": "Data_Entry_2017.csv", "images": "images"},
            search={"resolutions": [64, 128, 256], "architectures": ["resnet34"], "trials": 30},
            training={"epochs": 10},
        )

    keys: the keys and sections of an experiment file, see its reference. A section is a dictionary. folder: where
    relative paths start, by default the current folder. UsageError names every mistake, as for a file.
    """

    def __init__(self, *, folder: str | Path = ".", **keys: Any) -> None:
        self._definition = resolve_paths(loading.parse(keys, source="Experiment"), Path(folder).resolve())

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read an experiment file. Relative paths start at the file's folder.

        UsageError names the file, the key, the value and the rule.
        """
        experiment = cls.__new__(cls)
        experiment._definition = loading.load(Path(path))
        return experiment

    def __repr__(self) -> str:
        return f"Experiment({self.name!r}, labels={list(self.labels)})"

    @property
    def name(self) -> str:
        """The experiment's name in the storage."""
        return self._definition.name

    @property
    def labels(self) -> tuple[str, ...]:
        """The diagnoses. Each has one study."""
        return self._definition.labels

    def prepare(self, *, look: str | Path | None = None, storage: str | None = None) -> "Preparation":
        """Check images, labels, networks and disk, write the split, decode the images, and print the counts.

        look: the file of a PNG to write, which shows what the networks see. storage: its finished trials give the hours
        of the forecast; as in `launch`. Returns the counts; `to_json()` makes a dictionary of them. InputError names a
        mistake in the images.
        """
        _load_tqdm()
        from acuity.study.display.console import decoding_bar, messages_console
        from acuity.study.display.preparation_table import preparation_table
        from acuity.study.prepare import prepare

        console = messages_console()
        with decoding_bar(console) as progress:
            preparation = prepare(
                self._definition, storage_url=storage, look=None if look is None else Path(look), progress=progress
            )
        console.print(preparation_table(preparation))
        return preparation

    def launch(
        self,
        *,
        workers: int | None = None,
        workers_per_gpu: int | None = None,
        device: str = "auto",
        cluster: str | None = None,
        storage: str | None = None,
    ) -> "DataFrame":
        """Run the experiment on this host until every label has its trials. The cell or the terminal shows progress.

        workers: by default one per GPU, or two on a host without a GPU. 0 registers the experiment for `acuity worker`.
        workers_per_gpu: in place of workers. device: "auto", "cpu", "cuda" or "cuda:1". cluster: "slurm" submits the
        workers and returns at once. storage: postgresql://user@host/database, by default $ACUITY_STORAGE, else the
        embedded server.

        Returns the table of `OpenExperiment.best`. An interrupt stops the workers, and the same call continues.
        InputError or UsageError names a mistake; OutageError, a StorageError, says that the database is away.
        """
        _load_tqdm()
        from acuity.storage.database import open_storage
        from acuity.study.display.console import messages_console
        from acuity.study.fleet.placement import FleetOptions
        from acuity.study.launch import launch
        from acuity.study.results.answer import read_best_resolution

        fleet = FleetOptions(workers, workers_per_gpu, device, cluster)
        if cluster is not None:
            _check_cluster(cluster, workers, storage)
        with open_storage(storage) as database:
            launch(database, self._definition, fleet, console=messages_console())
            return read_best_resolution(database, self.name)


class OpenExperiment:
    """An experiment of a storage, open for reading, confirming and exporting. `acuity.open` makes it.

    The connections, and the embedded server, stay open until `close`, the end of a `with` block, or the end of the
    object or the program. Afterwards its methods raise StorageError. Several objects and processes may open one
    storage.
    """

    def __init__(self, name: str, *, storage: str | None = None) -> None:
        from acuity.storage.database import open_storage
        from acuity.storage.experiments import read_experiment

        self.name = name
        """The experiment's name in the storage."""
        with ExitStack() as stack:
            self._database = stack.enter_context(open_storage(storage))
            read_experiment(self._database, name)
            self._close = weakref.finalize(self, _close, stack.pop_all(), os.getpid())

    def __repr__(self) -> str:
        state = masked(self._database.url) if self._close.alive else "closed"
        return f"OpenExperiment({self.name!r}, {state})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. The embedded server stops if nothing else uses it. A second call does nothing."""
        self._close()

    @property
    def labels(self) -> tuple[str, ...]:
        """The diagnoses, in the order of the experiment file."""
        with self._registered() as (_, registered):
            return registered.experiment.labels

    def trials(self, label: str | None = None) -> "DataFrame":
        """One row per trial of the search and the confirmation: the view acuity.all_trials.

        docs/reference/sql.md describes the columns. value is the AUC on validation patients, seconds the training time.
        label: only this one; UsageError for an unknown label.
        """
        from acuity.study.results.tables import read_trials

        with self._opened() as database:
            return read_trials(database, self.name, label=label)

    def best(self, label: str | None = None) -> "DataFrame":
        """One row per label: the table of `acuity.best_resolution`.

        label: only this one; UsageError for an unknown label.
        """
        from acuity.study.results.answer import read_best_resolution

        with self._opened() as database:
            return read_best_resolution(database, self.name, label=label)

    def by_resolution(self, label: str | None = None) -> "DataFrame":
        """One row per label and resolution, with the AUC and its 95 % interval: the view acuity.auc_by_resolution.

        docs/reference/sql.md describes the columns. label: only this one; UsageError for an unknown label.
        """
        from acuity.study.results.tables import read_auc_by_resolution

        with self._opened() as database:
            return read_auc_by_resolution(database, self.name, label=label)

    def study(self, label: str, *, confirm: bool = False) -> "optuna.Study":
        """The Optuna study of a label, for optuna.visualization and every other tool for studies.

        confirm: the study of the retrained networks. The study works until this object is closed, and keeps this object
        alive. Do not call its `optimize`: workers of Acuity run the trials. UsageError for an unknown label or
        a confirmation that has not begun.
        """
        import optuna

        from acuity.study.errors import UsageError
        from acuity.study.registry.names import confirm_study_name, study_name
        from acuity.study.results.answer import select_labels

        with self._registered() as (database, registered):
            select_labels(registered.experiment, label)
            name = (confirm_study_name if confirm else study_name)(self.name, label)
            try:
                study = optuna.load_study(study_name=name, storage=database.storage)
            except KeyError:
                raise UsageError(
                    f"{self.name} has no study {name}: "
                    + ("`acuity confirm` makes it" if confirm else "launch the experiment again, which makes it")
                ) from None
        weakref.finalize(study, _release, self).atexit = False
        return study

    def plot_auc(self, label: str | None = None) -> "Figure":
        """The report's figure of AUC against resolution (px), one panel per label, as a Matplotlib figure.

        Filled points are AUCs on test patients, with 95 % intervals. Hollow points are AUCs on the validation patients
        of the search. label: only this one; UsageError for an unknown label.
        """
        from acuity.study.report.auc_figure import auc_figure
        from acuity.study.report.style import figure_style
        from acuity.study.results.answer import read_answer

        with self._opened() as database:
            answer = read_answer(database, self.name, label=label)
        with figure_style():
            return auc_figure(answer.labels)

    def confirm(
        self,
        *,
        seeds: int | None = None,
        workers: int | None = None,
        device: str = "auto",
        cluster: str | None = None,
        yes: bool = False,
    ) -> "DataFrame":
        """Retrain the best configurations and score test patients, once, with networks that were not trained on them.

        seeds: trainings of each finalist of a held-out confirmation, at least 3; by default [confirm] seeds. workers,
        device and cluster: as in `Experiment.launch`. yes: confirm even if the test patients can decide no label.
        Returns `best()`; with a cluster, a later call scores the test patients. UsageError if the search is not
        finished, or if the test patients can decide no label and yes is False.
        """
        _load_tqdm()
        from acuity.study.confirm import confirm
        from acuity.study.display.console import messages_console
        from acuity.study.errors import UsageError
        from acuity.study.fleet.placement import FleetOptions

        def ask(statement: str) -> None:
            if not yes:
                raise UsageError(f"{statement}: call confirm(yes=True) to confirm, or add test patients")

        if seeds is not None and seeds < 3:
            raise UsageError(f"seeds is {seeds}, must be at least 3: their spread is part of every interval")
        if workers == 0:
            raise UsageError("workers is 0, must be at least 1: a confirmation starts its own workers")
        fleet = FleetOptions(workers, device=device, cluster=cluster)
        with self._registered() as (database, registered):
            if cluster is not None:
                _check_cluster(cluster, workers, database.named_url)
            confirm(database, registered, fleet, seeds=seeds, console=messages_console(), ask=ask)
        return self.best()

    def report(self, out: str | Path) -> list[Path]:
        """Write report.html, report.md and figures/ (PDF, SVG and PNG) to the folder out; returns the paths.

        Replaces an earlier report. UsageError where there is no complete trial or the folder cannot be written.
        """
        from acuity.study.report.report import write_report

        with self._registered() as (database, registered):
            return write_report(database, registered, Path(out))

    def export(
        self, label: str, out: str | Path, *, resolution: int | None = None, device: str = "auto"
    ) -> dict[str, Any]:
        """Write a label's network to the folder out, which timm loads, with threshold, calibration and model card.

        resolution: in px, by default the reference, or the best of the search before a confirmation. device: of a
        network that must be scored first. Returns the contents of acuity.json. UsageError if the folder is not empty or
        the label has no network.
        """
        _load_tqdm()
        from acuity.study.report.export import export_network

        with self._registered() as (database, registered):
            return export_network(database, registered, label, Path(out), resolution=resolution, device=device)

    def score(self, index: str | Path, *, images: str | Path | None = None, device: str = "auto") -> "DataFrame":
        """Score another image set with the confirmed networks. No choice depends on its patients.

        index: its table of images. images: the folder of its files, by default `images` beside the index.

        Returns one row per label and resolution. Columns: label; resolution (px); auc, auc_low and auc_high (95 %
        interval, mean over networks); accuracy (at the frozen threshold) and average_precision (means over networks);
        patients and positive_patients; verdict and sentence of the label. UsageError before a confirmation, for an
        index without the labels, and for one that shares images or patients with the experiment's index.
        """
        _load_tqdm()
        import pandas as pd

        from acuity.study.display.console import messages_console
        from acuity.study.score import score_index

        with self._registered() as (database, registered):
            results = score_index(
                database,
                registered,
                Path(index),
                images=None if images is None else Path(images),
                device=device,
                console=messages_console(),
            )
        return pd.DataFrame(
            {
                "label": found["label"],
                **{key: each[key] for key in ("resolution", "auc", "auc_low", "auc_high")},
                **{key: each[key]["mean"] for key in ("accuracy", "average_precision")},
                **{key: found[key] for key in ("patients", "positive_patients")},
                **{key: found["smallest_adequate"][key] for key in ("verdict", "sentence")},
            }
            for found in results
            for each in found["by_resolution"]
        )

    def delete(self) -> None:
        """Delete the experiment with all its trials, without asking, and close. Images, split and cache stay."""
        from acuity.study.registry.record import delete_registered

        with self._registered() as (database, registered):
            delete_registered(database, registered)
        self.close()

    @contextmanager
    def _opened(self) -> "Iterator[Database]":
        """The open database, with errors of one line. StorageError where this object is closed."""
        from acuity.storage.database import explained_errors

        if not self._close.alive:
            raise StorageError(f"{self.name} is closed; acuity.open({self.name!r}) opens it again")
        with explained_errors(self._database.url):
            yield self._database

    @contextmanager
    def _registered(self) -> "Iterator[tuple[Database, Registered]]":
        """The open database and the experiment as it is registered now."""
        from acuity.study.registry.record import read_registered

        with self._opened() as database:
            yield database, read_registered(database, self.name)


def open_experiment(name: str, *, storage: str | None = None) -> OpenExperiment:
    """Open an experiment of a storage.

        nih = acuity.open("nih")
        with acuity.open("nih", storage="postgresql://acuity@db.example/acuity") as nih:
            print(nih.best())

    storage: by default $ACUITY_STORAGE, else the embedded server, as on the command line. StorageError if there is no
    such experiment, or if the storage cannot be used.
    """
    return OpenExperiment(name, storage=storage)


def experiments(*, storage: str | None = None) -> "DataFrame":
    """The experiments of a storage, one row each, the oldest first.

    Columns: experiment; labels (how many); finished (trials of the search, complete and pruned); trials (the budget of
    all labels); running (trials on all hosts); state (searching, searched, confirming, confirmed); last_sign (UTC, the
    last start, heartbeat or end of a trial; missing without a trial); created (UTC).

    storage: as in `acuity.open`. StorageError if it cannot be used.
    """
    from acuity.storage.database import open_storage
    from acuity.study.results.tables import read_experiments

    with open_storage(storage) as database:
        return read_experiments(database)


def _check_cluster(cluster: str, workers: int | None, storage: str | None) -> None:
    """UsageError without a number of jobs, or where Slurm cannot run them."""
    from acuity.study.errors import UsageError
    from acuity.study.fleet.slurm import check_slurm

    if cluster != "slurm":
        raise UsageError(f'cluster is "{cluster}", must be "slurm"')
    if not workers:
        raise UsageError('cluster="slurm" needs workers=N: it submits N workers')
    check_slurm(storage, warn=lambda text: warnings.warn(text, stacklevel=3))


def _load_tqdm() -> None:
    """Import the progress bars of timm's dependencies without their warning in a notebook that has no ipywidgets."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        import tqdm.auto  # noqa: F401


def _close(stack: ExitStack, process: int) -> None:
    """Close the storage. A fork of the process must not end its parent's connections."""
    if os.getpid() == process:
        stack.close()


def _release(_: OpenExperiment) -> None:
    """An argument of a finalizer lives as long as the object that it watches."""

"""`acuity confirm`: nominees retrained, finalists and reference frozen, test patients scored once, the answer."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import optuna
from optuna.trial import TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from acuity.objectives.device.device import open_device
from acuity.objectives.statistics.power import FEWEST_POSITIVE_PATIENTS
from acuity.storage.confirmations import StoredConfirmation, count_test_uses, freeze_protocol, save_results
from acuity.storage.database import Database
from acuity.study.confirmation.nomination import nominate
from acuity.study.confirmation.plan import check_retrainable, finalists
from acuity.study.confirmation.protocol import Protocol, write_protocol
from acuity.study.confirmation.scoring import Scorer, score_label
from acuity.study.confirmation.trials import Confirming, is_anything_left, open_confirm_studies, plan_label
from acuity.study.confirmation.verdict import conclude_label
from acuity.study.dashboard.notes import show_quietly
from acuity.study.dataset.cohort import count_cohort
from acuity.study.dataset.image_set import ImageSet, open_image_set
from acuity.study.display.confirmation_table import plan_table, protocol_table
from acuity.study.display.console import decoding_bar, scoring_bar
from acuity.study.errors import UsageError
from acuity.study.fleet.slurm import print_submission, submit_workers
from acuity.study.fleet.supervisor import FleetOptions, place_workers, run_fleet
from acuity.study.registry.names import confirm_study_name
from acuity.study.registry.record import Registered, check_same_images, checkpoints_of
from acuity.study.units import format_duration

_LINE_EVERY_S = 10.0
_LOOK_EVERY_S = 1.0


def confirm(
    database: Database,
    registered: Registered,
    fleet: FleetOptions,
    *,
    seeds: int | None,
    console: Console,
) -> StoredConfirmation | None:
    """Retrain nominees on this host, freeze the protocol, score the test patients and keep what came of it.

    seeds: by default [confirm] seeds of the experiment. An interrupted confirmation is continued by another call, which
    keeps finished trainings, a frozen protocol and scores. UsageError where the search is not finished. With a cluster
    it submits the workers that retrain and returns None; a later call scores the test patients.
    """
    experiment = registered.experiment
    seeds = seeds or experiment.confirm.seeds
    nominations = nominate(database, registered)
    with decoding_bar(console) as progress:
        image_set = open_image_set(experiment, progress=progress)
    check_same_images(registered, image_set.identity)
    undecidable = [
        entry.label for entry in count_cohort(image_set, experiment.labels, seeds=seeds) if not entry.plan.estimable
    ]
    if undecidable:
        console.print(
            f"Warning: too few positive test patients for a verdict on {', '.join(undecidable)} (of "
            f"{FEWEST_POSITIVE_PATIENTS} that are needed); confirming is a use of the test patients all the same",
            soft_wrap=True,
            highlight=False,
        )
    labels = [plan_label(database, experiment, nomination, seeds=seeds) for nomination in nominations]
    places = place_workers(fleet)
    count = len(places) or fleet.workers or 0
    studies = open_confirm_studies(database, experiment)
    if not _are_finished(labels, studies) and not is_anything_left(studies):
        _check_finished(labels, studies)
    console.print(plan_table(labels, done=_done(studies), workers=count))
    if fleet.cluster is not None and not _are_finished(labels, studies):
        submission = submit_workers(experiment, storage=database.url, workers=count, device=fleet.device)
        print_submission(experiment.name, submission, console)
        console.print(f"`acuity confirm {experiment.name}` scores the test patients once they are done", soft_wrap=True)
        return None
    if not _are_finished(labels, studies):
        with _live(labels, studies, console) as refresh:
            run_fleet(database, registered, places=places, refresh=refresh)
        _check_finished(labels, studies)

    protocol = _write_protocol(registered, labels, studies)
    stored = freeze_protocol(
        database,
        experiment.name,
        protocol.to_table(),
        split_sha256=protocol.split_sha256,
        test_patients_sha256=registered.identity.whole_split_sha256,
        margin=protocol.margin,
        labels=experiment.labels,
    )
    uses = count_test_uses(database, registered.identity.whole_split_sha256)
    console.print(protocol_table(protocol, stored, uses=uses))
    _score(database, registered, protocol, stored, image_set, device=fleet.device, console=console)
    return stored


def _write_protocol(registered: Registered, labels: list[Confirming], studies: dict[str, optuna.Study]) -> Protocol:
    return write_protocol(
        registered,
        tuple(label.nomination for label in labels),
        {
            label.nomination.label: finalists(label.plan, studies[label.nomination.label].get_trials(deepcopy=False))
            for label in labels
        },
        {
            label: (confirm_study_name(registered.experiment.name, label), study._study_id)
            for label, study in studies.items()
        },
        seeds=labels[0].plan.seeds,
    )


def _score(
    database: Database,
    registered: Registered,
    protocol: Protocol,
    stored: StoredConfirmation,
    image_set: ImageSet,
    *,
    device: str,
    console: Console,
) -> None:
    scorer = Scorer(
        database=database,
        experiment=registered.experiment,
        checkpoints=checkpoints_of(registered),
        device=open_device(device, workers=1),
    )
    networks = sum(len(finalist.runs) for label in protocol.labels for finalist in label.finalists)
    results = []
    with scoring_bar(console, networks) as done:
        for label in protocol.labels:
            tables = score_label(scorer, image_set, label, done=done)
            results.append(conclude_label(label, tables, margin=protocol.margin))
    save_results(database, stored.id, {"labels": results})
    for label in protocol.labels:
        show_quietly(database, registered, label.label, every_s=0)


def _done(studies: dict[str, optuna.Study]) -> int:
    return sum(len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) for study in studies.values())


def _are_finished(labels: list[Confirming], studies: dict[str, optuna.Study]) -> bool:
    return not any(_unfinished(label, studies) for label in labels)


def _unfinished(label: Confirming, studies: dict[str, optuna.Study]) -> list[int]:
    """Resolutions that lack a finalist with all its trainings."""
    there = finalists(label.plan, studies[label.nomination.label].get_trials(deepcopy=False))
    return [resolution for resolution in label.nomination.resolutions if resolution not in there]


def _check_finished(labels: list[Confirming], studies: dict[str, optuna.Study]) -> None:
    """UsageError where the fleet has left before all was trained, or where some cannot be."""
    for label in labels:
        check_retrainable(label.plan, studies[label.nomination.label].get_trials(deepcopy=False))
        for resolution in _unfinished(label, studies):
            batches = [nominee.batch_size for nominee in label.plan.nominees if nominee.resolution == resolution]
            raise UsageError(
                f"{label.nomination.label} at {resolution} px is not retrained: its workers were stopped, or its "
                f"nominees' own batches (up to {max(batches)}) do not fit the devices here. Confirm again; if they "
                "do not fit, run `acuity worker` on a device that holds them first"
            )


@contextmanager
def _live(
    labels: list[Confirming], studies: dict[str, optuna.Study], console: Console
) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line every ten seconds elsewhere."""
    total, began, before = sum(label.plan.trainings() for label in labels), time.monotonic(), _done(studies)
    last_look = last_line = 0.0
    columns = (TextColumn("retraining"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=total)

        def refresh(alive: int) -> None:
            nonlocal last_look, last_line
            now = time.monotonic()
            if alive and now - last_look < _LOOK_EVERY_S:
                return
            last_look, done = now, _done(studies)
            bars.update(task, completed=done)
            if not console.is_terminal and (not alive or now - last_line >= _LINE_EVERY_S):
                last_line = now
                remaining_s = None if done == before else (total - done) * (now - began) / (done - before)
                left = "estimating" if remaining_s is None else format_duration(remaining_s)
                console.print(f"retrained {done}/{total}; time left: {'done' if done >= total else left}")

        yield refresh

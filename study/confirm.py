"""`acuity confirm`: retrain the nominees, freeze the protocol, score the test patients once, store the results."""

from collections.abc import Callable
from functools import partial

import optuna
from rich.console import Console

from acuity.objectives.device.device import open_for_scoring
from acuity.objectives.split.folds import check_label_in_folds, count_patients
from acuity.objectives.statistics.power import MIN_NEGATIVE_PATIENTS, MIN_POSITIVE_PATIENTS
from acuity.storage.confirmations import (
    StoredConfirmation,
    count_test_uses,
    find_confirmation,
    freeze_protocol,
    save_results,
)
from acuity.storage.database import Database
from acuity.study.confirmation.nomination import nominate
from acuity.study.confirmation.plan import check_retrainable, count_done, find_finalists, find_need
from acuity.study.confirmation.protocol import Protocol, build_protocol
from acuity.study.confirmation.scoring import Scorer, score_label
from acuity.study.confirmation.trials import (
    LabelConfirmation,
    create_confirm_study,
    has_unfinished_trainings,
    open_confirm_studies,
    read_plan,
)
from acuity.study.confirmation.verdict import conclude_label
from acuity.study.dashboard.publishing import try_to_publish_label
from acuity.study.dataset.cohort import LabelCohort, count_cohort
from acuity.study.dataset.design import Design, choose_design
from acuity.study.dataset.image_set import ImageSet, open_folds, open_image_set, training_images
from acuity.study.display.confirmation_table import plan_table, protocol_table
from acuity.study.display.console import decoding_bar, scoring_bar
from acuity.study.display.live import live_progress
from acuity.study.errors import UsageError
from acuity.study.fleet.placement import FleetOptions, Placement, place_workers
from acuity.study.fleet.slurm import print_submission, submit_workers
from acuity.study.fleet.supervisor import run_fleet
from acuity.study.registry.names import confirm_study_name
from acuity.study.registry.record import Registered, check_same_images, checkpoints_of
from acuity.study.registry.sources import check_same_sources
from acuity.study.tracking.trackers import open_trackers


def confirm(
    database: Database,
    registered: Registered,
    fleet: FleetOptions,
    *,
    seeds: int | None,
    console: Console,
    ask: Callable[[str], None] = lambda _: None,
) -> StoredConfirmation | None:
    """Retrain the nominees, freeze the protocol, score the test patients and store the results.

    seeds: of a held-out confirmation, by default [confirm] seeds of the experiment. ask: called with a statement where
    the test patients can decide no label; it raises where the user does not agree to confirm. Another call continues an
    interrupted confirmation and keeps complete trainings, a frozen protocol and scores. UsageError where the search is
    not finished, or where a resolution cannot be retrained. On a cluster this submits the workers and returns None; a
    later call scores the test patients.
    """
    experiment = registered.experiment
    nominations = nominate(database, registered)
    with decoding_bar(console) as progress:
        image_set = open_image_set(experiment, progress=progress)
    check_same_images(registered, image_set.identity)
    check_same_sources(registered)
    design = choose_design(experiment, image_set, seeds=seeds)
    if seeds is not None and design.kind == "cross-fitted":
        raise UsageError(
            f"--seeds is {seeds}, but the confirmation is cross-fitted: set [confirm] folds, or "
            '[confirm] design = "held-out"'
        )
    patients: dict[str, tuple[tuple[int, int], ...]] = dict.fromkeys(experiment.labels, ())
    if design.folds is not None:
        folds = open_folds(image_set, design.folds)
        for label in experiment.labels:
            check_label_in_folds(image_set.index, folds, label)
            patients[label] = count_patients(image_set.index, folds, label)
    cohort = count_cohort(image_set, experiment.labels, design)
    _warn_of_few_patients(cohort, console=console)
    if find_confirmation(database, experiment.name) is None:
        _ask_where_nothing_can_be_decided(cohort, margin=experiment.confirm.margin, ask=ask)
    confirmations = [
        create_confirm_study(database, experiment, nomination, design=design, patients=patients[nomination.label])
        for nomination in nominations
    ]
    studies = open_confirm_studies(database, experiment)
    placements = place_workers(fleet)
    workers = len(placements) or fleet.workers or 0
    is_retrained = _are_retrained(confirmations, studies)
    if not is_retrained and not has_unfinished_trainings(studies):
        _check_retrained(confirmations, studies)
    console.print(plan_table(confirmations, done=_count_done(confirmations, studies), workers=workers))
    if fleet.cluster is not None and not is_retrained:
        submission = submit_workers(
            experiment, storage=database.url, workers=workers, device=fleet.device, per_gpu=fleet.per_gpu
        )
        print_submission(experiment.name, submission, console)
        console.print(f"`acuity confirm {experiment.name}` scores the test patients once they are done", soft_wrap=True)
        return None
    if not is_retrained:
        images = training_images(image_set, experiment.labels)
        _retrain(database, registered, placements, console, images=images)
        _check_retrained(confirmations, studies)

    protocol = _build_protocol(registered, confirmations, studies, design)
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


def _warn_of_few_patients(cohort: tuple[LabelCohort, ...], *, console: Console) -> None:
    not_estimable = [entry.label for entry in cohort if not entry.plan.estimable]
    if not_estimable:
        console.print(
            f"Warning: too few test patients for a verdict on {', '.join(not_estimable)} (needed: "
            f"{MIN_POSITIVE_PATIENTS} positive and {MIN_NEGATIVE_PATIENTS} negative); confirming is a use of the test "
            "patients all the same",
            soft_wrap=True,
            highlight=False,
        )


def _ask_where_nothing_can_be_decided(
    cohort: tuple[LabelCohort, ...], *, margin: float, ask: Callable[[str], None]
) -> None:
    """Ask before the test patients are spent on a confirmation that has 80 % power for no label."""
    if any(entry.plan.estimable and entry.plan.reaches(margin) for entry in cohort):
        return
    smallest = {entry.label: entry.plan.margin if entry.plan.estimable else None for entry in cohort}
    named = ", ".join(
        f"{label} {'not estimable' if each is None else f'{each:.3f}'}" for label, each in smallest.items()
    )
    ask(
        f"The test patients are too few to decide a label at a margin of {margin:g} AUC (smallest margins: {named}). "
        "Confirming uses them all the same"
    )


def _are_retrained(confirmations: list[LabelConfirmation], studies: dict[str, optuna.Study]) -> bool:
    """Whether every resolution of every label has its finalist with all trainings."""
    return not any(_unfinished_resolutions(each, studies) for each in confirmations)


def _check_retrained(confirmations: list[LabelConfirmation], studies: dict[str, optuna.Study]) -> None:
    """UsageError where a resolution is not retrained, or where none of its nominees can be retrained."""
    for each in confirmations:
        label = each.nomination.label
        if _unfinished_resolutions(each, studies) and read_plan(studies[label]) != each.plan:
            raise UsageError(
                f"{label} is not retrained as planned: another `acuity confirm` has changed its plan meanwhile. Wait "
                "until that one has ended, then run this command again. Complete trainings are kept"
            )
        check_retrainable(each.plan, studies[label].get_trials(deepcopy=False), label=label)
        for resolution in _unfinished_resolutions(each, studies):
            batches = [nominee.batch_size for nominee in each.plan.nominees if nominee.resolution == resolution]
            raise UsageError(
                f"{each.nomination.label} at {resolution} px is not retrained: its workers were stopped, or its "
                f"nominees' own batches (up to {max(batches)}) do not fit the devices here. Confirm again; if they "
                "do not fit, run `acuity worker` on a device that holds them first"
            )


def _unfinished_resolutions(confirmation: LabelConfirmation, studies: dict[str, optuna.Study]) -> list[int]:
    trials = studies[confirmation.nomination.label].get_trials(deepcopy=False)
    finished = find_finalists(confirmation.plan, trials)
    needed = find_need(confirmation.plan, trials).resolutions
    return [resolution for resolution in needed if resolution not in finished]


def _count_done(confirmations: list[LabelConfirmation], studies: dict[str, optuna.Study]) -> int:
    return sum(
        count_done(each.plan, studies[each.nomination.label].get_trials(deepcopy=False)) for each in confirmations
    )


def _retrain(
    database: Database, registered: Registered, placements: list[Placement], console: Console, *, images: int
) -> None:
    """Run the workers on this host and show their progress until nothing is left to train."""
    with live_progress(database, console, images=images) as live:
        refresh = partial(live.refresh, registered.experiment)
        run_fleet(database, registered, placements=placements, refresh=refresh, say=live.show_message)


def _build_protocol(
    registered: Registered, confirmations: list[LabelConfirmation], studies: dict[str, optuna.Study], design: Design
) -> Protocol:
    return build_protocol(
        registered,
        tuple(each.nomination for each in confirmations),
        {
            each.nomination.label: find_finalists(each.plan, studies[each.nomination.label].get_trials(deepcopy=False))
            for each in confirmations
        },
        {
            label: (confirm_study_name(registered.experiment.name, label), study._study_id)
            for label, study in studies.items()
        },
        design=design,
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
    """Score the test patients with each finalist's networks, store the results and publish them in the dashboard."""
    scorer = Scorer(
        database=database,
        experiment=registered.experiment,
        checkpoints=checkpoints_of(registered),
        device=open_for_scoring(device),
    )
    networks = sum(len(finalist.runs) for label in protocol.labels for finalist in label.finalists)
    results = []
    with scoring_bar(console, networks) as done:
        for label in protocol.labels:
            tables = score_label(scorer, image_set, label, protocol.design, done=done)
            results.append(conclude_label(label, tables, protocol.design, margin=protocol.margin))
    save_results(database, stored.id, {"labels": results})
    for label in protocol.labels:
        try_to_publish_label(database, registered, label.label, every_s=0)
    trackers = open_trackers(registered.experiment)
    trackers.send_verdicts(registered.experiment, results)
    trackers.close(timeout_s=60)

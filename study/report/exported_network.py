"""Choose the network to export: a confirmed finalist, or the best of the search before confirmation."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import text

from acuity.objectives.device.device import open_for_scoring
from acuity.objectives.training.interface import Hyperparameters
from acuity.objectives.training.prediction import score_images
from acuity.storage.confirmations import find_confirmation, find_scores
from acuity.storage.database import Database
from acuity.study.confirmation.protocol import LabelProtocol, Run, read_protocol
from acuity.study.confirmation.scoring import check_validation_auc, read_checkpoint, unpack
from acuity.study.dataset.image_set import labelled_images, open_image_set
from acuity.study.errors import UsageError
from acuity.study.registry.names import study_name
from acuity.study.registry.record import Registered, check_same_images, checkpoint_name, checkpoints_of
from acuity.study.registry.sources import check_same_sources
from acuity.study.search.hyperparameters import make_hyperparameters


@dataclass(frozen=True, eq=False)
class ChosenNetwork:
    """The network to export and its scores."""

    label: str
    hyperparameters: Hyperparameters
    checkpoint: bytes
    seed: int
    trials: int
    """Number of search trials from which the configuration was chosen."""
    scores: pd.DataFrame
    """Columns part, patient, target, score: validation images and, once confirmed, test images."""
    confirmed: dict[str, Any] | None
    """Results of the label's confirmation (verdict.conclude_label); None for a network of the search."""


def choose_network(
    database: Database, registered: Registered, label: str, *, resolution: int | None, device: str
) -> ChosenNetwork:
    """Choose the network of a label, with the highest validation AUC among the seeds of a finalist.

    resolution: by default the reference, or the best of the search before confirmation. UsageError where the label or
    its network is missing.
    """
    experiment = registered.experiment
    if label not in experiment.labels:
        raise UsageError(f'{experiment.name} has no label "{label}". There are: {", ".join(experiment.labels)}')
    check_same_sources(registered)
    stored = find_confirmation(database, experiment.name)
    if stored is not None:
        protocol = read_protocol(stored.protocol)
        results = [each for each in (stored.results or {})["labels"] if each["label"] == label]
        planned = [each for each in protocol.labels if each.label == label]
        if planned and results:
            return _choose_finalist(database, registered, planned[0], results[0], protocol.index_sha256, resolution)
    return _choose_searched(database, registered, label, resolution, device)


def _choose_finalist(
    database: Database,
    registered: Registered,
    protocol: LabelProtocol,
    results: dict[str, Any],
    index_sha256: str,
    resolution: int | None,
) -> ChosenNetwork:
    at = resolution or protocol.reference
    finalist = next((each for each in protocol.finalists if each.resolution == at), None)
    if finalist is None:
        confirmed = ", ".join(f"{each.resolution}" for each in protocol.finalists)
        raise UsageError(f"{protocol.label} was not confirmed at {at} px; there are networks at {confirmed} px")
    run = max(finalist.runs, key=lambda each: (each.validation_auc, -each.seed))
    scores = find_scores(database, trial_id=run.trial_id, index_sha256=index_sha256)
    assert scores is not None, "a confirmation with results has its scores"
    hyperparameters = make_hyperparameters(
        registered.experiment,
        architecture=finalist.architecture,
        resolution=at,
        batch_size=finalist.batch_size,
        learning_rate=finalist.learning_rate,
    )
    return ChosenNetwork(
        label=protocol.label,
        hyperparameters=hyperparameters,
        checkpoint=read_checkpoint(checkpoints_of(registered), run, resolution=at),
        seed=run.seed,
        trials=finalist.trials,
        scores=unpack(scores)[["part", "patient", "target", "score"]],
        confirmed=results,
    )


_BEST = text(
    """
    select study_id, trial_id, number, value, resolution, architecture, batch_size, learning_rate, seed,
        count(*) over () as trials
    from acuity.all_trials
    where experiment = :experiment and label = :label and not confirm and state = 'COMPLETE'
        and (cast(:resolution as integer) is null or resolution = :resolution)
    order by value desc, number limit 1
    """
)


def _choose_searched(
    database: Database, registered: Registered, label: str, resolution: int | None, device: str
) -> ChosenNetwork:
    experiment = registered.experiment
    query = {"experiment": experiment.name, "label": label, "resolution": resolution}
    with database.engine.connect() as connection:
        best = connection.execute(_BEST, query).one_or_none()
    if best is None:
        at = f" at {resolution} px" if resolution else ""
        raise UsageError(f"{label} has no complete trial{at} yet: `acuity launch` trains them")
    attributes = database.storage.get_trial(best.trial_id).user_attrs
    run = Run(
        trial_id=best.trial_id,
        checkpoint_study=checkpoint_name(registered, study_name(experiment.name, label), best.study_id),
        origin=attributes.get("origin", best.number),
        attempt=attributes.get("attempt", 1),
        seed=best.seed,
        validation_auc=best.value,
    )
    hyperparameters = make_hyperparameters(
        experiment,
        architecture=best.architecture,
        resolution=best.resolution,
        batch_size=best.batch_size,
        learning_rate=best.learning_rate,
    )
    checkpoint = read_checkpoint(checkpoints_of(registered), run, resolution=best.resolution)
    return ChosenNetwork(
        label=label,
        hyperparameters=hyperparameters,
        checkpoint=checkpoint,
        seed=run.seed,
        trials=best.trials,
        scores=_score_validation(registered, label, hyperparameters, checkpoint, run, device),
        confirmed=None,
    )


def _score_validation(
    registered: Registered, label: str, hyperparameters: Hyperparameters, checkpoint: bytes, run: Run, device: str
) -> pd.DataFrame:
    image_set = open_image_set(registered.experiment)
    check_same_images(registered, image_set.identity)
    data = labelled_images(image_set, label=label, resolution=hyperparameters.resolution)
    rows = data.validation
    scores = score_images(checkpoint, hyperparameters, data.images, rows, device=open_for_scoring(device).torch_device)
    targets = data.targets[rows].astype(np.int8)
    check_validation_auc(targets, scores, run, resolution=hyperparameters.resolution)
    patients = data.patients[rows].astype(str)
    return pd.DataFrame({"part": "validation", "patient": patients, "target": targets, "score": scores})

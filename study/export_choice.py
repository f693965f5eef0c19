"""Which network of a label is exported: a confirmed finalist's, or before confirmation the best of the search."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import text

from objectives.metrics import auc
from objectives.prediction import score_images
from objectives.task import Hyperparameters
from storage.confirmations import find_confirmation, find_scores
from storage.database import Database
from study.device import open_device
from study.errors import UsageError
from study.experiment import Experiment
from study.image_set import labelled_images, open_image_set
from study.protocol import LabelProtocol, Run, read_protocol
from study.register import Registered, check_same_images, checkpoint_name, checkpoints_of, study_name
from study.scores import unpack

_SAME_AUC = 0.01


@dataclass(frozen=True, eq=False)
class ChosenNetwork:
    """A network that is kept, with the scores it gave."""

    label: str
    hyperparameters: Hyperparameters
    checkpoint: bytes
    seed: int
    trials: int
    """Finished trials of the search that its configuration is the best of."""
    scores: pd.DataFrame
    """Columns part, patient, target, score: validation and, once confirmed, test images."""
    confirmed: dict[str, Any] | None
    """What was confirmed of the label (study.verdicts.conclude_label); None for a network of the search."""


def choose_network(
    database: Database, registered: Registered, label: str, *, resolution: int | None, device: str
) -> ChosenNetwork:
    """The network of a label at a resolution, by default the reference's, before confirmation the search's best.

    Of a finalist's seeds the one with the highest validation AUC. UsageError where there is no such network here.
    """
    experiment = registered.experiment
    if label not in experiment.labels:
        raise UsageError(f'{experiment.name} has no label "{label}". There are: {", ".join(experiment.labels)}')
    stored = find_confirmation(database, experiment.name)
    if stored is not None:
        protocol = read_protocol(stored.protocol)
        found = [each for each in (stored.results or {})["labels"] if each["label"] == label]
        of_label = [each for each in protocol.labels if each.label == label]
        if of_label and found:
            return _confirmed(database, registered, of_label[0], found[0], protocol.index_sha256, resolution)
    return _searched(database, registered, label, resolution, device)


def _confirmed(
    database: Database,
    registered: Registered,
    protocol: LabelProtocol,
    found: dict[str, Any],
    index_sha256: str,
    resolution: int | None,
) -> ChosenNetwork:
    at = resolution or protocol.reference
    finalist = next((each for each in protocol.finalists if each.resolution == at), None)
    if finalist is None:
        there = ", ".join(f"{each.resolution}" for each in protocol.finalists)
        raise UsageError(f"{protocol.label} was not confirmed at {at} px; there are networks at {there} px")
    run = max(finalist.runs, key=lambda each: (each.validation_auc, -each.seed))
    kept = find_scores(database, trial_id=run.trial_id, index_sha256=index_sha256)
    assert kept is not None, "a confirmation with results has its scores"
    hyperparameters = _hyperparameters(
        registered.experiment, finalist.architecture, at, finalist.batch_size, finalist.learning_rate
    )
    return ChosenNetwork(
        label=protocol.label,
        hyperparameters=hyperparameters,
        checkpoint=_read(registered, run),
        seed=run.seed,
        trials=finalist.trials,
        scores=unpack(kept)[["part", "patient", "target", "score"]],
        confirmed=found,
    )


_BEST = text(
    """
    select study_id, trial_id, number, value, resolution, architecture, batch_size, learning_rate, seed,
        count(*) over () as trials
    from acuity.trials
    where experiment = :experiment and label = :label and not confirm and state = 'COMPLETE'
        and (cast(:resolution as integer) is null or resolution = :resolution)
    order by value desc, number limit 1
    """
)


def _searched(
    database: Database, registered: Registered, label: str, resolution: int | None, device: str
) -> ChosenNetwork:
    experiment = registered.experiment
    query = {"experiment": experiment.name, "label": label, "resolution": resolution}
    with database.engine.connect() as connection:
        best = connection.execute(_BEST, query).one_or_none()
    if best is None:
        at = f" at {resolution} px" if resolution else ""
        raise UsageError(f"{label} has no complete trial{at} yet: `acuity launch` trains them")
    known = database.storage.get_trial(best.trial_id).user_attrs
    run = Run(
        trial_id=best.trial_id,
        checkpoint_study=checkpoint_name(registered, study_name(experiment.name, label), best.study_id),
        origin=known.get("origin", best.number),
        attempt=known.get("attempt", 1),
        seed=best.seed,
        validation_auc=best.value,
    )
    hyperparameters = _hyperparameters(
        experiment, best.architecture, best.resolution, best.batch_size, best.learning_rate
    )
    checkpoint = _read(registered, run)
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
    check_same_images(registered, **image_set.identity())
    data = labelled_images(image_set, label=label, resolution=hyperparameters.resolution)
    rows = data.validation
    scores = score_images(
        checkpoint, hyperparameters, data.images, rows, device=open_device(device, workers=1).torch_device
    )
    targets = data.targets[rows].astype(np.int8)
    if abs(auc(targets, scores) - run.validation_auc) > _SAME_AUC:
        raise UsageError(
            f"the kept network of {label} at {hyperparameters.resolution} px has a validation AUC of "
            f"{auc(targets, scores):.3f}, its training had {run.validation_auc:.3f}: put back its checkpoint"
        )
    patients = data.patients[rows].astype(str)
    return pd.DataFrame({"part": "validation", "patient": patients, "target": targets, "score": scores})


def _read(registered: Registered, run: Run) -> bytes:
    checkpoints = checkpoints_of(registered)
    data = checkpoints.read(run.checkpoint_study, run.origin, attempt=run.attempt)
    if data is None:
        raise UsageError(
            f"the network of {run.checkpoint_study}, seed {run.seed}, is not in {checkpoints.folder}: run this where "
            "the fleet's checkpoints are, or put it back"
        )
    return data


def _hyperparameters(
    experiment: Experiment, architecture: str, resolution: int, batch_size: int, learning_rate: float
) -> Hyperparameters:
    training = experiment.training
    return Hyperparameters(
        architecture=architecture,
        resolution=resolution,
        batch_size=batch_size,
        learning_rate=learning_rate,
        epochs=training.epochs,
        network_input=training.network_input,
        precision=training.precision,
    )

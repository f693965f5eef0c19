"""What a first trial runs is settled when it starts, by what has been seen until then."""

import optuna

from storage.database import Database
from study.first_trials import FirstTrial, complete
from study.register import Registered
from study.tried import read_tried


def settle_first_trial(
    database: Database, registered: Registered, label: str, study: optuna.Study, trial_id: int
) -> None:
    """Fix all parameters of a trial enqueued with a part of them. Called under the study's claim lock."""
    starting = _first_trial(database.storage.get_trial(trial_id))
    if starting is None or _is_settled(starting):
        return
    others = [_first_trial(other) for other in study.get_trials(deepcopy=False) if "requeued" not in other.user_attrs]
    parameters = complete(
        starting,
        registered.experiment,
        registered.exponents,
        label=label,
        tried=read_tried(database, registered.experiment, registered.exponents),
        given=[other for other in others if other is not None and _is_settled(other)],
    )
    database.storage.set_trial_system_attr(trial_id, "fixed_params", parameters)


def _first_trial(trial: optuna.trial.FrozenTrial) -> FirstTrial | None:
    part, parameters = trial.user_attrs.get("first"), trial.system_attrs.get("fixed_params")
    return None if part is None or parameters is None else FirstTrial(part, parameters)


def _is_settled(trial: FirstTrial) -> bool:
    return {"resolution", "architecture"} <= trial.parameters.keys()

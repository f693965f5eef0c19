"""A first trial gets its missing parameters when it starts, from the results that the labels have by then."""

import optuna

from acuity.storage.database import Database
from acuity.study.config.schema import Experiment
from acuity.study.search.history import read_tried
from acuity.study.search.initial_design import FirstTrial, complete


def fix_parameters(
    database: Database,
    experiment: Experiment,
    exponents: tuple[int, int],
    *,
    label: str,
    study: optuna.Study,
    trial_id: int,
) -> None:
    """Write all parameters of a first trial that was enqueued with some. The caller holds the study's claim lock."""
    starting = _first_trial(database.storage.get_trial(trial_id))
    if starting is None or _has_all_parameters(starting):
        return
    others = [_first_trial(other) for other in study.get_trials(deepcopy=False) if "requeued" not in other.user_attrs]
    parameters = complete(
        starting,
        experiment,
        exponents,
        label=label,
        tried=read_tried(database, experiment, exponents),
        given=[other for other in others if other is not None and _has_all_parameters(other)],
    )
    database.storage.set_trial_system_attr(trial_id, "fixed_params", parameters)


def _first_trial(trial: optuna.trial.FrozenTrial) -> FirstTrial | None:
    part, parameters = trial.user_attrs.get("first"), trial.system_attrs.get("fixed_params")
    return None if part is None or parameters is None else FirstTrial(part, parameters)


def _has_all_parameters(trial: FirstTrial) -> bool:
    return {"resolution", "architecture"} <= trial.parameters.keys()

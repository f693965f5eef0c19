"""Summary of a label's search: feasible batch sizes, durations, pruning and parameter importance."""

from dataclasses import dataclass

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial
from sqlalchemy import text

from acuity.storage.database import Database
from acuity.study.registry.record import Registered
from acuity.study.search.space import BELOW_THE_MEDIAN

PARAMETERS = {
    "resolution": "resolution",
    "architecture": "architecture",
    "batch_size_exponent": "batch size",
    "learning_rate": "learning rate",
}
"""Searched parameters, and their names in reports."""

MIN_IMPORTANCE_TRIALS = 20
"""Number of complete trials from which the importance is computed."""
RELIABLE_IMPORTANCE_TRIALS = 50
"""Number of complete trials from which the shares of PED-ANOVA are reliable."""
_TRIALS = text(
    """
    select state, value, resolution, architecture, batch_size_exponent, learning_rate, batch_size,
        feasible_batch_size, batch_cap, epochs, seconds, device, reason
    from acuity.all_trials
    where experiment = :experiment and label = :label and not confirm and state in ('COMPLETE', 'PRUNED')
        and resolution is not null
    """
)


@dataclass(frozen=True, eq=False)
class SearchSummary:
    """Summary of one label's search. Each table has one row per group."""

    label: str
    trials: int
    """Number of finished trials."""
    cells: pd.DataFrame
    """By architecture and resolution: feasible, cap, complete, and the median and quartiles of the complete trials'
    durations (seconds, seconds_low, seconds_high)."""
    batches: pd.DataFrame
    """By architecture, resolution and batch (nearest power of two): trials, and auc and seconds of the best trial."""
    resolutions: pd.DataFrame
    """By resolution: complete, pruned."""
    front: pd.DataFrame
    """Pareto front of complete trials in auc and seconds, in ascending order of seconds."""
    importance: dict[str, float] | None
    """Share of each parameter in the difference between the best tenth and the other trials. None with too few trials.
    """
    complete: int
    """Number of complete trials."""
    stopped: int
    """Number of trials that the pruner stopped. Other pruned trials diverged, or their batch did not fit."""
    epochs_run: int
    epochs_saved: int
    """Number of epochs that the stopped trials did not run."""
    training_s: float
    """Sum of the durations of all finished trials."""
    devices: tuple[str, ...]


def summarise_search(
    database: Database, registered: Registered, label: str, *, importance: bool = True
) -> SearchSummary:
    """Summarise the finished trials of a label. The importance takes most of the time."""
    name = registered.experiment.name
    with database.engine.connect() as connection:
        trials = pd.read_sql(_TRIALS, connection, params={"experiment": name, "label": label})
    trials = trials.astype(
        {"value": float, "seconds": float, "epochs": float, "batch_size": float}
    )  # an empty column has the type object
    complete = trials[trials["state"] == "COMPLETE"]
    epochs = registered.experiment.training.epochs
    run = trials["epochs"].fillna(0)
    stopped = trials["reason"] == BELOW_THE_MEDIAN
    return SearchSummary(
        label=label,
        trials=len(trials),
        cells=_cells(trials, complete),
        batches=_batches(complete),
        resolutions=pd.crosstab(trials["resolution"], trials["state"])
        .reindex(columns=["COMPLETE", "PRUNED"], fill_value=0)
        .rename(columns=str.lower)
        .reset_index(),
        front=_front(complete),
        importance=_importance(complete, registered) if importance else None,
        complete=len(complete),
        stopped=int(stopped.sum()),
        epochs_run=int(run.sum()),
        epochs_saved=int((epochs - run[stopped]).sum()),
        training_s=float(trials["seconds"].fillna(0).sum()),
        devices=tuple(sorted(trials["device"].dropna().unique())),
    )


def _cells(trials: pd.DataFrame, complete: pd.DataFrame) -> pd.DataFrame:
    keys = ["architecture", "resolution"]
    fits = trials.sort_values("feasible_batch_size").groupby(keys).last()[["feasible_batch_size", "batch_cap"]]
    seconds = complete.groupby(keys)["seconds"]
    timed = pd.DataFrame(
        {
            "complete": seconds.size(),
            "seconds": seconds.median(),
            "seconds_low": seconds.quantile(0.25),
            "seconds_high": seconds.quantile(0.75),
        }
    )
    return (
        fits.rename(columns={"feasible_batch_size": "feasible", "batch_cap": "cap"})
        .join(timed, how="left")
        .reset_index()
    )


def _batches(complete: pd.DataFrame) -> pd.DataFrame:
    sized = complete[complete["batch_size"].notna()]
    power = 2 ** np.round(np.log2(sized["batch_size"].astype(float))).astype(int)
    keys = ["architecture", "resolution", "batch"]
    ordered = sized.assign(batch=power).sort_values("value")
    best = ordered.groupby(keys)[["value", "seconds"]].last().rename(columns={"value": "auc"})
    return best.assign(trials=ordered.groupby(keys).size()).reset_index()


def _front(complete: pd.DataFrame) -> pd.DataFrame:
    ordered = complete.dropna(subset=["seconds", "value"]).sort_values(["seconds", "value"], ascending=[True, False])
    best_before = ordered["value"].cummax().shift(fill_value=-np.inf)
    columns = ["seconds", "value", "resolution", "architecture", "batch_size"]
    return ordered.loc[ordered["value"] > best_before, columns].rename(columns={"value": "auc"})


def _importance(complete: pd.DataFrame, registered: Registered) -> dict[str, float] | None:
    """Importance of each parameter by PED-ANOVA, on an in-memory study with parameters and values only.

    With 10,000 trials, the stored study with its attributes and reports takes ten times as long to load.
    """
    space = {name: each for name, each in _space(registered).items() if complete[name].notna().all()}
    if len(complete) < MIN_IMPORTANCE_TRIALS:
        return None
    varied = {name: each for name, each in space.items() if complete[name].nunique() > 1}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize")
        rows = complete[[*varied, "value"]].to_dict("records")
        study.add_trials(
            [
                create_trial(
                    value=row["value"], params={name: row[name] for name in varied}, distributions=dict(varied)
                )
                for row in rows
            ]
        )
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), params=list(varied))
    finally:
        optuna.logging.set_verbosity(verbosity)


def _space(registered: Registered) -> dict[str, BaseDistribution]:
    search = registered.experiment.search
    space: dict[str, BaseDistribution] = {
        "resolution": CategoricalDistribution(search.resolutions),
        "architecture": CategoricalDistribution(search.architectures),
        "learning_rate": FloatDistribution(*search.learning_rate, log=True),
    }
    if search.batch == "search":
        space["batch_size_exponent"] = IntDistribution(*registered.exponents)
    return space

"""Optuna's cached storage with one statement a call: what a trial writes and reads while it runs.

Optuna's own calls take 3 to 9 statements each, and each read of a study reads all its running trials in full. The
tables, their contents and the errors are Optuna's.
"""

import copy
import json
import math
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage, _StudyInfo
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Row, TextClause, text

from acuity.storage.connection import autocommitted, execute_alone
from acuity.storage.errors import MissingError

_FINISHED = frozenset(state for state in TrialState if state.is_finished())
_NOW = "clock_timestamp() at time zone 'utc'"
# JSON keeps every digit of a number since Postgres 12. Attributes and distributions travel as texts, since Optuna's
# JSON holds what Postgres's refuses (NaN, NUL).
_TRIAL = """json_build_array(
    t.trial_id, t.number, t.state::text, extract(epoch from t.datetime_start), extract(epoch from t.datetime_complete),
    (select json_agg(json_build_array(p.param_name, p.param_value, p.distribution_json) order by p.param_id)
        from public.trial_params p where p.trial_id = t.trial_id),
    (select json_agg(json_build_array(v.value, v.value_type::text) order by v.objective)
        from public.trial_values v where v.trial_id = t.trial_id),
    (select json_agg(json_build_array(a.key, a.value_json) order by a.trial_user_attribute_id)
        from public.trial_user_attributes a where a.trial_id = t.trial_id),
    (select json_agg(json_build_array(a.key, a.value_json) order by a.trial_system_attribute_id)
        from public.trial_system_attributes a where a.trial_id = t.trial_id),
    (select json_agg(json_build_array(i.step, i.intermediate_value, i.intermediate_value_type::text) order by i.step)
        from public.trial_intermediate_values i where i.trial_id = t.trial_id)
)"""
_CHANGED = """t.study_id = :study_id and (t.trial_id > :last or t.trial_id = any(cast(:unfinished as integer[])))
    and not t.trial_id = any(cast(:known as integer[]))"""
_ENDED = "t.state in ('COMPLETE', 'PRUNED', 'FAIL')"
_READ_TRIAL = text(f"select t.study_id, {_TRIAL}::text as trial from public.trials t where t.trial_id = :trial_id")
_READ_STUDY = text(
    f"""
    select t.trial::text from public.studies s
    left join lateral (select {_TRIAL} as trial, t.trial_id from public.trials t where {_CHANGED}) t on true
    where s.study_id = :study_id order by t.trial_id
    """
)
_READ_FINISHED = text(f"select {_TRIAL}::text from public.trials t where {_CHANGED} and {_ENDED} order by t.trial_id")
# The trial's row is locked: a trial that another worker ends in the same moment takes no further data.
_LOCKED = """trial as (
    select trial_id, number, state::text as state from public.trials where trial_id = :trial_id for no key update
)"""
_UNFINISHED = "from trial where state in ('RUNNING', 'WAITING')"
_REPORT = f"""
with {_LOCKED}, reported as (
    insert into public.trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
    select trial_id, :step, cast(:value as double precision),
        cast(:type as public.trialintermediatevaluetype) {_UNFINISHED}
    on conflict (trial_id, step) do update set intermediate_value = excluded.intermediate_value,
        intermediate_value_type = excluded.intermediate_value_type
), alive as (
    insert into public.trial_heartbeats (trial_id, heartbeat) select trial_id, {_NOW} {_UNFINISHED}
    on conflict (trial_id) do update set heartbeat = excluded.heartbeat
)
"""
_WRITE_REPORT = text(f"{_REPORT} select number, state from trial")
_WRITE_REPORT_AND_READ = text(
    f"""{_REPORT} select number, state, (
        select json_agg({_TRIAL} order by t.trial_id)::text from public.trials t where {_CHANGED} and {_ENDED}
    ) as finished from trial"""
)
_WRITE_PARAMETERS = text(
    f"""
    with {_LOCKED}, written as (
        insert into public.trial_params (trial_id, param_name, param_value, distribution_json)
        select trial_id, name, value, distribution from trial, unnest(cast(:names as text[]),
            cast(:values as double precision[]), cast(:distributions as text[])) as given (name, value, distribution)
        where state in ('RUNNING', 'WAITING')
        on conflict (trial_id, param_name) do update set param_value = excluded.param_value,
            distribution_json = excluded.distribution_json
    ) select number, state from trial
    """
)
_WRITE_ATTRIBUTES = text(
    f"""
    with {_LOCKED}, written as (
        insert into public.trial_user_attributes (trial_id, key, value_json)
        select trial_id, key, value from trial,
            unnest(cast(:keys as text[]), cast(:values as text[])) as given (key, value)
        where state in ('RUNNING', 'WAITING')
        on conflict (trial_id, key) do update set value_json = excluded.value_json
    ) select number, state from trial
    """
)
# A trial that is to run must wait: two workers that start it at the same moment must not both have it.
_WRITE_STATE = text(
    f"""
    with {_LOCKED}, valued as (
        insert into public.trial_values (trial_id, objective, value, value_type)
        select trial_id, objective - 1, value, cast(type as public.trialvaluetype)
        from trial, unnest(cast(:values as double precision[]), cast(:types as text[]))
            with ordinality as given (value, type, objective)
        where state in ('RUNNING', 'WAITING')
        on conflict (trial_id, objective) do update set value = excluded.value, value_type = excluded.value_type
    ), changed as (
        update public.trials t set state = cast(:state as public.trialstate),
            datetime_start = case when :state = 'RUNNING' then {_NOW} else t.datetime_start end,
            datetime_complete = case when :finished then {_NOW} else t.datetime_complete end
        from trial where t.trial_id = trial.trial_id
            and (trial.state = 'WAITING' or trial.state = 'RUNNING' and :state <> 'RUNNING')
    ) select number, state from trial
    """
)


class TrialStorage(_CachedStorage):
    """Optuna's cached storage. The blocks and the heartbeats are of one trial at a time; other calls are of any thread.

    It uses private parts of Optuna's class and writes Optuna's tables, hence pyproject.toml allows one minor version.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._engine = backend.engine
        self._known: dict[int, set[int]] = {}
        """By study, finished trials that were read since all changed trials of the study were read."""
        self._with_reports: int | None = None
        self._is_fresh = False
        self._deferred: dict[int, dict[str, tuple[float, BaseDistribution]]] = {}
        self._heartbeats: dict[int, float] = {}

    @contextmanager
    def finished_trials_with_reports(self, study_id: int) -> Iterator[None]:
        """Read the study's newly finished trials with each report of the block, for the pruner that is asked next."""
        self._with_reports, self._is_fresh = study_id, False
        try:
            yield
        finally:
            self._with_reports, self._is_fresh = None, False

    @contextmanager
    def parameters_together(self, trial_id: int) -> Iterator[None]:
        """Write the trial's parameters at the end of the block, in one statement.

        Where that fails, another such block writes them: Optuna's trial sets each parameter once.
        """
        self._deferred = {trial_id: self._deferred.get(trial_id, {})}
        yield
        if self._deferred[trial_id]:
            self._write_parameters(trial_id, self._deferred[trial_id])
        del self._deferred[trial_id]

    def heartbeat_age_s(self, trial_id: int) -> float:
        """Seconds since this process wrote the trial's heartbeat; infinite where it has not."""
        return time.monotonic() - self._heartbeats.get(trial_id, -math.inf)

    def heartbeat_written(self, trial_id: int) -> None:
        """Remember the time of a heartbeat that was written by another statement."""
        self._heartbeats = {trial_id: time.monotonic()}

    def write_user_attributes(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        """Set all of these user attributes or none. UpdateFinishedTrialError where the trial has ended."""
        values = [json.dumps(value) for value in attributes.values()]
        self._write(_WRITE_ATTRIBUTES, trial_id, keys=list(attributes), values=values)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a user attribute."""
        self.write_user_attributes(trial_id, {key: value})

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set a parameter; ValueError where trials of the study have another kind of distribution for it."""
        if trial_id in self._deferred:
            self._deferred[trial_id][param_name] = (param_value_internal, distribution)
        else:
            self._write_parameters(trial_id, {param_name: (param_value_internal, distribution)})

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Write a report, and a heartbeat with it."""
        value, kind = _stored(intermediate_value)
        report = {"step": step, "value": value, "type": kind}
        study_id = self._with_reports
        if study_id is None:
            self._write(_WRITE_REPORT, trial_id, **report)
        else:
            with self._lock:
                study = self._studies.setdefault(study_id, _StudyInfo())
                row = self._write(_WRITE_REPORT_AND_READ, trial_id, **report, **self._span(study_id, study))
                self._keep_finished(study_id, study, [_parse(entry) for entry in json.loads(row.finished or "[]")])
            self._is_fresh = True
        self.heartbeat_written(trial_id)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Change the state; False where a trial that is to run does not wait."""
        stored = [_stored(float(value)) for value in values or ()]
        parameters = {
            "trial_id": trial_id,
            "state": state.name,
            "finished": state.is_finished(),
            "values": [value for value, _ in stored],
            "types": [kind for _, kind in stored],
        }
        # Not repeated: where the change took effect before the connection was lost, it would count as another worker's.
        with autocommitted(self._engine) as connection:
            row = _updatable(connection.execute(_WRITE_STATE, parameters).all(), trial_id)
        return not (state is TrialState.RUNNING and row.state != "WAITING")

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """The trial; a finished one from memory. MissingError where there is none."""
        with self._lock:
            cached = self._get_cached_trial(trial_id)
        if cached is not None:
            return cached
        rows = execute_alone(self._engine, _READ_TRIAL, {"trial_id": trial_id})
        if not rows:
            raise MissingError("trial", trial_id)
        [row] = rows
        trial = _parse(json.loads(row.trial))
        with self._lock:
            if trial_id not in self._trial_id_to_study_id_and_number:
                self._studies.setdefault(row.study_id, _StudyInfo())
                self._add_trials_to_cache(row.study_id, [trial])
        return trial

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Trials in the order of their numbers. Where only finished ones are asked for, no other one is read."""
        if states is not None and not any(state in states for state in TrialState if state not in _FINISHED):
            if not (self._is_fresh and self._with_reports == study_id):
                self._read_finished(study_id)
            with self._lock:
                found = [trial for trial in self._studies[study_id].trials.values() if trial.state in states]
            found.sort(key=lambda trial: trial.number)
            return copy.deepcopy(found) if deepcopy else found
        return super().get_all_trials(study_id, deepcopy, states)

    def _read_finished(self, study_id: int) -> None:
        with self._lock:
            study = self._studies.setdefault(study_id, _StudyInfo())
            rows = execute_alone(self._engine, _READ_FINISHED, self._span(study_id, study))
            self._keep_finished(study_id, study, [_parse(json.loads(row[0])) for row in rows])

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        """Read the trials that may have changed; MissingError where there is no such study."""
        with self._lock:
            study = self._studies.setdefault(study_id, _StudyInfo())
            rows = execute_alone(self._engine, _READ_STUDY, self._span(study_id, study))
            if not rows:
                raise MissingError("study", study_id)
            trials = [_parse(json.loads(row[0])) for row in rows if row[0] is not None]
            self._add_trials_to_cache(study_id, trials)
            finished = {trial._trial_id for trial in trials if trial.state.is_finished()}
            study.unfinished_trial_ids |= {trial._trial_id for trial in trials}
            study.unfinished_trial_ids -= finished
            # Trials of a study become visible in the order of their ids, since their creation locks the study.
            known = self._known.pop(study_id, set())
            study.last_finished_trial_id = max(study.last_finished_trial_id, *finished, *known, -1)

    def _span(self, study_id: int, study: _StudyInfo) -> dict[str, Any]:
        """What the statements must know to leave out the finished trials in memory."""
        return {
            "study_id": study_id,
            "last": study.last_finished_trial_id,
            "unfinished": _id_array(study.unfinished_trial_ids),
            "known": _id_array(self._known.get(study_id, ())),
        }

    def _keep_finished(self, study_id: int, study: _StudyInfo, trials: list[FrozenTrial]) -> None:
        self._add_trials_to_cache(study_id, trials)
        ids = {trial._trial_id for trial in trials}
        study.unfinished_trial_ids -= ids
        self._known.setdefault(study_id, set()).update(ids)

    def _write_parameters(self, trial_id: int, parameters: dict[str, tuple[float, BaseDistribution]]) -> None:
        with self._lock:
            study = self._studies[self._trial_id_to_study_id_and_number[trial_id][0]]
            for name, (_, distribution) in parameters.items():
                if name not in study.param_distribution:
                    trials = study.trials.values()
                    earlier = (trial.distributions[name] for trial in trials if name in trial.distributions)
                    study.param_distribution[name] = next(earlier, distribution)
                check_distribution_compatibility(study.param_distribution[name], distribution)
        self._write(
            _WRITE_PARAMETERS,
            trial_id,
            names=list(parameters),
            values=[value for value, _ in parameters.values()],
            distributions=[distribution_to_json(distribution) for _, distribution in parameters.values()],
        )

    def _write(self, statement: TextClause, trial_id: int, **values: Any) -> Row[Any]:
        """Write data of an unfinished trial; returns the statement's row, with the state before it.

        MissingError where there is no such trial, UpdateFinishedTrialError where it had ended.
        """
        return _updatable(execute_alone(self._engine, statement, {"trial_id": trial_id} | values), trial_id)


def _updatable(rows: Sequence[Row[Any]], trial_id: int) -> Row[Any]:
    """The only row; errors as in `TrialStorage._write`."""
    if not rows:
        raise MissingError("trial", trial_id)
    [row] = rows
    if TrialState[row.state].is_finished():
        raise UpdateFinishedTrialError(f"Trial#{row.number} has already finished and can not be updated.")
    return row


def _id_array(ids: Iterable[int]) -> str:
    """The ids as one text: an array of any length is then the same statement for pg_stat_statements."""
    return f"{{{','.join(map(str, sorted(ids)))}}}"


def _stored(value: float) -> tuple[float | None, str]:
    """The value and its type as Optuna stores them: the column holds finite values only."""
    if math.isnan(value):
        return None, "NAN"
    if math.isinf(value):
        return None, "INF_POS" if value > 0 else "INF_NEG"
    return value, "FINITE"


_NOT_FINITE = {"NAN": math.nan, "INF_POS": math.inf, "INF_NEG": -math.inf}


def _number(value: float | str | None, kind: str) -> float:
    """The number of a stored value. Another program may have stored NaN as finite, which JSON holds as a text."""
    return _NOT_FINITE.get(kind, math.nan) if value is None else float(value)


def _parse(entry: list[Any]) -> FrozenTrial:
    trial_id, number, state, start, complete, parameters, values, user, system, reports = entry
    distributions = {name: _distribution(stored) for name, _, stored in parameters or ()}
    return FrozenTrial(
        number=number,
        state=TrialState[state],
        value=None,
        values=[_number(value, kind) for value, kind in values] if values else None,
        datetime_start=None if start is None else datetime.fromtimestamp(start),
        datetime_complete=None if complete is None else datetime.fromtimestamp(complete),
        params={name: distributions[name].to_external_repr(float(value)) for name, value, _ in parameters or ()},
        distributions=distributions,
        user_attrs={key: json.loads(value) for key, value in user or ()},
        system_attrs={key: json.loads(value) for key, value in system or ()},
        intermediate_values={step: _number(value, kind) for step, value, kind in reports or ()},
        trial_id=trial_id,
    )


@lru_cache(maxsize=1024)
def _distribution(stored: str) -> BaseDistribution:
    """A distribution, once for all trials that have it: the objects are never changed."""
    return json_to_distribution(stored)

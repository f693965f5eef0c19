"""SQL of the view acuity.all_trials: one row per trial, with its parameters and attributes as columns.

Studies that Acuity has not registered are not shown: their parameters of the same names may have other types.

Optuna's API reads whole studies (2.9 s for 14 studies of 300 trials). In the view each column is a subquery over a
unique index, so that columns that a query does not name cost nothing.
"""

# Optuna stores a categorical parameter as the position of its choice, with the choices as JSON.
_PARAMETER = """(
    select case when p.distribution_json like '%"choices"%'
        then p.distribution_json::jsonb #>> array['attributes', 'choices', p.param_value::integer::text]
        else p.param_value::text end
    from public.trial_params p where p.trial_id = t.trial_id and p.param_name = '{name}'){cast} as {name}"""

# Any program with write access can set an attribute. What is no number of the type, also NaN and infinity, is null.
_NUMBER = r"""(
    select case when a.value_json ~ '{pattern}' then a.value_json::{type} end
    from public.trial_user_attributes a where a.trial_id = t.trial_id and a.key = '{name}') as {name}"""
_FLOAT = {"type": "double precision", "pattern": r"^-?[0-9]{1,30}(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?$"}
_INTEGER = {"type": "integer", "pattern": "^-?[0-9]{1,9}$"}
_BIGINT = {"type": "bigint", "pattern": "^-?[0-9]{1,18}$"}

# In Postgres NaN is larger than any number: it would be the best AUC.
FINITE_VALUE = "case when v.value between -1e300 and 1e300 then v.value end"
"""SQL of the value of public.trial_values v; null for NaN and infinity."""

# Postgres's JSON refuses some escapes (NUL, half a surrogate pair). A text with them is shown as JSON, so that the view
# does not fail.
_TEXT = r"""(
    select case when a.value_json ~ '\\u(0000|[dD][89a-fA-F])' then a.value_json else a.value_json::jsonb #>> '{{}}' end
    from public.trial_user_attributes a where a.trial_id = t.trial_id and a.key = '{name}') as {name}"""

_COLUMNS = (
    _PARAMETER.format(name="resolution", cast="::integer"),
    _PARAMETER.format(name="architecture", cast=""),
    _PARAMETER.format(name="batch_size_exponent", cast="::double precision::integer"),
    _PARAMETER.format(name="learning_rate", cast="::double precision"),
    _NUMBER.format(name="batch_size", **_INTEGER),
    _NUMBER.format(name="feasible_batch_size", **_INTEGER),
    _TEXT.format(name="batch_cap"),
    _NUMBER.format(name="auc_se", **_FLOAT),
    _NUMBER.format(name="epochs", **_INTEGER),
    _NUMBER.format(name="seconds", **_FLOAT),
    _NUMBER.format(name="images_per_second", **_FLOAT),
    _TEXT.format(name="device"),
    _NUMBER.format(name="seed", **_BIGINT),
    _NUMBER.format(name="fold", **_INTEGER),
    _NUMBER.format(name="origin", **_INTEGER),
    _TEXT.format(name="reason"),
)

# A study's name is EXPERIMENT/LABEL or EXPERIMENT/LABEL/confirm, in which a label's / is %2F and its % is %25.
TRIALS_VIEW = f"""
create view acuity.all_trials as
select
    r.experiment,
    r.label,
    r.confirm,
    t.study_id,
    t.trial_id,
    t.number,
    t.state::text as state,
    (select {FINITE_VALUE} from public.trial_values v
        where v.trial_id = t.trial_id and v.objective = 0) as value,
    t.datetime_start at time zone 'utc' as started,
    t.datetime_complete at time zone 'utc' as finished,
    {",".join(_COLUMNS)},
    exists (select from public.trial_user_attributes a where a.trial_id = t.trial_id and a.key = 'requeued') as requeued
from acuity.registered_studies r
join public.studies s on s.study_name = r.study_name
join public.trials t on t.study_id = s.study_id
"""

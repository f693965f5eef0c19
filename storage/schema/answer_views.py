"""SQL of the views acuity.auc_by_resolution and acuity.best_resolution, for psql, Grafana and pandas' read_sql.

Before an experiment is confirmed they show its search: split is "validation", the AUCs are optimistic, and the columns
of the verdict are null. Afterwards split is "test" and the numbers are those that `acuity confirm` has stored.
"""

# 95 % limits, symmetric on the logit scale, as auc_interval in objectives/statistics/intervals.py.
_LIMIT = """case when auc_se > 0 and auc > 0 and auc < 1
        then 1 / (1 + exp(-(ln(auc / (1 - auc)) {sign} 1.959963984540054 * auc_se / (auc * (1 - auc))))) else auc end"""

# An experiment's answer is the confirmation that was asked for last.
_CONFIRMED = """
    select c.experiment, l.label, l.design, l.best, l.reference, l.smallest_adequate, l.by_resolution
    from (
        select distinct on (experiment) experiment, results from acuity.confirmations
        where results is not null order by experiment, asked desc, id desc
    ) c
    cross join lateral jsonb_to_recordset(c.results -> 'labels') as l(
        label text, design jsonb, best jsonb, reference jsonb, smallest_adequate jsonb, by_resolution jsonb)
"""

AUC_BY_RESOLUTION_VIEW = f"""
create view acuity.auc_by_resolution as
with searched as (
    select distinct on (experiment, label, resolution) experiment, label, resolution, value as auc, auc_se
    from acuity.all_trials where not confirm and state = 'COMPLETE'
    order by experiment, label, resolution, value desc nulls last, number
), counted as (
    select experiment, label, resolution, count(*) filter (where state = 'COMPLETE')::integer as complete,
        count(*) filter (where state = 'PRUNED')::integer as pruned
    from acuity.all_trials where not confirm and state in ('COMPLETE', 'PRUNED') group by experiment, label, resolution
), confirmed as (
    select c.experiment, c.label, r.* from ({_CONFIRMED}) c cross join lateral jsonb_to_recordset(c.by_resolution) as r(
        resolution integer, auc double precision, auc_low double precision, auc_high double precision, seeds integer)
), search_limits as (
    select *, {_LIMIT.format(sign="-")} as auc_low, {_LIMIT.format(sign="+")} as auc_high from searched
)
select experiment, label, resolution,
    coalesce(c.auc, s.auc) as auc, coalesce(c.auc_low, s.auc_low) as auc_low,
    coalesce(c.auc_high, s.auc_high) as auc_high,
    case when c.auc is null then 'validation' else 'test' end as split,
    n.complete, n.pruned, coalesce(c.seeds, 0) as seeds
from counted n
left join search_limits s using (experiment, label, resolution)
left join confirmed c using (experiment, label, resolution)
"""

BEST_RESOLUTION_VIEW = f"""
create view acuity.best_resolution as
with searched as (
    select distinct on (experiment, label) experiment, label, resolution, architecture, batch_size,
        feasible_batch_size, learning_rate, value as auc, auc_se
    from acuity.all_trials where not confirm and state = 'COMPLETE'
    order by experiment, label, value desc nulls last, number
), best as (
    select experiment, label, resolution, architecture, batch_size, feasible_batch_size, learning_rate, auc,
        {_LIMIT.format(sign="-")} as auc_low, {_LIMIT.format(sign="+")} as auc_high, 'validation' as split, 0 as seeds,
        null::jsonb as design, null::jsonb as reference, null::jsonb as smallest_adequate
    from searched where (experiment, label) not in (select experiment, label from ({_CONFIRMED}) c)
    union all
    select c.experiment, c.label, b.*, c.design, c.reference, c.smallest_adequate
    from ({_CONFIRMED}) c cross join lateral jsonb_to_record(c.best) as b(
        resolution integer, architecture text, batch_size integer, feasible_batch_size integer,
        learning_rate double precision, auc double precision, auc_low double precision, auc_high double precision,
        split text, seeds integer)
)
select experiment, label, resolution, architecture, batch_size, feasible_batch_size, learning_rate,
    auc, auc_low, auc_high, split, seeds, design ->> 'kind' as design,
    (reference ->> 'resolution')::integer as reference,
    smallest_adequate ->> 'verdict' as verdict,
    (smallest_adequate ->> 'resolution')::integer as smallest_adequate,
    (smallest_adequate ->> 'against')::integer as against,
    (smallest_adequate ->> 'auc_difference')::double precision as auc_difference,
    (smallest_adequate ->> 'margin')::double precision as margin,
    (smallest_adequate ->> 'p_value')::double precision as p_value,
    smallest_adequate ->> 'sentence' as sentence
from best
"""

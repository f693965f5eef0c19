"""Counts of a study's trials by state, without reading the finished ones again."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, text

# A study's trials up to `counted_to` have all ended, so that their number never changes. Trials of a study become
# visible in the order of their ids, since their creation locks the study. The least bound stands as a number in the
# statement: Postgres then expects few rows and uses the index on trial_id.
_COUNT = text(
    """
    with recent as (
        select t.study_id, t.trial_id, t.state in ('COMPLETE', 'PRUNED') as finished,
            t.state = 'FAIL' as failed, t.state = 'RUNNING' as running, t.state = 'WAITING' as waiting
        from public.trials t
        join unnest(cast(:study_ids as integer[]), cast(:counted_to as integer[])) as known (study_id, counted_to)
            on t.study_id = known.study_id and t.trial_id > known.counted_to
        where t.trial_id > :least and t.study_id = any(:study_ids)
    ), bounds as (
        select study_id, coalesce(min(trial_id) filter (where running or waiting) - 1, max(trial_id)) as bound
        from recent group by study_id
    )
    select study_id, count(*) filter (where finished), count(*) filter (where running),
        count(*) filter (where waiting), count(*) filter (where failed), bound,
        count(*) filter (where finished and trial_id <= bound), count(*) filter (where failed and trial_id <= bound)
    from recent join bounds using (study_id) group by study_id, bound
    """
)


@dataclass(frozen=True)
class StudyCounts:
    """Numbers of a study's trials. Finished ones are complete or pruned; failed ones include requeued attempts."""

    finished: int = 0
    running: int = 0
    waiting: int = 0
    failed: int = 0

    @property
    def started(self) -> int:
        """Number of trials that take a place in the budget."""
        return self.finished + self.running


class TrialCounts:
    """Counts trials, and remembers the numbers that never change."""

    def __init__(self) -> None:
        self._counted: dict[int, tuple[int, int, int]] = {}
        """By study, the id up to which all trials have ended, and how many of these finished and failed."""

    def read(self, connection: Connection, study_ids: Collection[int]) -> dict[int, StudyCounts]:
        """Counts by study, of all trials that are visible to the connection's statement."""
        known = {study_id: self._counted.get(study_id, (-1, 0, 0)) for study_id in study_ids}
        rows = connection.execute(
            _COUNT,
            {
                "study_ids": list(known),
                "counted_to": [counted_to for counted_to, *_ in known.values()],
                "least": min((counted_to for counted_to, *_ in known.values()), default=0),
            },
        ).all()
        counts = {study_id: StudyCounts(finished, failed=failed) for study_id, (_, finished, failed) in known.items()}
        for study_id, finished, running, waiting, failed, bound, old_finished, old_failed in rows:
            _, finished_before, failed_before = known[study_id]
            counts[study_id] = StudyCounts(finished_before + finished, running, waiting, failed_before + failed)
            self._counted[study_id] = (bound, finished_before + old_finished, failed_before + old_failed)
        return counts

    def forget(self) -> None:
        """Count everything again next time: a server that took over may have lost the last commits."""
        self._counted.clear()

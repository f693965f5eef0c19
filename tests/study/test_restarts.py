"""The restart policy of a worker's process."""

import os
import signal

from acuity.study.fleet.restarts import NextStep, RestartPolicy


def test_worker_that_finished_or_reported_a_mistake_is_not_restarted() -> None:
    policy = RestartPolicy(outage_limit_s=60)
    assert policy.next_step(0, began=0, now=5) is NextStep.FINISH
    assert [policy.next_step(status, began=0, now=5) for status in (1, 2)] == [NextStep.REPORT_MISTAKE] * 2


def test_worker_is_given_up_after_its_fourth_crash_in_15_minutes() -> None:
    policy = RestartPolicy(outage_limit_s=60)
    steps = [policy.next_step(-signal.SIGSEGV, began=0, now=now) for now in (0, 10, 20, 915, 920, 925, 930)]
    assert steps == [NextStep.RESTART] * 6 + [NextStep.GIVE_UP_CRASHES]


def test_outage_limit_starts_again_after_the_worker_has_connected_to_the_database() -> None:
    policy = RestartPolicy(outage_limit_s=60)

    def away(began: float, now: float) -> NextStep:
        return policy.next_step(os.EX_TEMPFAIL, began=began, now=now)

    assert away(0, 5) is away(30, 64) is NextStep.RESTART_LATER
    assert away(65, 200) is NextStep.RESTART_LATER, "it ran for more than a minute"
    assert away(230, 259) is NextStep.RESTART_LATER
    assert away(255, 260) is NextStep.GIVE_UP_OUTAGE

"""When a worker's process is started again after it ended."""

import os
import signal

from acuity.study.fleet.restarts import NextStep, RestartPolicy


def test_a_finished_worker_and_one_with_a_mistake_are_not_restarted() -> None:
    policy = RestartPolicy(outage_limit_s=60)
    assert policy.next_step(0, began=0, now=5) is NextStep.FINISH
    assert [policy.next_step(status, began=0, now=5) for status in (1, 2)] == [NextStep.REPORT_MISTAKE] * 2


def test_a_worker_is_given_up_after_its_fourth_crash_in_a_quarter_of_an_hour() -> None:
    policy = RestartPolicy(outage_limit_s=60)
    steps = [policy.next_step(-signal.SIGSEGV, began=0, now=now) for now in (0, 10, 20, 915, 920, 925, 930)]
    assert steps == [NextStep.RESTART] * 6 + [NextStep.GIVE_UP_CRASHES]


def test_an_outage_has_a_limit_that_begins_again_once_a_worker_has_reached_the_database() -> None:
    policy = RestartPolicy(outage_limit_s=60)

    def away(began: float, now: float) -> NextStep:
        return policy.next_step(os.EX_TEMPFAIL, began=began, now=now)

    assert away(0, 5) is away(30, 64) is NextStep.RESTART_LATER
    assert away(65, 200) is NextStep.RESTART_LATER, "it ran for more than a minute"
    assert away(230, 259) is NextStep.RESTART_LATER
    assert away(255, 260) is NextStep.GIVE_UP_OUTAGE

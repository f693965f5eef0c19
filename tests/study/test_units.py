"""Durations, bytes, counts and names are printed in one form."""

import pytest

from acuity.study.units import escape_markdown, format_age, format_bytes, format_duration, format_times, signed


@pytest.mark.parametrize(("seconds", "shown"), [(45, "45 s"), (89.4, "89 s"), (90, "2 min"), (5400, "1.5 h")])
def test_a_duration_has_its_natural_unit(seconds: float, shown: str) -> None:
    assert format_duration(seconds) == shown


@pytest.mark.parametrize(("count", "shown"), [(0, "0 MiB"), (12 * 2**20, "12 MiB"), (3.5 * 2**30, "3.5 GiB")])
def test_bytes_have_their_natural_unit(count: float, shown: str) -> None:
    assert format_bytes(count) == shown


@pytest.mark.parametrize(("count", "shown"), [(1, "once"), (2, "twice"), (3, "3 times")])
def test_a_count_of_repetitions_is_in_words(count: int, shown: str) -> None:
    assert format_times(count) == shown


def test_markdown_shows_a_name_literally() -> None:
    assert escape_markdown("a|b*[c](d)<e>") == r"a\|b\*\[c\](d)&lt;e>"


def test_an_event_on_a_host_whose_clock_is_ahead_is_now() -> None:
    assert (format_age(60), format_age(-3)) == ("60 s ago", "0 s ago")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0124, "+0.012"), (-0.0124, "−0.012"), (-0.0004, "0.000"), (0.0004, "0.000"), (-0.0, "0.000"), (0.0, "0.000")],
)
def test_a_number_that_is_rounded_to_zero_has_no_sign(value: float, shown: str) -> None:
    assert signed(value) == shown

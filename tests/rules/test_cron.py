"""Cron: what is due next is what a clock that looks at every minute finds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import Invalid
from broker.rules.cron import FIELDS, MONTHS, WEEKDAYS, Cron, parse_cron

LOOK_DAYS = 40


@st.composite
def fields(draw: st.DrawFn, least: int, greatest: int, names: tuple[str, ...]) -> str:
    def value(number: int) -> str:
        return names[number - least] if number - least < len(names) and draw(st.booleans()) else str(number)

    parts = []
    for _ in range(draw(st.integers(1, 2))):
        low = draw(st.integers(least, greatest))
        high = draw(st.integers(low, greatest))
        step = draw(st.sampled_from(["", "/1", "/2", "/5", "/17"]))
        shape = draw(st.sampled_from(["*", "one", "range"]))
        parts.append(
            "*" + step
            if shape == "*"
            else value(low) + ("" if shape == "one" else f"-{value(high)}") + (step if shape == "range" else "")
        )
    return ",".join(parts)


@st.composite
def expressions(draw: st.DrawFn) -> str:
    return " ".join(draw(st.just("*") | fields(least, greatest, names)) for _, least, greatest, names in FIELDS)


def looked(cron: Cron, after: datetime) -> float | None:
    """Minute by minute, for LOOK_DAYS."""
    when = after.replace(second=0, microsecond=0)
    for _ in range(LOOK_DAYS * 1440):
        when += timedelta(minutes=1)
        if cron.matches(when):
            return when.timestamp()
    return None


def spelled(text: str, when: datetime) -> bool:
    """The definition once more, from the text alone: every value is compared with every part of its field."""

    def fits(field: int, value: int) -> bool:
        _, least, greatest, names = FIELDS[field]
        for part in text.lower().split()[field].split(","):
            span, _, step = part.partition("/")
            ends = ["*"] if span == "*" else span.split("-")
            numbers = (
                [least, greatest] if span == "*" else [names.index(end) + least if end in names else int(end) for end in ends]
            )
            low, high = numbers[0], numbers[-1] if len(numbers) > 1 or not step else greatest
            if low <= value <= high and (value - low) % int(step or 1) == 0:
                return True
        return False

    week = when.isoweekday()
    day, weekday = fits(2, when.day), fits(4, week) or (week == 7 and fits(4, 0))
    dom, dow = text.split()[2], text.split()[4]
    days = (day or weekday) if dom[0] != "*" and dow[0] != "*" else day and weekday
    return fits(0, when.minute) and fits(1, when.hour) and fits(3, when.month) and days


moments = st.datetimes(datetime(1999, 1, 1), datetime(2101, 1, 1)).map(lambda when: when.replace(tzinfo=UTC))


@given(expressions(), moments)
def test_the_next_due_minute_is_the_first_that_matches(text: str, after: datetime) -> None:
    cron = parse_cron(text)
    found, expected = cron.after(after.timestamp()), looked(cron, after)
    if expected is not None:
        assert found == expected
    else:
        assert found is None or found > (after + timedelta(days=LOOK_DAYS - 1)).timestamp()


@given(expressions(), moments)
def test_a_minute_matches_as_its_text_says(text: str, when: datetime) -> None:
    assert parse_cron(text).matches(when) == spelled(text, when)


@given(expressions(), moments, st.integers(0, 5 * 86_400))
def test_of_what_was_missed_the_last_is_made_up_for(text: str, when: datetime, seconds: int) -> None:
    cron = parse_cron(text)
    first = cron.after(when.timestamp())
    if first is None:
        return
    now, last = first + seconds, first
    while (following := cron.after(last)) is not None and following <= now:
        last = following
        if last - first > 86_400:  # enough of the way by hand
            return
    assert cron.latest(first, now) == last


@pytest.mark.parametrize(
    ("text", "after", "due"),
    [
        ("30 6 * * mon-fri", "2026-11-20T06:30", "2026-11-23T06:30"),
        ("0 0 29 2 *", "2096-03-01T00:00", "2104-02-29T00:00"),
        ("0 0 13 * fri", "2026-11-01T00:00", "2026-11-06T00:00"),
        ("*/15 8-9 1 jan,jul *", "2026-07-01T09:45", "2027-01-01T08:00"),
        ("5/20 * * * *", "2026-01-01T00:45", "2026-01-01T01:05"),
        ("0 12 * * 7", "2026-11-23T00:00", "2026-11-29T12:00"),
    ],
)  # fmt: skip
def test_what_people_write_means_what_they_mean(text: str, after: str, due: str) -> None:
    found = parse_cron(text).after(datetime.fromisoformat(after + "+00:00").timestamp())
    assert found == datetime.fromisoformat(due + "+00:00").timestamp()


def test_a_day_that_never_comes_is_said_to_be_none() -> None:
    assert parse_cron("0 0 30 feb *").after(0) is None


@pytest.mark.parametrize(
    "text",
    ["", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "5-1 * * * *",
     "*/0 * * * *", "a * * * *", "1,, * * * *", "1- * * * *", "-1 * * * *", "* * * * mon-", "*-5 * * * *", "٣ * * * *"],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_cron(text)


def test_names_count_from_january_and_sunday() -> None:
    assert parse_cron(f"* * * {MONTHS[0]} *").months == {1}
    assert parse_cron(f"* * * * {WEEKDAYS[0]}").weekdays == {0}

"""Cron expressions: five fields, UTC, as crontab(5) reads them. Pure: a set of minutes of all time.

    minute (0-59)  hour (0-23)  day of month (1-31)  month (1-12, jan-dec)  day of week (0-7, sun-sat; 0 and 7 are Sunday)

A field is `*`, a number, a range `a-b`, any of them with a step `/n`, or a list of those. Where both days are restricted (do
not begin with `*`), one of the two is enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from broker.errors import Invalid

MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
FIELDS: Final[tuple[tuple[str, int, int, tuple[str, ...]], ...]] = (
    ("minute", 0, 59, ()), ("hour", 0, 23, ()), ("day of month", 1, 31, ()), ("month", 1, 12, MONTHS),
    ("day of week", 0, 7, WEEKDAYS),
)  # fmt: skip
"""Name, least and greatest value, and names of values from the least on."""
HORIZON_DAYS: Final = 8 * 366 + 1
"""29 February comes again within eight years, also over a century that leaps none."""
_MINUTE, _DAY = timedelta(minutes=1), timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Cron:
    """`either`: a day that fits the month's days or the week's days is enough."""

    text: str
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either: bool

    def matches(self, when: datetime) -> bool:
        """Whether the minute is due."""
        return when.minute in self.minutes and when.hour in self.hours and self._day(when)

    def after(self, seconds: float) -> float | None:
        """The first due minute later than a time, both in seconds since the epoch; None: there is none (30 February)."""
        start = datetime.fromtimestamp(seconds, UTC).replace(second=0, microsecond=0) + _MINUTE
        day = start.replace(hour=0, minute=0)
        for _ in range(HORIZON_DAYS):
            if self._day(day):
                for when in self._times(day):
                    if when >= start:
                        return when.timestamp()
            day += _DAY
        return None

    def latest(self, first: float, now: float) -> float:
        """Of the due minutes from `first`, which is one, to `now` the last: what was missed is made up for once."""
        day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        while day.timestamp() + 86_400 > first:
            due = [when.timestamp() for when in self._times(day) if when.timestamp() <= now] if self._day(day) else []
            if due:
                return max(first, due[-1])
            day -= _DAY
        return first

    def _times(self, day: datetime) -> Iterator[datetime]:
        return (day.replace(hour=hour, minute=minute) for hour in self.hours for minute in self.minutes)

    def _day(self, when: datetime) -> bool:
        if when.month not in self.months:
            return False
        of_month, of_week = when.day in self.days, when.isoweekday() % 7 in self.weekdays
        return of_month or of_week if self.either else of_month and of_week


def parse_cron(text: str) -> Cron:
    """Raises Invalid that names the field."""
    words = text.split()
    if len(words) != len(FIELDS):
        raise Invalid(
            "not a cron expression", of=text[:100], why=f"{len(words)} field(s) of {len(FIELDS)}",
            hint="minute hour day month weekday, such as: 30 6 * * mon-fri",
        )  # fmt: skip
    minutes, hours, days, months, weekdays = (
        frozenset(_field(word, *field)) for word, field in zip(words, FIELDS, strict=True)
    )  # fmt: skip
    either = not words[2].startswith("*") and not words[4].startswith("*")
    sundays = frozenset(day % 7 for day in weekdays)
    return Cron(" ".join(words).lower(), tuple(sorted(minutes)), tuple(sorted(hours)), days, months, sundays, either)


def _field(text: str, name: str, least: int, greatest: int, names: tuple[str, ...]) -> Iterator[int]:
    for part in text.lower().split(","):
        span, slash, step = part.partition("/")
        low, dash, high = span.partition("-")
        if span == "*":
            first, last = least, greatest
        else:
            first = _value(low, name, least, names)
            last = _value(high, name, least, names) if dash else greatest if slash else first
        by = _number(step, name) if slash else 1
        if not least <= first <= last <= greatest or by < 1:
            raise Invalid(f"no such {name}", of=part[:100], why=f"values go from {least} to {greatest}, ranges upwards")
        yield from range(first, last + 1, by)


def _value(text: str, name: str, least: int, names: tuple[str, ...]) -> int:
    return names.index(text) + least if text in names else _number(text, name)


def _number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 4):
        raise Invalid(f"not a {name}", of=text[:100] or "(nothing)", hint="A number, a-b, */n, or a list of them")
    return int(text)

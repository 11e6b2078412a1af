"""Durations as people write them: 100ms, 30s, 15m, 24h, 7d."""

from __future__ import annotations

import re
from typing import Final

from broker.errors import Invalid

_UNITS: Final[dict[str, float]] = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"(\d{1,9})(ms|[smhd])", re.ASCII)


def seconds_of(text: object, of: str = "duration") -> float:
    """`24h` -> 86400. One whole number and one unit of ms, s, m, h, d. Raises Invalid naming `of`."""
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise Invalid(
            "not a duration", of=of, why=repr(text)[:60], hint="Write a whole number and ms, s, m, h or d: 30s, 15m, 24h, 7d"
        )
    return int(found[1]) * _UNITS[found[2]]

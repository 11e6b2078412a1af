"""Numbers and times as people read them."""

from __future__ import annotations

import time
from typing import Final
from urllib.parse import urlsplit

UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def bytes_text(count: float) -> str:
    """`1.5 MiB`."""
    for unit in UNITS:
        if count < 1024 or unit == UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def time_text(seconds: float | None) -> str:
    """Local time, to the second; '' for none."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""


def span_text(seconds: float) -> str:
    """`1.2 s`, `3 min`, `2 h`, `4 d`."""
    for limit, size, unit in ((90.0, 1.0, "s"), (5400.0, 60.0, "min"), (172800.0, 3600.0, "h")):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}" if unit == "s" else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def public_place(place: str) -> str:
    """A path as it is; a URL without what may be secret: user, password, options."""
    if "://" not in place:
        return place
    parts = urlsplit(place)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

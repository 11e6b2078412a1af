"""Exit codes: what a script can rely on. One table maps errors to them; the first line that fits counts."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from broker.errors import (
    BrokerError,
    Busy,
    Conflict,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    Reconciling,
    RequestExpired,
    RequestLost,
    SchemaConflict,
    StaleBase,
    TimedOut,
    Unavailable,
)


class Exit(IntEnum):
    """0 ok, 1 failed, 2 usage (malformed input), 3 not found, 4 conflict, 5 timed out, 6 unreachable."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    TIMED_OUT = 5
    UNREACHABLE = 6


CODES: Final[tuple[tuple[type[BrokerError], Exit], ...]] = (
    (Invalid, Exit.USAGE),
    (NotFound, Exit.NOT_FOUND),
    (RequestLost, Exit.NOT_FOUND),
    (Conflict, Exit.CONFLICT),
    (SchemaConflict, Exit.CONFLICT),
    (StaleBase, Exit.CONFLICT),
    (Busy, Exit.CONFLICT),
    (TimedOut, Exit.TIMED_OUT),
    (RequestExpired, Exit.TIMED_OUT),
    (Unavailable, Exit.UNREACHABLE),
    (OutcomeUnknown, Exit.UNREACHABLE),
    (Reconciling, Exit.UNREACHABLE),
    (Overloaded, Exit.UNREACHABLE),
    (BrokerError, Exit.FAILED),
)


def exit_of(error: BrokerError) -> Exit:
    """The code of an error."""
    return next(code for kind, code in CODES if isinstance(error, kind))

"""What each error of the Redis driver means to a caller. No redis exception leaves `backend/` but through here.

A connection that breaks after a write was sent leaves its outcome unknown; before that, and for reads, nothing happened.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from redis import exceptions as driver

from broker.errors import (
    BrokerError,
    Busy,
    Conflict,
    Fenced,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    Terminal,
    Unavailable,
    Unsupported,
)


class Meaning(NamedTuple):
    """`known`: the error when nothing was changed; `unknown`: when a write was under way."""

    known: type[BrokerError]
    unknown: type[BrokerError]
    what: str
    hint: str = ""


def _either(kind: type[BrokerError], what: str, hint: str = "") -> Meaning:
    return Meaning(kind, kind, what, hint)


_ADDRESS: Final = "Check that Redis runs and BROKER_REDIS names it"
_LOST: Final = Meaning(Unavailable, OutcomeUnknown, "Redis does not answer", _ADDRESS)
_GARBLED: Final = Meaning(
    Unavailable, OutcomeUnknown, "Redis answered something unreadable", "Check what listens at BROKER_REDIS"
)
_LOGIN: Final = _either(Terminal, "Redis refuses this login", "Check user and password in BROKER_REDIS")
_RIGHTS: Final = _either(Terminal, "Redis forbids this to the user", "Give its ACL the missing command or key pattern")
_CLUSTER: Final = _either(
    Unavailable, "the Redis cluster is not ready for this key", "Wait for it to settle: redis-cli --cluster check"
)
_LOADING: Final = _either(Unavailable, "Redis is not ready", "Wait until it has loaded, or promote a primary")
_FULL: Final = _either(Overloaded, "Redis is full", "Raise maxmemory, or let consumers catch up")
_REFUSED: Final = _either(Terminal, "Redis refuses the command")
_MISUSE: Final = _either(Terminal, "Redis was called wrongly", "This is a defect of the broker: please report it")

DRIVER_ERRORS: Final[dict[type[BaseException], Meaning]] = {
    driver.RedisError: Meaning(Terminal, OutcomeUnknown, "Redis failed"),
    driver.ConnectionError: _LOST,
    driver.TimeoutError: _LOST,
    driver.InvalidResponse: _GARBLED,
    driver.AuthenticationError: _LOGIN,
    driver.AuthorizationError: _LOGIN,
    driver.AuthenticationWrongNumberOfArgsError: _LOGIN,
    driver.ExternalAuthProviderError: _either(Unavailable, "Redis cannot reach its login provider", "Check the LDAP service"),
    driver.NoPermissionError: _RIGHTS,
    driver.BusyLoadingError: _LOADING,
    driver.ReadOnlyError: _LOADING,
    driver.MasterDownError: _LOADING,
    driver.MaxConnectionsError: _either(
        Overloaded, "this process holds too many connections", "Raise max_connections in the URL"
    ),
    driver.OutOfMemoryError: _FULL,
    driver.ResponseError: _REFUSED,
    driver.NoScriptError: _either(Unavailable, "Redis forgot a script", "Call again: nothing ran"),
    driver.ModuleError: _either(Unsupported, "a Redis module is missing"),
    driver.NoSuchFieldsetError: _MISUSE,
    driver.DataError: _either(Invalid, "Redis cannot take this value", "Pass bytes, str, int or float"),
    driver.PubSubError: _MISUSE,
    driver.ExecAbortError: _MISUSE,
    driver.WatchError: _either(Busy, "somebody else changed a watched key", "Try again"),
    driver.LockError: _either(Busy, "the lock is taken", "Try again"),
    driver.LockNotOwnedError: _either(Fenced, "the lock went to somebody else"),
    driver.ChildDeadlockedError: _either(Unavailable, "a forked process inherited a locked pool", "Fork before threads start"),
    driver.RedisClusterException: Meaning(Unavailable, OutcomeUnknown, "the Redis cluster does not answer", _ADDRESS),
    driver.ClusterError: _CLUSTER,
    driver.ClusterDownError: _CLUSTER,
    driver.AskError: _CLUSTER,
    driver.MovedError: _CLUSTER,
    driver.TryAgainError: _CLUSTER,
    driver.SlotNotCoveredError: _CLUSTER,
    driver.ClusterCrossSlotError: _MISUSE,
    driver.CrossSlotTransactionError: _MISUSE,
    driver.InvalidPipelineStack: _GARBLED,
    driver.IncorrectPolicyType: _MISUSE,
}

ROOTS: Final[tuple[type[Exception], ...]] = (
    driver.RedisError,
    driver.RedisClusterException,
    driver.ChildDeadlockedError,
    driver.IncorrectPolicyType,
)

# Replies the driver has no class for, by their first word; Redis 6.2 also hides those of known classes inside script errors.
REPLIES: Final[dict[str, Meaning]] = {
    "OOM": _FULL,
    "MISCONF": _either(Unavailable, "Redis cannot write to its disk", "Free the disk it writes to: df"),
    "BUSY": _either(Unavailable, "Redis is busy with a script", "Wait, or SCRIPT KILL"),
    "LOADING": _LOADING,
    "READONLY": _LOADING,
    "MASTERDOWN": _LOADING,
    "NOREPLICAS": _either(Unavailable, "Redis has too few replicas", "Start them, or lower min-replicas-to-write"),
    "UNBLOCKED": _either(Unavailable, "Redis ended a blocking read", "Read again"),
    "CLUSTERDOWN": _CLUSTER,
    "TRYAGAIN": _CLUSTER,
    "CROSSSLOT": _MISUSE,
    "NOPERM": _RIGHTS,
    "NOAUTH": _LOGIN,
    "NOGROUP": _either(NotFound, "no such stream or group"),
    "BUSYGROUP": _either(Conflict, "the group exists already"),
    "WRONGTYPE": _either(
        Terminal, "a key holds another type", "Something else writes into this Redis: give the broker its own"
    ),
}

_INSIDE_SCRIPT: Final = re.compile(r"(?:Error running script.*?|@user_script: ?\d+): -([A-Z]+) ", re.DOTALL)
_UNKNOWN_COMMAND: Final = re.compile(r"unknown (sub)?command", re.IGNORECASE)
_UNKNOWN: Final = _either(Unsupported, "this Redis lacks a command", "Use Redis 6.2 or newer, or Valkey")


def broker_error(error: Exception, of: str, *, unknown: bool) -> BrokerError:
    """The broker's error for a driver's. `unknown`: a write had been sent, so it may or may not have happened."""
    text = str(error)
    meaning = _meaning(error, text)
    kind = meaning.unknown if unknown else meaning.known
    return kind(meaning.what, of=of, why=text, hint="Read back what happened" if kind is OutcomeUnknown else meaning.hint)


def _meaning(error: Exception, text: str) -> Meaning:
    if type(error) is driver.ResponseError:
        inside = _INSIDE_SCRIPT.search(text)
        code = inside[1] if inside else text.partition(" ")[0]
        return REPLIES.get(code) or (_UNKNOWN if _UNKNOWN_COMMAND.search(text) else _REFUSED)
    return next((DRIVER_ERRORS[kind] for kind in type(error).__mro__ if kind in DRIVER_ERRORS), _GARBLED)


@contextmanager
def mapped(of: str, *, writes: bool = True) -> Iterator[None]:
    """Around direct use of `client.commands`, also as a decorator. `writes=False`: nothing inside changes anything."""
    try:
        yield
    except ROOTS as error:
        raise broker_error(error, of, unknown=writes) from error

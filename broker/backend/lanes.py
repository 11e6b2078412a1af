"""Connections of a driver's pool, kept between calls: half the time of a short call is the pool looking at its connection."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol, TypeAlias, cast

from hiredis import pack_command
from redis.exceptions import ResponseError

JOINED_BYTES: Final = 256 << 10  # more goes to the socket piece by piece, instead of being copied first
FRESH_SECONDS: Final = 1.0  # a connection used more recently is taken as alive; a broken one then shows as OutcomeUnknown

Argument: TypeAlias = bytes | str | int | float


class Wire(Protocol):
    """What the driver's connections do, typed; it disconnects by itself after a failed exchange."""

    def send_packed_command(self, command: list[bytes]) -> None: ...

    def send_command(self, *args: Argument) -> None: ...

    def read_response(self) -> Any: ...

    def disconnect(self) -> None: ...


class Pool(Protocol):
    """A driver's pool, typed. `get_connection` gives a connected one or raises before anything was sent."""

    def get_connection(self) -> Wire: ...

    def release(self, connection: Wire) -> None: ...


class Lanes:
    """Connections of a pool kept between calls.

    The pool polls each connection at every checkout, which doubles the CPU of a call. Safe for threads (a deque's append and
    pop are atomic) and after a fork, where the pool starts afresh and so do the lanes.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._idle: deque[tuple[Wire, float]] = deque()
        self._pid = os.getpid()

    def take(self) -> Wire:
        """A connected connection. Raises the driver's errors; nothing has been sent then."""
        if self._pid != os.getpid():
            self._idle, self._pid = deque(), os.getpid()
        try:
            connection, used = self._idle.pop()
        except IndexError:
            return self.pool.get_connection()
        if time.monotonic() - used < FRESH_SECONDS:
            return connection
        self.pool.release(connection)
        return self.pool.get_connection()

    def exchange(self, connection: Wire, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Send all, then read all; refusals come as values, in order. Any other error closes the connection."""
        try:
            connection.send_packed_command(packed(commands))
            replies = [read_reply(connection) for _ in commands]
        except BaseException:
            connection.disconnect()
            self.pool.release(connection)
            raise
        self._idle.append((connection, time.monotonic()))
        return replies


_pack: Final = cast(Callable[[tuple[Argument, ...]], bytes], pack_command)


def packed(commands: Iterable[Sequence[Argument]]) -> list[bytes]:
    """What goes over the wire; the driver's own packing costs six times as much a command."""
    pieces = [_pack(tuple(command)) for command in commands]
    return [b"".join(pieces)] if sum(map(len, pieces)) <= JOINED_BYTES else pieces


def read_reply(connection: Wire) -> Any:
    """The next reply; a refusal as a value, because the replies behind it are still to come."""
    try:
        return connection.read_response()
    except ResponseError as refusal:
        return refusal

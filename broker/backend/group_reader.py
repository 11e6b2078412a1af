"""One consumer of a stream group that misses nothing over a reconnect.

A reply that was lost on its way has made its entries pending: they are nobody's until this consumer asks for them again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final, cast

from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import MovedError, ResponseError

from broker.backend.client import Entry, RedisClient, parse_entries, xreadgroup
from broker.backend.driver_errors import mapped
from broker.backend.lanes import Wire

NEW: Final = b">"
PENDING: Final = b"0"


class GroupReader:
    """Reads streams of one hash slot for one consumer name, over a connection of its own. Not for two threads at once.

    After every (re)connect it first hands over what is pending for its name, then new entries. So an entry may come twice,
    also one the caller still works on: the caller knows what it holds.
    """

    def __init__(self, client: RedisClient, streams: Sequence[bytes], group: bytes, consumer: bytes) -> None:
        self._client, self._group, self._consumer = client, group, consumer
        self._cursors = dict.fromkeys(streams, PENDING)
        self._connection: Wire | None = None
        self._pid = 0

    def read(self, count: int, block_ms: int) -> list[Entry]:
        """Up to `count` entries per stream; empty when none came within `block_ms` (at most 2,000; 0: do not wait).

        Raises Unavailable when Redis cannot be reached, NotFound when a stream or its group is gone (after FLUSHALL, say).
        """
        with mapped(", ".join(stream.decode(errors="replace") for stream in self._cursors), writes=False):
            while True:
                entries, replayed = self._attempt(count, block_ms)
                if entries or not replayed:
                    return entries

    def close(self) -> None:
        """Give the connection back. Pending entries stay pending."""
        if self._connection is not None:
            self._drop(self._connection)

    # --- one try

    def _attempt(self, count: int, block_ms: int) -> tuple[list[Entry], bool]:
        """One exchange; on a connection that had died meanwhile one more, since that says nothing about Redis now."""
        held = self._connection is not None
        try:
            return self._exchange(count, block_ms)
        except Disconnected:
            if not held:
                raise
            return self._exchange(count, block_ms)

    def _exchange(self, count: int, block_ms: int) -> tuple[list[Entry], bool]:
        """The entries, and whether pending ones were asked for (that never waits, so new ones are still to be asked for)."""
        connection = self._connect()
        replaying = any(cursor != NEW for cursor in self._cursors.values())
        try:
            connection.send_command(*xreadgroup(self._cursors, self._group, self._consumer, count, block_ms))
            reply = connection.read_response()
        except MovedError as moved:
            self._drop(connection)
            cast(Any, self._client.blocking).nodes_manager.initialize(additional_startup_nodes_info=[(moved.host, moved.port)])
            raise
        except ResponseError:
            raise  # a refusal: the exchange is complete and the connection good
        except BaseException:
            self._drop(connection)
            raise
        found = list(parse_entries(reply))
        if replaying:
            self._advance([entry for entry, _ in found])
            self._forget(connection, [entry for entry, alive in found if not alive])
        return [entry for entry, alive in found if alive], replaying

    def _advance(self, found: Sequence[Entry]) -> None:
        """Behind the last pending entry of each stream; to new ones where none was left."""
        last = {entry.stream: entry.id for entry in found}
        for stream, cursor in self._cursors.items():
            self._cursors[stream] = NEW if cursor == NEW else last.get(stream, NEW)

    def _forget(self, connection: Wire, deleted: Sequence[Entry]) -> None:
        """Acknowledge pending entries whose data was trimmed or deleted: nobody can ever work on them."""
        for entry in deleted:
            connection.send_command("XACK", entry.stream, self._group, entry.id)
            connection.read_response()

    # --- the connection

    def _connect(self) -> Wire:
        if self._connection is not None and self._pid == os.getpid():
            return self._connection
        self._cursors = dict.fromkeys(self._cursors, PENDING)
        pool = self._client.blocking_pool(next(iter(self._cursors)))
        self._connection, self._pid = pool.get_connection(), os.getpid()
        return self._connection

    def _drop(self, connection: Wire) -> None:
        self._connection = None
        connection.disconnect()
        self._client.blocking_pool(next(iter(self._cursors))).release(connection)

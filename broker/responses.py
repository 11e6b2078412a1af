"""Response streams: a target's completions, delivered at least once to the readers that share them."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from broker.backend.client import BLOCK_MAX_MS, Entry, RedisClient
from broker.backend.group_reader import GroupReader
from broker.backend.index import Index
from broker.backend.keys import READERS, Slot
from broker.backend.watch import Watch
from broker.errors import NotFound, Transient, Unsupported
from broker.flights import completion_of
from broker.model.names import check_name
from broker.model.request import Completion

log = logging.getLogger("broker.responses")
CLAIM_IDLE_MS: Final = 60_000
"""What a reader has held unacknowledged for a minute goes to another: it is dead, or should have said retry."""
PAGE: Final = 100
NOWHERE: Final[Mapping[bytes, bytes]] = {}
SLOTS_SECONDS: Final = 1.0
"""A domain whose first answer comes is found after so long; looking each time would double the cost of a read."""


@dataclass(frozen=True)
class Response:
    """One terminal event as delivered. `ack` it when its effect is durable; the same `completion.request` may come again."""

    completion: Completion
    entry: Entry
    slot: Slot
    responses: Responses

    @property
    def id(self) -> str:
        """The event's id: the request's."""
        return self.completion.request

    def ack(self) -> None:
        """Done: delete it from the stream. Idempotent."""
        self.responses.ack([self])

    def retry(self, in_seconds: float = 0.0) -> None:
        """Not now: show it again, to any reader, `in_seconds` from now."""
        self.responses.later(self, in_seconds)


class Responses:
    """The reading half of one target. Several readers share the group; one instance is for one thread."""

    def __init__(self, redis: RedisClient, index: Index, target: str) -> None:
        self.target = check_name(target, "target")
        self._redis, self._index = redis, index
        self._again = redis.script("read_again")
        self._consumer = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}".encode()
        self._readers: dict[str, GroupReader] = {}
        self._known, self._looked = list[Slot](), 0.0

    def peek(self, limit: int = PAGE, after: Mapping[bytes, bytes] = NOWHERE) -> list[Response]:
        """The oldest unread responses of every slot; nothing is claimed or acknowledged. `after`: stream -> the last seen."""
        found = []
        for slot in self._index.slots():
            stream = slot.responses(self.target)
            first = b"(" + after[stream] if stream in after else b"-"
            reply = self._redis.run("XRANGE", stream, first, "+", "COUNT", limit, writes=False)
            found += self._readable(slot, _entries(stream, reply))
        return found

    def read(self, count: int = PAGE, block_seconds: float = 0.0) -> list[Response]:
        """What there is for this reader: its own pending first, then new ones, then what others left for too long.

        Waits at most `block_seconds` for the first.
        """
        deadline = time.monotonic() + block_seconds
        while True:
            slots = self._slots()
            left = deadline - time.monotonic()
            # With one slot Redis does the waiting; with several, each gets its share of it in turn.
            block = max(0, min(int(left * 1000), BLOCK_MAX_MS if len(slots) == 1 else 50))
            for slot in slots:
                self._redis.call(self._again, [slot.meta, slot.responses(self.target), slot.retries(self.target)], ["", "", ""])
                found = self._read_slot(slot, count, block)
                if found:
                    return found
            if left <= 0:
                return self._steal(count)
            if not slots:
                time.sleep(min(left, 0.05))

    def listen(self, timeout: float | None = None) -> Iterator[Response]:
        """Responses as they come; ends, closed, when none came for `timeout` seconds (None: never) or nobody iterates."""
        try:
            while found := self._wait(timeout):
                yield from found
        finally:
            self.close()

    def _wait(self, timeout: float | None) -> list[Response]:
        """The next ones; [] when none came for `timeout` seconds."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        found: list[Response] = []
        while not found and (left := deadline - time.monotonic()) > 0:
            found = self.read(block_seconds=min(1.0, left))
        return found

    def ack(self, responses: list[Response]) -> None:
        """Acknowledge several in one round trip."""
        commands: list[Any] = []
        for response in responses:
            commands += [
                ("XACK", response.entry.stream, READERS, response.entry.id),
                ("XDEL", response.entry.stream, response.entry.id),
            ]
        self._redis.replies(commands, self.target)

    def later(self, response: Response, in_seconds: float) -> None:
        keys = [response.slot.meta, response.slot.responses(self.target), response.slot.retries(self.target)]
        self._redis.call(self._again, keys, [response.entry.id, int(in_seconds * 1000), response.entry.fields[b"e"]])

    def close(self) -> None:
        """Give the connections back. What is unacknowledged goes to another reader, in time. Idempotent."""
        readers, self._readers = self._readers, {}
        for name, reader in readers.items():
            reader.close()
            with suppress(Transient, NotFound):
                self._leave(Slot(name))

    def _slots(self) -> list[Slot]:
        """Where answers may lie; looked for once a second once there is one."""
        if not self._known or time.monotonic() - self._looked > SLOTS_SECONDS:
            self._known, self._looked = self._index.slots(), time.monotonic()
        return self._known

    def _leave(self, slot: Slot) -> None:
        """Take this consumer out of the group. Not while it holds something: that would be nobody's, and never come again."""
        stream = slot.responses(self.target)
        if not self._redis.run("XPENDING", stream, READERS, "-", "+", 1, self._consumer, writes=False):
            self._redis.run("XGROUP", "DELCONSUMER", stream, READERS, self._consumer)

    def _read_slot(self, slot: Slot, count: int, block_ms: int) -> list[Response]:
        reader = self._readers.get(slot.name) or self._open(slot, block_ms)
        if reader is None:
            return []
        try:
            entries = reader.read(count, block_ms)
        except NotFound:
            self._readers.pop(slot.name).close()  # Redis lost its memory, and the stream with it
            return []
        return self._readable(slot, entries)

    def _open(self, slot: Slot, block_ms: int) -> GroupReader | None:
        """A reader of the slot's stream; None while there is none: a target has no stream where nobody answered it."""
        stream = slot.responses(self.target)
        if not self._redis.run("EXISTS", stream, writes=False):
            if block_ms:
                Watch(self._redis, stream).wait(b"0", block_ms)
            return None
        self._redis.create_group(stream, READERS)
        reader = self._readers[slot.name] = GroupReader(self._redis, [stream], READERS, self._consumer)
        return reader

    def _steal(self, count: int) -> list[Response]:
        """Responses that another reader took and left for too long."""
        found = []
        for slot in [Slot(name) for name in self._readers]:
            stream = slot.responses(self.target)
            try:
                reply = self._redis.run("XAUTOCLAIM", stream, READERS, self._consumer, CLAIM_IDLE_MS, "0", "COUNT", count)
            except NotFound:
                continue  # Redis lost its memory: the next read sees it too
            found += self._readable(slot, _entries(stream, reply[1]))
        return found

    def _readable(self, slot: Slot, entries: Iterable[Entry]) -> list[Response]:
        """What another release wrote stays in the stream, for a reader that can read it; it holds up nothing behind it."""
        found = list[Response]()
        for entry in entries:
            try:
                found.append(Response(completion_of(entry.fields[b"e"]), entry, slot, self))
            except Unsupported as error:
                log.warning("left in the stream of %s: %s", self.target, error)
        return found


def _entries(stream: bytes, raw: Iterable[tuple[bytes, list[bytes]]]) -> Iterator[Entry]:
    """Of ids with their fields in turn; deleted ones have none."""
    return (Entry(stream, id, dict(zip(flat[::2], flat[1::2], strict=True))) for id, flat in raw if flat)

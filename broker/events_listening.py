"""Listening: the events of all slots as one stream, by long poll, from a position that may be durable."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from pydantic import ValidationError

from broker.backend.client import Entry
from broker.backend.keys import LISTENER, Slot, listener_slot
from broker.errors import BrokerError, Busy, Fenced, NotFound, Transient
from broker.events import End, Events, Position
from broker.model.event import Event
from broker.model.names import DatasetId, check_name
from broker.rules.hearing import Wanted, overtaken, present_channel, present_version
from broker.rules.publishing import Lease

log = logging.getLogger("broker.events")
LOOK_SECONDS: Final = 1.0
"""Between looks for new slots and for a Redis that lost its memory; no read blocks for longer."""
IDLE_SECONDS: Final = 0.05
"""Between looks while there is no slot at all to read."""
KEEP_SECONDS: Final = 1.0
"""While events are asked for one after the other, the durable position follows so far behind."""


@dataclass
class _Due:
    """One entry on its way to the listener: nothing but a position where `event` is None; no position: more must come first."""

    slot: str
    position: Position | None
    event: Event | None
    done: bool = False


class Heard:
    """An event as delivered. Done with when `ack()` says so or the next one is asked for; else it comes again."""

    def __init__(self, event: Event, due: _Due, listener: Listener) -> None:
        self.event, self._due, self._listener = event, due, listener
        self.id, self.type, self.subject, self.time, self.data = event.id, event.type, event.subject, event.time, event.data

    @property
    def present(self) -> bool:
        """Whether it is no news, but what stood when the listener began."""
        return bool(self.data.get("present"))

    def ack(self) -> None:
        """Its effect is durable, and that of all before it: the cursor moves now. Raises Fenced, Unavailable."""
        self._listener._ack(self._due)

    def __repr__(self) -> str:
        return f"Heard({self.type} {self.subject} {self.data})"


class Listener:
    """One thread's ear. `listen` may be called again: it goes on where it was.

    The events of a dataset come in their order, at least once. With a `cursor` its position survives this process, and one at
    a time listens under that name.
    """

    def __init__(self, events: Events, wanted: Wanted, cursor: str | None = None) -> None:
        self._events, self._wanted = events, wanted
        self._cursor = None if cursor is None else check_name(cursor, "cursor")
        self._owner, self._lease, self._stack = uuid4().hex, None, ExitStack()
        self._at, self._done = dict[str, Position](), dict[str, Position]()
        self._due, self._presented = deque[_Due](), dict[DatasetId, int]()
        self._unsaved, self._looked, self._saved = False, -math.inf, time.monotonic()

    _lease: Lease | None

    def listen(self, timeout: float | None = None) -> Iterator[Heard]:
        """Events as they come; ends when none came for `timeout` seconds (None: never).

        Who has no position hears the present state of each matching dataset first: `present` in their data.
        Raises Busy (somebody else listens with this cursor), Fenced (it went to somebody else), Unavailable and OutcomeUnknown
        (Redis is silent): call it again and nothing is lost.
        """
        with ExitStack() as self._stack:
            self._begin()
            try:
                yield from self._run(timeout)
            finally:
                self._save_at_end()

    def _run(self, timeout: float | None) -> Iterator[Heard]:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            while self._due:
                due = self._due[0]
                if due.event is not None and not due.done:
                    yield Heard(due.event, due, self)
                    deadline = math.inf if timeout is None else time.monotonic() + timeout
                self._finish(due)
                self._due.popleft()
                if time.monotonic() - self._saved > KEEP_SECONDS:
                    self._save()
            self._save()
            left = deadline - time.monotonic()
            self._read(max(0, int(min(left, LOOK_SECONDS) * 1000)))
            if left <= 0 and not self._due:
                return

    # --- the durable position

    def _begin(self) -> None:
        if self._cursor is None:
            return
        held = self._events.tools.leases.held(listener_slot(self._cursor), LISTENER, self._owner)
        try:
            self._lease = self._stack.enter_context(held)
        except Busy as error:
            why = "it goes on when that one ends, or is silent for too long"
            raise Busy("somebody else listens under this cursor", of=self._cursor, why=why, hint=error.hint) from None
        self._at, self._done = {}, self._events.positions(self._cursor, self._wanted.fingerprint)
        self._due.clear()
        self._presented.clear()
        self._looked = -math.inf

    def _finish(self, due: _Due) -> None:
        if due.position is not None and self._done.get(due.slot) != due.position:
            self._done[due.slot], self._unsaved = due.position, True

    def _ack(self, due: _Due) -> None:
        due.done = True
        self._finish(due)
        self._save()

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self._cursor is None or self._lease is None or not self._unsaved:
            return
        try:
            self._events.keep(self._cursor, self._lease, self._wanted.fingerprint, self._done)
        except Fenced:  # Redis restarted, or this process slept: if nobody came in between it goes on
            self._stack.close()
            self._begin_again(self._cursor)
            self._events.keep(self._cursor, self._lease, self._wanted.fingerprint, self._done)
        self._unsaved = False

    def _begin_again(self, cursor: str) -> None:
        there = self._events.positions(cursor, self._wanted.fingerprint)
        self._lease = self._stack.enter_context(
            self._events.tools.leases.held(listener_slot(cursor), LISTENER, self._owner)
        )  # fmt: skip
        if any(
            there[name].born == done.born and newer(there[name], done) for name, done in self._done.items() if name in there
        ):
            raise Fenced(
                "somebody else listened under this name meanwhile", of=cursor, hint="Listen again: it goes on from there"
            )

    def _save_at_end(self) -> None:
        try:
            self._save()
        except (Transient, Fenced) as error:  # what is not saved comes again
            log.debug("%s: position not kept: %s", self._cursor, error)

    # --- reading

    def _read(self, block_ms: int) -> None:
        if not self._at or time.monotonic() - self._looked >= LOOK_SECONDS:
            self._look()
        if self._due:
            return
        if not self._at:
            time.sleep(min(block_ms / 1000, IDLE_SECONDS))
            return
        for name, entry in self._events.read(self._at, block_ms):
            position = Position(self._at[name].born, entry.id.decode())
            self._at[name] = position
            self._due.append(_Due(name, position, self._readable(entry)))

    def _look(self) -> None:
        """Slots that are new, or whose memory is: they begin with the present."""
        slots = [slot for slot in self._events.slots() if self._wanted.in_domain(slot.name.rpartition(".")[0])]
        for name, end in (self._events.ends(slots) if slots else {}).items():
            known = self._at.get(name) or self._done.get(name)
            if known is None or self._events.lapsed(known, end):
                self._start(name, end)
            elif name not in self._at:
                self._at[name] = known
        self._looked = time.monotonic()

    def _start(self, name: str, end: End) -> None:
        """The present of a slot whose stream ends at `end`, which was read before. Begun anew where Redis falls silent."""
        tools = self._events.tools
        for dataset in tools.index.datasets(Slot(name)):
            for event in self._present(dataset) if self._wanted.takes_dataset(dataset) else ():
                if self._wanted.takes(event):
                    self._due.append(_Due(name, None, event))
        self._due.append(_Due(name, end.position, None))
        self._at[name] = end.position

    def _present(self, dataset: DatasetId) -> Iterator[Event]:
        tools = self._events.tools
        try:
            state, named = tools.catalog.state(dataset), tools.named(dataset)
        except NotFound:
            return  # dropped
        except Transient:
            raise
        except BrokerError as error:
            log.warning("%s: its present is not told: %s", dataset, error)
            return
        event = present_version(dataset, state)
        if event is not None and self._presented.get(dataset) != state.offered:
            self._presented[dataset] = state.offered
            yield event
        for channel, pointer in named.items():
            yield present_channel(dataset, channel, pointer)

    def _readable(self, entry: Entry) -> Event | None:
        """The event, where it is wanted, is news and can be read: what another release wrote is passed over."""
        try:
            event = Event.model_validate_json(entry.fields[b"e"])
        except (ValidationError, KeyError) as error:
            log.warning("an event that this release cannot read is passed over: %s", str(error).splitlines()[0])
            return None
        return event if self._wanted.takes(event) and not overtaken(event, self._presented) else None


def newer(one: Position, other: Position) -> bool:
    """Whether an entry of one memory is behind another."""
    return _number(one.id) > _number(other.id)


def _number(id: str) -> tuple[int, ...]:
    return tuple(map(int, id.split("-")))

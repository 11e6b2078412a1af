"""The ledger of events: the streams of all slots, and news that no commit carries. The only writer of listeners' keys.

    what happened ──► commit record ──► publish script ──► {domain.shard}:events ──► listeners, each at its own position
                      (or emit) ─────────────────────────►

A listener without a position hears the present state of each dataset first: the end of the stream is read before the states, so
that nothing falls between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from uuid import uuid4

from pydantic import ValidationError

from broker.backend.client import Entry, RedisClient
from broker.backend.index import Index
from broker.backend.keys import LISTENER, Slot, listener_slot
from broker.backend.lanes import Argument
from broker.backend.leases import Leases
from broker.backend.watch import read_streams
from broker.catalog import Catalog
from broker.errors import BrokerError, Fenced, Invalid
from broker.model.dataset import Frozen
from broker.model.event import DATA, Event, EventType, rfc3339
from broker.model.names import DatasetId
from broker.rules.hearing import Pointer
from broker.rules.publishing import Lease

READ_ENTRIES: Final = 500
SHARE_MS: Final = 50
"""On a cluster slots are read in turn: each gets so much of the wait."""
Named = Callable[[DatasetId], Mapping[str, Pointer]]
"""What the channels of a dataset name, by channel."""


def no_channels(dataset: DatasetId) -> Mapping[str, Pointer]:
    """For a broker without channels."""
    del dataset
    return {}


class Position(NamedTuple):
    """Where a listener stands in a slot: behind entry `id` of the memory that Redis has had since `born` (ms)."""

    born: str
    id: str

    @property
    def milliseconds(self) -> int:
        """When the entry was made, by Redis' clock; 0: before every entry."""
        return int(self.id.partition("-")[0])


class End(NamedTuple):
    """The end of a slot's stream, and now (ms)."""

    position: Position
    now: int


@dataclass(frozen=True)
class Tools:
    """What the ledger works with. `named`: what channels name."""

    redis: RedisClient
    index: Index
    catalog: Catalog
    leases: Leases
    history_seconds: int
    named: Named = no_channels

    @property
    def history_ms(self) -> int:
        return self.history_seconds * 1000


class Events:
    """Safe for threads and processes."""

    def __init__(self, tools: Tools) -> None:
        self.tools = tools
        redis = tools.redis
        self._end, self._heard = redis.script("events_end", writes=False), redis.script("heard", writes=False)
        self._emit = redis.script("emit")

    def emit(self, dataset: DatasetId, type: EventType, data: Frozen | Mapping[str, Any], once: str = "") -> bool:
        """Tell what no commit record tells. `once`: a name under which it is told only once in the history of events.

        False: it was told. Raises Invalid for data that the type does not have, Unavailable, OutcomeUnknown.
        """
        slot, name = self.tools.index.slot(dataset), f"{dataset}:{once}" if once else ""
        id = f"{dataset}/{uuid4().hex}"
        seconds = self._ends([slot])[0].now / 1000
        event = Event(
            id=id, source=f"broker/{dataset.domain}", type=type, subject=dataset, time=rfc3339(seconds), correlationid=id,
            data=checked_data(type, data),
        )  # fmt: skip
        args: list[Argument] = [event.model_dump_json(), self.tools.history_ms, name]
        return bool(self.tools.redis.call(self._emit, [slot.meta, slot.events], args))

    # --- for listeners

    def slots(self) -> list[Slot]:
        return self.tools.index.slots()

    def ends(self, slots: Sequence[Slot]) -> dict[str, End]:
        """The ends of slots' streams by slot name, in one round trip."""
        return dict(zip([slot.name for slot in slots], self._ends(slots), strict=True))

    def read(self, positions: Mapping[str, Position], block_ms: int) -> list[tuple[str, Entry]]:
        """Entries behind positions (slot name -> position), with the slot's name; waits up to `block_ms` for the first."""
        streams = {Slot(name).events: name for name in positions}
        wanted = {stream: positions[name].id.encode() for stream, name in streams.items()}
        if not self.tools.redis.cluster or len(wanted) == 1:
            entries = read_streams(self.tools.redis, wanted, READ_ENTRIES, block_ms)
        else:
            share = max(1, min(SHARE_MS, block_ms // len(wanted))) if block_ms else 0
            entries = [
                entry
                for stream, id in wanted.items()
                for entry in read_streams(self.tools.redis, {stream: id}, READ_ENTRIES, share)
            ]
        return [(streams[entry.stream], entry) for entry in entries]

    def lapsed(self, position: Position, end: End) -> bool:
        """Whether something behind `position` may be gone: Redis lost its memory, or the history was cut."""
        if position.born != end.position.born:
            return True
        return position.id != end.position.id and position.milliseconds < end.now - self.tools.history_ms

    def positions(self, cursor: str, fingerprint: str) -> dict[str, Position]:
        """Where a durable cursor stands, by slot name: positions kept for what is listened to now."""
        flat = self.tools.redis.run("HGETALL", listener_slot(cursor).heard, writes=False)
        found = {name.decode(): text.decode().split(" ") for name, text in zip(flat[::2], flat[1::2], strict=True)}
        return {name: Position(born, id) for name, (wanted, born, id) in found.items() if wanted == fingerprint}

    def keep(self, cursor: str, lease: Lease, fingerprint: str, positions: Mapping[str, Position]) -> None:
        """Move a durable cursor. Raises Fenced when the lease is lost."""
        slot = listener_slot(cursor)
        args: list[Argument] = [lease.fence.epoch, lease.fence.counter, 2 * self.tools.history_ms]
        for name, position in positions.items():
            args += [name, f"{fingerprint} {position.born} {position.id}"]
        if self.tools.redis.call(self._heard, [slot.meta, slot.lease(LISTENER), slot.heard], args) == b"fenced":
            raise Fenced(
                "somebody else listens under this name", of=cursor, why="the lease went to another, or Redis restarted"
            )

    def _ends(self, slots: Sequence[Slot]) -> list[End]:
        found = []
        for reply in self.tools.redis.call_many(self._end, [([slot.meta, slot.events], []) for slot in slots]):
            if isinstance(reply, BrokerError):
                raise reply
            born, id, now = reply
            found.append(End(Position(born.decode(), id.decode()), int(now)))
        return found


def checked_data(type: EventType, data: Frozen | Mapping[str, Any]) -> dict[str, Any]:
    """The data of an event as JSON. Raises Invalid that names the field."""
    try:
        given = data.model_dump(mode="json", exclude_unset=True) if isinstance(data, Frozen) else data
        return DATA[type].model_validate(given).model_dump(mode="json", exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Invalid("not the data of this event", of=type, why=f"{where}: {first['msg']}") from None

"""What a listener wants to hear, and what it can be told of the present. Pure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final, Self

from broker.model.event import Event, EventType, Moved, Published, rfc3339, types_named
from broker.model.names import DatasetId, check_name, check_pattern
from broker.rules.fold import State
from broker.rules.patterns import pattern_matches

LIVE: Final = "live"
EVERYTHING: Final = "*"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A dataset pattern, a channel (None: whatever channel) and types (empty: all)."""

    pattern: str
    channel: str | None = None
    types: frozenset[EventType] = frozenset()

    @classmethod
    def of(cls, pattern: str, channel: str | None, types: Any) -> Self:
        """`*` is every dataset; types by name or its end. Raises InvalidName."""
        whole = "*/*/*" if pattern == EVERYTHING else check_pattern(pattern)
        named = (types,) if isinstance(types, str) else types or ()
        wanted = frozenset(found for name in named for found in types_named(name))
        return cls(whole, None if channel is None else check_name(channel, "channel"), wanted)

    @property
    def fingerprint(self) -> str:
        """12 hex digits; a position reached for one wish says nothing about another."""
        text = json.dumps([self.pattern, self.channel, sorted(self.types)])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def in_domain(self, domain: str) -> bool:
        return pattern_matches(self.pattern.split("/")[1], domain)

    def takes_dataset(self, dataset: DatasetId) -> bool:
        return pattern_matches(self.pattern, dataset)

    def takes(self, event: Event) -> bool:
        """Whether it is to be told. With a channel: what moves that channel, and what is no channel's own news."""
        if not pattern_matches(self.pattern, event.subject) or (self.types and event.type not in self.types):
            return False
        return self.channel is None or channel_of(event) in (None, self.channel)


def channel_of(event: Event) -> str | None:
    """The channel whose news it is; None: everybody's. A new version moves `live` and no other."""
    named: str | None = event.data.get("channel")
    return named or (LIVE if event.type == "broker.dataset.published" else None)


@dataclass(frozen=True, slots=True)
class Pointer:
    """What a channel names: a version of a session, the number of its announcement and its time (seconds)."""

    version: int
    session: str
    seq: int
    time: float


def present_version(dataset: DatasetId, state: State) -> Event | None:
    """The newest version, as news for who has heard nothing; None before the first of the session."""
    if not state.offered:
        return None
    info = state.info(state.offered)
    kind = "snapshot" if info.base is None else "delta" if info.base == info.version - 1 else "roll-up"
    data = Published(
        version=info.version, kind=kind, rows=info.rows, bytes=info.bytes, system=info.system, custom=info.custom,
        present=True, session=state.session,
    )  # fmt: skip
    return _present(dataset, "broker.dataset.published", (info.seq, info.time), data)


def present_channel(dataset: DatasetId, channel: str, pointer: Pointer) -> Event:
    """What a channel names, as news for who has heard nothing."""
    data = Moved(
        channel=channel, version=pointer.version, session=pointer.session, announced=pointer.seq, before=0, present=True
    )  # fmt: skip
    return _present(dataset, "broker.channel.promoted", (pointer.seq, pointer.time), data)


def _present(dataset: DatasetId, type: EventType, at: tuple[int, float], data: Published | Moved) -> Event:
    channel = f"/{data.channel}" if isinstance(data, Moved) else ""
    return Event(
        id=f"{dataset}/{at[0]}{channel}/present", source=f"broker/{dataset.domain}", type=type, subject=dataset,
        time=rfc3339(at[1]), data=data.model_dump(mode="json", exclude_unset=True),
    )  # fmt: skip


def overtaken(event: Event, presented: dict[DatasetId, int]) -> bool:
    """Whether a new version is no news: it is at or below the one that was told as the present."""
    known = presented.get(event.subject, 0)
    return event.type == "broker.dataset.published" and int(event.data.get("version", 0)) <= known

"""What the bell writes for those who read without Redis: notify/<channel>.json of a dataset, for `live` and every channel.

A file follows from two logs, the dataset's and the announcements': whoever writes one looks at both again behind it, and
writes until they stand still. So of two writers the later one corrects what the slower one wrote over it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from broker.backend.index import Index
from broker.bell import notification, rung
from broker.errors import NotFound
from broker.model import names
from broker.model.names import LIVE, ChannelsId, DatasetId
from broker.rules.fold import Named, State
from broker.stores.port import ObjectStore

ROUNDS: Final = 8
KNOWN: Final = 10_000
"""Files this process remembers to have written as they must be; one that is forgotten is written again."""


class Notices:
    """`look` gives the state of a log as the index has it, `read` brings it up first after a loss of Redis. For threads."""

    def __init__(
        self, index: Index, store: ObjectStore, look: Callable[[DatasetId], State], read: Callable[[DatasetId], State]
    ) -> None:
        self._index, self._store, self._look, self._read = index, store, look, read
        self._written = dict[str, Any]()

    def ring(self, log: DatasetId, anew: bool = False) -> None:
        """Write what a log's records since the last ring ask for, until it stands still. `anew`: whatever was rung before."""
        if isinstance(log, ChannelsId):
            self._ring_channels(log, anew)
        else:
            self._ring_dataset(log)

    def noted(self, log: DatasetId, look: bool) -> int:
        """The record last rung for, as noted in Redis; `look`: 0 where a file in the store says something else."""
        noted = int(self._index.fields(log, "notified")[0] or 0)
        if not look:
            return noted
        if isinstance(log, ChannelsId):
            return noted if all(self._fits(log, *moved) for moved in self._read(log).channels.items()) else 0
        return rung(self._get(names.notify_key(log, LIVE)))

    def _ring_dataset(self, dataset: DatasetId) -> None:
        """`live`, and the channels: their roads change when edges are retired or added."""
        for _ in range(ROUNDS):
            state = self._look(dataset)
            self._store.put(names.notify_key(dataset, LIVE), notification(state))
            channels = self._look(ChannelsId.of(dataset))
            for channel, named in of_dataset(channels, dataset).items():
                self._write(state, channel, named)
            self._index.mark_notified(dataset, state.seq)
            if self._stands(state, channels):
                return

    def _ring_channels(self, log: ChannelsId, anew: bool) -> None:
        since = 0 if anew else self.noted(log, look=False)
        for _ in range(ROUNDS):
            channels, roads = self._look(log), list[State]()
            for (name, channel), named in channels.channels.items():
                if named.seq > since:
                    roads.append(self._read(log.dataset(name)))
                    self._write(roads[-1], channel, named, anew)
            self._index.mark_notified(log, channels.seq)
            if self._stands(channels, *roads):
                return
            anew = False

    def _write(self, state: State, channel: str, named: Named, anew: bool = False) -> None:
        """Unless it is there already, as this process remembers, or (`anew`) as the store says: a new version moves no channel,
        and must not cost a write for each of them."""
        key, data = names.notify_key(DatasetId(state.dataset), channel), notification(state, channel, named)
        told = _told(data)
        known = _told(self._get(key)) if anew else self._written.get(key)
        if known != told:
            self._store.put(key, data)
        if len(self._written) >= KNOWN:
            self._written.clear()
        self._written[key] = told

    def _fits(self, log: ChannelsId, moved: tuple[str, str], named: Named) -> bool:
        dataset, channel = log.dataset(moved[0]), moved[1]
        there = self._get(names.notify_key(dataset, channel))
        return bool(there) and _told(there) == _told(notification(self._read(dataset), channel, named))

    def _stands(self, *states: State) -> bool:
        return all(self._index.head(names.log_id(state.dataset)).seq == state.seq for state in states)

    def _get(self, key: str) -> bytes:
        try:
            return b"".join(self._store.get(key))
        except NotFound:
            return b""


def of_dataset(channels: State, dataset: DatasetId) -> dict[str, Named]:
    """What each channel names of one dataset."""
    return {channel: named for (name, channel), named in channels.channels.items() if name == dataset.name}


def _told(data: bytes) -> Any:
    """What a channel's file says, whatever record of the dataset it was written at; None when it cannot be read."""
    try:
        told = json.loads(data)
        return {field: value for field, value in told.items() if field != "seq"}
    except (ValueError, AttributeError):
        return None

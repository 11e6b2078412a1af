"""What the bell writes for those who read without Redis: notify/<channel>.json of a dataset, for `live` and every channel.

A file follows from two logs, the dataset's and the announcements': whoever writes one looks at both again behind it, and
writes until they stand still. So of two writers the later one corrects what the slower one wrote over it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from broker.backend.index import Index
from broker.bell import notification, rung
from broker.errors import BrokerError, NotFound
from broker.model import names
from broker.model.names import LIVE, ChannelsId, DatasetId, log_id
from broker.rules.fold import State
from broker.rules.patch import Named
from broker.stores.port import ObjectStore

ROUNDS: Final = 8
KNOWN: Final = 10_000
"""Files this process remembers to have written as they must be; one that is forgotten is written again."""


class Notices:
    """`look` gives the states of logs as the index has them, `read` brings one up first after a loss of Redis. For threads."""

    def __init__(
        self, index: Index, store: ObjectStore, look: Callable[[Sequence[DatasetId]], Sequence[State | BrokerError]],
        read: Callable[[DatasetId], State],
    ) -> None:  # fmt: skip
        self._index, self._store, self._look, self._read = index, store, look, read
        self._written = dict[str, Any]()

    def ring(self, log: DatasetId, anew: bool = False) -> None:
        """Write what a log's records since the last ring ask for, until it stands still. `anew`: whatever was rung before."""
        if isinstance(log, ChannelsId):
            self._ring_channels(log, anew)
        elif failed := self._ring_datasets([log]):
            raise failed[log]

    def ring_all(self, logs: Sequence[DatasetId]) -> dict[DatasetId, BrokerError]:
        """`ring` of each, those of datasets together. -> why some were not rung."""
        failed = self._ring_datasets([log for log in logs if not isinstance(log, ChannelsId)])
        for log in logs:
            if isinstance(log, ChannelsId):
                try:
                    self._ring_channels(log, anew=False)
                except BrokerError as error:
                    failed[log] = error
        return failed

    def noted(self, log: DatasetId, look: bool) -> int:
        """The record last rung for, as noted in Redis; `look`: 0 where a file in the store says something else."""
        noted = int(self._index.fields(log, "notified")[0] or 0)
        if not look:
            return noted
        if isinstance(log, ChannelsId):
            return noted if all(self._fits(log, *moved) for moved in self._read(log).channels.items()) else 0
        return rung(self._get(names.notify_key(log, LIVE)))

    def _ring_datasets(self, datasets: Sequence[DatasetId]) -> dict[DatasetId, BrokerError]:
        """`live`, and the channels: their roads change when edges are retired or added."""
        failed, left = dict[DatasetId, BrokerError](), list(datasets)
        for _ in range(ROUNDS):
            if not left:
                break
            logs = list(dict.fromkeys(ChannelsId.of(dataset) for dataset in left))
            found = self._look([*left, *logs])
            channels, written = dict(zip(logs, found[len(left) :], strict=True)), list[tuple[State, State]]()
            for dataset, state in zip(left, found, strict=False):
                try:
                    written.append(self._write_all(state, channels[ChannelsId.of(dataset)]))
                except BrokerError as error:
                    failed[dataset] = error
            self._index.mark_notified([(log_id(state.dataset), state.seq) for state, _ in written])
            moved = self._moved(state for states in written for state in states)
            left = [id for id in (log_id(state.dataset) for state, _ in written) if moved & {id, ChannelsId.of(id)}]
        return failed

    def _write_all(self, state: State | BrokerError, channels: State | BrokerError) -> tuple[State, State]:
        """Each file of a dataset. -> what they were written for. Raises what kept either from being read."""
        for read in (state, channels):
            if isinstance(read, BrokerError):
                raise read
        assert isinstance(state, State) and isinstance(channels, State)  # noqa: PT018 - what was raised above
        dataset = DatasetId(state.dataset)
        self._store.put(names.notify_key(dataset, LIVE), notification(state))
        for channel, named in of_dataset(channels, dataset).items():
            self._write(state, channel, named)
        return state, channels

    def _moved(self, written: Iterable[State]) -> set[DatasetId]:
        """Logs that went on behind what was written."""
        known = {log_id(state.dataset): state.seq for state in written}
        heads = zip(known, self._index.heads(list(known)), strict=True)
        return {log for log, head in heads if isinstance(head, BrokerError) or head.seq != known[log]}

    def _ring_channels(self, log: ChannelsId, anew: bool) -> None:
        since = 0 if anew else self.noted(log, look=False)
        for _ in range(ROUNDS):
            channels, roads = self._look_at(log), list[State]()
            for (name, channel), named in channels.channels.items():
                if named.seq > since:
                    roads.append(self._read(log.dataset(name)))
                    self._write(roads[-1], channel, named, anew)
            self._index.mark_notified([(log, channels.seq)])
            if not self._moved([channels, *roads]):
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

    def _look_at(self, log: DatasetId) -> State:
        (state,) = self._look([log])
        if isinstance(state, BrokerError):
            raise state
        return state

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

"""What is sealed of a dataset in the store: commit records by number, checkpoints to start from, and whether they agree."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Final

from broker.bell import notification, rung
from broker.errors import BrokerError, Corrupt, InvalidName, NotFound, OutcomeUnknown
from broker.model import names
from broker.model.names import LIVE, DatasetId, log_id
from broker.rules.checkpoint import Checkpoint
from broker.rules.fold import State, fold
from broker.rules.patch import TABLES
from broker.stores.port import ObjectInfo, ObjectStore

log = logging.getLogger("broker.sealed")
NO_BOUND: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Checked:
    """An object of the store, or a whole log by its folder: the bytes read of it, and what is wrong with it (None: nothing)."""

    key: str
    bytes: int
    error: BrokerError | None = None


class Sealed:
    """Reads nothing twice and remembers nothing; safe for threads."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def record(self, dataset: DatasetId, seq: int) -> bytes | None:
        """The bytes of log/<seq>, or None when it is surely not there."""
        try:
            return b"".join(self._store.get(names.log_key(dataset, seq)))
        except NotFound:
            return None

    def records(self, dataset: DatasetId, first: int = 1) -> Iterator[bytes]:
        """Records from number `first` on, up to the first that is not there."""
        while (data := self.record(dataset, first)) is not None:
            yield data
            first += 1

    def logs(self, prefix: str = "") -> list[DatasetId]:
        """Whose log or checkpoint is in the store: datasets' and announcements', as LIST tells, which is a hint."""
        return sorted({owner for info in self._store.list(prefix) if (owner := _owner_of(info.key))})

    def sealed_at(self, dataset: DatasetId, seq: int) -> float:
        """When a record was sealed, by the store's clock: its own time is its writer's. Raises NotFound."""
        if (info := self._store.stat(names.log_key(dataset, seq))) is None:
            raise NotFound("a record of the log is not there", of=f"{dataset} log {seq}")
        return info.modified

    def exists(self, dataset: DatasetId) -> bool:
        """Whether the store has a log of it, whatever Redis says."""
        return self.record(dataset, 1) is not None or self.checkpoint(dataset) is not None

    def seal(self, dataset: DatasetId, seq: int, data: bytes) -> None:
        """Put-if-absent; only reading back tells what stands there."""
        try:
            self._store.put_if_absent(names.log_key(dataset, seq), data)
        except OutcomeUnknown:
            return

    def checkpoint(self, dataset: DatasetId, below: int = NO_BOUND, before: float = inf) -> State | None:
        """The newest fold sealed for a seq < `below`, and `before` a time of the store's clock; None: start at record 1.

        A damaged one is passed by for an older one or for record 1. Raises Corrupt where the log no longer begins there: the
        records may be gone for which only the damaged one stood.
        """
        damaged: Corrupt | None = None
        found: State | None = None
        for seq, info in sorted(self._checkpoints(dataset).items(), reverse=True):
            if seq >= below or info.modified >= before:
                continue
            try:
                found = self._read_checkpoint(dataset, info.key, seq)
                break
            except Corrupt as error:
                log.warning("%s", error)
                damaged = damaged or error
        if damaged is not None and self.record(dataset, (found.seq if found else 0) + 1) is None:
            raise damaged
        return found

    def seal_checkpoint(self, dataset: DatasetId, seq: int) -> bool:
        """Seal the fold up to record `seq`; whether it was this call that did it. Raises Corrupt when the log ends before."""
        key = names.checkpoint_key(dataset, seq)
        if self._store.stat(key) is not None:
            return False
        past = self.checkpoint(dataset, below=seq) or State(dataset)
        for data in self.records(dataset, past.seq + 1):
            past = fold(past, data)
            if past.seq == seq:
                return self._store.put_if_absent(key, Checkpoint.of(past))
        raise _hole(dataset, past.seq + 1, seq)

    def check(self, dataset: DatasetId, head: State) -> Iterator[Checked]:
        """Each checkpoint against the log, the log against `head`, which is what the index shows, and notify against it."""
        checkpoints, size = self._checkpoints(dataset), 0
        error: BrokerError | None
        try:
            state = State(dataset) if self.record(dataset, 1) else self.checkpoint(dataset) or State(dataset)
            for data in self.records(dataset, state.seq + 1):
                state, size = fold(state, data), size + len(data)
                if state.seq in checkpoints:
                    yield self._check_checkpoint(checkpoints[state.seq].key, state)
                if state.seq == head.seq:
                    break
            error = _difference(state, head)
        except BrokerError as broken:
            error = broken
        yield Checked(f"{dataset}/log/", size, error)
        yield from self._check_notify(names.notify_key(dataset, LIVE), head)

    def _check_checkpoint(self, key: str, folded: State) -> Checked:
        try:
            data = b"".join(self._store.get(key))
            told = Checkpoint.parse(data, key).state()
        except BrokerError as error:
            return Checked(key, 0, error)
        same = (told.dataset, told.tables) == (folded.dataset, folded.tables)  # no bytes: older releases had fewer tables
        return Checked(key, len(data), None if same else Corrupt("a checkpoint is not the fold of its log", of=key))

    def _check_notify(self, key: str, head: State) -> Iterator[Checked]:
        """One that is missing or of another record is in motion, or the janitor's to write."""
        try:
            data = b"".join(self._store.get(key))
        except NotFound:
            return
        seq = rung(data)
        wrong = seq == 0 or (seq == head.seq and json.loads(data) != json.loads(notification(head)))
        hint = "A worker's janitor writes it anew"
        yield Checked(
            key, len(data), Corrupt("the notification is not what the log says", of=key, hint=hint) if wrong else None
        )

    def _checkpoints(self, dataset: DatasetId) -> dict[int, ObjectInfo]:
        """Objects by seq."""
        listed = self._store.list(f"{dataset}/checkpoint/")
        return {seq: info for info in listed if (seq := _number(info.key)) is not None}

    def _read_checkpoint(self, dataset: DatasetId, key: str, seq: int) -> State:
        state = Checkpoint.parse(b"".join(self._store.get(key)), key).state()
        if (state.dataset, state.seq) != (dataset, seq):
            raise Corrupt("a checkpoint lies under another name", of=key, why=f"it says {state.dataset}, {state.seq}")
        return state


def _difference(told: State, head: State) -> Corrupt | None:
    """What keeps the fold of the log from being the index. `position` and `confirmed_at` also move without a record."""
    if told.seq < head.seq:
        return _hole(told.dataset, told.seq + 1, head.seq)
    differing = [name for name in TABLES if name != "head" and told.tables[name] != head.tables[name]]
    if told.sha == head.sha and not differing:
        return None
    why = ", ".join(differing) or "its newest record has another SHA-256"
    return Corrupt("the index is not what the log says", of=told.dataset, why=why, hint="Redis was written by somebody else")


def _hole(dataset: str, seq: int, head: int) -> Corrupt:
    return Corrupt(
        "a record of the log is not there", of=f"{dataset} log {seq}", why=f"the head is at {head}",
        hint="Restore the object from the store's own versions or backup",
    )  # fmt: skip


def _owner_of(key: str) -> DatasetId | None:
    """Whose a log or checkpoint key is."""
    owner, _, folder = key.rpartition("/")[0].rpartition("/")
    if folder not in ("log", "checkpoint") or not key.endswith(".json"):
        return None
    try:
        return log_id(owner)
    except InvalidName:
        return None  # another of the broker's own folders, or somebody else's


def _number(key: str) -> int | None:
    try:
        return names.seq_of(key)
    except ValueError:
        return None

"""What is sealed of a dataset in the store: commit records by number, and checkpoints to start from."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

from broker.errors import Corrupt, NotFound, OutcomeUnknown
from broker.model import names
from broker.model.names import DatasetId
from broker.rules.fold import Checkpoint, State
from broker.stores.port import ObjectStore

log = logging.getLogger("broker.sealed")
NO_BOUND: Final = 1 << 62


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

    def exists(self, dataset: DatasetId) -> bool:
        """Whether the store has a log of it, whatever Redis says."""
        return self.record(dataset, 1) is not None or self.checkpoint(dataset) is not None

    def seal(self, dataset: DatasetId, seq: int, data: bytes) -> None:
        """Put-if-absent; only reading back tells what stands there."""
        try:
            self._store.put_if_absent(names.log_key(dataset, seq), data)
        except OutcomeUnknown:
            return

    def checkpoint(self, dataset: DatasetId, below: int = NO_BOUND) -> State | None:
        """The newest fold sealed for a seq < `below`; None: start at record 1.

        A damaged one is passed by for an older one or for record 1. Raises Corrupt where the log no longer begins there: the
        records may be gone for which only the damaged one stood.
        """
        damaged: Corrupt | None = None
        found: State | None = None
        for key in reversed([info.key for info in self._store.list(f"{dataset}/checkpoint/")]):
            seq = _number(key)
            if seq is None or seq >= below:
                continue
            try:
                found = self._read_checkpoint(dataset, key, seq)
                break
            except Corrupt as error:
                log.warning("%s", error)
                damaged = damaged or error
        if damaged is not None and self.record(dataset, (found.seq if found else 0) + 1) is None:
            raise damaged
        return found

    def _read_checkpoint(self, dataset: DatasetId, key: str, seq: int) -> State:
        state = Checkpoint.parse(b"".join(self._store.get(key)), key).state()
        if (state.dataset, state.seq) != (dataset, seq):
            raise Corrupt("a checkpoint lies under another name", of=key, why=f"it says {state.dataset}, {state.seq}")
        return state


def _number(key: str) -> int | None:
    try:
        return names.seq_of(key)
    except ValueError:
        return None

"""Leases: the right to write for a while, by Redis' own clock, with a fence that is checked where the effect happens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Thread

from broker.backend.client import RedisClient
from broker.backend.index import TOGETHER, Head, heads_of
from broker.backend.keys import Slot
from broker.errors import BrokerError, Busy, Fenced, Transient
from broker.model.commit import Fence
from broker.model.names import DatasetId
from broker.rules.publishing import Lease


class Leases:
    """Leases of one slot's keys. A lease that is not renewed lapses; a restart of Redis voids all of them."""

    def __init__(self, redis: RedisClient, lease_seconds: float) -> None:
        self._redis = redis
        self._acquire, self._renew = redis.script("lease_acquire"), redis.script("lease_renew")
        self.lease_seconds = lease_seconds

    def acquire(self, slot: Slot, name: str, owner: str) -> Lease:
        """Take it, or take it again under a new fence. Raises Busy while somebody else holds it."""
        return self.acquire_looking(slot, name, owner, ())[0]

    def acquire_looking(
        self, slot: Slot, name: str, owner: str, logs: Sequence[DatasetId]
    ) -> tuple[Lease, Mapping[DatasetId, Head | BrokerError]]:
        """As `acquire`, with the heads of logs of the slot as of the same moment: of a few, for others wait meanwhile."""
        logs = logs[:TOGETHER]
        keys = [slot.meta, slot.lease(name), *map(slot.head, logs)]
        reply = self._redis.call(self._acquire, keys, [owner, int(self.lease_seconds * 1000)])
        if reply is None:
            raise Busy(
                "the lease is held by somebody else", of=name, hint=f"It lapses {self.lease_seconds:g} s after their last beat"
            )
        epoch, counter, run_id, *heads = reply
        seen = dict(zip(logs, heads_of(run_id, epoch, *heads), strict=True))
        return Lease(name, owner, Fence(int(epoch), int(counter))), seen

    def renew(self, slot: Slot, lease: Lease) -> None:
        """Hold it for another `lease_seconds`. Raises Fenced when it is lost: stop at once."""
        if not self._beat(slot, lease, int(self.lease_seconds * 1000)):
            raise Fenced("the lease is lost", of=lease.name, why=f"{lease.owner} was silent too long, or Redis restarted")

    def release(self, slot: Slot, lease: Lease) -> None:
        """Give it back; harmless when it is lost already."""
        self._beat(slot, lease, 0)

    def _beat(self, slot: Slot, lease: Lease, milliseconds: int) -> bool:
        keys, args = [slot.meta, slot.lease(lease.name)], [lease.fence.epoch, lease.fence.counter, milliseconds]
        return bool(self._redis.call(self._renew, keys, args))

    @contextmanager
    def held(self, slot: Slot, name: str, owner: str) -> Iterator[Lease]:
        """Hold it for a block, renewed at a third of its time by a thread. Losing it shows at the next effect, as Fenced."""
        lease, done = self.acquire(slot, name, owner), Event()

        def beat() -> None:
            while not done.wait(self.lease_seconds / 3):
                try:
                    self.renew(slot, lease)
                except Transient:
                    continue
                except Fenced:
                    return

        thread = Thread(target=beat, name=f"lease {name}", daemon=True)
        thread.start()
        try:
            yield lease
        finally:
            done.set()
            thread.join()
            with suppress(Transient):  # the block's own end is what the caller must see; the lease lapses by itself
                self.release(slot, lease)

"""Who makes which log slots' micro-batches: leases, shared fairly among the processes alive.

A lease keeps two processes from doing the same work; what makes a batch count once is decided elsewhere (rules/batching.py).
"""

from __future__ import annotations

import os
import socket
import time
from threading import Lock
from typing import Final, NamedTuple
from zlib import crc32

from broker.backend.index import Index
from broker.backend.keys import BATCH_LEASE, Slot, log_slot
from broker.backend.leases import Leases
from broker.backend.registry import BATCHING, Registry, Worker
from broker.errors import Busy, Fenced
from broker.rules.batching import share_of
from broker.rules.publishing import Lease
from broker.settings import Settings

KEEP_SECONDS: Final = 0.5
"""Looks at who is alive, and for domains that are new, come at a third of the lease, and at least so often."""


class Place(NamedTuple):
    """A log slot: the slot of its datasets, and its number there."""

    slot: Slot
    number: int

    @property
    def log(self) -> Slot:
        return Slot(log_slot(self.slot.name, self.number))

    @property
    def name(self) -> str:
        return self.log.name


class HeldSlots:
    """The log slots one process serves. Safe for threads."""

    def __init__(self, index: Index, leases: Leases, registry: Registry, settings: Settings) -> None:
        self._index, self._leases, self._registry = index, leases, registry
        self._count, self._seconds = settings.log_slots, settings.lease_seconds
        self._held = dict[str, tuple[Place, Lease]]()
        self._lock, self._next = Lock(), 0.0

    @property
    def places(self) -> list[Place]:
        """Those held as of the last `keep`."""
        return [place for place, _ in list(self._held.values())]

    def every(self) -> list[Place]:
        """All log slots there are."""
        return [Place(slot, number) for slot in self._index.slots() for number in range(self._count)]

    def keep(self, owner: str) -> None:
        """Be alive, renew what is held, give back what exceeds the fair share, take what is free below it; often a no-op."""
        with self._lock:
            if time.monotonic() < self._next:
                return
            places = self._places(owner)
            slots = list({place.slot.name: place.slot for place in places}.values())
            self._registry.register(slots, Worker(owner, (BATCHING,), socket.gethostname(), os.getpid(), 1), self._seconds)
            alive = {worker.id for slot in slots for worker in self._registry.alive(slot) if worker.batches}
            share = share_of(len(places), len(alive))
            self._renew()
            self._shrink(share)
            self._grow(share, places, owner)
            self._next = time.monotonic() + min(self._seconds / 3, KEEP_SECONDS)

    def leave(self, owner: str) -> None:
        """Give everything back, at drain."""
        with self._lock:
            self._shrink(0)
            self._registry.remove(self._index.slots(), owner)
            self._next = 0.0

    def _places(self, owner: str) -> list[Place]:
        """All log slots, in an order of this process' own: so that several seldom reach for one lease."""
        return sorted(self.every(), key=lambda place: crc32(f"{owner} {place.name}".encode()))

    def _renew(self) -> None:
        for name, (place, lease) in list(self._held.items()):
            try:
                self._leases.renew(place.log, lease)
            except Fenced:
                del self._held[name]

    def _shrink(self, share: int) -> None:
        while len(self._held) > share:
            place, lease = self._held.pop(next(reversed(self._held)))
            self._leases.release(place.log, lease)

    def _grow(self, share: int, places: list[Place], owner: str) -> None:
        for place in places:
            if len(self._held) >= share:
                return
            if place.name not in self._held:
                try:
                    self._held[place.name] = (place, self._leases.acquire(place.log, BATCH_LEASE, owner))
                except Busy:
                    continue

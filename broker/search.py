"""Finding datasets and versions by what is said of them. The only writer of the index of attributes.

A commit only notes that the dataset has news; whoever searches brings the index up first. So commits stay quick, a crash in
between leaves work for the next search only, and after a loss of Redis the index fills again.
The index proposes, the projection decides: what it names in vain is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice
from typing import Final

from broker.backend.client import RedisClient
from broker.backend.index import Index
from broker.backend.keys import Slot
from broker.backend.lanes import Argument
from broker.model.dataset import DatasetSpec
from broker.model.names import DatasetId
from broker.rules.patch import VersionInfo

UNINDEXED: Final = frozenset({"rows", "bytes", "files", "base", "produced", "name"})
"""System attributes without sets of their own: nearly every version has another value. They are compared one by one."""
RUN: Final = 500
"""Datasets or hits asked about in one round trip."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A version, or (`version` None) a dataset itself. `time`: of the version's commit, seconds since the epoch."""

    dataset: DatasetId
    version: int | None
    time: float | None = None
    rows: int | None = None
    bytes: int | None = None
    system: Mapping[str, str] = field(default_factory=dict)
    custom: Mapping[str, str] = field(default_factory=dict)

    def has(self, wanted: Mapping[str, str]) -> bool:
        return all(value in (self.system.get(name), self.custom.get(name)) for name, value in wanted.items())


@dataclass(frozen=True, slots=True)
class _Stale:
    """A dataset whose newest record (`seq`) the index has not seen; of its versions it knows those up to `known`."""

    dataset: DatasetId
    seq: int
    version: int
    known: int

    @property
    def versions(self) -> range:
        return range(self.known + 1, self.version + 1)


class Search:
    """Safe for threads and processes: two that bring the index up do the same."""

    def __init__(self, redis: RedisClient, index: Index) -> None:
        self._redis, self._index = redis, index
        self._stale = redis.script("find_stale", writes=False)  # it may be called again

    def find(self, wanted: Mapping[str, str], pattern: str = "*", limit: int | None = None) -> list[Hit]:
        """Datasets and versions with all of these attributes, system or custom; by dataset, newest versions first.

        A dataset has those it was created with, and tenant and domain. At most `limit`; None: all.
        """
        found = (hit for slot in self._index.slots() for hit in self._in(slot, wanted, pattern))
        return list(islice(found, limit))

    def refresh(self, slot: Slot) -> int:
        """Bring the index up to the heads of a slot. -> datasets that had something new"""
        done, seen = 0, list[Argument]()
        while stale := self._news(slot, seen):
            seen = self._index_run(slot, stale)
            done += len(stale)
        return done

    def _news(self, slot: Slot, seen: Sequence[Argument]) -> list[_Stale]:
        """Datasets that have some, when those that were `seen` are put aside."""
        flat = [item.decode() for item in self._redis.call(self._stale, [slot.meta], [RUN, *seen])]
        return [_Stale(DatasetId(name), *map(int, numbers)) for name, *numbers in zip(*[iter(flat)] * 4, strict=True)]

    def _in(self, slot: Slot, wanted: Mapping[str, str], pattern: str) -> Iterator[Hit]:
        self.refresh(slot)
        terms = [_term(slot, name, value) for name, value in wanted.items() if name not in UNINDEXED]
        members = self._redis.run("SINTER", *(terms or [_everything(slot)]), writes=False)
        places = sorted((_place(slot, member) for member in members), key=lambda place: (place[0], -(place[1] or 1 << 62)))
        places = [place for place in places if fnmatchcase(place[0], pattern)]
        for start in range(0, len(places), RUN):
            for hit in self._hits(slot, places[start : start + RUN]):
                if hit.has(wanted):
                    yield hit

    def _hits(self, slot: Slot, places: Sequence[tuple[DatasetId, int | None]]) -> Iterator[Hit]:
        """As the projection knows them; those that are gone are left out."""
        commands: list[Sequence[Argument]] = []
        for dataset, version in places:
            commands.append(("HMGET", slot.head(dataset), "session", "dropped", "spec" if version is None else "seq"))
            commands.append(("HGET", slot.tables(dataset)[1], version or 0))
        replies = self._redis.replies(commands, slot.name, writes=False)
        for (dataset, version), head, text in zip(places, replies[::2], replies[1::2], strict=True):
            if not head[0] or head[1]:
                continue
            if version is None:
                yield Hit(dataset, None, system=_own(dataset), custom=DatasetSpec.model_validate_json(head[2]).attributes)
            elif text:
                info = VersionInfo.model_validate_json(text)
                yield Hit(dataset, version, info.time, info.rows, info.bytes, info.system, info.custom)

    def _index_run(self, slot: Slot, stale: Sequence[_Stale]) -> list[Argument]:
        """Put them into the sets. -> what to put aside; who dies in between does it again."""
        reads: list[Sequence[Argument]] = []
        for one in stale:
            reads += [
                ("HGET", slot.head(one.dataset), "spec"),
                ("HMGET", slot.tables(one.dataset)[1], "0", *map(str, one.versions)),
            ]
        replies = self._redis.replies(reads, slot.name, writes=False)
        writes, seen = list[Sequence[Argument]](), list[Argument]()
        for one, spec, versions in zip(stale, replies[::2], replies[1::2], strict=True):
            infos = map(VersionInfo.model_validate_json, filter(None, versions))
            writes += _changes("SADD", slot, one.dataset, spec, infos)
            seen += (one.dataset, one.seq, one.version)
        self._redis.replies(writes, slot.name)
        return seen


def unindex(index: Index, dataset: DatasetId, versions: Sequence[VersionInfo]) -> None:
    """Take versions out that the projection has forgotten. One that stays, where this fails, is found in vain."""
    slot = index.slot(dataset)
    index.redis.replies(list(_changes("SREM", slot, dataset, None, versions)), slot.name)


def _changes(
    command: str, slot: Slot, dataset: DatasetId, spec: bytes | None, versions: Iterable[VersionInfo]
) -> Iterator[Sequence[Argument]]:
    """Of every set that a dataset (where its spec is given) and its versions belong to."""
    me = f"{dataset.tenant}/{dataset.name}"
    places = {me: DatasetSpec.model_validate_json(spec).attributes | _own(dataset)} if spec else {}
    for info in versions:
        places[f"{me}@{info.version}"] = info.system | info.custom
    terms: dict[bytes, list[str]] = {_everything(slot): list(places)} if places else {}
    for member, attributes in places.items():
        for name in attributes.keys() - UNINDEXED:
            terms.setdefault(_term(slot, name, attributes[name]), []).append(member)
    return ((command, term, *members) for term, members in terms.items())


def _own(dataset: DatasetId) -> dict[str, str]:
    return {"tenant": dataset.tenant, "domain": dataset.domain, "name": dataset.name}


def _term(slot: Slot, name: str, value: str) -> bytes:
    return slot.key(f"find:{name}={value}")


def _everything(slot: Slot) -> bytes:
    return slot.key("findable")


def _place(slot: Slot, member: bytes) -> tuple[DatasetId, int | None]:
    path, _, version = member.decode().partition("@")
    tenant, _, name = path.partition("/")
    return DatasetId(f"{tenant}/{slot.name.rpartition('.')[0]}/{name}"), int(version) if version else None

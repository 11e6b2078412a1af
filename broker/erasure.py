"""Erasure: one key leaves every file. Versions keep their numbers; of each it is as if they never had the key.

    changes that wait ──► a delete, if it stands ──► each edge that holds it: new files ─► `edge`, `retire` ─► old files go
                      ──► whatever else lies in the store ──► proof: every object is read again

Each step is found done by whoever repeats it. A delete stays in its edge while a live consumer needs it to let the key go:
the same call, later, finishes. So it does for a full lease after Redis lost its memory, when some may live that it does not
know. Whoever else comes from below it, known to nobody, begins anew (`NewEdge.erased_until`). Sealed records stay: they tell of
no record's values, but for what users put into attributes.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Final, cast
from uuid import uuid4

from broker.backend.client import RedisClient
from broker.backend.driver_errors import mapped
from broker.backend.keys import Slot
from broker.backend.leases import Leases
from broker.backend.logs import Logs
from broker.catalog import Catalog, Moment
from broker.columnar.blocks import decoded, key_texts
from broker.columnar.engine import Engine, Written
from broker.columnar.results import schema_of_spec
from broker.columnar.rewrite import OneKey
from broker.cursors import Cursors
from broker.errors import StaleBase, TimedOut
from broker.model.commit import Body, Edge, File, NewEdge, NewVersion, Retire, parse_record
from broker.model.names import DatasetId
from broker.model.request import Format
from broker.past import texts_of
from broker.publication import Publication
from broker.rules.fold import State
from broker.rules.plan import plan
from broker.rules.publishing import Lease
from broker.rules.steps import OnStep, nothing
from broker.settings import Settings
from broker.stores.port import ObjectInfo, ObjectStore

POLL_SECONDS: Final = 0.1
TRIES: Final = 5
CLOCKS_SECONDS: Final = 10.0
"""So much the clocks of two machines may differ."""
STEPS: Final = ("waited", "deleted", "rewritten", "committed", "retired", "removed", "cleared")
"""The named steps of an erasure, in order, from the third to the last but one for each edge: tests kill at each."""
FORMATS: Final[tuple[Format, ...]] = ("parquet", "jsonl", "csv", "arrow")


@dataclass
class Erased:
    """What was done, and what is left. `objects`: read by the proof; `holding`: those of them that have the key still.

    `waits_for`: live consumers below the version whose delete they need. `waits_seconds`: and for so long, others that Redis
    does not know since it lost its memory.
    """

    deleted_in: int | None = None
    rewritten: list[tuple[int | None, int]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    waits_for: list[str] = field(default_factory=list)
    waits_seconds: float = 0.0
    objects: int = 0
    holding: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return not self.holding


@dataclass(frozen=True, slots=True)
class Behind:
    """Live consumers of this session and the version each holds. `unknown_seconds`: so long there may be others."""

    held: dict[str, int] = field(default_factory=dict)
    unknown_seconds: float = 0.0

    def below(self, version: int) -> list[str]:
        """Those that a version's delete has yet to reach."""
        return sorted(name for name, at in self.held.items() if at < version)


@dataclass(frozen=True)
class Erasure:
    """Safe to run anywhere and again; one at a time for a dataset."""

    redis: RedisClient
    store: ObjectStore
    catalog: Catalog
    engine: Engine
    publication: Publication
    leases: Leases
    cursors: Cursors
    settings: Settings
    on_step: OnStep = nothing

    def erase(self, dataset: DatasetId, key: Any, now: bool = False, timeout: float = 30.0) -> Erased:
        """`now`: also the delete that live consumers wait for; those must then `repair`. `timeout`: for the change log.

        Raises NotFound, Invalid, BadData, Busy (another erases), TimedOut (changes of the key wait for a micro-batch).
        """
        slot, report = self.catalog.slot(dataset), Erased()
        with self.leases.held(slot, f"lease:erase:{dataset.tenant}/{dataset.name}", uuid4().hex) as lease:
            state = self.catalog.finished(dataset)
            one = OneKey(self.engine, state.spec, texts_of(state.spec, key))
            self._await_batches(dataset, one, timeout)
            self.on_step("waited")
            report.deleted_in = self._delete(dataset, one)
            self.on_step("deleted")
            behind = Behind() if now else self._behind(dataset)
            for edge in self.catalog.state(dataset).edges:
                self._rewrite_again(edge, one, (behind, lease), report)
            self._clear(dataset, one, lease, report)
            self.on_step("cleared")
            self._prove(dataset, one, report)
        return report

    # --- the change log

    def _await_batches(self, dataset: DatasetId, one: OneKey, timeout: float) -> None:
        """Entries of the log cannot be changed, only taken into a version: that is the micro-batchers' work."""
        deadline = time.monotonic() + timeout
        while self._waiting(dataset, one):
            if time.monotonic() > deadline:
                raise TimedOut(
                    "changes of the key wait for a micro-batch", of=dataset, why=f"for {timeout:g} s",
                    hint="Start one: broker worker --role microbatch; then erase again",
                )  # fmt: skip
            time.sleep(POLL_SECONDS)

    def _waiting(self, dataset: DatasetId, one: OneKey) -> bool:
        logs, state = Logs(self.redis, self.settings), self.catalog.state(dataset)
        wanted = key_texts(one.row.combine_chunks().to_batches()[0], one.spec.key)[0].as_py()
        return any(
            wanted in key_texts(batch, one.spec.key).to_pylist()
            for number in range(logs.count)
            for entry in logs.entries(dataset, number, state.consumed(number))
            if entry.payload is not None
            for batch in decoded(entry.payload, dataset).to_batches()
        )

    # --- versions

    def _delete(self, dataset: DatasetId, one: OneKey) -> int | None:
        """A version without the key, where the newest has it: that is how consumers learn of it."""
        state = self.catalog.state(dataset)
        if not state.offered:
            return None
        gone = one.standing(plan(state.edges, None, state.offered).edges)
        return self.publication.delta(dataset, None, gone).version if gone.num_rows else None

    def _behind(self, dataset: DatasetId) -> Behind:
        session, standing = self.catalog.state(dataset).session, self.cursors.standing(dataset)
        held = (one for one in standing.cursors if one.live and one.cursor.session == session)
        lacking = standing.lacking_seconds(self.cursors.lease_seconds)
        if lacking and self._age_seconds(dataset) <= standing.known_seconds + CLOCKS_SECONDS:
            lacking = 0.0  # Redis knows of everybody since there is anything to read
        return Behind({one.cursor.name: one.cursor.version for one in held}, lacking)

    def _age_seconds(self, dataset: DatasetId) -> float:
        """Since the dataset's first record, by the clocks of who made it and of this process; infinite where it is gone."""
        first = next(self.catalog.records(dataset), None)
        return time.time() - parse_record(first, dataset).time if first else math.inf

    def _rewrite_again(self, edge: Edge | None, one: OneKey, by: tuple[Behind, Lease], report: Erased) -> None:
        """One edge, as it is when nobody else changes it: what a crashed erasure reserved may land now."""
        for _ in range(TRIES):
            if edge is None:
                return
            try:
                return self._rewrite(edge, one, by, report)
            except StaleBase:
                edge = self.catalog.state(DatasetId(one.spec.dataset)).edge(edge.base, edge.version)
        raise StaleBase("an edge changes again and again", of=one.spec.dataset, hint="Erase again")

    def _rewrite(self, edge: Edge, one: OneKey, by: tuple[Behind, Lease], report: Erased) -> None:
        """One edge: its files that hold the key, without it."""
        behind, lease = by
        needed, unknown_seconds = behind.below(edge.version), behind.unknown_seconds
        found = list(one.holding(one.near(edge).files))
        if (needed or unknown_seconds) and any(file.role == "deletes" for file in found):
            report.waits_for, report.waits_seconds = sorted({*report.waits_for, *needed}), unknown_seconds
            found = [file for file in found if file.role != "deletes"]
        if not found:
            return
        begun = Moment.now()
        fresh = {file.key: one.rewritten(file, self.store, self.settings) for file in found}
        files = tuple(new for file in edge.files for new in fresh.get(file.key, (file,)))
        made = tuple(new for news in fresh.values() for new in news)
        self.publication.verify(Written(made, schema_of_spec(one.spec)))
        self.on_step("rewritten")
        self._commit(edge, edge.of_files(files), (lease, begun), any(file.role == "deletes" for file in found))
        self.store.delete([file.key for file in found])
        self.on_step("removed")
        report.rewritten.append((edge.base, edge.version))
        report.removed += [file.key for file in found]

    def _commit(self, old: Edge, new: Edge, by: tuple[Lease, Moment], undeleted: bool) -> None:
        lease, begun = by
        dataset, gone = DatasetId(_dataset_of(old)), tuple(sorted({f.key for f in old.files} - {f.key for f in new.files}))

        def edge(state: State) -> Body | None:
            found = state.edge(old.base, old.version)
            if found is None or found.files == new.files:
                return None
            if found.files != old.files:
                raise StaleBase("the edge changed meanwhile", of=dataset, hint="Erase again")
            return NewEdge(edge=new, erased_until=max(new.version, state.erased_until) if undeleted else 0)

        self.catalog.commit(dataset, edge, "erase", lease, begun)
        self.on_step("committed")
        self._retire(dataset, gone, lease)
        self.on_step("retired")

    def _retire(self, dataset: DatasetId, files: tuple[str, ...], lease: Lease) -> None:
        """Say in the log that the files are given up: once, as the records behind the first look tell."""
        before = self.catalog.state(dataset).seq

        def body(state: State) -> Body | None:
            del state
            written = (parse_record(data, dataset).body for data in self.catalog.records(dataset, before + 1))
            return None if any(isinstance(one, Retire) and one.files == files for one in written) else Retire(files=files)

        self.catalog.commit(dataset, body, "erase", lease)

    # --- everything else in the store

    def _clear(self, dataset: DatasetId, one: OneKey, lease: Lease, report: Erased) -> None:
        """Objects that are not offered and hold the key: derived files, given up ones, and leftovers of uploads.

        What a later record names, which this state cannot know of, is offered: it counts as an upload under way. What is
        reserved already is finished first: it may be older than any upload.
        """
        state = self.catalog.finished(dataset)
        offered = {file.key for edge in state.edges for file in edge.files}
        named, clock = self._named(dataset, state.seq), self.store.put("=probe/clock", b"").modified
        others = [info for info in self._objects(dataset) if info.key not in offered]
        ages = {info.key: clock - info.modified for info in others}
        gone = [
            file.key
            for file in one.holding([named.get(info.key) or self._file(info) for info in others])
            if file.key in named or "/derived/" in file.key or ages[file.key] > self.settings.upload_max_age_seconds
        ]
        if left := tuple(sorted(set(gone) & named.keys())):  # by an erasure that died, or by retention
            self._retire(dataset, left, lease)
        self._forget(dataset, {key for key in gone if "/derived/" in key})
        self.store.delete(gone)
        report.removed += gone

    def _prove(self, dataset: DatasetId, one: OneKey, report: Erased) -> None:
        """Read everything that is there now."""
        named = self._named(dataset)
        files = [named.get(info.key) or self._file(info) for info in self._objects(dataset)]
        report.objects, report.holding = len(files), [file.key for file in one.holding(files)]

    def _objects(self, dataset: DatasetId) -> list[ObjectInfo]:
        folders = (f"{dataset}/data/", f"{dataset}/derived/")
        return [info for folder in folders for info in self.store.list(folder) if info.bytes]

    def _named(self, dataset: DatasetId, until: int | None = None) -> dict[str, File]:
        """Every file that a sealed record names, up to number `until`."""
        records = (parse_record(data, dataset) for data in self.catalog.records(dataset))
        seen = takewhile(lambda record: until is None or record.seq <= until, records)
        edges = (record.body.edge for record in seen if isinstance(record.body, NewVersion | NewEdge))
        return {file.key: file for edge in edges for file in edge.files}

    def _file(self, info: ObjectInfo) -> File:
        """An object that no record names, as a file that can be read."""
        sha = hashlib.sha256()
        for chunk in self.store.get(info.key):
            sha.update(chunk)
        suffix = info.key.rpartition(".")[2]
        form = next((form for form in FORMATS if form == suffix), "parquet")
        return File(role="rows", key=info.key, sha256=sha.hexdigest(), bytes=info.bytes, rows=1, format=form)

    def _forget(self, dataset: DatasetId, files: Iterable[str]) -> None:
        """Derived files that Redis would hand out once more."""
        wanted, slot = set(files), self.catalog.slot(dataset)
        for key in self._derived_keys(dataset, slot) if wanted else ():
            text = self.redis.run("GET", key, writes=False)
            if text and any(file["key"] in wanted for file in json.loads(text)["edge"]["files"]):
                self.redis.run("DEL", key)

    def _derived_keys(self, dataset: DatasetId, slot: Slot) -> Sequence[bytes]:
        pattern = slot.key(f"derived:{dataset.tenant}/{dataset.name}:*")
        with mapped(slot.name, writes=False):
            return [key for server in self.redis.servers() for key in cast(Any, server).scan_iter(match=pattern, count=1000)]


def _dataset_of(edge: Edge) -> str:
    """From its files' keys: an edge that was rewritten had one."""
    return edge.files[0].key.split("/data/", 1)[0]

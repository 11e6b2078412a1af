"""The write transaction: from data to a version. Columnar work first, then the publishing protocol.

A crash before the reservation leaves orphans only. Whoever repeats a publication under the same production id finds out
that it is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import uuid4

import pyarrow as pa

from broker.backend.keys import writer_lease
from broker.backend.leases import Leases
from broker.catalog import Catalog, Moment
from broker.columnar.engine import Engine, Written
from broker.columnar.intake import Intake
from broker.columnar.tombstones import Standing
from broker.errors import Invalid, StaleBase
from broker.model.attributes import check_attributes
from broker.model.commit import Body, Edge, NewVersion, digest
from broker.model.event import rfc3339
from broker.model.names import DatasetId
from broker.producers_validators import Validator
from broker.publication_gate import Gate
from broker.rules.fold import State
from broker.rules.guards import Guards
from broker.rules.plan import plan
from broker.rules.publishing import Lease
from broker.rules.steps import OnStep, nothing

REBASES: Final = 5
"""Tries against a moving head, where the data can be read again."""


@dataclass(frozen=True)
class Note:
    """What goes into the record beside the files. `position` is called when the data was read to its end.

    `started`: when the source was first asked, seconds since the epoch; None: when the publication begins.
    """

    production: str = field(default_factory=lambda: uuid4().hex)
    started: float | None = None
    lease: Lease | None = None
    position: Callable[[], Any] = lambda: None
    attributes: dict[str, str] = field(default_factory=dict)
    kind: str = "direct"

    def __post_init__(self) -> None:
        check_attributes(self.attributes, "a version")


@dataclass(frozen=True, slots=True)
class Published:
    """What came of it. `edge` None: the data held nothing new, and `version` is the one that stands."""

    version: int
    edge: Edge | None
    unchanged: int = 0
    stale: int = 0

    @property
    def number(self) -> int:
        return self.version

    @property
    def files(self) -> Sequence[Any]:
        return self.edge.files if self.edge else ()


class Publication:
    """Safe for threads and processes. `trusted`: the store refuses a wrong payload itself, so nothing is read back.

    A version that a guard or a validator refuses raises Vetoed: nothing is sealed, and the old version stays.
    """

    def __init__(
        self, catalog: Catalog, engine: Engine, leases: Leases, trusted: bool = False, on_step: OnStep = nothing,
        guards: Guards | None = None,
    ) -> None:  # fmt: skip
        self._catalog, self._engine, self._leases = catalog, engine, leases
        self._trusted, self._on_step = trusted, on_step
        self._gate = Gate(catalog, engine, guards or Guards())

    def with_validators(self, validators: Sequence[Validator]) -> Publication:
        """One in which these have their say, too."""
        other = copy(self)
        other._gate = self._gate.with_validators(validators)
        return other

    def snapshot(self, dataset: DatasetId, data: Intake, note: Note | None = None) -> Published:
        """A new version that replaces the state. Raises NullKey, DuplicateKey, SchemaConflict, Busy, Fenced, StaleBase."""
        note = note or Note()
        with self._writing(dataset, note) as lease:
            return self._again(data, lambda: self._replace(dataset, data, replace(note, lease=lease)))

    def difference(self, dataset: DatasetId, data: Intake, note: Note | None = None) -> Published:
        """The whole dataset in, only its difference out; nothing new makes no version. An absent key is a delete."""
        note = note or Note()
        with self._writing(dataset, note) as lease:
            return self._again(data, lambda: self._differ(dataset, data, replace(note, lease=lease)))

    def delta(
        self,
        dataset: DatasetId,
        upserts: Intake | None,
        deletes: Intake | None,
        note: Note | None = None,
        base: int | None = None,
    ) -> Published:
        """Changes as they are; over no version, the upserts are the first. `base`: the only head they fit (0: none yet)."""
        note, started = note or Note(), time.time()
        state, uploaded_at = self._catalog.state(dataset), Moment.now()
        if not state.offered:
            if base:
                raise _made_anew(dataset, base)
            if upserts is None and state.spec.columns is None:
                raise Invalid("nothing to delete from", of=dataset, why="no version exists yet", hint="Publish rows first")
            return self._replace(dataset, [] if upserts is None else upserts, note, first=True)
        written = self._engine.write_delta(state.spec, upserts, deletes)
        fitted = self._prepare(state, written, note, state.version)
        sealing = _Sealing(note, note.lease, fitted, started, uploaded_at)
        return self._seal(dataset, written, state.version if base is None else base, sealing, rebase=base is None)

    def assembled(self, dataset: DatasetId, written: Written, note: Note, base: int | None, head: int) -> Published:
        """Files written and verified elsewhere since `note.started`, as one edge from `base` that fits only `head`.

        Raises StaleBase, SchemaConflict, Fenced. The caller saw to it that keys are unique over all files.
        """
        started, state = note.started or time.time(), self._catalog.state(dataset)
        if base and not state.offered:
            raise _made_anew(dataset, base)
        self._gate.admit(state, written, base, note.production)
        fitted = self._fit(state, written, note.lease)
        sealing = _Sealing(note, note.lease, fitted, started, Moment.now(time.time() - started), head)
        return self._seal(dataset, written, base, sealing)

    def verify(self, written: Written) -> None:
        """Files complete and as recorded (P1). Raises Corrupt."""
        self._on_step("upload")
        if not self._trusted:
            for file in written.files:
                self._engine.verify(file)

    # --- steps

    def _replace(self, dataset: DatasetId, data: Intake, note: Note, first: bool = False) -> Published:
        """One try at a snapshot. It fits only the head it was made for where it remembers deletes, or must be the first."""
        started, uploaded_at, state = time.time(), Moment.now(), self._catalog.state(dataset)
        standing = _standing(state)
        written = self._engine.write_snapshot(state.spec, data, standing)
        fitted = self._prepare(state, written, note, None)
        head = state.version if first or standing else None
        return self._seal(dataset, written, None, _Sealing(note, note.lease, fitted, started, uploaded_at, head))

    def _differ(self, dataset: DatasetId, data: Intake, note: Note) -> Published:
        """One try at a difference."""
        started, uploaded_at, state = time.time(), Moment.now(), self._catalog.state(dataset)
        if not state.offered:
            return self._replace(dataset, data, note, first=True)
        written = self._engine.write_difference(state.spec, data, _whole(state))
        fitted = self._prepare(state, written, note, state.version)
        return self._seal(dataset, written, state.version, _Sealing(note, note.lease, fitted, started, uploaded_at))

    def _again(self, data: Intake, work: Callable[[], Published]) -> Published:
        """From the new head, as long as the data can be read again."""
        for _ in range(REBASES - 1):
            try:
                return work()
            except StaleBase:
                if isinstance(data, pa.RecordBatchReader | Iterator):
                    raise
        return work()

    def _writing(self, dataset: DatasetId, note: Note) -> _Writing:
        """The dataset's writer lease, so that two do not make the same difference; a flight brings its own."""
        return _Writing(self._leases, self._catalog, dataset, note)

    def _prepare(self, state: State, written: Written, note: Note, base: int | None) -> State:
        """Complete, admitted, and then the schema: a version that is refused changes nothing."""
        self.verify(written)
        self._gate.admit(state, written, base, note.production)
        return self._fit(state, written, note.lease)

    def _fit(self, made_for: State, written: Written, lease: Lease | None) -> State:
        """A state with the schema that the files need. Raises StaleBase when somebody changed it since, Fenced."""
        if not written.files or written.schema == made_for.spec.columns:
            return made_for
        state = self._catalog.state(DatasetId(made_for.dataset))
        if state.session == made_for.session and written.schema == state.spec.columns:
            return state
        if not state.alike(made_for):
            raise _schema_changed(made_for.dataset)
        return self._catalog.alter(DatasetId(made_for.dataset), written.schema, lease=lease)

    def _seal(
        self, dataset: DatasetId, written: Written, base: int | None, sealing: _Sealing, rebase: bool = False
    ) -> Published:
        if not written.files:
            return Published(base or 0, None, written.unchanged, written.stale)

        def body(state: State) -> Body | None:
            if state.made_by(sealing.note.production) is not None:
                return None
            if not state.alike(sealing.fitted):
                raise _schema_changed(dataset)
            fits = base if sealing.head is None else sealing.head
            if fits is not None and state.version != fits and not rebase:
                raise StaleBase(
                    "the head moved", of=dataset, why=f"made for version {fits}, now at {state.version}", hint="Again"
                )
            return sealing.body(state, written, None if base is None else state.version)

        state = self._catalog.commit(dataset, body, sealing.note.kind, sealing.lease, sealing.uploaded_at)
        version = state.made_by(sealing.note.production) or state.version
        return Published(version, state.edge_to(version), written.unchanged, written.stale)


@dataclass(frozen=True, slots=True)
class _Sealing:
    """What one seal needs besides the files. `started` is seconds since the epoch.

    `fitted`: a state of the session and schema that the files are of.

    `head`: the only version it may follow, where that is not the edge's base.
    """

    note: Note
    lease: Lease | None
    fitted: State
    started: float
    uploaded_at: Moment
    head: int | None = None

    def body(self, state: State, written: Written, base: int | None) -> NewVersion:
        edge, note = Edge(base=base, version=state.version + 1, files=written.files), self.note
        produced = note.started or self.started
        system = system_attributes(DatasetId(state.dataset), edge) | {
            "producer": note.kind, "produced": rfc3339(produced), "schema": written.schema.id,
        }  # fmt: skip
        return NewVersion(
            edge=edge, rows_total=written.rows if base is None else None, position=note.position(), production=note.production,
            confirmed_at=produced, schema_id=written.schema.id, system=system, custom=note.attributes,
        )  # fmt: skip


def system_attributes(dataset: DatasetId, edge: Edge) -> dict[str, str]:
    """What every version says of itself, in the record, its event and `broker versions show`. All text.

    `sha256` is the identity of its files: that of the only one, or of the SHA-256s of all in hex, one behind the other.
    """
    hashes = [file.sha256 for file in edge.files]
    return {
        "tenant": dataset.tenant, "domain": dataset.domain, "kind": edge.kind, "rows": str(edge.rows), "bytes": str(edge.bytes),
        "files": str(len(hashes)), "sha256": hashes[0] if len(hashes) == 1 else digest("".join(hashes).encode()),
    } | ({} if edge.base is None else {"base": str(edge.base)})  # fmt: skip


class _Writing:
    """Context manager: the note's own lease, or the dataset's writer lease for the time of the block."""

    def __init__(self, leases: Leases, catalog: Catalog, dataset: DatasetId, note: Note) -> None:
        self._note = note
        self._held = None if note.lease else leases.held(catalog.slot(dataset), writer_lease(dataset), note.production)

    def __enter__(self) -> Lease | None:
        return self._held.__enter__() if self._held else self._note.lease

    def __exit__(self, *error: Any) -> None:
        if self._held:
            self._held.__exit__(*error)


def _schema_changed(dataset: str) -> StaleBase:
    return StaleBase("the schema changed meanwhile", of=dataset, why="the files are of the one before", hint="Again")


def _made_anew(dataset: str, base: int) -> StaleBase:
    return StaleBase("the dataset was made anew", of=dataset, why=f"nothing stands at version {base}", hint="Again")


def _whole(state: State) -> tuple[Edge, ...]:
    """Edges that give the whole present state; () before the session's first version."""
    return plan(state.edges, None, state.version).edges if state.offered else ()


def _standing(state: State) -> Standing | None:
    """What a snapshot would replace, where its deletes need to be remembered."""
    if not state.offered or not state.spec.order:
        return None
    return Standing(_whole(state), {info.version: info.time for info in state.versions}, time.time())

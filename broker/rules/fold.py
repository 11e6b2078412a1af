"""State = fold(records). One function says what a record changes; Redis and memory both apply its answer.

State is six tables of text: that is what Redis hashes hold, what a checkpoint seals and what a rebuild computes, so the
three cannot drift apart. `patch_of` reads nothing but the record, so whoever holds the sealed bytes can publish them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from operator import itemgetter
from typing import Any, Final, Literal, get_args

from broker.errors import Corrupt, NotFound
from broker.model.commit import (
    GENESIS,
    Alter,
    Announce,
    Barrier,
    Create,
    Drop,
    Edge,
    Hold,
    Hop,
    Mark,
    Move,
    NewEdge,
    NewVersion,
    Record,
    Retire,
    Why,
    digest,
    hop_of,
    parse_record,
)
from broker.model.dataset import DatasetSpec, Frozen

Table = Literal["head", "versions", "edges", "productions", "holds", "channels"]
TABLES: Final[tuple[Table, ...]] = get_args(Table)
Tables = dict[Table, dict[str, str]]


class VersionInfo(Frozen):
    """What is remembered of a version besides its edges. `time` and `confirmed_at` are seconds since the epoch."""

    version: int
    seq: int
    time: float
    base: int | None
    rows: int
    bytes: int
    rows_total: int | None = None
    production: str | None = None
    schema_id: str = ""
    system: dict[str, str] = {}  # noqa: RUF012 - pydantic copies defaults
    custom: dict[str, str] = {}  # noqa: RUF012


class Named(Move):
    """What a channel names: the newest move, the number of its announcement and when it was made (seconds since the epoch)."""

    seq: int
    time: float
    why: Why


@dataclass(frozen=True, slots=True)
class Patch:
    """What one record changes: whole tables emptied first, then fields dropped, then fields put."""

    clear: tuple[Table, ...] = ()
    drop: Mapping[Table, tuple[str, ...]] = field(default_factory=dict)
    put: Mapping[Table, Mapping[str, str]] = field(default_factory=dict)

    def to_json(self) -> str:
        """For the publish script."""
        return json.dumps(
            {"clear": list(self.clear), "drop": {t: list(names) for t, names in self.drop.items()}, "put": dict(self.put)}
        )


MARK_SECONDS: Final = 7 * 86_400
"""A producer silent for so long is forgotten: its next block is refused with the number expected."""
NOTHING_CONSUMED: Final = "0-0"
"""The id before every entry of a stream."""
_BYTES: Final = re.compile(r'"bytes":(\d+)').findall
_FORGOTTEN: Final = {"position": "null", "confirmed_at": "0"}
"""A new session has no data yet: what the old one noted and confirmed says nothing about it."""


def log_field(slot: int) -> str:
    """Field of the head that says how far a log slot is consumed."""
    return f"log:{slot}"


def edge_field(base: int | None, version: int) -> str:
    return f"{'' if base is None else base}-{version}"


def channel_field(name: str, channel: str) -> str:
    """Field of the table of channels: a dataset's name, and the channel."""
    return f"{name}:{channel}"


def patch_of(record: Record, sha: str) -> Patch:
    """The change of state that `record` (whose sealed bytes hash to `sha`) means."""
    head = {"seq": str(record.seq), "sha": sha, "time": repr(record.time)}
    match record.body:
        case Create(session=session, spec=spec):
            head |= {"session": session, "spec": spec.model_dump_json(), "dropped": ""} | _FORGOTTEN
            return Patch(clear=("edges", "holds"), put={"head": head})
        case Alter(spec=spec, session=session):
            head |= {"spec": spec.model_dump_json()} | ({"session": session} | _FORGOTTEN if session else {})
            return Patch(clear=("edges",) if session else (), put={"head": head})
        case Drop():
            return Patch(clear=("edges", "holds"), put={"head": head | {"dropped": "1"}})
        case NewVersion() as body:
            return _version_patch(record, body, head)
        case NewEdge(edge=edge):
            return Patch(put={"head": head, "edges": {edge_field(edge.base, edge.version): edge.model_dump_json()}})
        case Hold() as hold:
            return Patch(put={"head": head, "holds": {hold.name: hold.model_dump_json()}})
        case Retire() as gone:
            head |= {"retired_until": str(gone.versions_until)} if gone.versions_until else {}
            return Patch(drop=_dropped(gone), put={"head": head})
        case Barrier(epoch=epoch):
            return Patch(put={"head": head | {"epoch": str(epoch)}})
        case Announce() as body:
            return Patch(put={"head": head, "channels": _named(record, body)})


def _dropped(gone: Retire) -> dict[Table, tuple[str, ...]]:
    dropped: dict[Table, tuple[str, ...]] = {
        "edges": tuple(edge_field(*pair) for pair in gone.edges),
        "versions": tuple(str(version) for first, last in gone.versions for version in range(first, last + 1)),
        "productions": gone.productions,
    }
    return {table: fields for table, fields in dropped.items() if fields}


def _named(record: Record, body: Announce) -> dict[str, str]:
    noted = {"seq": record.seq, "time": record.time, "why": body.why}
    return {
        channel_field(name, body.channel): Named(**dict(move), **noted).model_dump_json() for name, move in body.moves.items()
    }


def _version_patch(record: Record, body: NewVersion, head: dict[str, str]) -> Patch:
    edge = body.edge
    info = VersionInfo(
        version=edge.version, seq=record.seq, time=record.time, base=edge.base, rows=edge.rows, bytes=edge.bytes,
        rows_total=body.rows_total, production=body.production, schema_id=body.schema_id,
        system=body.system, custom=body.custom,
    )  # fmt: skip
    head |= {"version": str(edge.version), "position": json.dumps(body.position)}
    head |= {} if body.confirmed_at is None else {"confirmed_at": repr(body.confirmed_at)}
    for source in body.sources:
        marks = {name: mark for name, mark in source.marks.items() if mark.at > record.time - MARK_SECONDS}
        head[log_field(source.slot)] = json.dumps({"until": source.until, "marks": marks})
    put: dict[Table, Mapping[str, str]] = {
        "head": head,
        "versions": {str(edge.version): info.model_dump_json(exclude_defaults=True)},
        "edges": {edge_field(edge.base, edge.version): edge.model_dump_json(exclude_defaults=True)},
    }
    if body.production:
        put["productions"] = {body.production: str(edge.version)}
    return Patch(put=put)


def apply(tables: Tables, patch: Patch) -> Tables:
    """New tables; the old ones stay as they were, and those that the patch leaves alone are shared: they may be long."""
    result: Tables = {name: tables.get(name, {}) for name in TABLES}
    for name in {*patch.clear, *patch.drop, *patch.put}:
        result[name] = {} if name in patch.clear else dict(result[name])
    for name, fields in patch.drop.items():
        for gone in fields:
            result[name].pop(gone, None)
    for name, values in patch.put.items():
        result[name] |= values
    return result


@lru_cache(maxsize=20_000)
def _edge(text: str) -> Edge:
    """Parsed once: the state behind a commit has all edges of the state before it."""
    return Edge.model_validate_json(text)


def _hop(field: str, text: str) -> Hop:
    """Read off an edge's text: `bytes` stands in each of its files, and nowhere else with these quotes."""
    base, _, version = field.partition("-")
    return hop_of(int(base) if base else None, int(version), sum(map(int, _BYTES(text))))


@lru_cache(maxsize=20_000)
def _source(text: str) -> tuple[str, Mapping[str, Mark]]:
    """How far a log slot is consumed, and its marks: many look between two commits."""
    known = json.loads(text)
    return str(known["until"]), {name: Mark(*mark) for name, mark in known["marks"].items()}


class State:
    """A dataset as its log tells it, read through typed properties. Immutable; parsed lazily and once."""

    _hops_before: tuple[Hop, ...] | None = None
    """The hops, unsorted, where the state before knew its own and the patch only added some."""

    def __init__(self, dataset: str, tables: Tables | None = None) -> None:
        self.dataset = dataset
        self.tables: Tables = tables or {name: {} for name in TABLES}
        self.plans: dict[tuple[int | None, int, str | None], Any] = {}
        """The planner's answers for this state."""

    @property
    def head(self) -> dict[str, str]:
        return self.tables["head"]

    @property
    def seq(self) -> int:
        """Number of the newest record; 0 before the first."""
        return int(self.head.get("seq", 0))

    @property
    def sha(self) -> str:
        return self.head.get("sha", GENESIS)

    @property
    def session(self) -> str:
        return self.head.get("session", "")

    @property
    def version(self) -> int:
        """Newest version; 0 before the first."""
        return int(self.head.get("version", 0))

    @property
    def offered(self) -> int:
        """Newest version of this session; 0 before its first. Versions count on over sessions, edges do not."""
        return self.version if self.tables["edges"] else 0

    @property
    def exists(self) -> bool:
        return bool(self.session) and not self.head.get("dropped")

    def consumed(self, slot: int) -> str:
        """Id of the last change-log entry of a log slot that a version holds: micro-batches begin behind it."""
        known = self.head.get(log_field(slot))
        return _source(known)[0] if known else NOTHING_CONSUMED

    def marks(self, slot: int) -> dict[str, Mark]:
        """The producers' marks in a log slot that are sealed. A range names them all, so the newest range counts."""
        known = self.head.get(log_field(slot))
        return dict(_source(known)[1]) if known else {}

    def alike(self, other: State) -> bool:
        """Whether files made for one fit the other: the same session, and the same schema."""
        return self.session == other.session and self.spec.columns == other.spec.columns

    @property
    def confirmed_at(self) -> float:
        return float(self.head.get("confirmed_at", 0))

    @cached_property
    def position(self) -> Any:
        return json.loads(self.head.get("position", "null"))

    @cached_property
    def spec(self) -> DatasetSpec:
        """Raises NotFound for a dataset that was never created or was dropped."""
        if not self.exists:
            raise NotFound("no such dataset", of=self.dataset, hint=f"Create it: broker dataset create {self.dataset} --key …")
        return DatasetSpec.model_validate_json(self.head["spec"])

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """All edges offered, by version, then by base."""
        found = (_edge(text) for text in self.tables["edges"].values())
        return tuple(sorted(found, key=lambda edge: (edge.version, -1 if edge.base is None else edge.base)))

    @cached_property
    def hops(self) -> tuple[Hop, ...]:
        """All edges for the planner, by version, without parsing them."""
        found = self._hops_before
        if found is None:
            found = tuple(_hop(field, text) for field, text in self.tables["edges"].items())
        return tuple(sorted(found, key=itemgetter(1)))

    def hop_edge(self, hop: Hop) -> Edge:
        """The edge that a hop stands for."""
        return _edge(self.tables["edges"][edge_field(hop[0], hop[1])])

    @cached_property
    def versions(self) -> tuple[VersionInfo, ...]:
        found = (VersionInfo.model_validate_json(text) for text in self.tables["versions"].values())
        return tuple(sorted(found, key=lambda info: info.version))

    @cached_property
    def holds(self) -> dict[str, Hold]:
        """By name; also those whose time is over."""
        return {name: Hold.model_validate_json(text) for name, text in self.tables["holds"].items()}

    @cached_property
    def channels(self) -> dict[tuple[str, str], Named]:
        """Of a tenant's domain: (dataset name, channel) -> what it names."""
        found = {tuple(field.split(":")): Named.model_validate_json(text) for field, text in self.tables["channels"].items()}
        return {(name, channel): named for (name, channel), named in sorted(found.items())}

    def info(self, version: int) -> VersionInfo:
        """Raises NotFound."""
        text = self.tables["versions"].get(str(version))
        if text is None:
            why = "it is retired" if 0 < version <= self.version else f"the newest is {self.version}"
            raise NotFound(
                "no such version", of=f"{self.dataset} version {version}", why=why,
                hint=f"See them: broker versions list {self.dataset}",
            )  # fmt: skip
        return VersionInfo.model_validate_json(text)

    def edge(self, base: int | None, version: int) -> Edge | None:
        """The edge from `base` (None: a snapshot) to `version`, if it is offered."""
        text = self.tables["edges"].get(edge_field(base, version))
        return _edge(text) if text else None

    @property
    def snapshot(self) -> Edge | None:
        """The newest snapshot offered."""
        return self.snapshot_at(self.version)

    def snapshot_at(self, version: int) -> Edge | None:
        """The newest snapshot offered of a version up to this one."""
        found = [at for name in self.tables["edges"] if name.startswith("-") and (at := int(name[1:])) <= version]
        return self.edge(None, max(found)) if found else None

    def edge_to(self, version: int) -> Edge | None:
        """The edge the version was made with; None when it is retired. Raises NotFound for an unknown version."""
        return self.edge(self.info(version).base, version)

    def made_by(self, production: str) -> int | None:
        """The version a production ended in, if it did."""
        version = self.tables["productions"].get(production)
        return int(version) if version else None


def after(state: State, patch: Patch) -> State:
    """The state that a patch makes of this one."""
    result = State(state.dataset, apply(state.tables, patch))
    hops, added = state.__dict__.get("hops"), patch.put.get("edges", {})
    kept = "edges" not in patch.clear and "edges" not in patch.drop and not added.keys() & state.tables["edges"].keys()
    if hops is not None and kept:
        result._hops_before = (*hops, *(_hop(field, text) for field, text in added.items()))
    return result


def fold(state: State, data: bytes) -> State:
    """The state after the record in `data`. Raises Corrupt when it does not follow on the state's newest record."""
    record = parse_record(data, f"{state.dataset} log {state.seq + 1}")
    if record.seq != state.seq + 1 or record.previous != state.sha:
        raise Corrupt(
            "the commit log is broken", of=f"{state.dataset} log {record.seq}",
            why=f"it follows {record.previous[:12]}…, the record before is number {state.seq}, {state.sha[:12]}…",
            hint="Restore the object from the store's own versions or backup; nothing behind it can be trusted",
        )  # fmt: skip
    return after(state, patch_of(record, digest(data)))


def replay(dataset: str, records: Iterable[bytes]) -> State:
    """The state after all records from the first."""
    state = State(dataset)
    for data in records:
        state = fold(state, data)
    return state

"""State = fold(records). One function says what a record changes; Redis and memory both apply its answer.

State is six tables of text (rules/patch.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from operator import itemgetter
from typing import Any, Final

from broker.errors import Corrupt, NotFound
from broker.model.commit import (
    GENESIS,
    Edge,
    Hold,
    Hop,
    Mark,
    Record,
    digest,
    hop_of,
    parse_record,
)
from broker.model.dataset import DatasetSpec
from broker.rules.patch import (
    NOTHING_CONSUMED,
    TABLES,
    Named,
    Patch,
    Tables,
    VersionInfo,
    apply,
    edge_field,
    log_field,
    patch_of,
)

SMALL_BYTES: Final = 16 << 10
PATCHES: Final = 256
"""Records of so many logs are published together, and then folded."""
_BYTES: Final = re.compile(r'"bytes":(\d+)').findall


@lru_cache(maxsize=20_000)
def _edge(text: str) -> Edge:
    """Parsed once: the state behind a commit has all edges of the state before it."""
    return Edge.model_validate_json(text)


def _hops(edges: Mapping[str, str]) -> Iterator[Hop]:
    """Read off the edges' text: `bytes` is said in each of their files, `settled` of some, and nothing else has such quotes."""
    for field, text in edges.items():
        base, _, version = field.partition("-")
        sizes = _BYTES(text)
        size = int(sizes[0]) if len(sizes) == 1 else sum(map(int, sizes))
        yield hop_of(int(base) if base else None, int(version), size, '"settled":true' in text)


@lru_cache(maxsize=20_000)
def _source(text: str) -> tuple[str, Mapping[str, Mark]]:
    """How far a log slot is consumed, and its marks: many look between two commits."""
    known = json.loads(text)
    return str(known["until"]), {name: Mark(*mark) for name, mark in known["marks"].items()}


@lru_cache(maxsize=20_000)
def _spec(text: str) -> DatasetSpec:
    """The same for nearly all states of a dataset."""
    return DatasetSpec.model_validate_json(text)


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
    def rolled_until(self) -> int:
        """Roll-ups of versions up to this one are made no more: retention has given up some."""
        return int(self.head.get("rolled_until", 0))

    @property
    def settled_until(self) -> int:
        """Settled roll-ups likewise."""
        return int(self.head.get("settled_until", 0))

    @property
    def erased_until(self) -> int:
        """Who comes from below this version and goes to it, or beyond, begins anew: an erasure took deletes out of the way."""
        return int(self.head.get("erased_until", 0))

    @property
    def exists(self) -> bool:
        return bool(self.session) and not self.head.get("dropped")

    @property
    def leads_over(self) -> bool:
        """Whether every edge leads on whoever stands between its base and its version (rules/plan.py)."""
        return self.exists and not self.spec.order

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
        return _spec(self.head["spec"])

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
            found = tuple(_hops(self.tables["edges"]))
        return tuple(sorted(found, key=itemgetter(1)))

    def edges_of(self, road: Sequence[Hop]) -> tuple[Edge, ...]:
        """The edges that hops stand for."""
        texts = self.tables["edges"]
        return tuple([_edge(texts[edge_field(base, version)]) for base, version, _, _ in road])

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

    def left_at(self, version: int) -> float | None:
        """When the version behind this one was committed (seconds since the epoch); 0: it is forgotten; None: there is none."""
        text = self.tables["versions"].get(str(version + 1))
        if text is None:
            return 0.0 if version < self.version else None
        return VersionInfo.model_validate_json(text).time

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
        result._hops_before = (*hops, *_hops(added))
    return result


def fold(state: State, data: bytes) -> State:
    """The state after the record in `data`. Raises Corrupt when it does not follow on the state's newest record."""
    record, patch = record_and_patch(data, f"{state.dataset} log {state.seq + 1}")
    if record.seq != state.seq + 1 or record.previous != state.sha:
        raise Corrupt(
            "the commit log is broken", of=f"{state.dataset} log {record.seq}",
            why=f"it follows {record.previous[:12]}…, the record before is number {state.seq}, {state.sha[:12]}…",
            hint="Restore the object from the store's own versions or backup; nothing behind it can be trusted",
        )  # fmt: skip
    return after(state, patch)


def record_and_patch(data: bytes, of: str) -> tuple[Record, Patch]:
    """A sealed record and the change it means. Raises Corrupt.

    Whoever publishes one folds it next: what is small is read once.
    """
    if len(data) <= SMALL_BYTES:
        return _small(data, of)
    record = parse_record(data, of)
    return record, patch_of(record, digest(data))


@lru_cache(maxsize=PATCHES)
def _small(data: bytes, of: str) -> tuple[Record, Patch]:
    record = parse_record(data, of)
    return record, patch_of(record, digest(data))


def replay(dataset: str, records: Iterable[bytes]) -> State:
    """The state after all records from the first."""
    state = State(dataset)
    for data in records:
        state = fold(state, data)
    return state

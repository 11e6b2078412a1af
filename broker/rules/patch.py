"""What a record changes: a patch of six tables of text, made of nothing but the record.

Those are what Redis hashes hold, what a checkpoint seals and what a rebuild computes, so the three cannot drift apart. Whoever
holds the sealed bytes can publish them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from broker.model.commit import (
    Alter,
    Announce,
    Barrier,
    Create,
    Drop,
    Hold,
    Move,
    NewEdge,
    NewVersion,
    Record,
    Retire,
    Why,
)
from broker.model.dataset import Frozen

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
        case NewEdge(edge=edge, erased_until=erased):
            head |= {"erased_until": str(erased)} if erased else {}
            return Patch(put={"head": head, "edges": {edge_field(edge.base, edge.version): edge.model_dump_json()}})
        case Hold() as hold:
            return Patch(put={"head": head, "holds": {hold.name: hold.model_dump_json()}})
        case Retire() as gone:
            marks = {
                "retired_until": gone.versions_until, "rolled_until": gone.rolled_until, "settled_until": gone.settled_until,
            }  # fmt: skip
            head |= {name: str(version) for name, version in marks.items() if version}
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

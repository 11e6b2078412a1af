"""The envelope of everything a reader receives: CloudEvents 1.0 fields (cloudevents/spec, v1.0.2), JSON format.

The vocabulary is closed: `DATA` names every type there is, with the model of its `data`. `schema(type)` is its JSON Schema,
whose version is part of its name (`dataschema`): any change of fields makes another version.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import Field

from broker.errors import InvalidName
from broker.model.dataset import Frozen
from broker.model.names import DatasetId

SCHEMA_VERSION: Final = 1
EventType = Literal[
    "broker.request.completed", "broker.request.failed", "broker.request.cancelled", "broker.request.expired",
    "broker.dataset.published", "broker.dataset.refused", "broker.dataset.rolled-up", "broker.dataset.retired",
    "broker.dataset.reset",
    "broker.channel.promoted", "broker.channel.rolled-back", "broker.channel.released",
    "broker.replica.reset", "broker.replica.lagging", "broker.replica.expiring", "broker.replica.mismatch",
]  # fmt: skip
TYPES: Final[tuple[EventType, ...]] = get_args(EventType)


# --- what `data` holds, by type


class Terminal(Frozen):
    """A request ended: the completion, fields with their default left out (model/request.py)."""

    request: str
    dataset: DatasetId
    target: str
    state: str
    version: int | None = None
    cursor: str | None = None
    mode: str | None = None
    reset_reason: str | None = None
    format: str = "parquet"
    columns: list[str] | None = None
    edges: list[dict[str, Any]] = Field(default_factory=list)
    expires_at: float | None = None
    error: dict[str, str] | None = None
    attempts: int = 0
    attributes: dict[str, str] = Field(default_factory=dict)


class Published(Frozen):
    """A new version. `present`: no news, but what stood when a listener began, to which all that follows is a change."""

    version: int
    kind: Literal["snapshot", "delta", "roll-up"]
    rows: int
    bytes: int
    system: dict[str, str] = Field(default_factory=dict)
    custom: dict[str, str] = Field(default_factory=dict)
    present: bool = False
    session: str | None = None


class Finding(Frozen):
    """Why a guard or a validator objects. `rule`: its name."""

    rule: str
    text: str


class Refused(Frozen):
    """What was about to become `version` is not; the one that `stays` (0: none) is offered still.

    Guards or validators vetoed it; or (`production`: changelog) changes waited for a version when their session ended.
    """

    version: int
    stays: int
    kind: Literal["snapshot", "delta", "roll-up"]
    rows: int
    bytes: int
    production: str
    findings: list[Finding]


class RolledUp(Frozen):
    """Compaction added an edge between versions that exist: a shorter road, no news."""

    base: int | None = Field(description="None: a snapshot")
    version: int
    kind: Literal["snapshot", "delta", "roll-up"]
    rows: int
    bytes: int


class Retired(Frozen):
    """Edges are no longer offered. `versions_until`: nothing leads to versions up to this one any more."""

    edges: list[tuple[int | None, int]]
    versions_until: int


class NewSession(Frozen):
    """The dataset began anew, by re-creation or a breaking change of its schema: every replica resets."""

    session: str
    why: Literal["created", "altered"]


class Moved(Frozen):
    """A channel names another version. `announced`: the number of the announcement; a lower one than known is old."""

    channel: str
    version: int
    session: str
    announced: int
    before: int = Field(0, description="the version it named before; 0: none")
    present: bool = False


class ReplicaReset(Frozen):
    """A replica started from a snapshot instead of going on from the version it held."""

    replica: str
    reason: str
    held: int
    version: int
    channel: str = "live"


class Lagging(Frozen):
    """A live cursor is behind for longer than agreed. `seconds`: since when it lacks something of what it follows."""

    replica: str
    held: int
    version: int
    versions: int
    bytes: int
    seconds: float
    channel: str = "live"


class Expiring(Frozen):
    """A cursor's lease ends soon: then retention no longer keeps its road, and the consumer may have to reset."""

    replica: str
    version: int
    left_seconds: float
    channel: str = "live"


class Mismatch(Frozen):
    """A replica's content is not the version's: `repair` brings it back. Digests: 32 hex digits."""

    replica: str
    version: int
    rows: int
    digest: str
    expected_rows: int
    expected_digest: str
    buckets: list[int] = Field(default_factory=list, description="key buckets that differ, where the receipt tells them")
    channel: str = "live"


DATA: Final[dict[EventType, type[Frozen]]] = {
    "broker.request.completed": Terminal, "broker.request.failed": Terminal, "broker.request.cancelled": Terminal,
    "broker.request.expired": Terminal,
    "broker.dataset.published": Published, "broker.dataset.refused": Refused, "broker.dataset.rolled-up": RolledUp,
    "broker.dataset.retired": Retired, "broker.dataset.reset": NewSession,
    "broker.channel.promoted": Moved, "broker.channel.rolled-back": Moved, "broker.channel.released": Moved,
    "broker.replica.reset": ReplicaReset, "broker.replica.lagging": Lagging, "broker.replica.expiring": Expiring,
    "broker.replica.mismatch": Mismatch,
}  # fmt: skip


# --- the envelope


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as CloudEvents' `time`: UTC, milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def schema_name(type: str) -> str:
    """What `dataschema` says: the name of the type's JSON Schema, its version included."""
    return f"urn:broker:event:{type.removeprefix('broker.')}:{SCHEMA_VERSION}"


class Event(Frozen):
    """`id` is unique per `source`; a reader that sees it twice has seen a redelivery. `data` depends on `type`."""

    specversion: Literal["1.0"] = "1.0"
    id: str
    source: str
    type: EventType
    subject: DatasetId
    time: str
    datacontenttype: Literal["application/json"] = "application/json"
    dataschema: str = Field(default_factory=lambda known: schema_name(known["type"]))
    correlationid: str | None = None
    data: Annotated[dict[str, Any], Field(default_factory=dict)]


def envelope(id: str, type: EventType, subject: DatasetId, seconds: float, data: str) -> str:
    """The JSON of an Event whose `data` is JSON already. Its other fields are of characters that JSON needs no escapes for."""
    return (
        f'{{"specversion":"1.0","id":"{id}","source":"broker/{subject.domain}","type":"{type}","subject":"{subject}",'
        f'"time":"{rfc3339(seconds)}","datacontenttype":"application/json","dataschema":"{schema_name(type)}",'
        f'"correlationid":"{id}","data":{data}}}'
    )


def types_named(type: str) -> tuple[EventType, ...]:
    """Types by full name, or by their end: `published`; `reset` are that of a dataset and of a replica. Raises InvalidName."""
    found = tuple(known for known in TYPES if known == type or known.endswith(f".{type}"))
    if not found:
        raise InvalidName("not a type of event", of=repr(type)[:100], why=f"there are {', '.join(TYPES)}")
    return found


def checked_type(type: str) -> EventType:
    """The one type of that name or end. Raises InvalidName."""
    found = types_named(type)
    if len(found) != 1:
        raise InvalidName("not a type of event", of=repr(type)[:100], why=f"it may be {' or '.join(found)}")
    return found[0]


def schema(type: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a type's events: envelope and data. Raises InvalidName."""
    name = checked_type(type)
    whole, data = Event.model_json_schema(), DATA[name].model_json_schema(ref_template="#/$defs/{model}")
    fields: dict[str, Any] = whole["properties"] | {"type": {"const": name}, "dataschema": {"const": schema_name(name)}}
    definitions = data.pop("$defs", {})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": schema_name(name), "title": name,
        "description": data.pop("description", ""), "type": "object", "additionalProperties": False,
        "required": [*whole["required"], "data", "dataschema"], "properties": fields | {"data": data}, "$defs": definitions,
    }  # fmt: skip

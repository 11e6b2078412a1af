"""The envelope of everything a reader receives: CloudEvents 1.0 fields (cloudevents/spec, v1.0.2), JSON format."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from broker.model.dataset import Frozen
from broker.model.names import DatasetId

EventType = Literal[
    "broker.request.completed", "broker.request.failed", "broker.request.cancelled", "broker.request.expired",
    "broker.dataset.published", "broker.dataset.refused",
    "broker.channel.promoted", "broker.channel.rolled-back", "broker.channel.released",
]  # fmt: skip


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as CloudEvents' `time`: UTC, milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


class Event(Frozen):
    """`id` is unique per `source`; a reader that sees it twice has seen a redelivery. `data` depends on `type`."""

    specversion: Literal["1.0"] = "1.0"
    id: str
    source: str
    type: EventType
    subject: DatasetId
    time: str
    datacontenttype: Literal["application/json"] = "application/json"
    correlationid: str | None = None
    data: Annotated[dict[str, Any], Field(default_factory=dict)]


def envelope(id: str, type: EventType, subject: DatasetId, seconds: float, data: str) -> str:
    """The JSON of an Event whose `data` is JSON already. Its other fields are of characters that JSON needs no escapes for."""
    return (
        f'{{"specversion":"1.0","id":"{id}","source":"broker/{subject.domain}","type":"{type}","subject":"{subject}",'
        f'"time":"{rfc3339(seconds)}","datacontenttype":"application/json","correlationid":"{id}","data":{data}}}'
    )

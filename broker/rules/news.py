"""What a commit record tells those who listen: at most one event, made of nothing but the record. No I/O."""

from __future__ import annotations

from broker.model.commit import Alter, Create, NewEdge, NewVersion, Record, Retire
from broker.model.dataset import Frozen
from broker.model.event import Event, EventType, NewSession, Published, Retired, RolledUp, rfc3339
from broker.model.names import DatasetId


def news_of(dataset: DatasetId, record: Record) -> Event | None:
    """The event of a record of a dataset's log; None where nobody needs to know. Its id ends with the record's number."""
    told = _told(record)
    if told is None:
        return None
    type, data = told
    return Event(
        id=f"{dataset}/{record.seq}", source=f"broker/{dataset.domain}", type=type, subject=dataset, time=rfc3339(record.time),
        correlationid=getattr(record.body, "production", None), data=data.model_dump(mode="json", exclude_unset=True),
    )  # fmt: skip


def _told(record: Record) -> tuple[EventType, Frozen] | None:
    match record.body:
        case NewVersion(edge=edge, system=system, custom=custom):
            return "broker.dataset.published", Published(
                version=edge.version, kind=edge.kind, rows=edge.rows, bytes=edge.bytes, system=system, custom=custom
            )
        case NewEdge(edge=edge):
            return "broker.dataset.rolled-up", RolledUp(
                base=edge.base, version=edge.version, kind=edge.kind, rows=edge.rows, bytes=edge.bytes
            )
        case Retire(edges=edges, versions_until=until):
            return "broker.dataset.retired", Retired(edges=list(edges), versions_until=until)
        case Create(session=session) if record.seq > 1:  # of the first one nobody holds anything
            return "broker.dataset.reset", NewSession(session=session, why="created")
        case Alter(session=str(session)):
            return "broker.dataset.reset", NewSession(session=session, why="altered")
    return None

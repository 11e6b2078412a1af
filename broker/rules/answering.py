"""How a request is answered from a state: which road, whether files must be made for it, and the completion."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import Final

from broker.errors import ResetRequired
from broker.model.request import Completion, Cursor, Request, State
from broker.rules.fold import State as DatasetState
from broker.rules.plan import Plan, comparable, plan_for

HOUR: Final = 3600
MOST_EDGES: Final = 32
"""Edges an answer names at most: it lies in Redis once a request, and a longer road is merged into one edge for all who ask."""
MOST_FILES: Final = 64
"""Files an answer names at most, about 300 bytes each: a production cut into thousands of parts has an edge of so many."""


def road(state: DatasetState, request: Request, want: int | None = None) -> Plan:
    """The plan that answers `request` at version `want` (None: the newest).

    Raises ResetRequired when the request demands a delta and only a snapshot leads there; NotFound when nothing does.
    """
    cursor = request.since
    found = comparable(state, plan_for(state, cursor, request.selection, want, request.mode == "snapshot"))
    if request.mode == "delta" and found.mode == "snapshot":
        raise ResetRequired(
            "only a snapshot can answer", of=f"{request.dataset} since {cursor.version if cursor else 'nothing'}",
            why=found.reset or "no version is held", hint="Ask with mode='auto', and replace what you hold",
        )  # fmt: skip
    return found


def needs_files(found: Plan, request: Request) -> bool:
    """Whether files must be derived; canonical ones are handed out as they are, if anyone may apply them and they are few."""
    canonical = request.selection.everything and request.format == "parquet" and found.held is None
    short = len(found.edges) <= MOST_EDGES and sum(len(edge.files) for edge in found.edges) <= MOST_FILES
    return found.mode != "unchanged" and not (canonical and short)


def derivation_of(request: Request) -> str:
    """16 hex digits, equal for requests that one derivation serves."""
    columns = request.columns and tuple(sorted(request.columns))
    return _digest(str(request.since) if request.since else None, request.where, columns, request.format, request.mode)


@lru_cache(maxsize=1024)
def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def completed(id: str, request: Request, session: str, found: Plan, expires_at: float, attempts: int = 1) -> Completion:
    """The terminal answer along `found`, whose files stay until `expires_at` (seconds since the epoch).

    Built without validation: every part was checked where it came in, and this is the hot path of a submit.
    """
    cursor = Cursor(version=found.version, session=session, selection=request.selection.fingerprint)
    return Completion.model_construct(
        request=id, dataset=request.dataset, target=request.target, state=State.COMPLETED, version=found.version,
        cursor=str(cursor), mode=found.mode, reset_reason=found.reset, format=request.format,
        columns=request.columns, edges=found.edges, expires_at=expires_at, attempts=attempts, attributes=request.attributes,
    )  # fmt: skip


def expiry_hour(expires_at: float) -> int:
    """The hour since the epoch at whose end a derived file may be swept."""
    return int(expires_at // HOUR) + 1

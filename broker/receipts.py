"""Receipts: what a replica proves that it holds, and what the broker knows that it must hold."""

from __future__ import annotations

from collections.abc import Sequence

from broker.columnar.digest import ContentDigest
from broker.columnar.engine import Engine
from broker.cursors import Receipt
from broker.errors import NotFound
from broker.model.request import Selection
from broker.rules.fold import State
from broker.rules.plan import plan
from broker.sinks.port import Digesting, Sink


def content_of(engine: Engine, sink: Sink, key: Sequence[str]) -> ContentDigest:
    """The content digest of a sink's rows: where they lie, if the sink can, else read into memory."""
    return sink.digest() if isinstance(sink, Digesting) else engine.digest(key, sink.read())


def receipt_of(digest: ContentDigest, version: int) -> Receipt:
    return Receipt(rows=digest.rows, digest=digest.text, version=version, schema_id=digest.columns)


def expected(engine: Engine, state: State, version: int, selection: Selection) -> ContentDigest | None:
    """The content digest of a version through a selection; None where no road leads to it any more. Raises as Engine.read."""
    try:
        edges = plan(state.edges, None, version).edges
    except NotFound:
        return None
    return engine.digest(state.spec.key, engine.read(state.spec, edges, selection))

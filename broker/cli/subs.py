"""subs: who reads a dataset, where each stands, and how far behind."""

from __future__ import annotations

import time
from typing import Any, Final

import click

from broker.cli.face import Command, Face, Group, columns, fields_of, pass_face
from broker.cli.words import bytes_text, span_text
from broker.connect import Broker
from broker.cursors import Held
from broker.errors import NotFound
from broker.model.names import DatasetId
from broker.replica_followed import Followed
from broker.rules.following import Lag, lag_of

SUB: Final = "dataset, name, version, channel, selection, live, left_seconds, versions, bytes, seconds"
HEADERS: Final = ("dataset", "name", "version", "channel", "behind", "bytes", "for", "lease")


@click.group(
    "subs", cls=Group, short_help="Who reads a dataset, and how far behind.",
    examples="""
    broker subs list
    broker subs lag shop/catalog/offers
    """)  # fmt: skip
def subs() -> None:
    """Consumers that keep a cursor: replicas report one behind each sync, and it lives by a lease."""


@subs.command(
    "list", cls=Command,
    examples="""
    broker subs list
    broker subs list "shop/catalog/*" --json
    """, answer=f"A list of {{{SUB}}}")  # fmt: skip
@click.argument("pattern", default="*")
@pass_face
def list_(face: Face, pattern: str) -> None:
    """Cursors of the datasets that match PATTERN."""
    with face.connect() as broker:
        found = [value for dataset in broker.datasets(pattern) for value in _values(broker, DatasetId(dataset))]
    face.emit(found, columns(HEADERS, map(_line, found)))


@subs.command(
    "show", cls=Command,
    examples="""
    broker subs show shop/catalog/offers search
    """, answer=f"{{{SUB}, where, columns, receipt}}")  # fmt: skip
@click.argument("dataset")
@click.argument("name")
@pass_face
def show(face: Face, dataset: str, name: str) -> None:
    """One cursor, with what it selects and the last receipt of its content."""
    with face.connect() as broker:
        held = _held(broker, DatasetId(dataset), name)
        value = _value(broker, DatasetId(dataset), held) | {
            "where": held.cursor.where, "columns": held.cursor.columns,
            "receipt": held.cursor.receipt.model_dump() if held.cursor.receipt else None,
        }  # fmt: skip
    face.emit(value, fields_of(value))


@subs.command(
    "lag", cls=Command,
    examples="""
    broker subs lag shop/catalog/offers
    """, answer=f"A list of {{{SUB}}}")  # fmt: skip
@click.argument("dataset")
@pass_face
def lag(face: Face, dataset: str) -> None:
    """Live cursors of a dataset, the one furthest behind first."""
    with face.connect() as broker:
        found = [value for value in _values(broker, DatasetId(dataset)) if value["live"]]
    found.sort(key=lambda value: (-value["versions"], value["name"]))
    face.emit(found, columns(HEADERS, map(_line, found)))


@subs.command(
    "reset", cls=Command,
    examples="""
    broker subs reset shop/catalog/offers search
    """, answer="{dataset, name, forgotten}")  # fmt: skip
@click.argument("dataset")
@click.argument("name")
@pass_face
def reset(face: Face, dataset: str, name: str) -> None:
    """Forget a cursor: retention no longer waits for it. A replica that is alive comes back with its next sync."""
    with face.connect() as broker:
        _held(broker, DatasetId(dataset), name)
        gone = broker.parts.cursors.forget(DatasetId(dataset), name)
    face.emit({"dataset": dataset, "name": name, "forgotten": gone}, f"{dataset}: the cursor {name} is forgotten")


def _values(broker: Broker, dataset: DatasetId) -> list[dict[str, Any]]:
    return [_value(broker, dataset, held) for held in broker.parts.cursors.standing(dataset).cursors]


def _value(broker: Broker, dataset: DatasetId, held: Held) -> dict[str, Any]:
    cursor, parts = held.cursor, broker.parts
    state, goal = Followed(parts.catalog, parts.channels, dataset, cursor.channel).goal()
    behind = lag_of(state, cursor.version if cursor.session == state.session else 0, goal, time.time())
    return {
        "dataset": dataset, "name": cursor.name, "version": cursor.version, "channel": cursor.channel,
        "selection": cursor.selection, "live": held.live, "left_seconds": round(held.left_seconds, 3),
        "versions": behind.versions, "bytes": behind.bytes, "seconds": round(behind.seconds, 3),
    }  # fmt: skip


def _line(value: dict[str, Any]) -> list[object]:
    behind = Lag(value["versions"], value["bytes"], value["seconds"])
    late = ["-", "-", "-"] if behind.none else [behind.versions, bytes_text(behind.bytes), span_text(behind.seconds)]
    lease = span_text(value["left_seconds"]) if value["live"] else "lapsed"
    return [value["dataset"], value["name"], value["version"], value["channel"], *late, lease]


def _held(broker: Broker, dataset: DatasetId, name: str) -> Held:
    broker.parts.catalog.state(dataset)
    known = {held.cursor.name: held for held in broker.parts.cursors.standing(dataset).cursors}
    if name not in known:
        why = f"there are {', '.join(known)}" if known else "nobody has one"
        raise NotFound("no such cursor", of=f"{dataset}: {name}", why=why, hint=f"See: broker subs list {dataset}")
    return known[name]

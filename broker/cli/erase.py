"""erase: one key leaves every file."""

from __future__ import annotations

from dataclasses import asdict

import click

from broker.cli.exits import Exit
from broker.cli.face import Command, Face, pass_face
from broker.cli.words import span_text
from broker.connect import Broker
from broker.cursors import Cursors
from broker.erasure import Erased, Erasure
from broker.model.names import DatasetId
from broker.rules.patch import MARK_SECONDS


@click.command(
    "erase", cls=Command,
    examples="""
    broker erase shop/customers/people 4711
    broker erase debian/packages/main bash amd64 --now
    """,
    answer="{dataset, deleted_in, rewritten, removed, waits_for, waits_seconds, objects, holding, done}",
)  # fmt: skip
@click.argument("name", metavar="DATASET")
@click.argument("key", nargs=-1, required=True)
@click.option("--now", is_flag=True, help="Do not wait for consumers to see the delete: those behind begin anew.")
@click.option(
    "--timeout", type=click.FloatRange(0), default=30.0, show_default=True, help="Seconds for the change log's batches."
)
@pass_face
def erase(face: Face, name: str, key: tuple[str, ...], now: bool, timeout: float) -> int:
    """Rewrite every file that holds KEY (a value for each key column, in order); exit 1 while one is left: erase again.

    The key is deleted first, so that replicas let it go. Every object of the dataset is then read as proof.
    """
    with face.connect() as broker:
        report = erasure_of(broker).erase(DatasetId(name), key, now, timeout)
    face.emit({"dataset": name} | asdict(report) | {"done": report.done}, _told(report))
    return Exit.OK if report.done else Exit.FAILED


def erasure_of(broker: Broker) -> Erasure:
    """Erasure over the parts of a connection."""
    parts = broker.parts
    seconds = getattr(parts.settings, "cursor_seconds", MARK_SECONDS)
    cursors = Cursors(parts.redis, parts.index, seconds)
    return Erasure(
        parts.redis, parts.store, parts.catalog, parts.engine, parts.publication, parts.leases, cursors, parts.settings,
        parts.on_step,
    )  # fmt: skip


def _told(report: Erased) -> list[str]:
    lines = [f"{len(report.rewritten)} edge(s) rewritten, {len(report.removed)} object(s) removed"]
    if report.deleted_in:
        lines.insert(0, f"deleted in version {report.deleted_in}")
    if report.done:
        lines.append(f"proof: none of {report.objects} object(s) holds the key")
    else:
        lines.append(f"not finished: {len(report.holding)} of {report.objects} object(s) hold the key")
    if report.waits_for:
        lines.append(f"the delete stays for {', '.join(report.waits_for)}: erase again when they have it, or --now")
    if report.waits_seconds:
        span = span_text(report.waits_seconds)
        lines.append(
            f"the delete stays {span} for consumers that Redis may not know since its loss: erase again then, or --now"
        )
    return lines

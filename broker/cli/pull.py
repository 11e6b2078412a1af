"""pull: a replica brought up to the newest version or to a channel's, or one file written from it."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from broker.cli.face import Command, Face, names, pass_face
from broker.cli.words import bytes_text, public_place
from broker.columnar.formats import SUFFIXES
from broker.connect import Broker, Dataset
from broker.errors import InvalidRequest, NotFound
from broker.model.names import LIVE, check_name
from broker.replica import Report
from broker.replica_followed import Followed
from broker.sinks import open_sink

POLL_SECONDS: Final = 0.2
Chosen = tuple[str | None, tuple[str, ...] | None]
"""`where` and column names."""
Awaited = tuple[str, float]
"""The channel that says which version, and how long to wait for it (seconds)."""


@click.command(
    "pull", cls=Command,
    examples="""
    broker pull shop/catalog/offers --to search.duckdb
    broker pull shop/catalog/offers --to replica/ --where "price < 50" --columns sku,price
    broker pull shop/catalog/offers --to "postgresql://user@db/search" --table offers
    broker pull shop/catalog/offers --to offers.csv
    """, answer="{dataset, to, mode, version, edges, rows, upserts, deletes, bytes, reset, seconds, correlation}; "
    "a single file {dataset, version, file, rows, bytes}",)  # fmt: skip
@click.argument("name", metavar="DATASET")
@click.option(
    "--to",
    "place",
    required=True,
    metavar="PLACE",
    help=".duckdb, .sqlite, postgresql://…, a folder; or a .parquet, .csv, .jsonl, .arrow file.",
)
@click.option("--where", help="SQL condition on the rows.")
@click.option("--columns", "column_names", help="Columns wanted, a,b; key and order columns always come.")
@click.option("--table", help="Table in the database. Default: the dataset's name.")
@click.option(
    "--name", "replica", help="Name of the replica. Default: from the place, so that the next pull goes on from this one."
)
@click.option("--channel", default=LIVE, show_default=True, help="Which version: the newest, or what another channel names.")
@click.option("--wait", is_flag=True, help="Wait for something newer than PLACE holds; a single file: for the first version.")
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Wait no longer than this; implies --wait.")
@pass_face
def pull(
    face: Face,
    name: str,
    place: str,
    where: str | None,
    column_names: str | None,
    table: str | None,
    replica: str | None,
    channel: str,
    wait: bool,
    timeout: float | None,
) -> None:
    """Bring PLACE up to the newest version, or a channel's: a replica takes only what changed; a single file is written anew.

    Exit 3 while there is no such version.
    """
    selection = (where, names(column_names))
    awaited = check_name(channel, "channel"), math.inf if wait and timeout is None else timeout or 0.0
    with face.connect() as broker:
        if _is_file(place):
            if table or replica:
                raise InvalidRequest("a single file has no table and no replica", of=place, hint="Leave out --table and --name")
            _export(face, broker, name, Path(place), selection, awaited)
        else:
            _sync(face, broker, name, (place, table, replica), selection, awaited)


def _is_file(place: str) -> bool:
    path = Path(place)
    return "://" not in place and path.suffix.lower() in SUFFIXES and not path.is_dir()


def _sync(
    face: Face, broker: Broker, name: str, to: tuple[str, str | None, str | None], selection: Chosen, awaited: Awaited
) -> None:
    place, table, replica = to
    dataset = broker.dataset(name)
    sink = open_sink(place, table or dataset.id.name, broker.parts.settings.memory_limit_bytes)
    try:
        (where, columns), (channel, seconds) = selection, awaited
        kept = broker.replica(
            name, name=replica or replica_name(place), sink=sink, where=where, columns=columns, channel=channel
        )  # fmt: skip
        with face.gauge(f"pull {name}", broker.parts.engine.verified_bytes):
            report = kept.sync(seconds)
    finally:
        sink.close()
    if report.mode == "nothing-yet":
        raise _nothing_yet(name, awaited[0])
    face.emit({"dataset": name, "to": public_place(place)} | asdict(report), _text(report))


def _export(face: Face, broker: Broker, name: str, path: Path, selection: Chosen, awaited: Awaited) -> None:
    dataset = broker.dataset(name)
    version, form = _first_version(face, broker, dataset, awaited), SUFFIXES[path.suffix.lower()]
    edges, chosen = dataset.plan(version=version).edges, dataset.selection(*selection)
    with face.progress(f"write {path.name}", unit="rows") as advance:
        rows = broker.parts.engine.write_file(dataset.state.spec, edges, chosen, path, form, advance)
    value: dict[str, Any] = {
        "dataset": str(dataset.id),
        "version": version,
        "file": str(path),
        "rows": rows,
        "bytes": path.stat().st_size,
    }
    face.emit(value, f"{path}: version {version}, {rows} rows, {bytes_text(value['bytes'])}")


def _first_version(face: Face, broker: Broker, dataset: Dataset, awaited: Awaited) -> int:
    """The version to write, waiting for the first one if need be. Raises NotFound."""
    channel, seconds = awaited
    followed, until = Followed(broker.parts.catalog, broker.parts.channels, dataset.id, channel), time.monotonic() + seconds
    with face.progress(f"wait for {dataset.id}", unit="versions"):
        while not (version := followed.look()[1]):
            if time.monotonic() >= until:
                raise _nothing_yet(dataset.id, channel)
            time.sleep(POLL_SECONDS)
    return version


def _nothing_yet(name: str, channel: str) -> NotFound:
    if channel != LIVE:
        hint = f"Let it name one: broker promote {name} VERSION --to {channel}"
        return NotFound("the channel names no version of the dataset yet", of=f"{name} in {channel}", hint=hint)
    hint = f"Publish one: broker publish {name} FILE; or ask its producer: broker request {name} --target me --wait"
    return NotFound("the dataset has no version yet", of=name, hint=hint)


def replica_name(place: str) -> str:
    """A name of its own per place: two pulls of one dataset into two places do not wait for each other.

    Who logs in and with which options does not count: a new password must not make another replica.
    """
    text = public_place(place) if "://" in place else str(Path(place.partition("?")[0]).absolute())
    return f"pull-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _text(report: Report) -> str:
    if report.mode == "up-to-date":
        return f"up to date at version {report.version}"
    if report.reset or not (report.upserts or report.deletes):
        what = f"{report.rows} rows" + (f" (reset: {report.reset})" if report.reset else "")
    else:
        what = f"{report.upserts} upserts, {report.deletes} deletes"
    return f"version {report.version}: {what}, {bytes_text(report.bytes)} in {report.edges} edge(s), {report.seconds:.2f} s"

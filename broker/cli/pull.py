"""pull: a replica brought up to the newest version, or one file written from it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

import click

from broker.cli.face import Command, Face, names, pass_face
from broker.cli.words import bytes_text
from broker.columnar.export import FORMATS, write_file
from broker.connect import Broker
from broker.errors import NotFound
from broker.replica import Report
from broker.sinks import open_sink

POSTGRES: Final = ("postgresql", "postgres")


@click.command(
    "pull", cls=Command,
    examples="""
    broker pull shop/catalog/offers --to search.duckdb
    broker pull shop/catalog/offers --to replica/ --where "price < 50" --columns sku,price
    broker pull shop/catalog/offers --to "postgresql://user@db/search" --table offers
    broker pull shop/catalog/offers --to offers.csv
    """,
)  # fmt: skip
@click.argument("name")
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
@click.option(
    "--wait",
    "wait_seconds",
    type=click.FloatRange(0),
    default=0.0,
    help="Seconds to wait for a version newer than the one held.",
)
@pass_face
def pull(
    face: Face,
    name: str,
    place: str,
    where: str | None,
    column_names: str | None,
    table: str | None,
    replica: str | None,
    wait_seconds: float,
) -> None:
    """Bring PLACE up to the newest version: a replica takes only what changed; a single file is written anew."""
    chosen = names(column_names)
    with face.connect() as broker:
        if Path(place).suffix in FORMATS and not Path(place).is_dir() and urlsplit(place).scheme not in POSTGRES:
            _export(face, broker, name, Path(place), (where, chosen))
            return
        found = broker.dataset(name)
        sink = open_sink(place, table or found.id.name)
        try:
            kept = broker.replica(name, name=replica or replica_name(place), sink=sink, where=where, columns=chosen)
            with face.progress(f"pull {name}", unit="rows"):
                report = kept.sync(wait_seconds)
        finally:
            sink.close()
    face.emit(_value(name, place, report), _text(report))


def _export(face: Face, broker: Broker, name: str, path: Path, selection: tuple[str | None, tuple[str, ...] | None]) -> None:
    found = broker.dataset(name)
    version = found.state.version
    if version == 0:
        raise NotFound(
            "the dataset has no version yet", of=name, hint=f"Publish one, or: broker request {name} --target me --wait"
        )
    part = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    rows = 0
    try:
        with found.reader(version, *selection) as reader, face.progress(f"write {path.name}", unit="rows") as advance:
            rows = write_file(reader, part, FORMATS[path.suffix], advance)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    value: dict[str, Any] = {"dataset": name, "version": version, "file": str(path), "rows": rows, "bytes": path.stat().st_size}
    face.emit(value, f"{path}: version {version}, {rows} rows, {bytes_text(value['bytes'])}")


def replica_name(place: str) -> str:
    """A name of its own per place: two pulls of one dataset into two places do not wait for each other."""
    text = place if "://" in place else str(Path(place).absolute())
    return f"pull-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _value(name: str, place: str, report: Report) -> dict[str, Any]:
    shown = place.partition("?")[0].rpartition("@")[2]  # a URL may hold a password
    return {"dataset": name, "to": shown} | asdict(report)


def _text(report: Report) -> str:
    match report.mode:
        case "nothing-yet":
            return "nothing yet: the dataset has no version"
        case "up-to-date":
            return f"up to date at version {report.version}"
    if report.reset or not (report.upserts or report.deletes):
        what = f"{report.rows} rows" + (f" (reset: {report.reset})" if report.reset else "")
    else:
        what = f"{report.upserts} upserts, {report.deletes} deletes"
    return f"version {report.version}: {what}, {bytes_text(report.bytes)} in {report.edges} edge(s), {report.seconds:.2f} s"

"""Datasets and their versions: dataset …, versions …, publish."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pyarrow as pa

from broker.cli.exits import Exit
from broker.cli.face import Advance, Command, Face, columns, fields_of, names, pairs, pass_face
from broker.cli.words import bytes_text, time_text
from broker.connect import Dataset
from broker.errors import BrokerError, Invalid, InvalidRequest, NotFound
from broker.model.dataset import Column, DatasetSpec, Schema
from broker.rules.fold import VersionInfo
from broker.sources.files import rows_of


@click.group("dataset")
def dataset() -> None:
    """Create, list, show, alter and drop datasets."""


@dataset.command(
    "create", cls=Command,
    examples="""
    broker dataset create shop/catalog/offers --key sku --order updated_at
    broker dataset create shop/pricing/prices --key sku,store --column "sku VARCHAR" --column "store VARCHAR" --column "price DOUBLE"
    """,
)  # fmt: skip
@click.argument("name")
@click.option("--key", multiple=True, required=True, help="Key column; several: repeat it, or a,b.")
@click.option("--order", multiple=True, help="Columns that say which of two rows with one key is newer.")
@click.option("--column", "column_texts", multiple=True, help='Column and DuckDB type, as "price DOUBLE [NOT NULL]"; else the first data says.')
@click.option("--partitions", type=int, default=1, show_default=True)
@click.option("--attribute", "attributes", multiple=True, metavar="K=V")
@pass_face
def create(
    face: Face, name: str, key: tuple[str, ...], order: tuple[str, ...], column_texts: tuple[str, ...], partitions: int, attributes: tuple[str, ...]
) -> None:
    """Create a dataset; an equal one that exists is no error."""
    columns_given = tuple(parse_column(text) for text in column_texts)
    schema = Schema(columns=columns_given) if columns_given else None
    with face.connect() as broker:
        made = broker.dataset(
            name, key=names(key) or (), order=names(order) or (), schema=schema, partitions=partitions, attributes=pairs(attributes)
        )
        face.say(f"dataset {made.id}")
        _emit_dataset(face, made)


@dataset.command("list", cls=Command, examples="broker dataset list 'shop/*'")
@click.argument("pattern", default="*")
@pass_face
def list_(face: Face, pattern: str) -> None:
    """Datasets whose id matches a glob."""
    with face.connect() as broker:
        found = [_summary(broker.dataset(name)) for name in broker.datasets(pattern)]
    heads = ("dataset", "version", "key", "versions", "bytes")
    face.emit(found, columns(heads, ([_cell(item[head]) for head in heads] for item in found)))


@dataset.command("show", cls=Command, examples="broker dataset show shop/catalog/offers")
@click.argument("name")
@pass_face
def show(face: Face, name: str) -> None:
    """The spec, columns and newest version of a dataset."""
    with face.connect() as broker:
        _emit_dataset(face, broker.dataset(name))


@dataset.command("alter", cls=Command, examples='broker dataset alter shop/catalog/offers --column "colour VARCHAR"')
@click.argument("name")
@click.option("--column", "column_texts", multiple=True, required=True, help='A new column or another type: "price DOUBLE".')
@click.option("--force", is_flag=True, help="Also a change with loss: it begins a new session, and replicas reset.")
@pass_face
def alter(face: Face, name: str, column_texts: tuple[str, ...], force: bool) -> None:
    """Add columns or change their types."""
    with face.connect() as broker:
        found = broker.dataset(name)
        found.alter(altered(found.spec, [parse_column(text) for text in column_texts]), force)
        _emit_dataset(face, found)


@dataset.command("drop", cls=Command, examples="broker dataset drop shop/catalog/offers --yes")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_face
def drop(face: Face, name: str, yes: bool) -> None:
    """Offer a dataset no longer. Its log stays; created again, it has a new session."""
    with face.connect() as broker:
        found = broker.dataset(name)
        if not yes and not sys.stdin.isatty():
            raise InvalidRequest("nobody is there to confirm", of=name, hint="Add --yes")
        if not yes:
            click.confirm(f"Drop {name}?", abort=True, err=True)
        found.drop()
    face.emit({"dataset": name, "dropped": True}, f"dropped {name}")


@click.command(
    "publish", cls=Command,
    examples="""
    broker publish shop/catalog/offers offers.parquet
    broker publish shop/catalog/offers monday.csv.gz tuesday.csv.gz --delta --attribute store=eu-1
    """,
)  # fmt: skip
@click.argument("name")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--delta", is_flag=True, help="Commit only the difference to the newest version; an absent key is a delete.")
@click.option("--attribute", "attributes", multiple=True, metavar="K=V", help="Custom attribute of the version.")
@pass_face
def publish(face: Face, name: str, files: tuple[Path, ...], delta: bool, attributes: tuple[str, ...]) -> None:
    """Publish FILES (.parquet, .csv, .jsonl, each also .gz) as a new version: the whole dataset. The later file wins per key."""
    with face.connect() as broker:
        found = broker.dataset(name)
        with face.progress(f"publish {name}", unit="rows") as advance:
            rows = _counted(rows_of(found.spec, files), advance)
            done = found.publish(rows, delta=delta, attributes=pairs(attributes))
        edge = done.edge
        value = {
            "dataset": name, "version": done.version, "changed": edge is not None, "unchanged_rows": done.unchanged, "stale_rows": done.stale,
            "edge": edge.model_dump(mode="json") | {"kind": edge.kind} if edge else None,
        }  # fmt: skip
        text = f"version {done.version}: {edge.kind}, {edge.rows} rows, {bytes_text(edge.bytes)}" if edge else f"unchanged at version {done.version}"
        face.emit(value, text)


def _counted(batches: Iterator[pa.RecordBatch], advance: Advance) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch
        advance(batch.num_rows)


@click.group("versions")
def versions() -> None:
    """List, show and verify versions."""


@versions.command("list", cls=Command, examples="broker versions list shop/catalog/offers --limit 10")
@click.argument("name")
@click.option("--limit", type=click.IntRange(1), default=None, help="Only the newest.")
@pass_face
def list_versions(face: Face, name: str, limit: int | None) -> None:
    """Versions remembered, oldest first."""
    with face.connect() as broker:
        found = broker.dataset(name).versions()[-(limit or 0) :]
    rows = [(info.version, _kind(info), info.rows, bytes_text(info.bytes), time_text(info.time), info.production) for info in found]
    face.emit([info.model_dump(mode="json") for info in found], columns(("version", "kind", "rows", "bytes", "time", "production"), rows))


@versions.command("show", cls=Command, examples="broker versions show shop/catalog/offers 3")
@click.argument("name")
@click.argument("version", type=int, required=False)
@pass_face
def show_version(face: Face, name: str, version: int | None) -> None:
    """One version (default: the newest) with its edge and files."""
    with face.connect() as broker:
        state = broker.dataset(name).state
    if version is None and state.version == 0:
        raise NotFound("the dataset has no version yet", of=name, hint=f"Publish one: broker publish {name} FILE")
    info = state.info(state.version if version is None else version)
    edge = state.edge_to(info.version)
    value = info.model_dump(mode="json") | {"edge": edge.model_dump(mode="json") | {"kind": edge.kind} if edge else None}
    lines = fields_of({
        "version": info.version, "kind": _kind(info), "base": info.base, "rows": info.rows, "rows total": info.rows_total, "bytes": bytes_text(info.bytes),
        "time": time_text(info.time), "production": info.production, "system": _joined(info.system), "attributes": _joined(info.custom),
    })  # fmt: skip
    for file in edge.files if edge else ():
        lines.append(f"{file.role}: {file.key}  {file.rows} rows, {bytes_text(file.bytes)}, sha256 {file.sha256}")
    face.emit(value, lines)


@versions.command("verify", cls=Command, examples="broker versions verify shop/catalog/offers")
@click.argument("name")
@pass_face
def verify(face: Face, name: str) -> int:
    """Read every file that is offered and compare length and SHA-256; exit 1 when any differs."""
    with face.connect() as broker:
        found = broker.dataset(name)
        total, verdicts = sum(edge.bytes for edge in found.state.edges), []
        with face.progress(f"verify {name}", total) as advance:
            for edge, error in found.verify():
                verdicts.append((edge, error))
                advance(edge.bytes)
    value = [{"base": e.base, "version": e.version, "kind": e.kind, "bytes": e.bytes, "ok": x is None, "error": _error(x)} for e, x in verdicts]
    rows = [(e.version, e.kind, len(e.files), bytes_text(e.bytes), "whole" if x is None else str(x)) for e, x in verdicts]
    face.emit(value, columns(("version", "kind", "files", "bytes", "verdict"), rows))
    return Exit.FAILED if any(error for _, error in verdicts) else Exit.OK


def parse_column(text: str) -> Column:
    """`price DOUBLE`, `sku VARCHAR NOT NULL`. Raises Invalid."""
    name, _, kind = text.strip().partition(" ")
    kind = kind.strip().upper()
    nullable = not kind.endswith(" NOT NULL")
    kind = kind.removesuffix(" NOT NULL").strip()
    if not kind:
        raise Invalid("not a column", of=text[:100], hint='Write --column "price DOUBLE"')
    return Column(name=name, type=kind, nullable=nullable)


def altered(spec: DatasetSpec, changes: list[Column]) -> Schema:
    """The spec's columns with the changed ones in place and new ones behind. Raises Invalid when nothing is known yet."""
    if spec.columns is None:
        raise Invalid("the dataset has no columns yet", of=spec.dataset, hint="Its first version brings them")
    change = {column.name: column for column in changes}
    kept = [change.pop(column.name, column) for column in spec.columns.columns]
    return Schema(columns=(*kept, *change.values()))


def _summary(found: Dataset) -> dict[str, Any]:
    state = found.state
    return {
        "dataset": str(found.id), "version": state.version, "key": list(state.spec.key), "versions": len(state.versions),
        "bytes": sum(edge.bytes for edge in state.edges), "session": state.session,
    }  # fmt: skip


def _emit_dataset(face: Face, found: Dataset) -> None:
    spec = found.spec
    value = _summary(found) | {"spec": spec.model_dump(mode="json")}
    lines = fields_of({
        "dataset": spec.dataset, "version": str(value["version"]), "key": ", ".join(spec.key), "order": ", ".join(spec.order), "partitions": spec.partitions,
        "bytes": bytes_text(value["bytes"]), "session": value["session"], "attributes": _joined(spec.attributes),
    })  # fmt: skip
    described = spec.columns.columns if spec.columns else ()
    lines += [f"column  {column.name} {column.type}{'' if column.nullable else ' NOT NULL'}" for column in described]
    face.emit(value, lines)


def _kind(info: VersionInfo) -> str:
    return "snapshot" if info.base is None else "delta"


def _cell(value: object) -> object:
    return ", ".join(value) if isinstance(value, list) else value


def _joined(attributes: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in attributes.items())


def _error(error: BrokerError | None) -> dict[str, str] | None:
    return error.to_dict() if error else None


__all__ = ["altered", "dataset", "parse_column", "publish", "versions"]

"""versions …: list, show and verify."""

from __future__ import annotations

import click

from broker.cli.exits import Exit
from broker.cli.face import Face, Group, columns, fields_of, joined, pass_face
from broker.cli.words import bytes_text, time_text
from broker.errors import BrokerError, NotFound
from broker.rules.patch import VersionInfo
from broker.sealed import Checked


@click.group(
    "versions", cls=Group, examples="broker versions list shop/catalog/offers\nbroker versions verify shop/catalog/offers"
)
def versions() -> None:
    """List, show and verify versions."""


@versions.command(
    "list",
    examples="broker versions list shop/catalog/offers --limit 10",
    answer="A list of {version, seq, time, base, rows, bytes, rows_total, production, schema_id, system, custom, retired}",
)
@click.argument("name", metavar="DATASET")
@click.option("--limit", type=click.IntRange(1), default=None, help="Only the newest.")
@pass_face
def list_versions(face: Face, name: str, limit: int | None) -> None:
    """Versions remembered, oldest first. Retired: the files it came with are given up; roll-ups may lead to it still."""
    with face.connect() as broker:
        state = broker.dataset(name).state
    found = [(info, state.edge(info.base, info.version) is None) for info in state.versions[-(limit or 0) :]]
    rows = [
        (info.version, _kind(info) + (", retired" if retired else ""), info.rows, bytes_text(info.bytes), time_text(info.time),
         info.production)
        for info, retired in found
    ]  # fmt: skip
    face.emit(
        [info.model_dump(mode="json") | {"retired": retired} for info, retired in found],
        columns(("version", "kind", "rows", "bytes", "time", "production"), rows),
    )


@versions.command(
    "show",
    examples="broker versions show shop/catalog/offers 3",
    answer="{version, seq, time, base, rows, bytes, rows_total, production, schema_id, system, custom, edge}",
)
@click.argument("name", metavar="DATASET")
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
    lines = fields_of(
        {
            "version": info.version,
            "kind": _kind(info),
            "base": info.base,
            "rows": info.rows,
            "rows total": info.rows_total,
            "bytes": bytes_text(info.bytes),
            "time": time_text(info.time),
            "production": info.production,
            "system": joined(info.system),
            "attributes": joined(info.custom),
        }
    )
    for file in edge.files if edge else ():
        lines.append(f"{file.role}: {file.key}  {file.rows} rows, {bytes_text(file.bytes)}, sha256 {file.sha256}")
    face.emit(value, lines)


@versions.command("verify", examples="broker versions verify shop/catalog/offers", answer="A list of {key, bytes, ok, error}")
@click.argument("name", metavar="DATASET")
@pass_face
def verify(face: Face, name: str) -> int:
    """Read every file that is offered, compare length and SHA-256, then fold the log; exit 1 when anything differs."""
    with face.connect() as broker:
        found = broker.dataset(name)
        total, verdicts = sum(edge.bytes for edge in found.state.edges), list[Checked]()
        with face.progress(f"verify {name}", total) as advance:
            for checked in found.verify():
                verdicts.append(checked)
                advance(checked.bytes)
    value = [{"key": x.key, "bytes": x.bytes, "ok": x.error is None, "error": _error(x.error)} for x in verdicts]
    rows = [(x.key, bytes_text(x.bytes), "whole" if x.error is None else str(x.error)) for x in verdicts]
    face.emit(value, columns(("object", "bytes", "verdict"), rows))
    return Exit.FAILED if any(checked.error for checked in verdicts) else Exit.OK


def _kind(info: VersionInfo) -> str:
    return "snapshot" if info.base is None else "delta"


def _error(error: BrokerError | None) -> dict[str, str] | None:
    return error.to_dict() if error else None

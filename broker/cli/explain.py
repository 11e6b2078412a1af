"""explain: why a request waits, how a version came about."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from broker.cli.face import Face, Group, fields_of, pass_face
from broker.cli.requests import inquiry_of
from broker.cli.shown import REQUEST, status_lines, status_value
from broker.cli.words import bytes_text, time_text
from broker.connect import Broker, Dataset
from broker.errors import InvalidRequest, NotFound
from broker.inquiry import Whereabouts
from broker.model.commit import Edge, Record, digest, parse_record
from broker.rules.patch import VersionInfo


@click.group(
    "explain", cls=Group, examples="broker explain request catalog.0.0193…\nbroker explain version shop/catalog/offers 3"
)
def explain() -> None:
    """Why a request waits, how a version came about."""


@explain.command(
    "request",
    examples="broker explain request catalog.0.0193…",
    answer=f"{REQUEST[:-1]}, waits_for, why, sealed_version, workers}}",
)
@click.argument("id")
@pass_face
def request(face: Face, id: str) -> None:
    """What a request waits for and why: state, flight, production, version, workers that serve it."""
    with face.connect() as broker:
        found = inquiry_of(broker).whereabouts(id)
        made = _made(broker, found)
    face.emit(_request_value(found, made), _request_lines(found, made))


def _made(broker: Broker, found: Whereabouts) -> int | None:
    """The version that the request's flight has sealed; None where there is none, or the dataset is gone."""
    if found.flight is None:
        return None
    try:
        return broker.dataset(found.status.request.dataset).state.made_by(found.flight.id)
    except NotFound:
        return None


def _request_value(found: Whereabouts, made: int | None) -> dict[str, Any]:
    return status_value(found.status) | {
        "waits_for": found.waits_for,
        "why": found.why,
        "flight": asdict(found.flight) if found.flight else None,
        "sealed_version": made,
        "workers": [asdict(worker) for worker in found.workers],
    }


def _request_lines(found: Whereabouts, made: int | None) -> list[str]:
    lines = status_lines(found.status)
    if found.flight:
        flight = found.flight
        lines += [
            "",
            *fields_of(
                {
                    "flight": flight.id,
                    "kind": flight.kind,
                    "state": flight.state,
                    "held by": flight.owner,
                    "since": time_text(flight.started),
                    "lease until": time_text(flight.until),
                    "sealed": f"version {made}: the answer is on its way" if made else None,
                }
            ),
        ]
    workers = ", ".join(worker.id for worker in found.workers) or "none"
    return [*lines, "", f"waits for  {found.waits_for or 'nothing'}: {found.why}", f"served by  {workers}"]


@explain.command(
    "version",
    examples="broker explain version shop/catalog/offers 3\nbroker explain version shop/catalog/offers@3",
    answer="{version, record, sha256, previous, road}",
)
@click.argument("name", metavar="DATASET")
@click.argument("version", type=int, required=False)
@pass_face
def version(face: Face, name: str, version: int | None) -> None:
    """The commit record of a version, its edge and files, the production behind it, and the road that leads there."""
    name, _, number = name.partition("@")
    if version is None and not number.isdigit():
        raise InvalidRequest("which version?", of=name, hint=f"broker explain version {name} 1")
    with face.connect() as broker:
        dataset = broker.dataset(name)
        info = dataset.state.info(int(number) if version is None else version)
        record, sha = _record(dataset, broker.parts.catalog.records(dataset.id, info.seq))
        road = _road(dataset, info.version)
    face.emit(_version_value(info, record, sha, road), _version_lines(name, info, record, sha, road))


def _record(dataset: Dataset, records: Any) -> tuple[Record, str]:
    data = next(iter(records))
    return parse_record(data, str(dataset.id)), digest(data)


def _road(dataset: Dataset, version: int) -> tuple[Edge, ...]:
    """The edges from nothing to the version; none where it is retired or of an earlier session."""
    try:
        return dataset.plan(version=version).edges
    except NotFound:
        return ()


def _version_value(info: VersionInfo, record: Record, sha: str, road: tuple[Edge, ...]) -> dict[str, Any]:
    return {
        "version": info.model_dump(mode="json"),
        "record": record.model_dump(mode="json"),
        "sha256": sha,
        "previous": record.previous,
        "road": [{"base": edge.base, "version": edge.version, "kind": edge.kind, "bytes": edge.bytes} for edge in road],
    }


def _version_lines(name: str, info: VersionInfo, record: Record, sha: str, road: tuple[Edge, ...]) -> list[str]:
    edge: Edge | None = getattr(record.body, "edge", None)
    lines = fields_of(
        {
            "version": f"{info.version} of {name}",
            "record": f"number {record.seq}, sealed {time_text(record.time)}",
            "sha256": sha,
            "follows": record.previous,
            "made by": record.producer,
            "production": info.production,
            "fence": "/".join(map(str, record.fence)) if record.fence else None,
            "edge": f"{edge.kind} from {edge.base or 'nothing'}: {edge.rows} rows, {bytes_text(edge.bytes)}" if edge else None,
            "position": getattr(record.body, "position", None),
            "attributes": " ".join(f"{k}={v}" for k, v in info.custom.items()),
        }
    )
    lines += [
        f"file    {file.role}  {file.key}  {file.rows} rows, {bytes_text(file.bytes)}" for file in (edge.files if edge else ())
    ]
    return [*lines, f"road    {_road_text(road)}"]


def _road_text(road: tuple[Edge, ...]) -> str:
    if not road:
        return "none is offered any more"
    steps = " -> ".join(str(edge.version) for edge in road)
    return f"nothing -> {steps}: {bytes_text(sum(edge.bytes for edge in road))}"

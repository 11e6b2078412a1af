"""compact, retention …, hold: what keeps roads short and the store small, and what nobody may take away."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import click

from broker.cli.face import Command, Face, Group, columns, pass_face
from broker.cli.words import bytes_text, span_text, time_text
from broker.connect import Dataset
from broker.errors import Busy, Invalid, InvalidRequest
from broker.model.commit import Edge
from broker.model.duration import seconds_of
from broker.rules.levels import Merge
from broker.rules.retention import Pair, RetentionPlan


@click.command(
    "compact", cls=Command,
    examples="broker compact shop/catalog/offers", answer="A list of {kind, base, version, edges, bytes, settled}",
)  # fmt: skip
@click.argument("name", metavar="DATASET")
@click.option("--limit", type=click.IntRange(1), default=1_000_000, help="At most so many merges. Default: all that is due.")
@pass_face
def compact(face: Face, name: str, limit: int) -> None:
    """Merge what is due: roll-ups of deltas, a fresh snapshot where deltas grew heavy. Versions stay as they are.

    Where what readers need exceeds a snapshot, also a roll-up that leads all of them (settled: without what came late).
    """
    done = list[Merge]()
    with face.connect() as broker:
        found = broker.dataset(name)
        with face.progress(f"compact {name}", unit="merges") as advance:
            for work in broker.parts.compactor.compact(found.id, limit):
                done.append(work)
                advance(1)
    value = [_work(work) for work in done]
    rows = [(item["kind"], item["base"], item["version"], item["edges"], bytes_text(item["bytes"])) for item in value]
    face.emit(value, columns(("made", "base", "version", "of edges", "read"), rows) if rows else "nothing is due")


def _work(work: Merge) -> dict[str, Any]:
    edge = Edge(base=work.base, version=work.version)
    return {
        "kind": edge.kind, "base": work.base, "version": work.version, "edges": len(work.parts), "bytes": work.bytes,
        "settled": work.settled is not None,
    }  # fmt: skip


@click.group(
    "retention", cls=Group,
    examples="broker retention plan shop/catalog/offers\nbroker retention explain shop/catalog/offers 3",
)  # fmt: skip
def retention() -> None:
    """Plan, explain and apply what is given up."""


PLAN = "{dataset, applied, until, bytes, retire, kept, waits_seconds}"


@retention.command("plan", examples="broker retention plan shop/catalog/offers --json", answer=PLAN)
@click.argument("name", metavar="DATASET")
@pass_face
def plan(face: Face, name: str) -> None:
    """What would go now, and who needs the rest. Changes nothing."""
    with face.connect() as broker:
        found = broker.dataset(name)
        _emit_plan(face, found, found.retention.plan(), applied=False, waits=found.retention.waits_seconds())


@retention.command("apply", examples="broker retention apply shop/catalog/offers", answer=PLAN)
@click.argument("name", metavar="DATASET")
@pass_face
def apply(face: Face, name: str) -> None:
    """Give up what nobody needs. The sweep deletes the files later, when no answer can name them any more."""
    with face.connect() as broker:
        found = broker.dataset(name)
        waits = found.retention.waits_seconds()
        done = found.retention.apply()
        if done is None:
            raise Busy(
                "not all consumers are known yet", of=name, why=f"Redis must remember them for {span_text(waits)} more",
                hint="broker retention plan shows what would go",
            )  # fmt: skip
        _emit_plan(face, found, done, applied=True, waits=0.0)


@retention.command(
    "explain",
    examples="""
    broker retention explain shop/catalog/offers 3
    broker retention explain shop/catalog/offers shop/catalog/offers/data/0193….parquet
    """,
    answer="{dataset, of, why}",
)
@click.argument("name", metavar="DATASET")
@click.argument("version_or_file")
@pass_face
def explain(face: Face, name: str, version_or_file: str) -> None:
    """Why a version's edges, or a file, stay or go."""
    of: str | int = int(version_or_file) if version_or_file.isdecimal() else version_or_file
    with face.connect() as broker:
        why = broker.dataset(name).retention.explain(of)
    face.emit({"dataset": name, "of": version_or_file, "why": why}, why.split("; "))


def _emit_plan(face: Face, found: Dataset, plan: RetentionPlan, applied: bool, waits: float) -> None:
    value = {
        "dataset": str(found.id), "applied": applied, "until": plan.until, "bytes": plan.bytes,
        "retire": [{"base": one.base, "version": one.version, "kind": one.kind, "bytes": one.bytes} for one in plan.retire],
        "kept": [{"base": base, "version": version, "why": why} for (base, version), why in sorted_pairs(plan)],
        "waits_seconds": waits,
    }  # fmt: skip
    rows = [
        *((edge.version, edge.base, edge.kind, bytes_text(edge.bytes), "gone" if applied else "goes") for edge in plan.retire),
        *((version, base, Edge(base=base, version=version).kind, "", why) for (base, version), why in sorted_pairs(plan)),
    ]
    lines = columns(("version", "base", "edge", "bytes", "why"), rows)
    lines.append(f"{bytes_text(plan.bytes)} {'given up' if applied else 'would go'}")
    if waits and not applied:
        lines.append(f"nothing is given up for {span_text(waits)}: until then not every consumer has had the time to be known")
    face.emit(value, lines)


def sorted_pairs(plan: RetentionPlan) -> list[tuple[Pair, str]]:
    """What stays, by version."""
    return sorted(plan.kept.items(), key=lambda item: (item[0][1], item[0][0] or 0))


@click.command(
    "hold", cls=Command,
    examples="""
    broker hold shop/catalog/offers 800 --until 30d --why audit
    broker hold shop/catalog/offers 800 --until 2027-01-31 --name audit
    broker hold shop/catalog/offers
    broker hold shop/catalog/offers --release audit
    """, answer="A list of {name, version, until, why}: the holds that stand",
)  # fmt: skip
@click.argument("dataset_name", metavar="DATASET")
@click.argument("version", type=int, required=False)
@click.option("--until", metavar="WHEN", help="A duration from now (12h, 30d), or a date or time. Default: until released.")
@click.option("--why", default="", help="For people.")
@click.option("--name", "hold_name", help="Name of the hold. Default: v<version>.")
@click.option("--release", "released", metavar="HOLD", help="End the hold of this name.")
@pass_face
def hold(
    face: Face, dataset_name: str, version: int | None, until: str | None, why: str, hold_name: str | None, released: str | None
) -> None:
    """Keep VERSION of a dataset readable, whatever retention says; without VERSION: list its holds."""
    if version is not None and released is not None:
        raise InvalidRequest("hold or release, not both", of=dataset_name, hint="Leave VERSION out to release")
    with face.connect() as broker:
        found = broker.dataset(dataset_name)
        if version is not None:
            name = found.hold(version, until=None if until is None else moment(until, time.time()), why=why, name=hold_name)
            face.say(f"hold {name} on version {version}")
        if released is not None:
            found.release_hold(released)
            face.say(f"released {released}")
        standing = [one for _, one in sorted(found.state.holds.items()) if one.stands(time.time())]
    rows = [(one.name, one.version, time_text(one.until) or "it is released", one.why) for one in standing]
    value = [{"name": one.name, "version": one.version, "until": one.until, "why": one.why} for one in standing]
    face.emit(value, columns(("hold", "version", "until", "why"), rows))


def moment(text: str, now: float) -> float:
    """`30d` from `now`, or an ISO 8601 date or time (local, unless it says otherwise), in seconds since the epoch."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        pass
    try:
        return now + seconds_of(text, "--until")
    except Invalid:
        raise Invalid("not a time", of=text[:60], hint="Write 12h, 30d, 2027-01-31 or 2027-01-31T12:00") from None

"""schedule add|list|remove: requests by the clock."""

from __future__ import annotations

from typing import Any

import click

from broker.cli.face import Face, Group, columns, names, pairs, pass_face
from broker.cli.words import time_text
from broker.connect import Broker
from broker.model.request import PRIORITIES
from broker.schedules import Schedules, value_of


@click.group(
    "schedule", cls=Group,
    examples="""
    broker schedule add nightly "30 2 * * *" shop/catalog/offers --target search
    broker schedule list
    """,
)  # fmt: skip
def schedule() -> None:
    """Requests by the clock: any running worker submits those that are due."""


@schedule.command(
    "add",
    examples="""
    broker schedule add nightly "30 2 * * *" shop/catalog/offers --target search
    broker schedule add cheap "*/15 8-18 * * mon-fri" shop/catalog/offers --target app --where "price < 10" --format jsonl
    """,
    answer="{schedule, cron, body, next, last, submitted, error}",
)
@click.argument("id", metavar="NAME")
@click.argument("cron")
@click.argument("dataset")
@click.option("--target", required=True, help="The system that asks: owner of the response stream.")
@click.option("--where", help="SQL condition on the rows.")
@click.option("--columns", "column_names", help="Columns wanted, a,b; key and order columns always come.")
@click.option("--format", "form", type=click.Choice(["parquet", "jsonl", "csv", "arrow"]), default="parquet", show_default=True)
@click.option("--max-staleness", type=float, metavar="SECONDS", help="Take a version this old without asking the producer.")
@click.option("--priority", type=click.Choice(PRIORITIES), default="normal", show_default=True)
@click.option("--attribute", "attributes", multiple=True, metavar="K=V")
@pass_face
def add(face: Face, /, id: str, cron: str, dataset: str, **options: Any) -> None:
    """Ask for DATASET whenever CRON (minute hour day month weekday, UTC) is due. What was missed is made up for once."""
    with face.connect() as broker:
        selection = broker.dataset(dataset).selection(options["where"], names(options["column_names"]))
        given = {"where": selection.where, "columns": selection.columns, "max_staleness": options["max_staleness"]}
        fields = {"dataset": dataset, "target": options["target"], "format": options["form"], "priority": options["priority"]}
        fields |= {name: value for name, value in given.items() if value is not None}
        found = schedules_of(broker)
        found.add(id, cron, fields | {"attributes": pairs(options["attributes"])})
        one, course = found.get(id)
    face.emit(value_of(one, course), f"{id}: next {time_text(course.next)}")


@schedule.command(
    "list", examples="broker schedule list", answer="A list of {schedule, cron, body, next, last, submitted, error}"
)
@pass_face
def list_(face: Face) -> None:
    """Every schedule with its next and last due time, in local time, and what became of the last."""
    with face.connect() as broker:
        found = list(schedules_of(broker).all())
    rows = [
        (one.id, one.cron, one.request.dataset, one.request.target, time_text(course.next), time_text(course.last),
         course.error or course.submitted)
        for one, course in found
    ]  # fmt: skip
    heads = ("name", "cron", "dataset", "target", "next", "last", "request")
    face.emit([value_of(*one) for one in found], columns(heads, rows))


@schedule.command("remove", examples="broker schedule remove nightly", answer="{schedule, removed}")
@click.argument("id", metavar="NAME")
@pass_face
def remove(face: Face, id: str) -> None:
    """End a schedule; requests that it made go on."""
    with face.connect() as broker:
        schedules_of(broker).remove(id)
    face.emit({"schedule": id, "removed": True}, f"{id} removed")


def schedules_of(broker: Broker) -> Schedules:
    """The schedules of a connection."""
    return Schedules(broker.parts.redis, broker.parts.index, broker.parts.leases)

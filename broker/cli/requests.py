"""request, and requests …: ask, look, wait, cancel, retry."""

from __future__ import annotations

import math
import time
from itertools import islice
from typing import Any, Final

import click

from broker.cli.exits import Exit
from broker.cli.face import Command, Face, Group, columns, names, pairs, pass_face
from broker.cli.shown import (
    COMPLETION,
    REQUEST,
    completion_lines,
    completion_text,
    completion_value,
    dead_lines,
    dead_value,
    status_lines,
    status_value,
)
from broker.cli.words import time_text
from broker.connect import Broker
from broker.errors import Conflict, TimedOut
from broker.flights import Status
from broker.handle import Handle
from broker.inquiry import Inquiry, find_request
from broker.model.request import PRIORITIES, State
from broker.received import Received

POLL_SECONDS: Final = 0.2
LOOK_SECONDS: Final = 0.5
"""How often a bar looks for progress while an answer is waited for."""


def _cursor(ctx: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
    del ctx, param
    return int(value) if value is not None and value.isascii() and value.isdigit() else value


@click.command(
    "request",
    cls=Command,
    examples="""
    broker request shop/catalog/offers --target search
    broker request shop/catalog/offers --target search --since 7 --where "price < 50" --columns sku,price --wait --to in/
    broker request shop/catalog/offers --target search --max-staleness 60 --idempotency-key job-17 --attribute why=nightly
    """,
    answer=f"{{request, dataset, target}}; with an answer {COMPLETION[:-1]}, paths}}",
)
@click.argument("name", metavar="DATASET")
@click.option("--target", required=True, help="The system that asks: owner of the response stream.")
@click.option(
    "--since", callback=_cursor, metavar="N|CURSOR", help="What the target holds: a version, or a completion's cursor."
)
@click.option("--where", help="SQL condition on the rows.")
@click.option("--columns", "column_names", help="Columns wanted, a,b; key and order columns always come.")
@click.option("--format", "form", type=click.Choice(["parquet", "jsonl", "csv", "arrow"]), default="parquet", show_default=True)
@click.option("--mode", type=click.Choice(["auto", "snapshot", "delta"]), default="auto", show_default=True)
@click.option(
    "--max-staleness",
    type=float,
    metavar="SECONDS",
    help="Take a version confirmed within this time; else the producer is asked.",
)
@click.option("--deadline", type=float, metavar="SECONDS", help="Expire if not answered within this time from now.")
@click.option("--priority", type=click.Choice(PRIORITIES), default="normal", show_default=True)
@click.option("--idempotency-key", help="The same key and request again gives the same request.")
@click.option("--attribute", "attributes", multiple=True, metavar="K=V")
@click.option("--wait", is_flag=True, help="Wait for the answer, as long as it takes.")
@click.option(
    "--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Wait no longer than this (exit 5); implies --wait."
)
@click.option(
    "--to", "folder", type=click.Path(file_okay=False), help="Download the files, verified, into this folder; implies --wait."
)
@pass_face
def request(
    face: Face,
    /,
    name: str,
    column_names: str | None,
    form: str,
    attributes: tuple[str, ...],
    wait: bool,
    timeout: float | None,
    folder: str | None,
    **fields: Any,
) -> None:
    """Ask for data of dataset NAME; prints the request's id, or with --wait the answer."""
    given = {field: value for field, value in fields.items() if value is not None}
    with face.connect() as broker:
        handle = broker.request(name, columns=names(column_names), format=form, attributes=pairs(attributes), **given)
        if not wait and timeout is None and folder is None:
            face.emit({"request": handle.id, "dataset": name, "target": handle.target}, handle.id)
            return
        face.say(f"request {handle.id}")
        if not handle.status().state.terminal:
            found = inquiry_of(broker).whereabouts(handle.id)
            face.say(f"waits for {found.waits_for or 'nothing'}: {found.why}")
        received = _waited(face, handle, timeout)
        with face.gauge(f"download {handle.id}", broker.parts.engine.verified_bytes, received.bytes):
            paths = [str(path) for path in received.download(folder)] if folder else []
        value = completion_value(received.completion) | {"paths": paths}
        face.emit(value, paths if paths else completion_lines(received.completion))
        if paths:
            face.say(completion_text(received.completion))


def _waited(face: Face, handle: Handle, seconds: float | None) -> Received:
    """The answer; meanwhile the bar shows the rows its production has made. Raises TimedOut, RequestFailed and the like."""
    until = math.inf if seconds is None else time.monotonic() + seconds
    with face.progress(f"wait for {handle.id}", unit="rows") as advance:
        shown = 0
        while True:
            left = until - time.monotonic()
            try:
                return handle.wait(max(0.0, min(left, LOOK_SECONDS)))
            except TimedOut as error:
                if left <= LOOK_SECONDS:
                    hint = f"It goes on. See: broker explain request {handle.id}"
                    raise TimedOut(error.what, of=handle.id, why=f"within {seconds:g} s", hint=hint) from None
            rows = handle.status().progress.get("rows", 0)
            advance(rows - shown)
            shown = rows


@click.group("requests", cls=Group, examples="broker requests list --state failed\nbroker requests dead")
def requests() -> None:
    """List, show, watch, cancel and retry requests."""


@requests.command(
    "list", examples="broker requests list --state running --dataset shop/catalog/offers", answer=f"A list of {REQUEST}"
)
@click.option("--state", type=click.Choice([str(state) for state in State]), help="Only these.")
@click.option("--dataset", help="Only of this dataset.")
@click.option("--target", help="Only of this target.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@pass_face
def list_(face: Face, state: str | None, dataset: str | None, target: str | None, limit: int) -> None:
    """The newest requests Redis remembers."""
    with face.connect() as broker:
        chosen = (
            status
            for status in inquiry_of(broker).newest(broker.parts.index.slots())
            if (not state or status.state == state)
            and (not dataset or status.request.dataset == dataset)
            and (not target or status.request.target == target)
        )
        found = list(islice(chosen, limit))
        idle = {s.request.dataset for s in found if s.state is State.QUEUED and not _served(broker, s)}
    value = [status_value(status, status.request.dataset in idle) for status in found]
    heads = ("request", "state", "dataset", "target", "attempts", "created")
    rows = [[time_text(item[head]) if head == "created" else item[head] for head in heads] for item in value]
    face.emit(value, columns(heads, rows))


@requests.command("show", examples="broker requests show catalog.0.0193…", answer=REQUEST)
@click.argument("id")
@pass_face
def show(face: Face, id: str) -> None:
    """One request: state, attempts, progress, and its answer once there is one."""
    with face.connect() as broker:
        status = broker.parts.requests.status(id)
        unserved = status.state is State.QUEUED and not _served(broker, status)
    face.emit(status_value(status, unserved), status_lines(status, unserved))


@requests.command(
    "watch", examples="broker requests watch catalog.0.0193… --timeout 60", answer=f"A line for each change: {REQUEST}"
)
@click.argument("id")
@click.option("--timeout", type=click.FloatRange(0), default=None, help="Stop looking after this many seconds (exit 5).")
@pass_face
def watch(face: Face, id: str, timeout: float | None) -> int:
    """A line for each change of a request until it ends; exit 1 unless it completed."""
    with face.connect() as broker:
        handle = broker.submitted(id)
        deadline = None if timeout is None else time.monotonic() + timeout
        shown: dict[str, Any] | None = None
        while True:
            status = handle.status()
            unserved = status.state is State.QUEUED and not _served(broker, status)
            value = status_value(status, unserved)
            if value != shown:
                face.emit(value, _change(status, unserved))
                shown = value
            if status.state.terminal:
                return Exit.OK if status.state is State.COMPLETED else Exit.FAILED
            if deadline is not None and time.monotonic() > deadline:
                return Exit.TIMED_OUT
            time.sleep(POLL_SECONDS)


def _change(status: Status, unserved: bool) -> str:
    progress = " ".join(f"{name}={value}" for name, value in status.progress.items())
    state = f"{status.state} (no-producer)" if unserved else str(status.state)
    return f"{time_text(time.time())}  {state}  attempt {status.attempts}" + (f"  {progress}" if progress else "")


@requests.command("cancel", examples="broker requests cancel catalog.0.0193…", answer="{request, state}")
@click.argument("id")
@pass_face
def cancel(face: Face, id: str) -> None:
    """End a request as cancelled; a version already on its way lands all the same. Exit 4 when it had ended."""
    with face.connect() as broker:
        if not broker.submitted(id).cancel():
            raise Conflict("the request had ended already", of=id, hint=f"See: broker requests show {id}")
    face.emit({"request": id, "state": "cancelled"}, f"cancelled {id}")


@requests.command(
    "dead", examples="broker requests dead --limit 5", answer="A list of {request, dataset, target, attempts, causes, body}"
)
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@pass_face
def dead(face: Face, limit: int) -> None:
    """Requests that failed for good, newest first, with every attempt's cause."""
    with face.connect() as broker:
        letters = [letter for slot in broker.parts.index.slots() for letter in inquiry_of(broker).dead(slot, limit)]
    letters = sorted(letters, key=lambda letter: letter.entry, reverse=True)[:limit]
    face.emit([dead_value(letter) for letter in letters], [line for letter in letters for line in dead_lines(letter)])


@requests.command("retry", examples="broker requests retry catalog.0.0193…", answer="{request, instead_of}")
@click.argument("id")
@pass_face
def retry(face: Face, id: str) -> None:
    """Ask the same again as a new request, without its idempotency key, and drop the dead letter."""
    with face.connect() as broker:
        inquiry = inquiry_of(broker)
        body = find_request(inquiry, broker.parts.requests, id)
        letter = inquiry.dead_letter(id)
        if letter is None and not broker.parts.requests.status(id).state.terminal:
            raise Conflict("the request has not ended", of=id, hint=f"See: broker explain request {id}")
        fields = body.model_dump(exclude={"dataset", "target", "idempotency_key"})
        handle = broker.request(body.dataset, target=body.target, **fields)
        if letter is not None:
            broker.parts.requests.forget_dead(broker.parts.index.slot(body.dataset), letter.entry)
    face.emit({"request": handle.id, "instead_of": id}, handle.id)


def inquiry_of(broker: Broker) -> Inquiry:
    return Inquiry(broker.parts.redis, broker.parts.requests)


def _served(broker: Broker, status: Status) -> bool:
    dataset = status.request.dataset
    return bool(inquiry_of(broker).serving(dataset, broker.parts.index.slot(dataset)))

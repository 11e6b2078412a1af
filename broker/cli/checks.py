"""What `broker doctor` looks at: one generator per subject, each finding with a verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from broker.backend import embedded, health
from broker.backend.client import RedisClient
from broker.cli.checks_care import care
from broker.cli.finding import Finding
from broker.cli.words import public_place
from broker.connect import Broker
from broker.errors import BrokerError
from broker.inquiry import Inquiry
from broker.model.names import ChannelsId, DatasetId
from broker.parts import open_parts, redis_url, store_url
from broker.settings import Settings, home_folder
from broker.stores.open import open_store
from broker.stores.probe import probe


def examined(settings: Settings) -> Iterator[Finding]:
    """Everything, the outer things first. A broken Redis or store ends the visit: nothing behind it can be seen."""
    yield from _embedded(settings)
    whole = True
    for subject, check in (("redis", _redis), ("store", _store)):
        for finding in _guarded(subject, settings, check):
            whole = whole and finding.verdict != "broken"
            yield finding
    if not whole:
        return
    with Broker(open_parts(settings)) as broker:
        yield from _workers(broker)
        index = broker.parts.index
        announced = [log for slot in index.slots() for log in index.announced(slot)]
        for log in [*map(DatasetId, broker.datasets()), *announced]:
            try:
                yield from _log(broker, log)
            except BrokerError as error:
                yield Finding("broken", log, str(error))
        try:
            yield from care(broker)
        except BrokerError as error:
            yield Finding("broken", "care", str(error))
    yield from _guarded("rq", settings, _rq)


def _guarded(subject: str, settings: Settings, check: Callable[[Settings], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check(settings)
    except BrokerError as error:
        yield Finding("broken", subject, str(error))


def _embedded(settings: Settings) -> Iterator[Finding]:
    if settings.redis:
        return
    home = home_folder(settings)
    running = embedded.status(home)
    yield Finding(
        "ok", "embedded", f"running at {running.url}" if running else f"not running under {home}; it starts when it is used"
    )


def _redis(settings: Settings) -> Iterator[Finding]:
    with RedisClient.open(redis_url(settings)) as client:
        found = health.check(client)
        yield Finding("ok", "redis", f"{health.describe(client.servers()[0].info())} at {client.url}")
        yield from (Finding(verdict, "redis", text) for verdict, text in found)


def _store(settings: Settings) -> Iterator[Finding]:
    promise = probe(open_store(store_url(settings), settings))
    yield Finding("ok", "store", public_place(store_url(settings)))
    yield from (Finding(verdict, "store", text) for verdict, text in promise.explain())


def _workers(broker: Broker) -> Iterator[Finding]:
    inquiry, index = Inquiry(broker.parts.redis, broker.parts.requests), broker.parts.index
    for slot in index.slots():
        datasets = index.datasets(slot)
        queues = inquiry.queues(slot, datasets)
        yield Finding(
            "ok",
            f"slot {slot.name}",
            f"{len(queues.workers)} live worker(s), {queues.flights} flight(s), {sum(queues.queued.values())} queued",
        )
        if queues.dead:
            yield Finding("note", f"slot {slot.name}", f"{queues.dead} dead letter(s): see broker requests dead")
        for dataset in inquiry.outstanding(slot):
            if not inquiry.serving(dataset, slot):
                yield Finding("note", dataset, "no-producer: requests wait and no live worker's patterns match")


def _log(broker: Broker, dataset: DatasetId) -> Iterator[Finding]:
    """Index against log: a record behind the head, a reservation nobody finished."""
    catalog, index, settings = broker.parts.catalog, broker.parts.index, broker.parts.settings
    state, head = catalog.known(dataset), index.head(dataset)
    unpublished = next(iter(catalog.records(dataset, state.seq + 1)), None)
    (reserved_at,) = index.fields(dataset, "reserved_at")
    age = time.time() - int(reserved_at) / 1000 if head.reservation and reserved_at else 0.0
    if unpublished is not None:
        yield Finding(
            "broken",
            dataset,
            f"log record {state.seq + 1} is sealed and not published: a worker's janitor, or broker rebuild, does it",
        )
    elif age > settings.reservation_seconds * 5:
        yield Finding("broken", dataset, f"record {state.seq + 1} is reserved since {age:.0f} s: a worker's janitor seals it")
    elif not head.current:
        yield Finding("note", dataset, "Redis is a new incarnation; the next write reconciles")
    else:
        what = f"{len(state.channels)} named by channels" if isinstance(dataset, ChannelsId) else f"version {state.version}"
        yield Finding("ok", dataset, f"{what}, {state.seq} record(s), index and log agree")


def _rq(settings: Settings) -> Iterator[Finding]:
    with RedisClient.open(settings.rq_url or redis_url(settings)) as client:
        client.run("PING", writes=False)
        yield Finding("ok", "rq", f"reachable at {client.url}")

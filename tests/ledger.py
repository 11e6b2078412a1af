"""Fulfilment by hand: a worker whose every step happens when the test says so, in the test's own process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from broker import Broker, Handle, connect
from broker.backend.client import Entry
from broker.backend.keys import PRODUCERS, Slot
from broker.catalog import Catalog
from broker.channels import Channels
from broker.columnar.engine import Engine
from broker.compactor import Compactor
from broker.errors import BrokerError
from broker.flights import Claimed, Flight
from broker.fulfilment import Answered, Clerk, Maker, Produced
from broker.model.event import Event
from broker.model.names import DatasetId
from broker.model.request import PRIORITIES, Completion, slot_of
from broker.outcomes import ProductionRequest, Since, Snapshot
from broker.parts import Parts, open_parts
from broker.producers import Producers
from broker.publication import Publication
from broker.retention import Retention
from broker.rules.retention import Floors
from broker.rules.steps import OnStep, nothing
from broker.settings import load
from broker.stores.port import ObjectStore

OFFERS = DatasetId("goodstuff_01/catalog/offers")
SHORT: dict[str, Any] = {"lease_seconds": 60, "backoff_seconds": 0.02, "backoff_max_seconds": 0.05, "max_attempts": 3}


def opened(url: str, **settings: Any) -> Broker:
    """A broker over an own memory store, with the dataset OFFERS."""
    connected = connect(redis=url, store="memory://", **(SHORT | settings))
    connected.dataset(OFFERS, key=["sku"])
    return connected


def ask(b: Broker, **fields: Any) -> Handle:
    return b.request(OFFERS, **({"target": "search"} | fields))


@dataclass
class Source:
    """What the producer reads. `runs` says how often it was asked; `error` is raised instead of an answer."""

    rows: list[dict[str, Any]] = field(default_factory=lambda: [{"sku": "a", "price": 1}, {"sku": "b", "price": 60}])
    runs: int = 0
    error: Exception | None = None

    def __call__(self, request: ProductionRequest, since: Since | None) -> Snapshot:
        del request, since
        self.runs += 1
        if self.error is not None:
            raise self.error
        return Snapshot([dict(row) for row in self.rows], position=self.runs)


class Hand:
    """One worker. `serves` says which datasets it takes; `on_step` is called behind each named step."""

    def __init__(
        self, parts: Parts, source: Source, name: str = "hand", serves: Callable[[DatasetId], bool] = lambda _: True
    ) -> None:
        self.parts, self.source, self.name, self.serves = parts, source, name, serves
        app = Producers()
        app.add("*/*/*", source)
        self.clerk = Clerk(parts.catalog, parts.requests, parts.derived, parts.settings, parts.on_step)
        self.maker = Maker(parts.catalog, parts.engine, parts.publication, app, parts.on_step)

    def read(self, dataset: DatasetId = OFFERS) -> list[Entry]:
        """Bells of the dataset's name that nobody has taken yet, high first."""
        slot, found = self.parts.index.slot(dataset), list[Entry]()
        for priority in PRIORITIES:
            stream = slot.requests(dataset.name, priority)
            self.parts.redis.create_group(stream, PRODUCERS)
            found += self.parts.redis.wait_entries({stream: b">"}, PRODUCERS, self.name, 10_000, 0)
        return found

    def claim(self, dataset: DatasetId = OFFERS) -> Claimed:
        return self.clerk.claim(self.parts.index.slot(dataset), self.name, self.read(dataset), self.serves)

    def lead(self) -> Flight:
        """The one flight of a claim that must give exactly one."""
        (flight,) = self.claim().flights
        return flight

    def produce(self, flight: Flight) -> Produced:
        return self.maker.produce(flight, self.clerk.since(flight))

    def answer(self, flight: Flight, produced: Produced) -> Answered:
        members = self.clerk.close(flight)
        orders = self.clerk.orders(flight, members, produced.version)
        return self.clerk.complete(flight, members, produced, self.clerk.keep(orders, self.maker.derive(orders)))

    def run(self, flight: Flight) -> Answered:
        """The whole flight, failing its members with what the producer raised."""
        if flight.kind == "derive":
            state = self.parts.catalog.state(flight.dataset)
            return self.answer(flight, Produced(version=state.version, changed=False, confirmed_at=state.confirmed_at))
        try:
            produced = self.produce(flight)
        except BrokerError as error:
            return self.clerk.fail(flight, self.clerk.close(flight), error)
        return self.answer(flight, produced)

    def work(self) -> int:
        """Claim and run what there is. -> flights"""
        flights = self.claim().flights
        for flight in flights:
            self.run(flight)
        return len(flights)

    def take_over(self, id: str) -> Flight:
        """Hold a flight whose lease is over."""
        let_lapse(self.parts, id)
        flight = self.parts.requests.take_over(id, self.name)
        assert flight is not None
        return flight


def broker_over(store: ObjectStore, url: str, on_step: OnStep = nothing, **settings: Any) -> Broker:
    """A broker whose store is `store`, such as a FaultyStore; its publications read everything back."""
    parts = open_parts(load(redis=url, store="memory://", **settings), on_step)
    parts.engine.close()
    catalog, engine = Catalog(parts.index, store, parts.settings, on_step), Engine(store, parts.settings)
    publication = Publication(catalog, engine, parts.leases, on_step=on_step)
    channels = Channels(catalog, parts.index, parts.leases)
    compactor = Compactor(parts.index, catalog, engine, publication, parts.leases)
    floors = Floors(parts.settings.retain_versions, parts.settings.retain_seconds, parts.settings.retain_edges)
    retention = Retention(catalog, parts.index, parts.leases, parts.cursors, floors, channels.pins)
    made = replace(parts, store=store, catalog=catalog, engine=engine, publication=publication, channels=channels)
    return Broker(replace(made, compactor=compactor, retention=retention))


def let_lapse(parts: Parts, id: str) -> None:
    """What the clock does in the end: the flight's lease is over."""
    slot = Slot(slot_of(id))
    parts.redis.run("HSET", slot.flight(id), "until", 1)
    parts.redis.run("ZADD", slot.key("lapse"), 1, id)


def refusals(b: Broker, dataset: DatasetId) -> list[Event]:
    """Events of refused versions in the dataset's stream, oldest first."""
    found = b.parts.redis.run("XRANGE", b.parts.index.slot(dataset).events, "-", "+", writes=False)
    events = [Event.model_validate_json(fields[fields.index(b"e") + 1]) for _, fields in found]
    return [event for event in events if event.type == "broker.dataset.refused"]


def events(broker: Broker, target: str = "search") -> list[Completion]:
    """Terminal events in the target's response stream, oldest first."""
    return [response.completion for response in broker.responses(target).peek(100_000)]

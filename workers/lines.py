"""What the log says of a flight, a line each, for machines: with --json alone, as a busy worker has thousands a second."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from broker.catalog import Catalog
from broker.errors import BrokerError
from broker.flights import Flight, Member
from broker.rules.correlation import first, line

log = logging.getLogger("broker.worker")


def claimed(flight: Flight) -> None:
    log.debug("claimed", extra=_named(flight))


def answered(catalog: Catalog, flight: Flight, members: Iterable[Member], version: int) -> None:
    """By the version's own correlation, which is the flight's where the flight made it."""
    if log.isEnabledFor(logging.DEBUG):
        told = line(catalog.at_least(flight.dataset, version), version, flight=flight.id, requests=_ids(members))
        log.debug("answered", extra=told)


def failed(flight: Flight, members: Iterable[Member], error: BrokerError) -> None:
    if log.isEnabledFor(logging.DEBUG):
        log.debug("failed", extra=_named(flight) | {"requests": _ids(members), "failure": error.to_dict()})


def _named(flight: Flight) -> dict[str, Any]:
    return {"correlation": flight.id, "dataset": str(flight.dataset), "flight": flight.id}


def _ids(members: Iterable[Member]) -> list[str]:
    return first(member.id for member in members)

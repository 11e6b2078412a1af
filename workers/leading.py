"""The cut flights that this worker leads: begun in a child, then followed without one until the finaliser has answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import cached_property

from broker.backend.jobs import Jobs
from broker.cuts import Cuts, Progress
from broker.errors import AttemptFailed, StaleBase, Transient
from broker.flights import Flight, Member
from broker.fulfilment import Produced
from broker.heavy import Lead
from broker.parts import Parts, rq_url
from broker.producers import Producers


class Leading:
    """`look` is for one thread, the rest for any. RQ's Redis is asked for when the first cut flight comes."""

    def __init__(self, parts: Parts, producers: Producers, app: str) -> None:
        self._parts, self._producers, self._app = parts, producers, app
        self._flights, self._told = dict[str, Flight](), dict[str, Progress]()

    @cached_property
    def _lead(self) -> Lead:
        jobs = Jobs.open(rq_url(self._parts.settings))
        return Lead(Cuts(self._parts.redis), jobs, self._parts.settings, self._app, self._parts.on_step)

    @property
    def flights(self) -> list[Flight]:
        """Those followed now."""
        return list(self._flights.values())

    def cuts(self, flight: Flight) -> bool:
        """Whether the flight is to be made in parts."""
        return flight.kind == "produce" and self._producers.match(flight.dataset).partitioned

    def resumes(self, flight: Flight) -> bool:
        """True: its parts are noted already, so it is only followed. Raises InvalidSettings (RQ has no Redis), Unavailable."""
        if not self._lead.begun(flight):
            return False
        self._flights[flight.id] = flight
        return True

    def begin(self, flight: Flight, parts: Sequence[str]) -> None:
        """Note the parts, and follow it. Raises Fenced."""
        state = self._parts.catalog.state(flight.dataset)
        _, position = self._parts.catalog.noted(flight.dataset)
        self._lead.begin(flight, parts, state, position)
        self._flights[flight.id] = flight

    def look(self, flight: Flight) -> Produced | None:
        """Its end, None while it goes on; its progress is shown on its requests. Raises what ended it, Fenced.

        A Redis that does not answer ends nothing: the flight's lease decides.
        """
        try:
            report = self._lead.look(flight)
            if report.progress is not None and report.progress != self._told.get(flight.id):
                self._parts.requests.beat(flight, asdict(report.progress))
                self._told[flight.id] = report.progress
        except (AttemptFailed, StaleBase):
            raise
        except Transient:
            return None
        return report.produced

    @contextmanager
    def abandoning(self, flight: Flight) -> Iterator[None]:
        """Around the end of a flight that failed: its jobs are stopped behind it, since they look whether it is over."""
        cut = self._lead.cut(flight) if flight.id in self._flights else None
        yield
        if cut is not None:
            with suppress(Transient):
                self._lead.stop(flight, cut)

    def forget(self, flight: Flight) -> None:
        """It is over, or another worker's: its jobs run on for that one."""
        if self._flights.pop(flight.id, None) is not None:
            self._lead.forget(flight)
        self._told.pop(flight.id, None)


def spent(members: Sequence[Member], attempts: int) -> list[Member]:
    """Members that go no other round: a part of their flight used up its `attempts`."""
    return [replace(member, attempts=max(member.attempts, attempts)) for member in members]

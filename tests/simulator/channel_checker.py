"""What channels promise, compared with all that comes to stand in the logs of one tenant's domain."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from broker.errors import BrokerError, NotFound
from broker.model.commit import Announce, Retire
from broker.rules.fold import State, fold
from broker.rules.patch import Named
from broker.rules.plan import EVERYTHING, plan_for
from tests.simulator.checker import Checker, Violation


@dataclass(frozen=True, slots=True)
class Intent:
    """What somebody asked of a channel. `expect`: versions it must name when the announcement comes to stand."""

    what: str
    versions: dict[str, int]
    expect: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Domain:
    """The truth of all logs: states folded from what is sealed. `meant`: write id -> what its writer asked for."""

    states: dict[str, State] = field(default_factory=dict)
    channels: State = field(default_factory=lambda: State("channels"))
    meant: dict[str, Intent | None] = field(default_factory=dict)
    landed: set[str] = field(default_factory=set)

    def pinned(self, name: str) -> Iterable[tuple[str, int]]:
        """Versions of a dataset that must stay readable, with the channel that needs them."""
        for (dataset, channel), named in self.channels.channels.items():
            if dataset == name:
                yield from ((channel, point.version) for point in _points(named))

    def expected(self, intent: Intent, channel: str) -> None:
        for name, version in intent.expect.items():
            named = self.channels.channels.get((name, channel))
            found = named.version if named else 0
            if found != version:
                raise Violation("compare-and-set", f"{intent.what} {name}: it was at {found}, expected {version}")

    def reachable(self, name: str, version: int, why: str) -> None:
        try:
            plan_for(self.states[name], None, EVERYTHING, version)
        except NotFound:
            raise Violation("P10", f"no road leads to version {version} of {name}: {why}") from None


def _points(named: Named) -> list[Any]:
    return [named.point, *named.past, *([named.left] if named.left else [])]


@dataclass(slots=True)
class DomainChecker(Checker):
    """Of one of the logs. `name`: its dataset; '' for the announcements."""

    domain: Domain = field(default_factory=Domain)
    name: str = ""

    def landed(self, seq: int, data: bytes) -> None:
        known = len(self.chain)
        # The dataclass decorator makes this class anew, so that super() would not find it.
        Checker.landed(self, seq, data)
        if len(self.chain) == known:
            return
        record = self.chain[-1].record
        self.domain.landed.add(record.write_id)
        if self.name:
            self.domain.states[self.name] = fold(self.domain.states.get(self.name, State(self.name)), data)
            if isinstance(record.body, Retire):
                self.counters["retired"] += len(record.body.edges)
                for channel, version in self.domain.pinned(self.name):
                    self.domain.reachable(self.name, version, f"retired although {channel} needs it")
            return
        before, self.domain.channels = self.domain.channels, fold(self.domain.channels, data)
        if isinstance(record.body, Announce):
            self._announced(before, record.write_id, record.body)

    def _announced(self, before: State, write_id: str, body: Announce) -> None:
        self.counters[f"announced {body.why}"] += 1
        if (intent := self.domain.meant.get(write_id)) is not None:
            after, self.domain.channels = self.domain.channels, before
            self.domain.expected(intent, body.channel)
            self.domain.channels = after
            if intent.versions.keys() < body.moves.keys():
                raise Violation("all or nothing", f"{intent.what} moved {sorted(body.moves)}")
        for name, move in body.moves.items():
            self.domain.reachable(name, move.version, f"{body.channel} was moved to it")

    # --- callers

    def told(self, intent: Intent, channel: str, number: int) -> None:
        """An announcement was acknowledged under this number."""
        body = self.chain[number - 1].record.body if number <= len(self.chain) else None
        for name, version in intent.versions.items():
            stood = body.moves.get(name) if isinstance(body, Announce) and body.channel == channel else None
            if stood is None or (version and stood.version != version):
                if stood is None and version and len(intent.versions) > 1:
                    continue  # it stood there before, by another announcement
                raise Violation("P9", f"{intent.what} {name} {version} was acknowledged as {number}, which says {body}")
        self.counters[f"acknowledged {intent.what}"] += 1

    def refused(self, intent: Intent, ids: Iterable[str], error: BrokerError) -> None:
        """A caller was told that nothing was moved."""
        if self.domain.landed.intersection(ids):
            raise Violation("P9", f"{intent.what} {intent.versions} stands, and its caller was told: {error}")
        self.counters[f"refused {error.code}"] += 1

"""What a replica follows, and what it works with."""

from __future__ import annotations

from dataclasses import dataclass

from broker.backend.derived import Derived
from broker.backend.leases import Leases
from broker.catalog import Catalog
from broker.channels import Channels
from broker.columnar.engine import Engine
from broker.cursors import Cursors
from broker.events import Events
from broker.model.names import LIVE, DatasetId
from broker.repairs import Repairs
from broker.rules.fold import State
from broker.rules.following import Goal, goal_of
from broker.stores.port import ObjectStore


@dataclass(frozen=True)
class Means:
    """What replicas work with."""

    catalog: Catalog
    engine: Engine
    leases: Leases
    events: Events
    cursors: Cursors
    repairs: Repairs
    derived: Derived
    store: ObjectStore
    digest_every: int


@dataclass(frozen=True, slots=True)
class Followed:
    """What a replica follows: a dataset, and the channel that says at which version it shall be."""

    catalog: Catalog
    channels: Channels
    dataset: DatasetId
    channel: str = LIVE

    def goal(self) -> tuple[State, Goal]:
        """The present state, and where to be; at version 0 nothing was published, or is named, in its session."""
        named = {} if self.channel == LIVE else self.channels.named(self.dataset)
        state = self.catalog.state(self.dataset)  # behind the announcement: so it knows the version named
        return state, goal_of(state, self.channel, named)

    def look(self) -> tuple[State, int]:
        """The present state, and the version wanted."""
        state, goal = self.goal()
        return state, goal.version

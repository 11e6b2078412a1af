"""The wiring: from settings to working parts. `connect` and every worker process build exactly these."""

from __future__ import annotations

from dataclasses import dataclass

from broker.audits import Audits
from broker.backend import embedded, health
from broker.backend.client import RedisClient
from broker.backend.deployment import agree_on_shards, known_promise
from broker.backend.derived import Derived
from broker.backend.index import Index
from broker.backend.leases import Leases
from broker.catalog import Catalog
from broker.changelog import ChangeLogs
from broker.channels import Channels
from broker.columnar.engine import Engine
from broker.compactor import Compactor, Dues
from broker.cursors import Cursors
from broker.events import Events, Tools
from broker.hands import insisted
from broker.mending import Mending
from broker.publication import Publication
from broker.repairs import Repairs
from broker.replica_followed import Means
from broker.requests import Requests
from broker.retention import Retention
from broker.rules.guards import Guards
from broker.rules.levels import Levels
from broker.rules.retention import Floors
from broker.rules.steps import OnStep, nothing
from broker.settings import Settings, home_folder
from broker.stores.open import open_store
from broker.stores.port import ObjectStore
from broker.stores.probe import Promise, probe

STORE_FOLDER = "store"


@dataclass(frozen=True)
class Parts:
    """One process' objects, each usable on its own. Close when done."""

    settings: Settings
    redis: RedisClient
    store: ObjectStore
    index: Index
    leases: Leases
    catalog: Catalog
    engine: Engine
    publication: Publication
    requests: Requests
    derived: Derived
    changelogs: ChangeLogs
    channels: Channels
    events: Events
    cursors: Cursors
    compactor: Compactor
    retention: Retention
    promise: Promise
    on_step: OnStep

    @property
    def means(self) -> Means:
        """What replicas work with."""
        return Means(
            self.catalog, self.engine, self.leases, self.events, self.cursors, self.repairs, self.derived, self.store,
            self.settings.digest_every,
        )  # fmt: skip

    @property
    def repairs(self) -> Repairs:
        """What replicas ask so as to repair themselves."""
        return Repairs(self.redis, self.index)

    @property
    def audits(self) -> Audits:
        """The duty that compares receipts, and tells of cursors that lag or end."""
        parts = (self.catalog, self.channels, self.index, self.engine)
        return Audits(parts, self.cursors, self.events, self.settings.lag_seconds)

    @property
    def mending(self) -> Mending:
        """The duty that answers replicas which repair themselves."""
        return Mending(self.index, self.catalog, self.engine, self.store, self.derived, self.repairs, self.settings)

    def caveats(self) -> list[str]:
        """What cannot be promised with this Redis and this store, in words; empty when all is well."""
        return [finding.text for finding in (*health.check(self.redis), *self.promise.caveats())]

    def close(self) -> None:
        self.changelogs.close()
        self.catalog.close()
        self.engine.close()
        self.redis.close()


def redis_url(settings: Settings) -> str:
    """The Redis to use; an embedded one is started when none is set."""
    return settings.redis or embedded.ensure(home_folder(settings), settings).url


def rq_url(settings: Settings) -> str:
    """The Redis that RQ uses: the setting, or the broker's own. `Jobs.open` refuses a cluster."""
    return settings.rq_url or redis_url(settings)


def store_url(settings: Settings) -> str:
    """The store to use: the setting, or a folder beside the embedded Redis."""
    return settings.store or str(home_folder(settings) / STORE_FOLDER)


def insisted_parts(settings: Settings, on_step: OnStep = nothing) -> Parts:
    """As `open_parts`, for a process that starts by itself: waits 40 s for a Redis that loads, or a store that is away."""
    return insisted(lambda: open_parts(settings, on_step))


def open_parts(settings: Settings, on_step: OnStep = nothing) -> Parts:
    """Build everything. Raises InvalidSettings, Unavailable, Unsupported (no Redis to be had)."""
    redis, url = RedisClient.open(redis_url(settings)), store_url(settings)
    try:
        agree_on_shards(redis, settings.shards)
        promise = known_promise(redis, url, lambda: probe(open_store(url, settings)))
    except BaseException:
        redis.close()
        raise
    store = open_store(url, settings, conditional=promise.conditional_put)
    index, leases = Index(redis, settings.shards), Leases(redis, settings.lease_seconds)
    catalog = Catalog(index, store, settings, on_step)
    engine = Engine(store, settings)
    guards = Guards(settings.min_rows, settings.max_rows, settings.max_delete_ratio)
    publication = Publication(catalog, engine, leases, promise.refuses_wrong_checksum, on_step, guards)
    cursors = Cursors(redis, index, settings.cursor_seconds)
    levels = Levels(snapshot_least_bytes=settings.snapshot_least_bytes)
    channels = Channels(catalog, index, leases)
    floors = Floors(settings.retain_versions, settings.retain_seconds, settings.retain_edges)
    retention = Retention(catalog, index, leases, cursors, floors, channels.pins)
    return Parts(
        settings=settings, redis=redis, store=store, index=index, leases=leases, catalog=catalog, engine=engine,
        publication=publication, requests=Requests(redis, settings), derived=Derived(redis, index, settings.result_seconds),
        changelogs=ChangeLogs(redis, catalog, settings), channels=channels, cursors=cursors,
        events=Events(Tools(redis, index, catalog, leases, settings.history_seconds, channels.pointers)),
        compactor=Compactor(index, catalog, engine, publication, leases, Dues(levels, retention.crowded)),
        retention=retention, promise=promise, on_step=on_step,
    )  # fmt: skip

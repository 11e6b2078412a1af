"""The wiring: from settings to working parts. `connect` and every worker process build exactly these."""

from __future__ import annotations

from dataclasses import dataclass

from broker.backend import embedded
from broker.backend.client import RedisClient
from broker.backend.derived import Derived
from broker.backend.index import Index
from broker.backend.leases import Leases
from broker.catalog import Catalog, OnStep, nothing
from broker.changelog import ChangeLogs
from broker.columnar.engine import Engine
from broker.publication import Publication
from broker.requests import Requests
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
    on_step: OnStep

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


def probed_store(settings: Settings) -> tuple[ObjectStore, Promise]:
    """The store, told what the probe found it may promise."""
    url = store_url(settings)
    store = open_store(url, settings)
    promise = probe(store)
    return (store if promise.conditional_put else open_store(url, settings, conditional=False)), promise


def open_parts(settings: Settings, on_step: OnStep = nothing) -> Parts:
    """Build everything. Raises InvalidSettings, Unavailable, Unsupported (no Redis to be had)."""
    redis = RedisClient.open(redis_url(settings))
    store, promise = probed_store(settings)
    index, leases = Index(redis, settings.shards), Leases(redis, settings.lease_seconds)
    catalog = Catalog(index, store, settings, on_step)
    engine = Engine(store, settings)
    return Parts(
        settings=settings, redis=redis, store=store, index=index, leases=leases, catalog=catalog, engine=engine,
        publication=Publication(catalog, engine, leases, promise.refuses_wrong_checksum, on_step),
        requests=Requests(redis, settings), derived=Derived(redis, index, settings.result_seconds),
        changelogs=ChangeLogs(redis, catalog, settings), on_step=on_step,
    )  # fmt: skip

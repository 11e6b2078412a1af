"""Kill -9 at each named step of an erasure, on a folder and on S3: erased again, no object has the key; the rest stays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from broker.cli.erase import erasure_of
from broker.columnar.buckets import lay_out
from broker.columnar.engine import EVERYTHING
from broker.compactor import Compactor, Dues
from broker.connect import Broker, Dataset
from broker.erasure import STEPS, Erased
from broker.errors import Busy
from broker.model.names import DatasetId, derived_key
from broker.rules import publishing
from broker.rules.levels import Levels
from tests.campaign import WHOLE_MATRIX
from tests.faults.arena import Arena
from tests.servers import ACCESS_KEY, SECRET_KEY, S3Server, redis_server, temporary_folder, wait_until

KILLED_AT = (*STEPS, *(step for step in publishing.STEPS if step not in ("read-back", "notify")))
KEY = "secret-7"
LAYOUT = "0" * 32
STORES = ("folder", "moto", "rclone")
PLACES = {store: KILLED_AT if WHOLE_MATRIX else KILLED_AT[first::3] for first, store in enumerate(STORES)}
"""Each step in one kind of store; with BROKER_FAULT_MATRIX=whole everywhere."""


@pytest.fixture(scope="module")
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    settings: dict[str, Any] = {"lease_seconds": 3.0, "s3_access_key": ACCESS_KEY, "s3_secret_key": SECRET_KEY}
    if request.param != "folder":
        server: S3Server = request.getfixturevalue(f"s3_{request.param}")
        settings["store"] = server.url()
    with redis_server() as redis, temporary_folder("erase") as home:
        yield Arena(home, redis.url, settings=settings)


@pytest.fixture(scope="module")
def b(arena: Arena) -> Iterator[Broker]:
    with arena.connect() as b:
        yield b


def made(b: Broker, name: DatasetId) -> Dataset:
    """The key is in a snapshot, in deltas as row and as delete, in a roll-up, a tombstone, an older schema, a file by bucket;
    a version is held, another one named by a channel."""
    offers, parts = b.dataset(name, key=["sku"], order=["at"]), b.parts
    keys = [KEY, *(f"s{number}" for number in range(20))]
    offers.publish([{"sku": key, "at": 1, "price": 1} for key in keys])
    offers.publish_delta([{"sku": key, "at": 2, "price": 2, "note": "new"} for key in keys])
    offers.publish_delta(None, [{"sku": KEY, "at": 3}])
    offers.publish_delta([{"sku": key, "at": 4, "price": 4} for key in keys[:-5]])
    offers.hold(2, why="audit")
    offers.promote(1, to="production")
    Compactor(parts.index, parts.catalog, parts.engine, parts.publication, parts.leases, Dues(Levels(2, 0.0, 0))).run_once()
    state, edges = offers.state, offers.plan().edges
    edge = lay_out(
        parts.engine, parts.store, state.spec, edges, EVERYTHING, lambda form: derived_key(name, 999_999, LAYOUT, form)
    )
    parts.derived.put(name, LAYOUT, state.version, edge, 4e9)
    return offers


def contents(offers: Dataset) -> list[pa.Table]:
    """The rows of each version but for the key's."""
    return [offers.read(version, where=f"sku <> '{KEY}'").sort_by("sku") for version in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("arena", "step"), [(place, step) for place, steps in PLACES.items() for step in steps], indirect=["arena"], scope="module"
)
def test_an_erasure_killed_at_a_step_is_finished_by_the_next(arena: Arena, b: Broker, step: str) -> None:
    offers = made(b, DatasetId(f"shop/catalog/{step}"))
    before, order, done = contents(offers), f"eraser.{step}.kill", list[Erased]()
    assert len(holding(b, offers)) > 5
    arena.arm(order)
    assert arena.spawn("tests.faults.eraser", offers.id, KEY).wait(60) == -9, arena.log_tail()
    assert arena.was_hit(order)

    def erased() -> bool:
        try:
            done.append(erasure_of(b).erase(offers.id, KEY))
        except Busy:  # until the lease of the one that was killed has lapsed
            return False
        return True

    wait_until(erased, "the erasure", 60)
    assert done[0].holding == holding(b, offers) == []
    assert contents(offers) == before
    assert [checked.error for checked in offers.verify() if checked.error] == []
    assert offers.channels()["production"].version == 1


def holding(b: Broker, offers: Dataset) -> list[str]:
    """Objects that have the key in a column, read without the code under test."""
    found = []
    for folder in ("data", "derived"):
        for info in b.parts.store.list(f"{offers.id}/{folder}/"):
            data = pa.BufferReader(b"".join(b.parts.store.get(info.key)))
            table = pa.ipc.open_file(data).read_all() if info.key.endswith(".arrow") else pq.read_table(data)
            found += [info.key] if KEY in table.column("sku").to_pylist() else []
    return found

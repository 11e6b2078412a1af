"""Kill -9 at each named step of an erasure, on a folder and on S3: erased again, no object has the key; else nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from broker.cli.erase import erasure_of
from broker.columnar.buckets import lay_out
from broker.columnar.engine import EVERYTHING
from broker.compactor import Compactor
from broker.connect import Broker
from broker.erasure import STEPS, Erased
from broker.errors import Busy
from broker.model.names import derived_key
from broker.rules import publishing
from broker.rules.levels import Levels
from tests.faults.arena import OFFERS, Arena
from tests.servers import ACCESS_KEY, SECRET_KEY, S3Server, redis_server, temporary_folder, wait_until

KILLED_AT = (*STEPS, *(step for step in publishing.STEPS if step not in ("read-back", "notify")))
KEYS = {step: f"secret-{step}" for step in KILLED_AT}
LAYOUT = "0" * 32


@pytest.fixture(scope="module", params=["folder", "moto", "rclone"])
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    settings = {"s3_access_key": ACCESS_KEY, "s3_secret_key": SECRET_KEY}
    if request.param != "folder":
        server: S3Server = request.getfixturevalue(f"s3_{request.param}")
        settings["store"] = server.url()
    with redis_server() as server, temporary_folder("erase") as home:
        yield Arena(home, server.url, settings=settings)


@pytest.fixture(scope="module")
def b(arena: Arena) -> Iterator[Broker]:
    """Every key is in a snapshot, in deltas as row and as delete, in a roll-up, a tombstone, an older schema, a file by bucket;
    versions are held, and named by a channel."""
    with arena.connect() as b:
        offers = b.dataset(OFFERS, key=["sku"], order=["at"])
        keys = [*KEYS.values(), *(f"s{number}" for number in range(20))]
        offers.publish([{"sku": key, "at": 1, "price": 1} for key in keys])
        offers.publish_delta([{"sku": key, "at": 2, "price": 2, "note": "new"} for key in keys])
        offers.publish_delta(None, [{"sku": key, "at": 3} for key in KEYS.values()])
        offers.publish_delta([{"sku": key, "at": 4, "price": 4} for key in keys[:-5]])
        offers.hold(2, why="audit")
        offers.promote(1, to="production")
        parts = b.parts
        Compactor(parts.index, parts.catalog, parts.engine, parts.publication, parts.leases, Levels(2, 0.0, 0)).run_once()
        state = offers.state
        edge = lay_out(
            parts.engine, parts.store, state.spec, offers.plan().edges, EVERYTHING,
            lambda form: derived_key(OFFERS, 999_999, LAYOUT, form),
        )  # fmt: skip
        parts.derived.put(OFFERS, LAYOUT, state.version, edge, 4e9)
        yield b


def contents(b: Broker) -> list[pa.Table]:
    """The rows of each version that are nobody's secret."""
    rest = "NOT sku LIKE 'secret%'"
    return [b.dataset(OFFERS).read(version, where=rest).sort_by("sku") for version in (1, 2, 3, 4)]


@pytest.mark.parametrize("step", KILLED_AT)
def test_an_erasure_killed_at_a_step_is_finished_by_the_next(arena: Arena, b: Broker, step: str) -> None:
    before, order = contents(b), f"eraser.{step}.kill"
    arena.arm(order)
    assert arena.spawn("tests.faults.eraser", OFFERS, KEYS[step]).wait(60) == -9, arena.log_tail()
    assert arena.was_hit(order)
    done: list[Erased] = []

    def erased() -> bool:
        try:
            done.append(erasure_of(b).erase(OFFERS, KEYS[step]))
        except Busy:  # until the lease of the one that was killed has lapsed
            return False
        return done[-1].done

    wait_until(erased, "the erasure", 60)
    assert done[-1].holding == []
    assert holding(b, KEYS[step]) == []
    assert contents(b) == before
    assert [checked.error for checked in b.dataset(OFFERS).verify() if checked.error] == []
    assert b.dataset(OFFERS).channels()["production"].version == 1


def holding(b: Broker, key: str) -> list[str]:
    """Objects that have the key in a column, read without the code under test."""
    found = []
    for folder in ("data", "derived"):
        for info in b.parts.store.list(f"{OFFERS}/{folder}/"):
            data = pa.BufferReader(b"".join(b.parts.store.get(info.key)))
            table = pa.ipc.open_file(data).read_all() if info.key.endswith(".arrow") else pq.read_table(data)
            found += [info.key] if key in table.column("sku").to_pylist() else []
    return found

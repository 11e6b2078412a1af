"""Cut productions with real RQ workers: what becomes of the parts, what a request sees of them, what parts may not do."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

import broker
from broker.backend.jobs import MAINTENANCE, PARTS, Jobs, Look, job_id
from broker.cuts import CutPlan, Cuts, PartMade, Progress
from broker.errors import (
    AttemptFailed,
    DuplicateKey,
    Invalid,
    InvalidSettings,
    NullKey,
    RequestCancelled,
    RequestFailed,
    SchemaConflict,
)
from broker.hands import gathered, kind_of, merged_schema, position_of, positions
from broker.heavy import Lead
from broker.model.commit import File
from broker.model.dataset import Column, DatasetSpec, Schema
from broker.model.names import DatasetId
from broker.model.request import State
from tests.heavy_app import PARTS as MERCHANTS
from tests.heavy_app import ROWS
from tests.heavy_place import WAIT_SECONDS, Place, leader, place, rq_workers
from tests.ledger import Hand, Source
from tests.servers import RedisServer, redis_server, wait_until

ALL_KEYS = sorted(f"{part}-{number}" for part in MERCHANTS for number in range(ROWS))


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as found:
        yield found


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory, server: RedisServer) -> Iterator[Place]:
    """One leader and two RQ workers for all tests here: each test has its own tenant."""
    with place(tmp_path_factory.mktemp("heavy"), server.url) as here, leader(here, rq_workers(here, 2)):
        yield here


def test_the_first_version_is_a_snapshot_of_all_parts_files(shops: Place) -> None:
    shop = shops.dataset()
    done = shop.done()
    assert (done.version, done.mode, done.rows) == (1, "snapshot", len(ALL_KEYS))
    assert shop.keys() == ALL_KEYS
    assert shop.runs() == dict.fromkeys(MERCHANTS, 1)
    edge = shop.dataset.plan().edges[0]
    assert (edge.base, len(edge.of_role("rows"))) == (None, len(MERCHANTS))


def test_snapshots_over_a_version_are_committed_as_the_difference_of_their_union(shops: Place) -> None:
    shop = shops.dataset()
    shop.done()
    shop.order(rows="lacking")
    done = shop.done(since=1)
    assert (done.version, done.mode) == (2, "delta")
    assert sorted(done.deletes().column("sku").to_pylist()) == [f"{part}-0" for part in MERCHANTS]
    assert done.upserts().num_rows == 0
    assert shop.keys() == [key for key in ALL_KEYS if not key.endswith("-0")]


def test_deltas_stand_side_by_side_in_one_edge_and_each_part_is_told_its_own_position(shops: Place) -> None:
    shop = shops.dataset()
    shop.done()
    shop.order(rows="delta")
    done = shop.done(since=1)
    assert (done.version, done.mode) == (2, "delta")
    assert sorted(done.upserts().column("sku").to_pylist()) == [f"{part}-0" for part in MERCHANTS]
    assert sorted(done.deletes().column("sku").to_pylist()) == [f"{part}-4" for part in MERCHANTS]
    noted = shops.broker.parts.catalog.state(DatasetId(shop.id)).position["parts"]
    assert noted == {part: {"of": part, "told": {"of": part, "at": 0}} for part in MERCHANTS}


def test_unchanged_parts_make_no_version_and_keep_their_positions(shops: Place) -> None:
    shop = shops.dataset()
    shop.done()
    noted = shops.broker.parts.catalog.noted(DatasetId(shop.id))
    shop.order(rows="unchanged")
    done = shop.done(since=1)
    assert (done.version, done.mode) == (1, "unchanged")
    assert shops.broker.parts.catalog.noted(DatasetId(shop.id)) == noted


def test_a_changed_part_among_unchanged_ones_is_a_delta_of_its_own(shops: Place) -> None:
    shop = shops.dataset()
    shop.done()
    shop.order(rows="one-changed")
    done = shop.done(since=1)
    assert done.upserts().column("sku").to_pylist() == ["m1-0"]
    assert shops.broker.parts.catalog.state(DatasetId(shop.id)).position["parts"]["m2"] == {"of": "m2", "at": 0}


def test_partitions_are_numbered_and_told_as_integers(shops: Place) -> None:
    shop = shops.dataset("counts")
    shop.done()
    assert shop.dataset.read().sort_by("sku").to_pylist() == [{"sku": text, "kind": "int"} for text in "012"]


def test_a_dataset_made_anew_gets_a_whole_snapshot_again(shops: Place) -> None:
    shop = shops.dataset()
    shop.done()
    shop.dataset.drop()
    shop.order(rows="delta")
    shops.broker.dataset(shop.id, key=["sku"])
    done = shop.done()
    assert (done.version, done.mode) == (2, "snapshot")
    assert shop.keys() == [f"{part}-0" for part in MERCHANTS]


def test_a_dataset_with_an_order_is_made_in_parts_too(shops: Place) -> None:
    shop = shops.dataset("ordered", order=["at"])
    shop.done()
    shop.order(rows="lacking")
    done = shop.done(since=1)
    assert sorted(done.deletes().column("sku").to_pylist()) == [f"{part}-0" for part in MERCHANTS]
    assert shop.keys() == [key for key in ALL_KEYS if not key.endswith("-0")]


def test_deltas_over_a_head_that_moved_are_made_again_from_the_new_one(shops: Place) -> None:
    shop = shops.dataset()
    shop.done()
    shop.order(rows="delta", faults={"m0": ["", "hold"]})
    request = shop.ask(since=1)
    shop.held()
    shop.dataset.publish_delta(upserts=[{"sku": "new", "price": 3.0}])
    shop.go()
    done = request.wait(WAIT_SECONDS)
    assert (done.version, request.status().attempts) == (3, 2)
    assert {"new", "m1-0"} <= set(shop.keys())


def test_freshness_counts_from_before_the_first_part_was_asked(shops: Place) -> None:
    shop = shops.dataset(faults={"m0": ["hold"]})
    asked, request = time.time(), shop.ask()
    shop.held()
    held = time.time()
    shop.go()
    request.wait(WAIT_SECONDS)
    assert asked <= shops.broker.parts.catalog.state(DatasetId(shop.id)).confirmed_at <= held


def test_a_request_shows_how_many_parts_are_done(shops: Place) -> None:
    shop = shops.dataset(parts=["m0", "m1", "m2"], faults={"m1": ["hold"]})
    request = shop.ask()
    wait_until(lambda: request.status().progress.get("parts_done") == 2, "two of three parts")
    progress = request.status().progress
    assert (progress["parts_total"], progress["rows"]) == (3, 2 * ROWS)
    assert progress["bytes"] > 0
    shop.go()
    assert request.wait(WAIT_SECONDS).rows == 3 * ROWS


def test_the_leading_worker_stays_free_for_others_while_parts_run(shops: Place) -> None:
    slow, quick = shops.dataset(faults={"m0": ["hold"]}), shops.dataset("counts")
    waiting = slow.ask()
    slow.held()
    assert quick.done().version == 1
    assert waiting.status().state == State.RUNNING
    slow.go()
    assert waiting.wait(WAIT_SECONDS).version == 1


def test_two_datasets_are_made_in_parts_at_once(shops: Place) -> None:
    one, other = shops.dataset(faults={"m0": ["hold"]}), shops.dataset(faults={"m0": ["hold"]})
    asked = [one.ask(), other.ask()]
    one.held()
    other.held()
    one.go()
    other.go()
    assert [request.wait(WAIT_SECONDS).version for request in asked] == [1, 1]
    assert one.keys() == other.keys() == ALL_KEYS


def test_many_requests_join_one_cut_production(shops: Place) -> None:
    shop = shops.dataset(faults={"m0": ["hold"]})
    first = shop.ask()
    shop.held()
    more = [shop.ask(), shop.ask(where="price < 0")]
    wait_until(lambda: all(request.status().flight == first.status().flight for request in more), "joined")
    shop.go()
    assert [request.wait(WAIT_SECONDS).rows for request in (first, *more)] == [len(ALL_KEYS), len(ALL_KEYS), 0]
    assert shop.runs() == dict.fromkeys(MERCHANTS, 1)


def test_cancelling_stops_the_parts_and_leaves_no_version(shops: Place) -> None:
    shop = shops.dataset(faults={part: ["hold"] for part in MERCHANTS})
    request = shop.ask()
    shop.held()
    flight = request.status().flight
    assert request.cancel()
    with pytest.raises(RequestCancelled):
        request.wait(WAIT_SECONDS)
    jobs = Jobs.open(shops.settings.redis)
    ids = [f"{flight}-{number}-1" for number in range(len(MERCHANTS))]
    wait_until(lambda: all(look.condition in ("dead", "absent") for look in jobs.look(PARTS, ids)), "stopped jobs")
    jobs.close()
    assert shop.dataset.versions() == ()


def test_a_key_in_two_parts_fails_the_request_and_nothing_is_visible(shops: Place) -> None:
    shop = shops.dataset(rows="shared-key")
    request = shop.ask()
    with pytest.raises(RequestFailed, match="sku='same' \\(8 times\\)"):
        request.wait(WAIT_SECONDS)
    error = request.status().completion.error  # type: ignore[union-attr]
    assert error is not None
    assert error["code"] == DuplicateKey.code
    assert shop.dataset.versions() == ()


def test_a_version_of_all_parts_is_judged_as_a_whole(shops: Place) -> None:
    shop = shops.dataset()
    shop.order(veto="too cheap")
    with pytest.raises(RequestFailed, match=f"too cheap in {len(ALL_KEYS)} rows"):
        shop.done()
    assert shop.dataset.state.version == 0
    assert shop.runs() == dict.fromkeys(MERCHANTS, 1)


def test_a_key_in_two_parts_is_found_in_a_difference_too(shops: Place) -> None:
    shop = shops.dataset()
    shop.done()
    shop.order(rows="shared-key")
    with pytest.raises(RequestFailed, match="sku='same'"):
        shop.done()
    assert shop.dataset.latest().version == 1  # type: ignore[union-attr]


def test_a_null_key_fails_at_once_and_names_the_part(shops: Place) -> None:
    shop = shops.dataset(rows="null-key")
    request = shop.ask()
    with pytest.raises(RequestFailed):
        request.wait(WAIT_SECONDS)
    error = request.status().completion.error  # type: ignore[union-attr]
    assert error is not None
    assert (error["code"], "part 'm1'" in error["of"]) == (NullKey.code, True)
    assert shop.runs()["m1"] == 1


def test_parts_of_different_kinds_are_refused(shops: Place) -> None:
    shop = shops.dataset()
    shop.done()
    shop.order(rows="mixed")
    with pytest.raises(RequestFailed, match="different kinds"):
        shop.done()


def test_values_that_name_no_part_are_refused(shops: Place) -> None:
    shop = shops.dataset(parts=[])
    with pytest.raises(RequestFailed, match="has no parts"):
        shop.done()


def test_rq_info_shows_the_queues_and_their_workers(shops: Place, server: RedisServer) -> None:
    shops.dataset("counts").done()
    command = [str(Path(sys.executable).parent / "rq"), "info", "--url", server.tcp_url]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert PARTS in shown
    assert MAINTENANCE in shown
    assert "3 workers, 2 queues" in shown


def test_a_cluster_for_rq_is_refused_with_the_next_step(tmp_path: Path, server: RedisServer) -> None:
    with pytest.raises(InvalidSettings, match="BROKER_RQ_URL"):
        Jobs.open("redis+cluster://127.0.0.1:7000")
    with pytest.raises(InvalidSettings, match="not a Redis URL"):
        Jobs.open("http://127.0.0.1")
    cluster = "redis+cluster://127.0.0.1:7000"
    with (
        place(tmp_path, server.url + "?db=1", rq_url=cluster) as here,
        leader(here),
        pytest.raises(RequestFailed, match="hash tags"),
    ):
        here.dataset().done()


def test_a_job_asked_for_twice_is_one_job(server: RedisServer) -> None:
    jobs = Jobs.open(server.url)
    try:
        asked = [jobs.enqueue("test-queue", "a.b-1", "workers.jobs.finalise", ("a.b", 1), 5.5) for _ in range(2)]
        assert asked == [True, False]
        assert [look.condition for look in jobs.look("test-queue", ["a.b-1", "a.b-2"])] == ["waiting", "absent"]
        jobs.stop("test-queue", ["a.b-1", "a.b-2"])
        assert jobs.look("test-queue", ["a.b-1"])[0].condition == "absent"
    finally:
        jobs.close()


# --- decisions


def file(key: str, rows: int) -> File:
    return File(role="rows", key=key, sha256="0" * 64, bytes=10, rows=rows)


def test_a_flight_lost_while_its_jobs_are_looked_at_harms_nobody(server: RedisServer) -> None:
    class Slow(Jobs):
        def look(self, queue: str, ids: Sequence[str]) -> list[Look]:
            lead.forget(flight)  # the beat of another thread heard that it went to another worker
            return super().look(queue, ids)

    with broker.connect(redis=server.url, store="memory://") as b:
        b.dataset("slow/pricing/lost", key="sku")
        b.request("slow/pricing/lost", target="search")
        cuts, jobs = Cuts(b.parts.redis), Slow.open(server.url)
        lead = Lead(cuts, jobs, b.parts.settings, "unused:app")
        flight = Hand(b.parts, Source()).claim(DatasetId("slow/pricing/lost")).flights[0]
        lead.begin(flight, ["a"], b.parts.catalog.state(flight.dataset), None)
        cuts.failed(flight.id, "0", 1, AttemptFailed("not now"))
        assert lead.look(flight).progress == Progress(0, 1, 0, 0)
        jobs.close()


def test_job_ids_hold_only_what_rq_takes() -> None:
    assert job_id("pricing.0.0f-m_1:é") == "pricing_0_0f-m_1__"


def test_empty_files_count_only_where_there_is_nothing_else() -> None:
    empty, full = PartMade(kind="snapshot", files=(file("a", 0),)), PartMade(kind="snapshot", files=(file("b", 3),))
    assert [found.key for found in gathered([empty, full])] == ["b"]
    assert [found.key for found in gathered([empty, empty])] == ["a"]
    assert gathered([PartMade(kind="unchanged")]) == ()


def test_unchanged_goes_with_deltas_only() -> None:
    delta, unchanged, snapshot = PartMade(kind="delta"), PartMade(kind="unchanged"), PartMade(kind="snapshot")
    assert kind_of({"a": delta, "b": unchanged}) == "delta"
    assert kind_of({"a": snapshot}) == "snapshot"
    with pytest.raises(Invalid, match="different kinds"):
        kind_of({"a": snapshot, "b": unchanged})


def test_positions_are_kept_by_part() -> None:
    before = {"parts": {"a": 1, "b": 2}}
    made = {"a": PartMade(kind="delta", position=7), "b": PartMade(kind="unchanged"), "c": PartMade(kind="delta")}
    assert positions(before, made) == {"parts": {"a": 7, "b": 2}}
    assert positions(None, {"a": PartMade(kind="delta")}) is None
    assert [position_of(before, "a"), position_of(before, "z"), position_of({"lsn": 3}, "a")] == [1, None, {"lsn": 3}]
    with pytest.raises(Invalid, match="too long"):
        positions(None, {str(number): PartMade(kind="delta", position="x" * 60_000) for number in range(2)})


def test_parts_widen_each_others_schema_or_conflict() -> None:
    def part(kind: str) -> PartMade:
        return PartMade(
            kind="delta", schema_after=Schema(columns=(Column(name="k", type="VARCHAR"), Column(name="n", type=kind)))
        )

    spec = DatasetSpec(dataset=DatasetId("a/b/c"), key=("k",))
    assert merged_schema(spec, [part("INTEGER"), part("BIGINT")]).types["n"] == "BIGINT"
    with pytest.raises(SchemaConflict):
        merged_schema(spec, [part("INTEGER"), part("VARCHAR")])


def test_a_plan_survives_its_json() -> None:
    position = {"parts": {"x": 1}}
    plan = CutPlan(
        dataset=DatasetId("a/b/c"), app="m:app", parts=("x",), version=2, first=False, position=position, started=1.5
    )
    assert CutPlan.model_validate_json(plan.model_dump_json()) == plan
    assert plan.name_of("0") == "part 'x'"


def test_a_producer_with_parts_is_registered_by_its_parameters() -> None:
    app = broker.Producers()
    with pytest.raises(Invalid, match="part"):

        @app.producer("*/a/b", partitions=2)
        def lacks(request: object, since: object) -> pa.Table:
            raise AssertionError

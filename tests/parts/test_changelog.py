"""The change log on a real Redis: blocks exactly once, gaps, levels, bounds, single records, forks. Faults: tests/faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import broker
from broker.backend.logs import Answer, LogEntry, Logs, Part
from broker.changelog import ChangeLog, ChangeLogs
from broker.changelog_ahead import AHEAD_ROWS
from broker.changelog_rows import BLOCK_ROWS
from broker.columnar.blocks import decoded
from broker.errors import (
    BadData,
    Conflict,
    Gap,
    Invalid,
    NotDurable,
    NotFound,
    NullKey,
    OutcomeUnknown,
    Overloaded,
    SchemaConflict,
    Terminal,
    TimedOut,
)
from broker.model.commit import Body, Edge, Mark, NewVersion, SourceRange
from broker.model.names import DatasetId
from broker.rules.blocks import ANYBODY, slot_of_key
from broker.rules.fold import State
from tests.campaign import examples
from tests.servers import RedisServer, redis_server

NAME = "shop/catalog/offers"
Rows = list[dict[str, Any]]


@pytest.fixture
def shop(redis_url: str) -> Iterator[broker.Broker]:
    with broker.connect(redis_url, f"memory://{uuid4().hex}") as opened:
        opened.dataset(NAME, key="sku", order="at")
        yield opened


@pytest.fixture
def changes(shop: broker.Broker) -> ChangeLog:
    return shop.dataset(NAME).changelog


def rows(count: int, at: int = 1) -> Rows:
    return [{"sku": f"a{number}", "at": at, "price": 1.5} for number in range(count)]


def logs_of(shop: broker.Broker) -> Logs:
    return Logs(shop.parts.redis, shop.parts.settings)


def entries(shop: broker.Broker, name: str = NAME) -> dict[int, list[LogEntry]]:
    logs = logs_of(shop)
    return {slot: list(logs.entries(DatasetId(name), slot)) for slot in range(logs.count)}


def content(shop: broker.Broker, name: str = NAME) -> list[tuple[str, str, int]]:
    """(kind, sku, at) of every change in the log, by slot and in its order."""
    return [
        (entry.kind, row["sku"], row["at"])
        for found in entries(shop, name).values()
        for entry in found
        if entry.payload is not None
        for row in decoded(entry.payload).to_pylist()
    ]


def seal(shop: broker.Broker, upto: dict[int, LogEntry], name: str = NAME) -> State:
    """What a micro-batcher would commit: a version, without files here, that consumed up to these entries."""
    logs, dataset = logs_of(shop), DatasetId(name)

    def body(state: State) -> Body | None:
        if all(state.consumed(slot) == last.id for slot, last in upto.items()):
            return None
        sources = []
        for slot, last in upto.items():
            marks = dict(state.marks(slot))
            for entry in logs.entries(dataset, slot, state.consumed(slot)):
                if int(entry.id.split("-")[1]) <= int(last.id.split("-")[1]):
                    marks[entry.producer] = Mark(entry.block, entry.at_ms / 1000)
            sources.append(SourceRange(slot=slot, after=state.consumed(slot), until=last.id, marks=marks))
        edge = Edge(base=state.version or None, version=state.version + 1)
        return NewVersion(edge=edge, sources=tuple(sources))

    return shop.parts.catalog.commit(dataset, body, "microbatch")


def seal_all(shop: broker.Broker) -> State:
    return seal(shop, {slot: found[-1] for slot, found in entries(shop).items() if found})


def test_every_record_lies_in_the_slot_of_its_key_and_every_slot_has_the_block(shop: broker.Broker, changes: ChangeLog) -> None:
    ack = changes.append(rows(50))

    found = entries(shop)
    assert sorted(ack.offsets) == sorted(found) == [0, 1, 2, 3]
    for slot, blocks in found.items():
        assert [(entry.id, entry.block, entry.producer) for entry in blocks] == [(ack.offsets[slot], 1, ack.producer)]
        held = decoded(blocks[0].payload or b"").to_pylist()
        assert {slot_of_key(row["sku"], 4) for row in held} == {slot}
        assert blocks[0].rows == blocks[0].rows_until == len(held)
    assert ack.rows == sum(blocks[0].rows for blocks in found.values()) == 50


def test_a_slot_without_rows_gets_the_block_as_a_mark(shop: broker.Broker, changes: ChangeLog) -> None:
    changes.append(rows(1))
    payloads = {
        slot: [(entry.block, entry.rows, entry.payload is None) for entry in found] for slot, found in entries(shop).items()
    }
    home = slot_of_key("a0", 4)
    assert payloads == {slot: [(1, int(slot == home), slot != home)] for slot in range(4)}


def test_the_same_block_again_is_dropped_and_a_gap_is_refused_with_the_number_expected(
    shop: broker.Broker, changes: ChangeLog
) -> None:
    first = changes.append(rows(3), producer="pim-1", block=1)
    assert changes.append(rows(3), producer="pim-1", block=1) == first
    with pytest.raises(Gap) as gap:
        changes.append(rows(3, at=2), producer="pim-1", block=3)
    assert gap.value.expected == 2
    changes.append(rows(3, at=2), producer="pim-1", block=2)
    assert changes.append(rows(3), producer="pim-1", block=1).block == 1, "an older one is dropped, too"
    assert len(content(shop)) == 6


@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(st.tuples(st.sampled_from(["one", "two"]), st.integers(1, 6), st.sets(st.integers(0, 3))), max_size=40))
def test_in_any_order_and_repetition_a_slot_takes_each_block_once_and_in_its_row(
    shop: broker.Broker, calls: list[tuple[str, int, set[int]]]
) -> None:
    logs, dataset = logs_of(shop), DatasetId(f"shop/catalog/{uuid4().hex}")
    for slot in range(4):
        logs.open(State(dataset), slot, logs.closed(dataset)[slot])
    marks = Counter[tuple[str, int]]()
    for producer, block, slots in calls:
        answers = logs.append(dataset, [Part(slot, producer, block, ANYBODY, "u", 1, b"x") for slot in sorted(slots)])
        for slot, answer in zip(sorted(slots), answers, strict=True):
            mark = marks[producer, slot]
            expected = "same" if block <= mark else "accepted" if block == mark + 1 else "gap"
            assert isinstance(answer, Answer)
            assert answer.kind == expected
            assert expected != "gap" or answer.value == str(mark + 1)
            marks[producer, slot] = max(mark, block) if expected != "gap" else mark
    for slot in range(4):
        held = logs.read(dataset, slot)
        assert held == sorted(held, key=lambda entry: entry.rows_until), "totals grow with ids"
        for producer in ("one", "two"):
            blocks = [entry.block for entry in held if entry.producer == producer]
            assert blocks == list(range(1, marks[producer, slot] + 1))
        assert logs.logged(dataset, slot).unbatched_rows == len(held)


def test_a_block_that_came_into_some_slots_only_is_brought_into_the_others(shop: broker.Broker, changes: ChangeLog) -> None:
    changes.append(rows(20), producer="pim-1", block=1)
    logs, dataset = logs_of(shop), DatasetId(NAME)
    half = [Part(slot, "pim-1", 2, ANYBODY, "u", 0, b"") for slot in (0, 2)]
    assert all(not isinstance(answer, Exception) and answer.kind == "accepted" for answer in logs.append(dataset, half))

    assert changes.resume("pim-1") == 2
    changes.append(rows(20, at=2), producer="pim-1", block=2)

    assert {slot: [entry.block for entry in found] for slot, found in entries(shop).items()} == {
        slot: [1, 2] for slot in range(4)
    }
    assert changes.resume("pim-1") == 3


def test_a_numbered_block_may_be_empty_and_needs_its_producers_name(shop: broker.Broker, changes: ChangeLog) -> None:
    changes.append(rows(1), producer="pim-1", block=1)
    assert changes.append([], producer="pim-1", block=2).rows == 0
    assert changes.resume("pim-1") == 3
    with pytest.raises(Invalid, match="needs its producer's name"):
        changes.append(rows(1), block=1)


def test_appending_nothing_makes_no_block(shop: broker.Broker, changes: ChangeLog) -> None:
    changes.append(rows(1))
    assert (changes.append([]).blocks, changes.append(rows(1)).block) == (0, 2)


def test_deletes_carry_key_and_order(shop: broker.Broker, changes: ChangeLog) -> None:
    changes.append(rows(1))
    changes.delete([{"sku": "a0", "at": 2}])
    with pytest.raises(BadData, match="lacks a column"):
        changes.delete([{"sku": "a0"}])
    assert content(shop) == [("u", "a0", 1), ("d", "a0", 2)]


def test_nothing_can_be_deleted_before_anything_came(changes: ChangeLog) -> None:
    with pytest.raises(Invalid, match="nothing to delete from"):
        changes.delete([{"sku": "a0", "at": 1}])


def test_the_first_block_settles_the_schema_and_later_ones_may_widen_it(shop: broker.Broker, changes: ChangeLog) -> None:
    changes.append([{"sku": "a", "at": 1, "price": 1}])
    changes.append([{"sku": "a", "at": 2, "price": 1, "stock": 5}])
    columns = shop.dataset(NAME).spec.columns
    assert columns is not None
    assert columns.types == {"sku": "VARCHAR", "at": "BIGINT", "price": "BIGINT", "stock": "BIGINT"}
    with pytest.raises(SchemaConflict):
        changes.append(pa.table({"sku": ["a"], "at": ["now"], "price": [1]}))
    assert len(content(shop)) == 2


def test_bad_rows_leave_nothing_behind(shop: broker.Broker, changes: ChangeLog) -> None:
    with pytest.raises(NullKey):
        changes.append([*rows(5), {"sku": None, "at": 1, "price": 1.0}])
    assert content(shop) == []
    assert changes.append(rows(1)).block == 1, "the refused one took no number"


def test_two_producers_that_settle_the_schema_at_once_both_get_in(shop: broker.Broker) -> None:
    parts = (shop.parts.redis, shop.parts.catalog, shop.parts.settings)
    clients = [ChangeLogs(*parts).of(DatasetId(NAME)) for _ in range(8)]

    def append(number: int) -> int:
        return clients[number].append([{"sku": f"s{number}", "at": 1, f"c{number}": number}]).rows

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(append, range(8))) == 8
    assert len(content(shop)) == 8
    columns = shop.dataset(NAME).spec.columns
    assert columns is not None
    assert set(columns.names) == {"sku", "at", *(f"c{number}" for number in range(8))}


def test_large_data_makes_several_blocks_and_is_read_as_it_goes(shop: broker.Broker, changes: ChangeLog) -> None:
    read = 0

    def source() -> Iterator[dict[str, Any]]:
        nonlocal read
        for row in rows(25_000):
            read += 1
            yield row

    ack = changes.append(source())
    assert (ack.rows, ack.blocks, ack.block, read) == (25_000, 3, 3, 25_000)
    assert len(content(shop)) == 25_000


def test_what_came_before_data_that_breaks_off_is_in_and_is_told(shop: broker.Broker, changes: ChangeLog) -> None:
    """The second block is on its way when the third cannot be made."""
    good = pa.Table.from_pylist(rows(BLOCK_ROWS)).to_batches()[0]
    bad = good.set_column(0, "sku", pa.array([None] * good.num_rows, pa.string()))
    with pytest.raises(NullKey, match=f"first {2 * BLOCK_ROWS} rows of this call are in"):
        changes.append([good, good, bad])
    assert len(content(shop)) == 2 * BLOCK_ROWS


def test_an_atexit_handler_can_append_much(redis_url: str, tmp_path: Path) -> None:
    """Threads begin no more by then."""
    script = """
import atexit, sys
import pyarrow as pa
import broker
b = broker.connect(sys.argv[1], sys.argv[2])
log = b.dataset("shop/catalog/offers", key="sku", order="at").changelog
rows = pa.table({"sku": [f"a{n}" for n in range(100_000)], "at": list(range(100_000))})
atexit.register(lambda: print(log.append(rows).rows))
"""
    command = [sys.executable, "-c", script, redis_url, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("100000\n", "")


def test_a_numbered_block_is_never_cut_and_so_has_a_bound(redis_url: str) -> None:
    with broker.connect(redis_url, f"memory://{uuid4().hex}", unbatched_bytes=20_000) as shop:
        changes = shop.dataset(NAME, key="sku", order="at").changelog
        data = pa.table({"sku": [uuid4().hex for _ in range(5_000)], "at": range(5_000)})
        with pytest.raises(Invalid, match="larger than its log may be"):
            changes.append(data, producer="pim-1", block=1)
        assert changes.resume("pim-1") == 1


def test_above_its_budget_a_log_refuses_until_it_is_trimmed_and_nothing_is_lost(redis_url: str) -> None:
    with broker.connect(redis_url, f"memory://{uuid4().hex}", unbatched_bytes=4_000, log_slots=1) as shop:
        changes, accepted = shop.dataset(NAME, key="sku", order="at").changelog, 0
        with pytest.raises(Overloaded, match="change log is full"):  # noqa: PT012 - how far it comes is the point
            for accepted in range(100):
                changes.append(rows(1, at=accepted), producer="pim-1", block=accepted + 1)
        assert 0 < accepted < 99
        assert changes.status()[0].unbatched_bytes <= 4_000

        state = seal_all(shop)
        assert logs_of(shop).trim(state, 0) == 0
        assert changes.append(rows(1, at=accepted), producer="pim-1", block=accepted + 1).block == accepted + 1


def test_append_stops_at_the_memory_ratio() -> None:
    with redis_server("--maxmemory", "12mb") as server, broker.connect(server.url, f"memory://{uuid4().hex}") as shop:
        changes = shop.dataset(NAME, key="sku", order="at").changelog
        data = pa.table({"sku": [uuid4().hex for _ in range(3_000)], "at": range(3_000)})
        with pytest.raises(Overloaded, match="Redis is almost full"):  # noqa: PT012
            for _ in range(300):
                changes.append(data)
        memory = shop.parts.redis.run("INFO", "memory", writes=False).decode()
        used, limit = (int(memory.split(f"{name}:")[1].split()[0]) for name in ("used_memory", "maxmemory"))
        free = limit - used
        assert free > 1_000_000, "room is left for what makes room"


def test_trimming_stops_at_what_is_consumed_and_the_budget_follows(shop: broker.Broker, changes: ChangeLog) -> None:
    for at in range(1, 6):
        changes.append(rows(40, at))
    logs, found = logs_of(shop), entries(shop)
    state = seal(shop, {slot: found[slot][1] for slot in found})

    for slot, blocks in found.items():
        assert logs.trim(state, slot) == logs.trim(state, slot) == 3
        left, total = logs.read(DatasetId(NAME), slot), logs.logged(DatasetId(NAME), slot)
        assert [entry.block for entry in left] == [3, 4, 5]
        assert total.unbatched_rows == sum(entry.rows for entry in left)
        assert (total.released, total.appended) == (blocks[1].bytes_until, blocks[4].bytes_until)
        assert [dataset for dataset, _ in logs.ready(logs.slot(DatasetId(NAME), slot))] == [NAME]
    state = seal_all(shop)
    for slot in found:
        assert logs.trim(state, slot) == 0
        assert logs.logged(DatasetId(NAME), slot).unbatched_bytes == 0
        assert logs.ready(logs.slot(DatasetId(NAME), slot)) == []


def test_reading_goes_on_behind_an_entry_whatever_the_size_of_a_read(shop: broker.Broker, changes: ChangeLog) -> None:
    for at in range(40):
        changes.append(rows(4, at), producer="pim-1", block=at + 1)
    logs = logs_of(shop)
    everything = list(logs.entries(DatasetId(NAME), 1))
    assert [entry.block for entry in everything] == list(range(1, 41)), "more than one read"
    assert list(logs.entries(DatasetId(NAME), 1, everything[9].id)) == everything[10:]
    assert logs.read(DatasetId(NAME), 1, everything[9].id, 2) == everything[10:12]


def test_sealed_means_that_every_slot_of_the_block_is_in_a_version(shop: broker.Broker, changes: ChangeLog) -> None:
    with pytest.raises(TimedOut, match="not sealed yet"):
        changes.append(rows(9), level="sealed", timeout=0.05)
    found = entries(shop)
    seal(shop, {slot: found[slot][0] for slot in (0, 1, 2)})
    with pytest.raises(TimedOut, match="slots 3 wait"):
        changes.append(rows(9), level="sealed", timeout=0.05)
    seal(shop, {3: found[3][0]})
    ack = changes.append(rows(9), level="sealed", timeout=0.05)
    assert (ack.block, ack.level, ack.offsets[3]) == (1, "sealed", found[3][0].id), "all three calls were one block"
    assert len(content(shop)) == 9


def test_a_waiting_append_wakes_with_the_seal(shop: broker.Broker, changes: ChangeLog) -> None:
    changes.append(rows(1))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(changes.append, rows(9, 2), level="sealed", timeout=60)
        while not all(len(found) == 2 for found in entries(shop).values()):
            pass
        seal_all(shop)
        assert waiting.result(30).level == "sealed"


def test_fsynced_is_refused_where_the_server_cannot_prove_it(shop: broker.Broker, changes: ChangeLog) -> None:
    if "WAITAOF" in {str(name).upper() for name in _commands(shop)}:
        assert changes.append(rows(1), level="fsynced").level == "fsynced"
        return
    with pytest.raises(NotDurable, match="later than it answers"):
        changes.append(rows(1), level="fsynced")
    assert content(shop) == [], "refused before anything was sent"


def _commands(shop: broker.Broker) -> list[str]:
    return [entry[0].decode() for entry in shop.parts.redis.run("COMMAND", "INFO", "WAITAOF", writes=False) if entry]


def test_fsynced_is_granted_with_appendfsync_always_unless_a_rewrite_suspends_it() -> None:
    with redis_server("--appendfsync", "always") as server, broker.connect(server.url, f"memory://{uuid4().hex}") as shop:
        changes = shop.dataset(NAME, key="sku", order="at").changelog
        assert changes.append(rows(1), level="fsynced").level == "fsynced"
        shop.parts.redis.run("CONFIG", "SET", "no-appendfsync-on-rewrite", "yes")
        if not _commands(shop):
            with pytest.raises(NotDurable):
                changes.append(rows(1), level="fsynced")


def test_without_a_number_calls_of_threads_are_numbered_in_one_row(shop: broker.Broker, changes: ChangeLog) -> None:
    with ThreadPoolExecutor(8) as pool:
        acks = list(pool.map(lambda number: changes.append(rows(5, number)), range(40)))
    assert sorted(ack.block for ack in acks) == list(range(1, 41))
    assert len(content(shop)) == 200


@pytest.mark.parametrize("count", [1, AHEAD_ROWS], ids=["by the caller", "by a thread of the call"])
def test_a_call_repeated_in_its_thread_is_known_though_another_thread_called_meanwhile(
    shop: broker.Broker, changes: ChangeLog, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Else it would come in again behind the other's newer change."""
    append, first = Logs.append, pa.Table.from_pylist(rows(count, at=1))

    def unheard(logs: Logs, *args: Any) -> Any:
        monkeypatch.undo()
        append(logs, *args)
        raise OutcomeUnknown("the answer is lost")

    monkeypatch.setattr(Logs, "append", unheard)
    with pytest.raises(OutcomeUnknown):
        changes.append(first, timeout=0)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(changes.append, rows(1, at=2)).result().block == 2
    assert changes.append(first).block == 1
    assert sorted(at for _, _, at in content(shop)) == [*[1] * count, 2]
    assert changes.append(first).block == 3, "another call"


def test_a_slot_that_is_full_while_an_earlier_block_is_completed_says_so(shop: broker.Broker) -> None:
    parts = (shop.parts.redis, shop.parts.catalog, shop.parts.settings)
    ChangeLogs(*parts).of(DatasetId(NAME)).append(rows(8), producer="pim-1")
    logs, dataset = logs_of(shop), DatasetId(NAME)
    logs.append(dataset, [Part(slot, "pim-1", 2, "somebody", "u", 0, b"") for slot in (0, 1, 3)])
    full = logs.slot(dataset, 2).logged(dataset)
    appended = int(shop.parts.redis.run("HGET", full, "appended"))
    shop.parts.redis.run("HSET", full, "appended", appended + shop.parts.settings.unbatched_bytes)
    late = ChangeLogs(*parts).of(DatasetId(NAME))
    with pytest.raises(Overloaded):
        late.append(rows(8, 2), producer="pim-1", timeout=0)
    shop.parts.redis.run("HSET", full, "appended", appended)
    assert late.append(rows(8, 2), producer="pim-1").block == 3
    assert all([entry.block for entry in found] == [1, 2, 3] for found in entries(shop).values())


def test_two_clients_under_one_name_are_told_and_lose_nothing(shop: broker.Broker) -> None:
    parts = (shop.parts.redis, shop.parts.catalog, shop.parts.settings)
    one, other = (ChangeLogs(*parts).of(DatasetId(NAME)) for _ in range(2))
    one.append(rows(8, 1), producer="pim-1")
    assert other.append(rows(8, 2), producer="pim-1").block == 2
    with pytest.raises(Conflict, match="somebody else appends as this producer"):
        one.append(rows(8, 3), producer="pim-1")
    assert {at for _, _, at in content(shop)} == {1, 2}


def test_a_client_under_a_known_name_goes_on_behind_the_half_landed_block_of_the_one_before(shop: broker.Broker) -> None:
    parts = (shop.parts.redis, shop.parts.catalog, shop.parts.settings)
    ChangeLogs(*parts).of(DatasetId(NAME)).append(rows(8), producer="pim-1")
    logs_of(shop).append(DatasetId(NAME), [Part(2, "pim-1", 2, "somebody", "u", 0, b"")])

    assert ChangeLogs(*parts).of(DatasetId(NAME)).append(rows(8, 2), producer="pim-1").block == 3
    assert all([entry.block for entry in found] == [1, 2, 3] for found in entries(shop).values())


def test_single_records_share_blocks_and_each_gets_its_own_answer(shop: broker.Broker, changes: ChangeLog) -> None:
    changes.append(rows(1))
    records = rows(3_000, at=2)
    records[17] = {"sku": None, "at": 2, "price": 1.0}
    records[1_999] = {"sku": "a", "at": "never", "price": 1.0}
    pending = [changes.send(record) for record in records]
    pending.append(changes.send({"sku": "a1", "at": 3}, delete=True))

    acks = []
    for number, one in enumerate(pending):
        if number in (17, 1_999):
            with pytest.raises(BadData):
                one.result(30)
        else:
            acks.append(one.result(30))
    assert len(content(shop)) == 3_000, "2,998 rows, one delete, and the one before"
    assert len({ack.block for ack in acks}) < 1_000, "they were coalesced"
    assert content(shop).count(("d", "a1", 3)) == 1
    assert all(one.done for one in pending)


def test_an_append_goes_behind_what_was_sent_before(shop: broker.Broker, changes: ChangeLog) -> None:
    for at in range(50):
        changes.send({"sku": "a", "at": at, "price": 1.0})
    changes.append([{"sku": "a", "at": 50, "price": 1.0}])
    assert [at for _, _, at in content(shop)] == list(range(51))


def test_closing_brings_in_what_was_sent(redis_url: str, shop: broker.Broker) -> None:
    with broker.connect(redis_url, shop.parts.settings.store) as other:
        pending = [other.dataset(NAME).changelog.send(row) for row in rows(100)]
    assert all(one.result(0).rows for one in pending)
    with pytest.raises(Invalid, match="closed"):
        other.dataset(NAME).changelog.send(rows(1)[0])


def test_a_forked_child_appends_under_a_name_of_its_own(shop: broker.Broker, changes: ChangeLog) -> None:
    mine = changes.append(rows(1))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        ack = changes.append(rows(1, 2))
        sent = changes.send(rows(1, 3)[0]).result(20)
        os.write(write, json.dumps([ack.producer, sent.block]).encode())
        os._exit(0)
    os.waitpid(child, 0)
    producer, block = json.loads(os.read(read, 1_000))
    assert (producer != mine.producer, block, changes.append(rows(1, 4)).block) == (True, 2, 2)
    assert sorted(at for _, _, at in content(shop)) == [1, 2, 3, 4]


def test_a_dataset_without_order_takes_snapshots_or_a_change_log(shop: broker.Broker) -> None:
    plain = shop.dataset("shop/catalog/plain", key="sku")
    plain.publish([{"sku": "a"}])
    with pytest.raises(Conflict, match="takes snapshots"):
        plain.changelog.append([{"sku": "b"}])
    ordered = shop.dataset(NAME)
    ordered.publish(rows(1))
    assert ordered.changelog.append(rows(1, 2)).rows == 1


def test_an_unknown_dataset_has_no_log(shop: broker.Broker) -> None:
    shop.dataset(NAME).drop()
    with pytest.raises(NotFound):
        shop.dataset(NAME, key=None)
    parts = (shop.parts.redis, shop.parts.catalog, shop.parts.settings)
    with pytest.raises(NotFound):
        ChangeLogs(*parts).of(DatasetId("shop/catalog/none")).append(rows(1))


def test_appending_to_a_dataset_that_was_dropped_is_soon_refused(
    shop: broker.Broker, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with broker.connect(redis_url, shop.parts.settings.store) as other:
        changes = other.dataset(NAME).changelog
        changes.append(rows(1))
        shop.dataset(NAME).drop()
        monkeypatch.setattr("broker.changelog_recent.LOOK_SECONDS", 0.0)
        with pytest.raises(NotFound):
            changes.append(rows(1, 2))


def test_status_tells_what_waits(shop: broker.Broker, changes: ChangeLog) -> None:
    assert [(one.unbatched_rows, one.oldest_seconds) for one in changes.status()] == [(0, None)] * 4
    changes.append(rows(40))
    found = changes.status()
    assert sum(one.unbatched_rows for one in found) == sum(one.appended_rows for one in found) == 40
    assert all(one.oldest_seconds is not None and one.oldest_seconds < 60 and one.consumed == "0-0" for one in found)


def test_a_cluster_spreads_the_slots(redis_server: RedisServer, shop: broker.Broker) -> None:
    del redis_server
    tags = {logs_of(shop).slot(DatasetId(NAME), number).prefix for number in range(4)}
    assert tags == {f"{{catalog.0.p{number}}}:" for number in range(4)}


def test_a_log_that_cannot_be_trimmed_does_not_keep_the_others_from_it(shop: broker.Broker, changes: ChangeLog) -> None:
    """All of a dataset's log slots are trimmed by one script; whatever one of them meets is its own."""
    for at in range(1, 4):
        changes.append(rows(40, at))
    logs, slots = logs_of(shop), sorted(entries(shop))
    state = seal_all(shop)
    broken, others = slots[0], slots[1:]
    ready = logs.slot(DatasetId(NAME), broken).ready
    shop.parts.redis.run("DEL", ready)
    shop.parts.redis.run("SET", ready, "another's")
    with pytest.raises(Terminal, match="another type"):
        logs.trim_all([(state, slots)])
    assert [len(list(logs.read(DatasetId(NAME), slot))) for slot in others] == [0] * len(others)


def test_a_head_that_cannot_be_read_is_its_own_datasets_trouble(shop: broker.Broker, changes: ChangeLog) -> None:
    changes.append(rows(4, 1))
    other = DatasetId("shop/catalog/broken")
    slot = shop.parts.index.slot(other)
    shop.parts.redis.run("SET", slot.head(other), "another's")
    good, bad = shop.parts.index.heads([DatasetId(NAME), other])
    assert isinstance(bad, Terminal)
    assert not isinstance(good, Exception)
    assert shop.parts.index.fields_all([DatasetId(NAME), other], "session")[1] is None
    assert shop.parts.catalog.steady([DatasetId(NAME)]) == {DatasetId(NAME)}

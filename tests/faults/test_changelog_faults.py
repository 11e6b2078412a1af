"""The change log under faults, on a real Redis: killed, restarted, rolled back, wiped; replies lost; appenders killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest

import broker
from broker.backend.client import RedisClient
from broker.backend.lanes import Argument
from broker.backend.logs import UNNAMED_SECONDS, LogEntry, Logs, Part
from broker.changelog import ChangeLog, ChangeLogs
from broker.columnar.blocks import decoded
from broker.errors import BrokerError, Conflict, Gap, OutcomeUnknown, TimedOut, Transient
from broker.model.commit import Body, Edge, Mark, NewVersion, SourceRange
from broker.model.names import DatasetId
from broker.rules.blocks import ANYBODY
from broker.rules.fold import State
from tests.servers import RedisServer, redis_server

NAME = "shop/catalog/offers"
DATASET = DatasetId(NAME)
KEYS = [f"a{number}" for number in range(12)]
Rows = list[dict[str, Any]]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """With `everysec` a reply may go out while the write waits for an fsync under way: SIGKILL would lose what it told of."""
    with redis_server("--appendfsync", "no") as running:
        yield running


@pytest.fixture
def shop(server: RedisServer, tmp_path: Path) -> Iterator[broker.Broker]:
    with broker.connect(server.url, str(tmp_path / "store")) as opened:
        opened.dataset(NAME, key="sku", order="at")
        yield opened


@pytest.fixture
def changes(shop: broker.Broker) -> ChangeLog:
    return shop.dataset(NAME).changelog


def rows(at: int) -> Rows:
    """A change of every key, so that every slot has rows of every block."""
    return [{"sku": sku, "at": at} for sku in KEYS]


def insist(work: Callable[[], Any], seconds: float = 60) -> Any:
    """The caller's part: the same call again after a transient error."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return work()
        except Transient:
            if time.monotonic() > deadline:
                raise


def logs_of(shop: broker.Broker) -> Logs:
    return Logs(shop.parts.redis, shop.parts.settings)


def read(shop: broker.Broker) -> dict[int, list[LogEntry]]:
    """Everything behind what is consumed."""
    logs, state = logs_of(shop), insist(lambda: shop.parts.catalog.state(DATASET))
    return {slot: insist(lambda s=slot: list(logs.entries(DATASET, s, state.consumed(s)))) for slot in range(logs.count)}  # type: ignore[misc]


def times(shop: broker.Broker) -> Counter[int]:
    """How often each `at` lies in the log, over all keys and slots."""
    found = Counter[int]()
    for entries in read(shop).values():
        for entry in entries:
            if entry.payload is not None:
                found.update(decoded(entry.payload).column("at").to_pylist())
    return found


def in_order_per_key(shop: broker.Broker) -> bool:
    for entries in read(shop).values():
        seen = dict[str, int]()
        for entry in entries:
            for row in decoded(entry.payload).to_pylist() if entry.payload is not None else ():
                if seen.get(row["sku"], -1) >= row["at"]:
                    return False
                seen[row["sku"]] = row["at"]
    return True


def seal(shop: broker.Broker) -> State:
    """What a micro-batcher would commit of all that lies there, without its files."""
    found, done = read(shop), uuid4().hex

    def body(state: State) -> Body | None:
        if state.made_by(done) is not None:
            return None
        sources = []
        for slot, entries in found.items():
            marks = state.marks(slot) | {entry.producer: Mark(entry.block, entry.at_ms / 1000) for entry in entries}
            until = entries[-1].id if entries else state.consumed(slot)
            sources.append(SourceRange(slot=slot, after=state.consumed(slot), until=until, marks=marks))
        edge = Edge(base=state.version or None, version=state.version + 1)
        return NewVersion(edge=edge, sources=tuple(sources), production=done)

    return shop.parts.catalog.commit(DATASET, body, "microbatch")


class Flaky:
    """Loses replies: the commands arrive, the answer does not."""

    def __init__(self, redis: RedisClient, monkeypatch: pytest.MonkeyPatch) -> None:
        self.to_lose, self._pipeline = 0, redis.pipeline
        monkeypatch.setattr(redis, "pipeline", self)

    def __call__(self, commands: Sequence[Sequence[Argument]], of: str, writes: bool = True) -> list[Any]:
        replies = self._pipeline(commands, of, writes)
        if self.to_lose and of == "append":
            self.to_lose -= 1
            raise OutcomeUnknown("Redis does not answer", of=of, why="the reply was lost")
        return replies


def test_a_lost_reply_is_asked_for_again_and_the_block_lands_once(
    shop: broker.Broker, changes: ChangeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes.append(rows(0))
    flaky = Flaky(shop.parts.redis, monkeypatch)
    flaky.to_lose = 3
    assert changes.append(rows(1)).block == 2
    flaky.to_lose = 2
    assert changes.append(rows(2), producer="pim-1", block=1).block == 1
    assert times(shop) == dict.fromkeys(range(3), len(KEYS))


def test_the_same_call_after_an_unknown_outcome_is_the_same_block(
    shop: broker.Broker, changes: ChangeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes.append(rows(0))
    flaky = Flaky(shop.parts.redis, monkeypatch)
    flaky.to_lose = 1_000
    with pytest.raises(OutcomeUnknown, match="Append the same again"):
        changes.append(rows(1), timeout=0.05)
    with pytest.raises(OutcomeUnknown, match="block=1:"):
        changes.append(rows(2), producer="pim-1", block=1, timeout=0.05)
    flaky.to_lose = 0
    assert changes.append(rows(1)).block == 2
    assert changes.append(rows(2), producer="pim-1", block=1).block == 1
    assert times(shop) == dict.fromkeys(range(3), len(KEYS))


def test_other_data_after_an_unknown_outcome_goes_behind_it(
    shop: broker.Broker, changes: ChangeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky = Flaky(shop.parts.redis, monkeypatch)
    flaky.to_lose = 1_000
    with pytest.raises(OutcomeUnknown):
        changes.append(rows(1), timeout=0.05)
    flaky.to_lose = 0
    assert changes.append(rows(2)).block == 2
    assert times(shop) == {1: len(KEYS), 2: len(KEYS)}
    assert in_order_per_key(shop)


def test_a_block_of_a_long_call_that_redis_lost_on_the_way_is_brought_again(
    shop: broker.Broker, changes: ChangeLog, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, sent, logs_append = [{"sku": f"b{number}", "at": number} for number in range(25_000)], 0, Logs.append

    def append(self: Logs, dataset: DatasetId, parts: Sequence[Part]) -> Any:
        nonlocal sent
        sent += 1
        if sent == 2:
            server.flush()
        return logs_append(self, dataset, parts)

    monkeypatch.setattr(Logs, "append", append)
    with pytest.raises(Gap):
        changes.append(data)
    changes.append(data)
    assert times(shop) == dict.fromkeys(range(25_000), 1)


@pytest.mark.parametrize("level", ["accepted", "sealed"])
def test_without_a_name_the_same_call_comes_too_late_and_is_told_so_once(
    shop: broker.Broker, changes: ChangeLog, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    changes.append(rows(-1))
    flaky = Flaky(shop.parts.redis, monkeypatch)
    flaky.to_lose = 1_000 if level == "accepted" else 0
    with pytest.raises((OutcomeUnknown, TimedOut)):  # nobody makes versions here
        changes.append(rows(0), level=level, timeout=0.05)
    flaky.to_lose = 0
    changes._unnamed.used -= UNNAMED_SECONDS
    with pytest.raises(Conflict, match="too late"):
        changes.append(rows(0))
    assert times(shop) == dict.fromkeys((-1, 0), len(KEYS))
    changes.append(rows(1))
    assert times(shop) == dict.fromkeys((-1, 0, 1), len(KEYS))


def test_a_log_is_not_opened_from_a_state_that_was_read_before_redis_was_lost_again(
    shop: broker.Broker, server: RedisServer
) -> None:
    logs, state = logs_of(shop), shop.parts.catalog.state(DATASET)
    closed = logs.closed(DATASET)
    server.flush()
    assert not any([logs.open(state, slot, run) for slot, run in closed.items()])
    assert len(logs.closed(DATASET)) == len(closed) == logs.count


@pytest.mark.parametrize("end", [KeyboardInterrupt, MemoryError])
def test_a_call_that_anything_ends_leaves_its_number_to_no_other_rows(
    shop: broker.Broker, changes: ChangeLog, monkeypatch: pytest.MonkeyPatch, end: type[BaseException]
) -> None:
    """Ctrl-C comes when Redis has the block already, and the client does not know it."""
    changes.append(rows(0))
    append = Logs.append

    def interrupted(self: Logs, dataset: DatasetId, parts: Sequence[Part]) -> Any:
        append(self, dataset, parts)
        raise end

    with monkeypatch.context() as patch:
        patch.setattr(Logs, "append", interrupted)
        with pytest.raises(end):
            changes.append(rows(1))
    assert changes.append(rows(2)).block == 3
    assert times(shop) == dict.fromkeys(range(3), len(KEYS))


@pytest.mark.parametrize(
    ("kind", "numbers"), [("dicts", (35_000, 20_000, 5)), ("Arrow", (180_000, 131_072, 4))], ids=["dicts", "Arrow"]
)
def test_a_long_call_that_failed_half_way_goes_on_where_it_stopped(
    shop: broker.Broker, changes: ChangeLog, monkeypatch: pytest.MonkeyPatch, kind: str, numbers: tuple[int, ...]
) -> None:
    """Large Arrow blocks are sent by a thread, while the next is made."""
    count, brought, last = numbers
    changes.append(rows(-1))
    data: Any = [{"sku": f"b{number}", "at": number} for number in range(count)]
    data = pa.Table.from_pylist(data) if kind == "Arrow" else data
    flaky, sent = Flaky(shop.parts.redis, monkeypatch), 0
    logs_append = Logs.append

    def append(self: Logs, dataset: DatasetId, parts: Sequence[Part]) -> Any:
        nonlocal sent
        sent += 1
        flaky.to_lose = 1_000 if sent == 3 else flaky.to_lose
        return logs_append(self, dataset, parts)

    monkeypatch.setattr(Logs, "append", append)
    with pytest.raises(OutcomeUnknown, match=f"first {brought} rows of this call are in"):
        changes.append(data, timeout=0.05)
    flaky.to_lose = 0
    assert changes.append(data).block == last
    assert set(times(shop).values()) == {1, len(KEYS)}
    assert sum(times(shop).values()) == count + len(KEYS)


def test_a_restart_between_two_appends_needs_nobody(server: RedisServer, shop: broker.Broker, changes: ChangeLog) -> None:
    for at in range(3):
        changes.append(rows(at))
        server.restart()
    changes.append(rows(3))
    assert times(shop) == dict.fromkeys(range(4), len(KEYS))
    assert in_order_per_key(shop)
    assert changes.resume("nobody") == 1


def test_an_append_waits_over_an_outage(server: RedisServer, shop: broker.Broker, changes: ChangeLog) -> None:
    changes.append(rows(0))
    server.kill()
    back = Thread(target=server.start)
    back.start()
    assert changes.append(rows(1), timeout=30).block == 2
    back.join()
    assert times(shop) == dict.fromkeys(range(2), len(KEYS))


def test_a_block_that_landed_in_some_slots_before_a_kill_ends_in_all_of_them_once(
    server: RedisServer, shop: broker.Broker, changes: ChangeLog
) -> None:
    changes.append(rows(0), producer="pim-1", block=1)
    logs_of(shop).append(DATASET, [Part(slot, "pim-1", 2, ANYBODY, "u") for slot in (1, 3)])
    server.restart()
    changes.append(rows(1), producer="pim-1", block=2)
    assert {slot: [entry.block for entry in entries] for slot, entries in read(shop).items()} == {s: [1, 2] for s in range(4)}


def test_what_redis_forgot_is_a_gap_and_sending_from_there_on_fills_it(
    server: RedisServer, shop: broker.Broker, changes: ChangeLog
) -> None:
    for number in (1, 2):
        changes.append(rows(number), producer="pim-1", block=number)
    seal(shop)
    saved = server.save("sealed")
    for number in (3, 4):
        changes.append(rows(number), producer="pim-1", block=number)
    server.roll_back(saved)

    with pytest.raises(Gap) as gap:
        insist(lambda: changes.append(rows(5), producer="pim-1", block=5))
    assert gap.value.expected == changes.resume("pim-1") == 3
    for number in (3, 4, 5):
        changes.append(rows(number), producer="pim-1", block=number)
    assert times(shop) == dict.fromkeys((3, 4, 5), len(KEYS))


def test_after_a_total_loss_the_sealed_marks_count(server: RedisServer, shop: broker.Broker, changes: ChangeLog) -> None:
    for number in (1, 2, 3):
        changes.append(rows(number), producer="pim-1", block=number)
    state = seal(shop)
    changes.append(rows(4), producer="pim-1", block=4)
    server.wipe()

    assert insist(lambda: changes.resume("pim-1")) == 4
    assert changes.append(rows(3), producer="pim-1", block=3).block == 3, "sealed: dropped"
    ack = changes.append(rows(4), producer="pim-1", block=4)
    assert times(shop) == {4: len(KEYS)}
    for slot, offset in ack.offsets.items():
        assert _place(offset) > _place(state.consumed(slot)), "ids grow past what is consumed, or the block would be skipped"


def test_a_version_ahead_of_a_rolled_back_log_keeps_its_records_to_itself(
    server: RedisServer, shop: broker.Broker, changes: ChangeLog
) -> None:
    changes.append(rows(1), producer="pim-1", block=1)
    saved = server.save("early")
    changes.append(rows(2), producer="pim-1", block=2)
    state = seal(shop)
    server.roll_back(saved)

    assert insist(lambda: changes.append(rows(2), producer="pim-1", block=2)).block == 2
    changes.append(rows(3), producer="pim-1", block=3)
    assert times(shop) == {3: len(KEYS)}, "1 and 2 are in the version, and only there"
    logs = logs_of(shop)
    assert [len(logs.read(DATASET, slot)) for slot in range(logs.count)] == [1] * 4, "what came back with the copy is trimmed"
    state = seal(shop)
    for slot in range(logs.count):
        assert logs.trim(state, slot) == 0
        assert logs.logged(DATASET, slot).unbatched_bytes == 0


def test_ids_outgrow_those_of_a_server_whose_clock_was_ahead(
    server: RedisServer, shop: broker.Broker, changes: ChangeLog
) -> None:
    changes.append(rows(1))
    logs, ahead = logs_of(shop), f"{(int(time.time()) + 3_600) * 1000}-7"
    for slot in range(logs.count):
        fields = ("p", "pim-9", "b", 1, "k", "u", "n", 0, "c", 64, "r", 0)
        shop.parts.redis.run("XADD", logs.slot(DATASET, slot).log(DATASET), ahead, *fields)
    seal(shop)
    server.wipe()
    with pytest.raises(Gap):
        insist(lambda: changes.append(rows(3), producer="pim-9", block=3))
    ack = changes.append(rows(2))
    assert all(_place(offset) > _place(ahead) for offset in ack.offsets.values())
    assert times(shop) == {2: len(KEYS)}


def test_a_client_that_numbers_is_told_once_what_was_lost_and_then_goes_on(
    server: RedisServer, shop: broker.Broker, changes: ChangeLog
) -> None:
    changes.append(rows(1))
    changes.append(rows(2))
    server.wipe()
    with pytest.raises(Gap, match="block 3 came, expected 1"):
        insist(lambda: changes.append(rows(3)))
    changes.append(rows(3))
    changes.append(rows(4))
    assert times(shop) == {3: len(KEYS), 4: len(KEYS)}


def test_blocks_without_rows_that_a_loss_took_are_nobodys_loss(
    server: RedisServer, shop: broker.Broker, changes: ChangeLog
) -> None:
    changes.append([{"sku": "a0", "at": 1}])
    home = next(slot for slot, entries in read(shop).items() if entries[0].rows)
    found = read(shop)[home]

    def body(state: State) -> Body | None:
        if state.consumed(home) == found[-1].id:
            return None
        marks = {found[-1].producer: Mark(1, time.time())}
        source = SourceRange(slot=home, after="0-0", until=found[-1].id, marks=marks)
        return NewVersion(edge=Edge(base=None, version=1), sources=(source,))

    shop.parts.catalog.commit(DATASET, body, "microbatch")
    server.wipe()
    assert insist(lambda: changes.append(rows(2))).block == 2
    assert times(shop) == {2: len(KEYS)}


def test_a_sealed_append_survives_the_loss_of_redis_while_it_waits(
    server: RedisServer, shop: broker.Broker, changes: ChangeLog
) -> None:
    acks = []
    waiting = Thread(target=lambda: acks.append(changes.append(rows(1), level="sealed", timeout=60)))
    waiting.start()
    _until(lambda: sum(times(shop).values()) == len(KEYS))
    server.wipe()
    _until(lambda: insist(lambda: sum(times(shop).values())) == len(KEYS))
    insist(lambda: seal(shop))
    waiting.join(60)
    assert [ack.level for ack in acks] == ["sealed"]


def test_single_records_are_sent_until_they_are_in(server: RedisServer, shop: broker.Broker, changes: ChangeLog) -> None:
    shop.parts.redis.run("CONFIG", "SET", "appendfsync", "always")  # or what was acknowledged may die with the server
    changes.append(rows(0))
    server.kill()
    pending = [changes.send({"sku": "a0", "at": at}) for at in range(1, 50)]
    assert not any(one.done for one in pending)
    server.start()
    blocks = [one.result(60).block for one in pending]
    assert blocks == sorted(blocks)
    assert times(shop) == {0: len(KEYS)} | dict.fromkeys(range(1, 50), 1)
    assert in_order_per_key(shop)


APPENDER = """
import sys, broker
url, store, name, first = sys.argv[1:]
with broker.connect(url, store) as b:
    log = b.dataset("shop/catalog/offers").changelog
    number = log.resume(name)
    print(number, flush=True)
    while True:
        try:
            log.append([{"sku": f"{name}-{key}", "at": number} for key in range(12)], producer=name, block=number, timeout=20)
        except broker.errors.Transient:
            continue
        print(number, flush=True)
        number += 1
"""


@contextmanager
def appender(server: RedisServer, store: str, name: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", APPENDER, server.url, store, name, "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_killed_appenders_that_come_back_leave_each_block_once_and_none_out(server: RedisServer, shop: broker.Broker) -> None:
    acknowledged, kills = dict[str, int](), 0
    chance = random.Random(7)
    for _ in range(6):
        for name in ("one", "two"):
            with appender(server, shop.parts.settings.store, name) as process:
                assert process.stdout is not None
                first = int(process.stdout.readline())
                assert first > acknowledged.get(name, 0), "the last ones may be in, unheard"
                for _ in range(chance.randint(1, 12)):
                    acknowledged[name] = int(process.stdout.readline())
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
    found = Counter[tuple[str, int]]()
    for entries in read(shop).values():
        for entry in entries:
            if entry.payload is not None:
                found.update((row["sku"], row["at"]) for row in decoded(entry.payload).to_pylist())
    assert set(found.values()) == {1}
    for name, last in acknowledged.items():
        expected = {(f"{name}-{key}", number) for key in range(12) for number in range(1, last + 1)}
        assert expected <= set(found)
    assert kills == 12
    assert in_order_per_key(shop)


def test_redis_killed_again_and_again_under_appenders_loses_no_block_between_two_that_are_there(
    server: RedisServer, shop: broker.Broker
) -> None:
    """SIGKILL keeps what the kernel has of the AOF, so all that was acknowledged must be there, once and in order."""
    parts = (shop.parts.redis, shop.parts.catalog, shop.parts.settings)
    last, failures, going = [0, 0, 0], list[BrokerError](), [True]

    def run(me: int) -> None:
        log, number = ChangeLogs(*parts).of(DATASET), 1
        while going[0]:
            try:
                block = [{"sku": f"{me}-{key}", "at": number} for key in range(12)]
                log.append(block, producer=f"p{me}" if me else None, block=number if me == 1 else None, timeout=20)
            except Transient:
                continue
            except BrokerError as error:
                failures.append(error)
                return
            last[me], number = number, number + 1

    threads = [Thread(target=run, args=(me,)) for me in range(3)]
    for thread in threads:
        thread.start()
    try:
        for round_ in range(5):
            _until(lambda r=round_: min(last) > 5 * (r + 1) or bool(failures))  # type: ignore[misc]
            server.kill()
            server.start()
    finally:
        going[0] = False
        for thread in threads:
            thread.join(60)
    assert not failures
    found = Counter[tuple[str, int]]()
    for entries in read(shop).values():
        for entry in entries:
            if entry.payload is not None:
                found.update((row["sku"], row["at"]) for row in decoded(entry.payload).to_pylist())
    assert set(found.values()) == {1}
    for me in range(3):
        assert {(f"{me}-{key}", number) for key in range(12) for number in range(1, last[me] + 1)} <= set(found)
    assert in_order_per_key(shop)


def _place(id: str) -> tuple[int, int]:
    milliseconds, sequence = id.split("-")
    return int(milliseconds), int(sequence)


def _until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came true"

"""Micro-batches, decided: when one closes, which waiting ones a version takes, and that no history takes an entry twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import Conflict
from broker.model.commit import (
    GENESIS,
    Barrier,
    Body,
    Create,
    Edge,
    File,
    Mark,
    NewEdge,
    NewVersion,
    Record,
    Role,
    SourceRange,
)
from broker.model.dataset import DatasetSpec
from broker.model.names import DatasetId
from broker.rules.batching import (
    PRODUCER,
    Backlog,
    Batch,
    Limits,
    Seen,
    batches_of,
    check_mixture,
    closes,
    due_ms,
    epoch_of,
    marks_after,
    reasons,
    share_of,
    version_of,
)
from broker.rules.fold import State, fold
from broker.rules.patch import NOTHING_CONSUMED
from broker.settings import Settings

OFFERS = DatasetId("shop/catalog/offers")
LIMITS = Limits(rows=100, bytes=1_000, age_ms=50, idle_ms=50)
SLOTS = 3


def started(*, order: tuple[str, ...] = ("at",)) -> State:
    return then(State(OFFERS), Create(session="s1", spec=DatasetSpec(dataset=OFFERS, key=("sku",), order=order)))


def then(state: State, body: Body) -> State:
    record = Record(seq=state.seq + 1, previous=state.sha or GENESIS, write_id="w", time=1_000.0, body=body)
    return fold(state, record.to_bytes())


def file(role: Role = "upserts", rows: int = 1) -> File:
    return File(role=role, key=f"{OFFERS}/data/{role}", sha256="0" * 64, bytes=10 * rows, rows=rows)


def batch(state: State, slot: int = 0, until: str = "9-0", files: tuple[File, ...] = (file(),), closed: str = "age") -> Batch:
    source = SourceRange(slot=slot, after=state.consumed(slot), until=until, rows=len(files), closed=closed)
    return Batch(source=source, session=state.session, epoch=epoch_of(state), written_at=1_000.0, files=files)


def committed(state: State, *waiting: Batch) -> State:
    version = version_of(state, batches_of(state, waiting))
    assert version is not None
    return then(state, version)


# --- when a batch closes


@pytest.mark.parametrize(
    ("backlog", "now_ms", "reason"),
    [
        (Backlog(0, 1, 10), 49, None),
        (Backlog(0, 1, 10), 50, "age"),
        (Backlog(0, 100, 10), 0, "rows"),
        (Backlog(0, 99, 1_000), 0, "bytes"),
        (Backlog(0, 99, 999), 0, None),
        (Backlog(0, 0, 10), 99, None),
        (Backlog(0, 0, 10), 100, "idle"),
    ],
)
def test_a_batch_closes_by_rows_bytes_or_age_and_marks_alone_wait_longer(
    backlog: Backlog, now_ms: float, reason: str | None
) -> None:
    assert closes(now_ms, backlog, LIMITS) == reason


@given(st.integers(0, 200), st.integers(0, 2_000), st.integers(0, 200))
def test_a_batch_that_is_due_is_closed_whatever_its_size(rows: int, size: int, oldest: int) -> None:
    backlog = Backlog(oldest, rows, size)
    assert closes(due_ms(backlog, LIMITS), backlog, LIMITS) is not None


def test_once_a_slot_closes_the_dataset_s_other_slots_go_along() -> None:
    backlogs = {0: Backlog(0, 1, 10), 1: Backlog(40, 5, 50), 2: Backlog(0, 0, 64)}
    assert reasons(50, backlogs, LIMITS) == {0: "age", 1: "joined", 2: "joined"}
    assert reasons(49, backlogs, LIMITS) == {}


def test_limits_come_from_the_settings_in_milliseconds() -> None:
    limits = Limits.of(Settings(max_age_seconds=0.25, batch_rows=7, batch_bytes=2048))
    assert (limits.rows, limits.bytes, limits.age_ms) == (7, 2048, 250)


@given(st.integers(1, 64), st.integers(1, 20))
def test_fair_shares_hold_all_log_slots_and_none_is_idle_for_long(slots: int, processes: int) -> None:
    assert processes * share_of(slots, processes) >= slots
    assert (processes - 1) * (share_of(slots, processes) - 1) < slots


def test_one_process_that_sees_nobody_alive_takes_all() -> None:
    assert share_of(4, 0) == 4


# --- marks


def test_marks_go_on_from_those_sealed_and_never_back() -> None:
    known = {"pim": Mark(7, 100.0), "erp": Mark(3, 90.0)}
    found = marks_after(known, [Seen("pim", 8, 110.0), Seen("pim", 9, 111.0), Seen("new", 1, 112.0)])
    assert found == {"pim": Mark(9, 111.0), "erp": Mark(3, 90.0), "new": Mark(1, 112.0)}


def test_marks_of_nameless_producers_are_forgotten_within_the_hour_and_named_ones_are_not() -> None:
    known = {"~a1": Mark(7, 100.0), "pim": Mark(1, 100.0)}
    assert marks_after(known, [Seen("~b2", 1, 5_000.0)]) == {"pim": Mark(1, 100.0), "~b2": Mark(1, 5_000.0)}


# --- what a version takes


def test_all_waiting_batches_go_into_one_version_with_one_edge_and_a_range_each() -> None:
    first = committed(started(), batch(started()))
    version = version_of(first, batches_of(first, [batch(first, 2), batch(first, 0, "12-0"), batch(first, 1)]))
    assert version is not None
    assert (version.edge.base, version.edge.version, len(version.edge.files)) == (1, 2, 3)
    assert [(source.slot, source.after, source.until) for source in version.sources] == [
        (0, "9-0", "12-0"), (1, NOTHING_CONSUMED, "9-0"), (2, NOTHING_CONSUMED, "9-0"),
    ]  # fmt: skip


def test_a_batch_that_was_taken_fits_no_second_time() -> None:
    state = started()
    waiting = [batch(state, 0), batch(state, 1)]
    after = committed(state, *waiting)
    assert batches_of(after, waiting) == []
    assert version_of(after, batches_of(after, waiting)) is None


def test_of_two_batches_from_one_position_only_the_first_to_be_committed_counts() -> None:
    state = started()
    short, long = batch(state, until="5-0"), batch(state, until="9-0")
    after = committed(state, short)
    assert batches_of(after, [long]) == []
    assert after.consumed(0) == "5-0"


def test_a_batch_of_another_session_or_of_a_redis_that_restarted_fits_no_more() -> None:
    state = started()
    old = batch(state)
    assert batches_of(then(state, Create(session="s2", spec=state.spec)), [old]) == []
    restarted = then(state, Barrier(run_id="r2", epoch=77))
    assert batches_of(restarted, [old]) == []
    assert batches_of(restarted, [batch(restarted)])


def test_over_no_version_rows_are_the_snapshot_and_deletes_its_tombstones() -> None:
    state = started()
    version = version_of(state, [batch(state, files=(file("upserts"), file("deletes")))])
    assert version is not None
    assert version.edge.base is None
    assert [found.role for found in version.edge.files] == ["rows", "tombstones"]


def test_without_an_order_a_first_delete_leaves_no_tombstone() -> None:
    state = started(order=())
    version = version_of(state, [batch(state, files=(file("upserts"), file("deletes")))])
    assert version is not None
    assert [found.role for found in version.edge.files] == ["rows"]


def test_marks_alone_make_a_version_only_when_nothing_came_after_them() -> None:
    state = committed(started(), batch(started()))
    assert version_of(state, [batch(state, files=(), closed="joined")]) is None
    idle = version_of(state, [batch(state, files=(), closed="idle")])
    assert idle is not None
    assert idle.edge.files == ()
    assert version_of(started(), [batch(started(), files=(), closed="idle")]) is None


def test_what_a_producer_noted_with_its_version_stays_noted() -> None:
    state = then(started(), NewVersion(edge=Edge(base=None, version=1, files=(file("rows"),)), position={"lsn": 7}))
    assert committed(state, batch(state)).position == {"lsn": 7}


def test_a_version_says_how_many_changes_it_read_and_how_many_were_replaced() -> None:
    state = started()
    taken = batch(state).model_copy(update={"coalesced": 4})
    version = version_of(state, [taken])
    assert version is not None
    assert (version.system["producer"], version.system["changes"], version.system["coalesced"]) == (PRODUCER, "1", "4")


@given(st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(1, 4), st.booleans()), max_size=30))
def test_whatever_waits_and_whoever_commits_ranges_have_neither_gap_nor_overlap(
    steps: list[tuple[int, int, bool]],
) -> None:
    """Each step closes a batch of some length on the present or on the first state, then perhaps commits all that wait."""
    first = state = started()
    waiting: dict[int, Batch] = {}
    sealed: dict[int, list[SourceRange]] = {slot: [] for slot in range(SLOTS)}
    for slot, length, now in steps:
        seen = state if now else first
        until = f"{int(seen.consumed(slot).partition('-')[0]) + length}-0"
        waiting[slot] = batch(seen, slot, until)
        version = version_of(state, batches_of(state, waiting.values()))
        if now and version is not None:
            state = then(state, version)
            for source in version.sources:
                sealed[source.slot].append(source)
    for slot, ranges in sealed.items():
        assert [source.after for source in ranges] == [NOTHING_CONSUMED, *(source.until for source in ranges)][: len(ranges)]
        assert state.consumed(slot) == (ranges[-1].until if ranges else NOTHING_CONSUMED)


# --- snapshots beside a change log


def test_without_an_order_a_published_snapshot_and_a_change_log_do_not_go_together() -> None:
    snapshot = NewVersion(edge=Edge(base=None, version=1, files=(file("rows"),)), system={"producer": "direct"})
    with pytest.raises(Conflict, match="takes snapshots"):
        check_mixture(then(started(order=()), snapshot))
    check_mixture(then(started(), snapshot))


def test_snapshots_of_compaction_and_of_the_first_batch_are_no_published_ones() -> None:
    state = committed(started(order=()), batch(started(order=())))
    check_mixture(state)
    state = committed(state, batch(state))
    check_mixture(then(state, NewEdge(edge=Edge(base=None, version=2, files=(file("rows"),)))))

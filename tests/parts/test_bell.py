"""The bell: what lies in notify/<channel>.json, and that it rings whatever becomes of the process or of one ring."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread

import pytest

from broker.bell import NOTIFY_DELTAS, Bell, notification
from broker.errors import Unavailable
from broker.model.commit import GENESIS, Body, Create, Edge, NewEdge, NewVersion, Record, digest
from broker.model.names import DatasetId
from broker.rules.fold import State, replay
from tests.rules.logs import DATASET, SPEC, file_of
from tests.servers import wait_until


def test_a_notification_names_the_snapshot_and_every_delta_behind_it() -> None:
    told = json.loads(notification(versions(5)))
    assert (told["version"], told["snapshot"]["version"]) == (5, 1)
    assert [(edge["base"], edge["version"]) for edge in told["deltas"]] == [(1, 2), (2, 3), (3, 4), (4, 5)]


def test_a_notification_leads_from_its_snapshot_to_the_version_without_a_gap_however_many_versions_there_are() -> None:
    newest = NOTIFY_DELTAS + 70
    told = json.loads(notification(versions(newest, [(at, at + 8) for at in range(1, 65, 8)])))
    at = told["snapshot"]["version"]
    for edge in told["deltas"]:
        assert edge["base"] == at
        at = edge["version"]
    assert (at, told["snapshot"]["version"]) == (newest, 1)
    assert [edge["version"] for edge in told["deltas"]] == [*range(9, 66, 8), *range(66, newest + 1)]


def test_while_nobody_compacts_a_notification_stays_small_and_leads_nobody_over_a_gap() -> None:
    told = json.loads(notification(versions(2 * NOTIFY_DELTAS + 1)))
    assert len(told["deltas"]) == NOTIFY_DELTAS
    assert told["snapshot"] is None


# --- ringing

ONE, TWO = DatasetId("t/d/one"), DatasetId("t/d/two")


def test_it_rings_for_everything_that_was_asked_before_it_closes() -> None:
    rung = list[DatasetId]()
    bell = Bell(rung.extend)
    bell.ask(ONE)
    bell.ask(TWO)
    bell.close()
    assert rung == [ONE, TWO]
    bell.ask(ONE)
    bell.close()
    assert rung == [ONE, TWO, ONE]


def test_asked_many_times_before_it_rang_it_rings_once_more() -> None:
    rung, ringing, go = list[DatasetId](), Event(), Event()

    def ring(datasets: Sequence[DatasetId]) -> None:
        ringing.set()
        assert go.wait(30)
        rung.extend(datasets)

    bell = Bell(ring)
    bell.ask(ONE)
    assert ringing.wait(30)
    for _ in range(5):
        bell.ask(ONE)
    go.set()
    bell.close()
    assert rung == [ONE, ONE]


def test_asked_while_it_closes_it_closes_and_rings_all_the_same() -> None:
    rung, ringing, go = list[DatasetId](), Event(), Event()

    def ring(datasets: Sequence[DatasetId]) -> None:
        ringing.set()
        assert go.wait(30)
        rung.extend(datasets)

    bell = Bell(ring)
    bell.ask(ONE)
    assert ringing.wait(30)
    closing = Thread(target=bell.close, daemon=True)
    closing.start()
    wait_until(lambda: bell._ringer is None, "the bell closes")
    bell.ask(TWO)
    go.set()
    closing.join(30)
    assert not closing.is_alive()
    bell.close()
    assert sorted(rung) == [ONE, TWO]


def test_where_no_thread_begins_the_next_who_asks_has_it_rung(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(thread: Thread) -> None:
        raise RuntimeError(f"can't start new thread: {thread.name}")

    rung = list[DatasetId]()
    bell = Bell(rung.extend)
    with monkeypatch.context() as few:
        few.setattr(Thread, "start", refuse)
        bell.ask(ONE)
    assert f"{ONE}: not rung" in caplog.text
    bell.ask(ONE)
    bell.close()
    assert rung == [ONE]


@pytest.mark.parametrize("error", [Unavailable("the store does not answer"), ValueError("a surprise")])
def test_a_ring_that_fails_does_not_silence_the_others(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    rung = list[DatasetId]()

    def ring(datasets: Sequence[DatasetId]) -> None:
        if ONE in datasets:
            raise error
        rung.extend(datasets)

    bell = Bell(ring)
    with caplog.at_level(logging.DEBUG, "broker.bell"):
        bell.ask(ONE)
        bell.ask(TWO)
        bell.close()
    assert rung == ([] if isinstance(error, Unavailable) else [TWO])  # what is silent is silent for all: the janitor rings
    assert ONE in caplog.text


def test_a_process_that_ends_without_closing_has_rung_all_the_same(tmp_path: Path) -> None:
    program = f"""
import atexit, pathlib, threading
from broker.bell import Bell
begun = threading.Event()
def ring(datasets):
    begun.wait(30)
    for dataset in datasets:
        pathlib.Path({str(tmp_path)!r}, dataset).touch()
bell = Bell(ring)
bell.ask("one")
bell.ask("two")
atexit.register(begun.set)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_a_child_forked_while_somebody_asks_has_a_bell_of_its_own() -> None:
    rung = list[DatasetId]()
    bell = Bell(rung.extend)
    reader, writer = os.pipe()
    with bell._lock:  # as held by a thread that the child does not have
        child = os.fork()
    if child == 0:
        with os.fdopen(writer, "w") as told:
            bell.ask(TWO)
            bell.close()
            told.write(",".join(rung))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        assert told.read() == TWO
    os.waitpid(child, 0)
    assert rung == []


def versions(count: int, rolled_up: Sequence[tuple[int, int]] = ()) -> State:
    """A dataset of one snapshot and the deltas behind it, with roll-ups (base, version)."""
    previous, log = GENESIS, list[bytes]()
    bodies: list[Body] = [Create(session="s", spec=SPEC)]
    bodies += [NewVersion(edge=edge(n - 1 or None, n)) for n in range(1, count + 1)]
    bodies += [NewEdge(edge=edge(base, version)) for base, version in rolled_up]
    for seq, body in enumerate(bodies, 1):
        log.append(Record(seq=seq, previous=previous, write_id="w", time=1.0, body=body).to_bytes())
        previous = digest(log[-1])
    return replay(DATASET, log)


def edge(base: int | None, version: int) -> Edge:
    return Edge(base=base, version=version, files=(file_of(f"{base}-{version}", 5),))

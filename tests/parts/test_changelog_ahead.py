"""The blocks of one call: the next is made while one is on its way, and whatever goes wrong with either is told."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event, Thread, current_thread, main_thread
from typing import Any

import pytest

from broker.changelog_ahead import AHEAD_ROWS, bring_all
from broker.changelog_rows import Content
from broker.errors import BadData, Gap


def large(number: int) -> Content:
    return Content("u", AHEAD_ROWS, {0: (AHEAD_ROWS, str(number).encode())})


def number_of(content: Content) -> int:
    return int(content.parts[0][1])


def test_large_ones_are_brought_by_threads_in_their_order_and_small_ones_are_not() -> None:
    brought, small = list[tuple[int, bool]](), Content("u", AHEAD_ROWS - 1, {0: (1, b"3")})

    def bring(content: Content) -> None:
        brought.append((number_of(content), current_thread() is main_thread()))

    bring_all([large(1), large(2), small, large(4)], bring)
    assert brought == [(1, False), (2, False), (3, True), (4, False)]


def test_a_thread_that_cannot_begin_leaves_each_block_brought_once(monkeypatch: pytest.MonkeyPatch) -> None:
    brought, start, failing = list[int](), Thread.start, [True, False, True]

    def flaky(self: Thread) -> None:
        if failing.pop(0):
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(Thread, "start", flaky)
    bring_all([large(1), large(2), large(3)], lambda content: brought.append(number_of(content)))
    assert brought == [1, 2, 3]


def test_what_became_of_the_block_on_its_way_is_told_before_what_is_wrong_with_the_next() -> None:
    def contents() -> Iterator[Content]:
        yield large(1)
        raise BadData("row 5 of the second block", of="offers")

    def bring(content: Content) -> None:
        raise Gap.between("pim", 3, 2)

    with pytest.raises(Gap) as told:
        bring_all(contents(), bring)
    assert isinstance(told.value.__context__, BadData)


def test_an_interrupted_call_ends_when_its_block_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else may number blocks while one is on its way."""
    brought, join, interruptions, over = list[int](), Thread.join, [KeyboardInterrupt, KeyboardInterrupt], Event()

    def interrupted(self: Thread, timeout: Any = None) -> None:
        if interruptions:
            raise interruptions.pop()
        over.set()
        join(self, timeout)

    def bring(content: Content) -> None:
        assert over.wait(30)
        brought.append(number_of(content))

    monkeypatch.setattr(Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bring_all([large(1), large(2)], bring)
    assert brought == [1]

"""Work side by side: each is done once, in order, and behind a failure nobody begins anything."""

from __future__ import annotations

from threading import Event, get_ident

import pytest

from broker.stores.side_by_side import side_by_side


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_each_is_done_once_and_answers_come_in_order(threads: int, count: int) -> None:
    done = list[int]()

    def work(number: int) -> int:
        done.append(number)
        return number * 2

    assert side_by_side(work, range(count), threads) == [number * 2 for number in range(count)]
    assert sorted(done) == list(range(count))


def test_two_wait_at_one_time() -> None:
    first, second = Event(), Event()

    def work(mine: Event) -> bool:
        mine.set()
        return (second if mine is first else first).wait(10)

    assert side_by_side(work, [first, second], 2) == [True, True]


@pytest.mark.parametrize("threads", [1, 4])
def test_what_one_raises_is_raised_and_what_nobody_began_is_left(threads: int) -> None:
    begun = list[int]()

    def work(number: int) -> None:
        begun.append(number)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        side_by_side(work, range(1_000), threads)
    assert len(begun) <= threads


def test_without_more_threads_this_one_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("broker.stores.side_by_side.ThreadPoolExecutor.submit", none)
    assert set(side_by_side(lambda _: get_ident(), range(5), 4)) == {get_ident()}

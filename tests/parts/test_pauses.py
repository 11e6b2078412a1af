"""Pauses: who fails is left alone for longer each time, by a clock that the test moves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from broker.model.names import DatasetId
from broker.pauses import Pauses

ONE, OTHER = DatasetId("shop/catalog/offers"), DatasetId("shop/catalog/stock")


class Clock:
    now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("broker.pauses.time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def test_each_failure_doubles_the_pause_up_to_the_longest(clock: Clock) -> None:
    pauses = Pauses(0.25, 1.5)
    assert [pauses.failed(ONE) for _ in range(5)] == [0.25, 0.5, 1.0, 1.5, 1.5]
    assert pauses.failed(OTHER) == 0.25, "each has its own"


def test_a_pause_ends_by_the_clock_and_the_failure_is_remembered(clock: Clock) -> None:
    pauses = Pauses(1.0, 60.0)
    pauses.failed(ONE)
    clock.now = 0.9
    assert pauses.resting() == pauses.failing() == {ONE}
    clock.now = 1.0
    assert (pauses.resting(), pauses.failing()) == (set(), {ONE})
    assert pauses.failed(ONE) == 2.0


def test_what_went_well_starts_from_the_first_pause_again(clock: Clock) -> None:
    pauses = Pauses(1.0, 60.0)
    pauses.failed(ONE)
    pauses.failed(ONE)
    pauses.done(ONE)
    assert (pauses.resting(), pauses.failing()) == (set(), set())
    assert pauses.failed(ONE) == 1.0


def test_a_rest_is_no_failure(clock: Clock) -> None:
    pauses = Pauses(1.0, 60.0)
    pauses.rest(ONE, 5.0)
    assert (pauses.resting(), pauses.failing()) == ({ONE}, set())
    clock.now = 5.0
    assert pauses.resting() == set()
    assert pauses.failed(ONE) == 1.0

"""A micro-batcher over the broker `b` of a test's own module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import broker
from workers.batching import Batching


@pytest.fixture
def batching(b: broker.Broker) -> Iterator[Batching]:
    role = Batching(b.parts, "one")
    yield role
    role.close()

"""State = fold(log), on a real Redis: after any history of records of all kinds the projection is the fold, field by field.

The records go through the publish script itself, those a rebuild begins with through the install script. One field is not
the fold's where a producer's clock is ahead: Redis notes the present instead, or the dataset would count as fresh for as long.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.backend.client import RedisClient
from broker.backend.index import Index, Move
from broker.model.commit import Barrier, digest, parse_record
from broker.model.names import DatasetId
from broker.rules.checkpoint import Checkpoint
from broker.rules.fold import State, fold
from broker.rules.patch import patch_of
from tests.campaign import examples
from tests.rules.logs import DATASET, logs
from tests.servers import RedisServer

ID = DatasetId(DATASET)


@pytest.fixture(scope="module")
def index(redis_server: RedisServer) -> Iterator[Index]:
    redis_server.flush()
    with RedisClient.open(redis_server.url) as client:
        yield Index(client, shards=1)


def forget(index: Index) -> None:
    slot = index.slot(ID)
    index.redis.run("DEL", slot.meta, *slot.tables(ID))


def publish(index: Index, data: bytes) -> str:
    record = parse_record(data, "log")
    barrier = record.body.run_id if isinstance(record.body, Barrier) else ""
    return index.publish(Move(ID, record.seq, record.previous, patch_of(record, digest(data)), barrier)).kind


def agree(index: Index, state: State) -> None:
    tables, wanted = index.load(ID).tables, {name: dict(table) for name, table in state.tables.items()}
    told, noted = wanted["head"].pop("confirmed_at", "0"), tables["head"].pop("confirmed_at", "0")
    assert tables == wanted
    assert noted == told or float(noted) <= time.time() < float(told)


@settings(max_examples=examples(40), database=None)
@given(logs())
def test_after_every_record_the_projection_in_redis_is_the_fold_of_the_log(index: Index, log: list[bytes]) -> None:
    forget(index)
    state = State(DATASET)
    for data in log:
        assert publish(index, data) == "published"
        state = fold(state, data)
        agree(index, state)


@settings(max_examples=examples(40), database=None)
@given(logs(), st.data())
def test_a_projection_rebuilt_from_any_checkpoint_and_the_records_behind_it_is_the_fold_too(
    index: Index, log: list[bytes], data: st.DataObject
) -> None:
    """Records that come again, as they do from two who walk the log, change nothing."""
    forget(index)
    state, at = State(DATASET), data.draw(st.integers(0, len(log)), "checkpoint")
    for record in log[:at]:
        state = fold(state, record)
    if at:
        index.install(ID, Checkpoint.parse(Checkpoint.of(state), "checkpoint").state(), adopt="")
    for number, record in enumerate(log[at:], at):
        state = fold(state, record)
        for again in (number, data.draw(st.integers(0, number), "again")):
            assert publish(index, log[again]) == "published"
    agree(index, state)

"""Which slot a key belongs to, and which block comes next: pure, and part of the data's format."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any
from zlib import crc32

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.columnar.blocks import decoded, encoded, key_texts, split
from broker.columnar.crc32 import FEW_ROWS, LONG_BYTES, crc32s
from broker.errors import Corrupt, Gap, Invalid, InvalidName, from_dict
from broker.model.commit import Mark
from broker.rules.blocks import (
    checked_block,
    checked_level,
    checked_producer,
    missing_slots,
    next_block,
    slot_of_key,
    unnamed_producer,
)

ROWS = pa.schema([("sku", pa.string()), ("store", pa.int64()), ("price", pa.float64())])


def batch_of(keys: list[tuple[str, int]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [{"sku": sku, "store": store, "price": float(at)} for at, (sku, store) in enumerate(keys)], schema=ROWS
    )


def test_the_slot_of_a_key_never_changes() -> None:
    assert [slot_of_key(key, 4) for key in ("a1", "a2", "ä\x1f7", "")] == [3, 1, 1, 0]
    assert slot_of_key("a1\x1f7", 64) == slot_of_key(b"a1\x1f7", 64) == 12


@given(st.lists(st.tuples(st.text(max_size=6), st.integers(-(2**63), 2**63 - 1)), max_size=60), st.integers(1, 9))
def test_a_split_keeps_every_row_once_in_order_and_all_rows_of_a_key_together(keys: list[tuple[str, int]], slots: int) -> None:
    parts = dict(split(batch_of(keys), ["sku", "store"], slots))

    for slot, part in parts.items():
        assert part.num_rows
        assert part.column("price").to_pylist() == sorted(part.column("price").to_pylist()), "the order of rows is kept"
        for sku, store in zip(part.column("sku").to_pylist(), part.column("store").to_pylist(), strict=True):
            assert slot_of_key(f"{sku}\x1f{store}", slots) == slot, "the documented rule is the one in use"
    assert sorted(row for part in parts.values() for row in part.column("price").to_pylist()) == list(
        map(float, range(len(keys)))
    )


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=9), st.integers(0, 5), st.booleans())
def test_a_hash_of_many_texts_is_that_of_each(texts: list[bytes], skipped: int, with_a_long_one: bool) -> None:
    many = (texts * (FEW_ROWS // len(texts) + 2))[: FEW_ROWS + 9] + [b"x" * (LONG_BYTES + 1)] * with_a_long_one
    column = pa.array(many, pa.binary()).slice(skipped)

    assert crc32s(column).to_pylist() == list(map(crc32, many[skipped:]))


@pytest.mark.parametrize(
    ("value", "narrow", "wide"),
    [
        (7, pa.int8(), pa.int64()),
        (0.1, pa.float32(), pa.float64()),
        (Decimal("1.50"), pa.decimal128(5, 2), pa.decimal128(20, 9)),
        (Decimal("0.0000000001"), pa.decimal128(20, 10), pa.decimal128(38, 20)),
        (date(2026, 2, 3), pa.date32(), pa.timestamp("us")),
        (datetime(2026, 2, 3, 4, 5, 6), pa.timestamp("s"), pa.timestamp("us")),
    ],
)
def test_a_key_stays_in_its_slot_when_its_type_grows(value: Any, narrow: pa.DataType, wide: pa.DataType) -> None:
    small = pa.array([value], narrow)
    grown = small.cast(wide)

    texts = [key_texts(pa.record_batch([array], ["k"]), ["k"]).to_pylist() for array in (small, grown)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "keys",
    [
        pa.array([b"\xff\x00", b"a"]), pa.array([True, False]), pa.array([0.0, -0.0]), pa.array([[1, 2], [1]]),
        pa.array([{"a": 1}, {"a": 2}]), pa.array([1, 2], pa.timestamp("ns")), pa.array([1, 2], pa.time64("us")),
        pa.array([1, 2], pa.timestamp("us", tz="UTC")), pa.array([2**63], pa.uint64()),
    ],
)  # fmt: skip
def test_every_type_has_a_text(keys: pa.Array) -> None:
    texts = key_texts(pa.record_batch([keys], ["k"]), ["k"]).to_pylist()
    assert len(set(texts)) == (1 if keys.type == pa.float64() else len(keys)), "0.0 and -0.0 are one key"


@given(st.lists(st.tuples(st.text(max_size=6), st.integers(0, 9)), min_size=1, max_size=30))
def test_what_is_encoded_is_decoded(keys: list[tuple[str, int]]) -> None:
    rows = batch_of(keys)
    assert decoded(encoded(rows)).equals(pa.Table.from_batches([rows]))


@pytest.mark.parametrize("damage", [b"", b"no arrow", encoded(batch_of([("a", 1)]))[:40]])
def test_a_damaged_payload_is_corrupt(damage: bytes) -> None:
    with pytest.raises(Corrupt, match="cannot be read"):
        decoded(damage, "t/d/n")


def test_the_next_block_is_the_one_that_some_slot_lacks() -> None:
    assert next_block([41, 42, 42]) == 42
    assert next_block([]) == next_block([0, 0]) == 1


def test_a_block_is_sealed_when_every_slot_says_so() -> None:
    marks = {0: {"pim": Mark(7, 1.0)}, 1: {"pim": Mark(6, 1.0)}, 2: {}}
    assert missing_slots(marks, "pim", 7) == [1, 2]
    assert missing_slots(marks, "pim", 6) == [2]


@pytest.mark.parametrize("name", ["", "~0af", "a b", "-a", "a" * 64, "ä"])
def test_a_producer_has_a_plain_name(name: str) -> None:
    with pytest.raises(InvalidName, match="not a producer's name"):
        checked_producer(name)


def test_names_that_clients_give_themselves_cannot_be_taken() -> None:
    assert len({unnamed_producer() for _ in range(100)}) == 100
    with pytest.raises(InvalidName):
        checked_producer(unnamed_producer())
    assert checked_producer("pim-1:eu.x_2") == "pim-1:eu.x_2"


def test_blocks_count_from_one_and_levels_are_three() -> None:
    for number in (0, -1, "3", 2.0):
        with pytest.raises(Invalid, match="not a block number"):
            checked_block(number)  # type: ignore[arg-type]
    assert checked_block(1) == 1
    assert [checked_level(level) for level in ("accepted", "fsynced", "sealed")] == ["accepted", "fsynced", "sealed"]
    with pytest.raises(Invalid, match="accepted, fsynced, sealed"):
        checked_level("sure")


def test_a_gap_names_the_number_expected_also_over_a_process_boundary() -> None:
    gap = Gap.between("pim-1", 45, 43)
    again = from_dict(gap.to_dict())
    assert isinstance(again, Gap)
    assert (gap.expected, again.expected, gap.of) == (43, 43, "pim-1")

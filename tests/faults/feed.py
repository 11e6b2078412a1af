"""What producers append, block by block: the same for a process that goes on behind a killed one, and for the checker.

Block n of a producer holds rows `<producer>-<n>-<i>`, once in all time; the row `<producer>`, which says n; and a row that both
producers write. Every seventh block deletes the block before it. Where the dataset has an order, some rows come late.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import pyarrow as pa

Row = dict[str, Any]
SCHEMA: Final = pa.schema(
    [("sku", pa.string()), ("by", pa.string()), ("n", pa.int64()), ("part", pa.int64()), ("at", pa.int64())]
)
OWN_ROWS: Final = 6
SHARED: Final = "shared-"
SHARED_KEYS: Final = 3
LATE: Final = 8
"""So much older are the rows that come late: older than what the same producer sent four blocks before."""


@dataclass(frozen=True)
class Block:
    """Changes of one kind, as the change log takes them."""

    kind: Literal["u", "d"]
    rows: list[Row]


def own_keys(producer: str, number: int) -> list[str]:
    """Keys that no other block writes; a block of deletes may remove them."""
    return [] if _deletes(number) else [f"{producer}-{number}-{index}" for index in range(number % OWN_ROWS)]


def deleted_keys(producer: str, number: int) -> list[str]:
    """What block `number` deletes."""
    return own_keys(producer, number - 1) if _deletes(number) else []


def block_of(producer: str, number: int, ordered: bool) -> Block:
    """Block `number`, from 1 on. Orders are unique: two producers never meet in one."""
    at = number * 2 + producer.endswith("b")
    if keys := deleted_keys(producer, number):
        return Block("d", [{"sku": sku} | ({"at": at} if ordered else {}) for sku in keys])
    shared, late = f"{SHARED}{number % SHARED_KEYS}", LATE if ordered and number % 5 == 4 else 0
    orders = {sku: at for sku in (*own_keys(producer, number), producer)} | {shared: at - late}
    return Block("u", [_row(sku, producer, number, order) for sku, order in orders.items()])


def _deletes(number: int) -> bool:
    return number % 7 == 6


def _row(sku: str, producer: str, number: int, at: int) -> Row:
    return {"sku": sku, "by": producer, "n": number, "part": number % SHARED_KEYS, "at": at}

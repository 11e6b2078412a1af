"""Blocks of the change log: which slot a key belongs to, what a producer is called, which block may come next.

A block is a numbered batch of changes of one kind. Every number of a producer goes to every log slot of the dataset, to one
without rows as a mark only: so each slot tells for itself whether a block was seen before, or one is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal
from uuid import uuid4
from zlib import crc32

from broker.errors import Invalid, InvalidName
from broker.model.commit import Mark

Kind = Literal["u", "d"]
"""Upserts (whole rows) or deletes (keys, and order where the dataset has order columns)."""
Level = Literal["accepted", "fsynced", "sealed"]
LEVELS: Final[tuple[Level, ...]] = ("accepted", "fsynced", "sealed")

SEPARATOR: Final = "\x1f"
UNNAMED: Final = "~"
"""First character of the names clients give themselves: nobody comes back under such a name after its process."""
ANYBODY: Final = "-"
"""Author of a block whose number its producer chose: the same number is the same block, whoever sends it."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,62}")


def slot_of_key(key: str | bytes, slots: int) -> int:
    """CRC-32 of the key's canonical text (UTF-8), modulo the number of log slots. Part of the data's format: never changes.

    The text is that of the key's columns in the dataset's order, joined by U+001F, each in a form that lossless widening of
    its type does not change: columnar/blocks.py.
    """
    return crc32(key.encode() if isinstance(key, str) else key) % slots


def unnamed_producer() -> str:
    """A name nobody else has."""
    return UNNAMED + uuid4().hex[:16]


def checked_producer(name: str) -> str:
    """The name, if it is one. Raises InvalidName."""
    if not _NAME.fullmatch(name):
        raise InvalidName(
            "not a producer's name", of=name[:80], why="1 to 63 of A-Z a-z 0-9 . _ : -, beginning with a letter or digit",
            hint="Name what the changes come from: pim-1",
        )  # fmt: skip
    return name


def checked_block(number: int) -> int:
    """The block's number, if it can be one. Raises Invalid."""
    if not isinstance(number, int) or number < 1:
        raise Invalid("not a block number", of=repr(number)[:80], why="blocks count from 1")
    return number


def checked_level(level: str) -> Level:
    """Raises Invalid."""
    for known in LEVELS:
        if level == known:
            return known
    raise Invalid("not an acknowledgement level", of=level, why=f"there are {', '.join(LEVELS)}")


def next_block(marks: Iterable[int]) -> int:
    """The number to go on with, given the producer's mark in each slot: where a slot lacks a block, that one is sent again."""
    return min(marks, default=0) + 1


def missing_slots(marks: Mapping[int, Mapping[str, Mark]], producer: str, block: int) -> list[int]:
    """Slots whose sealed marks of the producer have not reached the block: it is not sealed as a whole."""
    return [slot for slot, known in marks.items() if producer not in known or known[producer].block < block]

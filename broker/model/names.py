"""Names: dataset ids, channel and target names, object keys. Nothing else builds a store key or parses an id."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated, Any, Final
from uuid import uuid4

from pydantic import AfterValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from broker.errors import InvalidName

PART: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
PATTERN_PART: Final = re.compile(r"[a-z0-9*][a-z0-9._*-]{0,62}\Z")
MAX_COLUMN_BYTES: Final = 255
CHANNELS: Final = "=channels"
"""In place of a dataset's name: the log of a tenant's domain that says what its channels name."""
LIVE: Final = "live"
"""The channel that follows every version by itself."""


@lru_cache(maxsize=100_000)
def _is_dataset_id(text: str) -> bool:
    """Looked at once: a busy worker names the same ones a thousand times a second."""
    parts = text.split("/")
    return len(parts) == 3 and all(PART.match(part) and ".." not in part for part in parts)


class DatasetId(str):
    """`tenant/domain/name`, each part `[a-z0-9][a-z0-9._-]{0,62}`. Raises InvalidName.

    A part never contains `..`, so an id is safe as a path; it never begins with `=`, which marks the broker's own folders.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> DatasetId:
        if not isinstance(text, str) or not _is_dataset_id(text):
            raise InvalidName(
                "not a dataset id", of=repr(text)[:100],
                why="it must be tenant/domain/name, each part of a-z 0-9 . _ -, at most 63 characters, without '..'",
                hint="Example: goodstuff_01/catalog/offers",
            )  # fmt: skip
        return super().__new__(cls, text)

    @property
    def tenant(self) -> str:
        return self.split("/", 1)[0]

    @property
    def domain(self) -> str:
        return self.split("/", 2)[1]

    @property
    def name(self) -> str:
        return self.rsplit("/", 1)[1]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[Any], handler: GetCoreSchemaHandler) -> CoreSchema:
        del source, handler
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())


class ChannelsId(DatasetId):
    """`tenant/domain/=channels`: whose log holds the announcements of all datasets of a tenant's domain. Raises InvalidName.

    An id as a dataset's where logs, their index and their slots are meant; never a dataset, and no DatasetId parses it.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> ChannelsId:
        parts = text.split("/") if isinstance(text, str) else []
        if len(parts) == 2 or (len(parts) == 3 and parts[2] == CHANNELS):
            DatasetId(f"{parts[0]}/{parts[1]}/x")
            return str.__new__(cls, f"{parts[0]}/{parts[1]}/{CHANNELS}")
        raise InvalidName(
            "not a tenant's domain", of=repr(text)[:100], why="it must be tenant/domain", hint="Example: goodstuff_01/catalog"
        )

    @classmethod
    def of(cls, dataset: DatasetId) -> ChannelsId:
        """Where the announcements of a dataset are."""
        return cls(f"{dataset.tenant}/{dataset.domain}")

    def dataset(self, name: str) -> DatasetId:
        """A dataset of this tenant's domain. Raises InvalidName."""
        return DatasetId(f"{self.tenant}/{self.domain}/{name}")


def log_id(text: str) -> DatasetId:
    """Whose log it is: a dataset's id, or a ChannelsId. Raises InvalidName."""
    return ChannelsId(text) if text.endswith(f"/{CHANNELS}") else DatasetId(text)


def _checked(text: str) -> str:
    if not PART.match(text) or ".." in text:
        raise InvalidName(
            "not a name", of=repr(text)[:100], why="it must be of a-z 0-9 . _ -, at most 63 characters, without '..'"
        )
    return text


Name = Annotated[str, AfterValidator(_checked)]
"""A target, channel, replica, producer or cursor name."""


def check_name(text: str, what: str) -> str:
    """The name itself. Raises InvalidName that says which kind of name it was."""
    try:
        return _checked(text)
    except (InvalidName, TypeError) as error:
        raise InvalidName(f"not a {what} name", of=repr(text)[:100], why=getattr(error, "why", "not a string")) from None


def check_pattern(text: str) -> str:
    """A dataset pattern: an id whose parts may hold `*`. Raises InvalidName."""
    parts = text.split("/")
    if len(parts) != 3 or not all(PATTERN_PART.match(part) and ".." not in part for part in parts):
        raise InvalidName("not a dataset pattern", of=repr(text)[:100], hint="Example: */catalog/offers")
    return text


def check_column(text: str) -> str:
    """A column name: 1 to 255 bytes of UTF-8 without control characters. Raises InvalidName."""
    if not text or len(text.encode("utf-8", "replace")) > MAX_COLUMN_BYTES or any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise InvalidName("not a column name", of=repr(text)[:100], why="1 to 255 bytes without control characters")
    return text


def log_key(dataset: str, seq: int) -> str:
    return f"{dataset}/log/{seq:020d}.json"


def checkpoint_key(dataset: str, seq: int) -> str:
    return f"{dataset}/checkpoint/{seq:020d}.json"


def notify_key(dataset: str, channel: str) -> str:
    return f"{dataset}/notify/{channel}.json"


def data_key(dataset: str, extension: str = "parquet") -> str:
    """A fresh, unguessable key for a canonical file."""
    return f"{dataset}/data/{uuid4().hex}.{extension}"


def derived_key(dataset: str, expiry_hour: int, fingerprint: str, extension: str) -> str:
    """A fresh key under the hour (since the epoch) at which the sweep may drop it, by that name alone."""
    return f"{dataset}/derived/{expiry_hour:010d}/{fingerprint}/{uuid4().hex}.{extension}"


def seq_of(key: str) -> int:
    """The number in a log or checkpoint key."""
    return int(key.rsplit("/", 1)[1].split(".", 1)[0])

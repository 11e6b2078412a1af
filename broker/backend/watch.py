"""Reading streams, and waiting on them, without taking from them."""

from __future__ import annotations

from collections.abc import Mapping

from broker.backend.client import BLOCK_MAX_MS, Entry, RedisClient, parse_entries, to_text
from broker.backend.driver_errors import mapped
from broker.backend.lanes import Argument


class Watch:
    """Looks at a stream's new entries; what others acknowledge or delete does not matter, it only wakes."""

    def __init__(self, redis: RedisClient, stream: bytes) -> None:
        self._redis, self._stream = redis, stream

    def position(self) -> bytes:
        """The newest entry's id; what comes behind it wakes `wait`."""
        newest = self._redis.run("XREVRANGE", self._stream, "+", "-", "COUNT", 1, writes=False)
        return newest[0][0] if newest else b"0-0"

    def wait(self, position: bytes, milliseconds: int) -> None:
        """Until something comes behind `position`, at most `milliseconds`."""
        with mapped(self._stream.decode(), writes=False):
            self._redis.blocking.xread({self._stream: position}, count=1, block=milliseconds)


def read_streams(redis: RedisClient, positions: Mapping[bytes, bytes], count: int, block_ms: int) -> list[Entry]:
    """Entries behind the positions given (stream -> id), at most `count` of each stream; waits up to `block_ms` for the first.

    On a cluster all streams must be of one slot. Raises Unavailable.
    """
    block: list[Argument] = ["BLOCK", min(block_ms, BLOCK_MAX_MS)] if block_ms > 0 else []
    with mapped(", ".join(to_text(stream) for stream in positions), writes=False):
        pool = redis.blocking_pool(next(iter(positions)))
        connection = pool.get_connection()
        try:
            connection.send_command("XREAD", "COUNT", count, *block, "STREAMS", *positions, *positions.values())
            return [entry for entry, _ in parse_entries(connection.read_response())]
        finally:
            pool.release(connection)

"""Waiting on a stream without taking from it."""

from __future__ import annotations

from broker.backend.client import RedisClient
from broker.backend.driver_errors import mapped


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

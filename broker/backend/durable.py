"""Whether Redis has a write on its disk, where it can prove that.

Two proofs count: `appendfsync always` (the reply itself comes behind the fsync), and WAITAOF (Redis 7.2, Valkey 8).
"""

from __future__ import annotations

from typing import Any, Final, Literal

from broker.backend.client import RedisClient
from broker.backend.driver_errors import mapped
from broker.backend.keys import Slot
from broker.errors import BrokerError, NotDurable, TimedOut, Transient

Proof = Literal["always", "waitaof"]
WAIT_MAX_MS: Final = 2_000
"""Of one wait, well below the socket's time-out."""


class Durability:
    """Safe for threads."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    def proof(self) -> Proof:
        """How the server proves it. Raises NotDurable; asked anew each time, for an operator may change it."""
        configs = [self._config(server) for server in self._redis.servers()]
        if all(config.get("appendonly") == "yes" for config in configs):
            # With no-appendfsync-on-rewrite even `always` means: not while the file is rewritten.
            if all(c.get("appendfsync") == "always" and c.get("no-appendfsync-on-rewrite") == "no" for c in configs):
                return "always"
            if not self._redis.cluster and self._has_waitaof():
                return "waitaof"
            raise _refusal("it writes its file to disk later than it answers, and has no WAITAOF")
        raise _refusal("appendonly is off")

    def wait(self, slot: Slot, seconds: float) -> None:
        """Until all that was written so far is on disk, by WAITAOF. Raises TimedOut, NotDurable.

        WAITAOF speaks of its own connection's last write, so one is made: the file is one line of writes, and all earlier
        ones are in it before.
        """
        wait = ("WAITAOF", 1, 0, max(1, min(WAIT_MAX_MS, int(seconds * 1000))))
        _, reply = self._redis.pipeline([("HINCRBY", slot.meta, "fsyncs", 1), wait], slot.name)
        if isinstance(reply, Exception):
            raise _refusal(str(reply))
        if int(reply[0]) < 1:
            raise TimedOut("not on disk yet", of=slot.name, why="WAITAOF did not answer in time", hint="Append the same again")

    def _has_waitaof(self) -> bool:
        try:
            self._redis.run("WAITAOF", 0, 0, 1, writes=False)
        except Transient:
            raise
        except BrokerError:
            return False
        return True

    @staticmethod
    def _config(server: Any) -> dict[str, str]:
        try:
            with mapped("CONFIG GET append*", writes=False):
                found = dict[str, str]()
                for pattern in ("appendonly", "appendfsync", "no-appendfsync-on-rewrite"):
                    found |= _pairs(server.execute_command("CONFIG", "GET", pattern))
                return found
        except Transient:
            raise
        except BrokerError as error:
            raise _refusal(f"it does not show its configuration: {error.why}") from None


def _pairs(reply: Any) -> dict[str, str]:
    flat = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    return {_text(name): _text(value) for name, value in flat.items()}


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _refusal(why: str) -> NotDurable:
    return NotDurable(
        "this Redis cannot prove that a write is on disk", of="level=fsynced", why=why,
        hint="Use appendonly yes with appendfsync always, or Redis 7.2; or level=sealed",
    )  # fmt: skip

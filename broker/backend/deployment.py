"""What the processes of one deployment agree on: its number of shards, and what each store was found to promise."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from broker.backend.client import RedisClient
from broker.backend.keys import DEPLOYMENT
from broker.errors import BrokerError, InvalidSettings
from broker.stores.probe import Promise

PROMISE_SECONDS: Final = 86_400
"""So long a promise is believed without another probe, which is some 20 requests and writes."""


def agree_on_shards(redis: RedisClient, shards: int) -> None:
    """Whoever comes first decides, until Redis is wiped. Raises InvalidSettings for another number: one dataset would then
    have an index in two slots, and two writers."""
    known = redis.run("HGET", DEPLOYMENT, "shards", writes=False)
    if known is None:  # only then a write: a full Redis must not keep processes from starting
        redis.run("HSETNX", DEPLOYMENT, "shards", shards)
        known = redis.run("HGET", DEPLOYMENT, "shards", writes=False)
    if int(known) != shards:
        why = f"this process has {shards}, the deployment {int(known)}"
        raise InvalidSettings("another number of shards", of="shards", why=why, hint=f"Set BROKER_SHARDS={int(known)}")


def known_promise(redis: RedisClient, url: str, probe: Callable[[], Promise]) -> Promise:
    """The promise of the store at `url`: as remembered, else as `probe` finds it. Raises what `probe` does.

    An old one is tried anew; it still counts where that fails, so that a key which may only read needs a writer once.
    """
    field = "promise:" + hashlib.sha256(url.encode()).hexdigest()[:16]
    found = _parsed(redis.run("HGET", DEPLOYMENT, field, writes=False))
    if found is not None and found[1] > time.time() - PROMISE_SECONDS:
        return found[0]
    try:
        promise = probe()
    except BrokerError:
        if found is None:
            raise
        return found[0]
    with suppress(BrokerError):  # a full or read-only Redis costs the next process a probe
        redis.run("HSET", DEPLOYMENT, field, json.dumps({"at": time.time(), "promise": asdict(promise)}))
    return promise


def _parsed(text: bytes | None) -> tuple[Promise, float] | None:
    """None also for what another release has written."""
    try:
        value: dict[str, Any] = json.loads(text or "{}")
        return Promise(**value["promise"]), float(value["at"])
    except (ValueError, TypeError, KeyError):
        return None

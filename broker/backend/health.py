"""The check at start: what the Redis behind a client cannot promise, said before anybody relies on it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import redis
from redis.exceptions import ResponseError

from broker.backend.client import RedisClient, to_text
from broker.backend.driver_errors import mapped
from broker.model.finding import Finding


def check(client: RedisClient) -> list[Finding]:
    """What this Redis cannot promise; empty when all is well. Reads only. Raises Unavailable and the like."""
    with mapped(client.url, writes=False):
        return list(dict.fromkeys(line for server in client.servers() for line in findings(server.info(), _config(server))))


def _config(server: redis.Redis) -> dict[str, str] | None:
    """CONFIG GET *, or None where it is forbidden or renamed away, as managed services do."""
    try:
        reply = server.config_get("*")
    except ResponseError:
        return None
    return {to_text(name): to_text(value) for name, value in cast(dict[Any, Any], reply).items()}


def findings(info: Mapping[str, Any], config: Mapping[str, str] | None) -> list[Finding]:
    """The decision behind `check`: INFO and CONFIG in, sentences out."""
    found, notes = list[Finding](), list[str]()
    version = tuple(int(part) for part in re.findall(r"\d+", str(info.get("redis_version", "")))[:2])
    if version < (6, 2):
        found.append(Finding("broken", f"unsupported: Redis {info.get('redis_version', '?')} is older than 6.2"))
    policy = info.get("maxmemory_policy") or (config or {}).get("maxmemory-policy", "noeviction")
    if policy != "noeviction":
        notes.append(f"accepted requests and the change log may vanish: maxmemory-policy is {policy}, not noeviction")
    if not info.get("aof_enabled"):
        notes.append("accepted requests may die with Redis: appendonly is no")
    if not info.get("maxmemory"):
        notes.append("nothing refuses writers before the machine is full: maxmemory is 0")
    if config is None:
        notes.append("appendfsync could not be read: CONFIG is forbidden here, so ask your provider")
    elif config.get("appendfsync") == "no":
        notes.append("accepted requests of the last 30 seconds may die with the machine: appendfsync is no")
    return found + [Finding("note", text) for text in notes]


def describe(info: Mapping[str, Any]) -> str:
    """Product, version and mode in words, such as: valkey 8.0.1, cluster."""
    product = "valkey" if info.get("valkey_version") or info.get("server_name") == "valkey" else "redis"
    version = info.get("valkey_version") or info.get("redis_version", "?")
    return f"{product} {version}, {'cluster' if info.get('cluster_enabled') else info.get('redis_mode', 'standalone')}"

"""Every event that a test leaves in Redis fits its JSON Schema: checked behind each test that has the shared server."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import redis
from jsonschema import Draft202012Validator

from broker.model.event import schema

STREAMS = ("{*}:events", "{*}:responses:*")


@cache
def validator(type: str) -> Draft202012Validator:
    found = schema(type)
    Draft202012Validator.check_schema(found)
    return Draft202012Validator(found)


def check_event(event: dict[str, Any]) -> None:
    """Raises ValidationError that names the field."""
    validator(event["type"]).validate(event)


def check_events(url: str) -> int:
    """All events of a server. -> how many"""
    client: Any = redis.Redis.from_url(url)
    checked = 0
    try:
        for key in [key for pattern in STREAMS for key in client.scan_iter(pattern, 1_000)]:
            for _, fields in client.xrange(key):
                check_event(json.loads(fields[b"e"]))
                checked += 1
    finally:
        client.close()
    return checked

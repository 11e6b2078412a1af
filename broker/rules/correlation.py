"""The one id that runs from a request or a block to a receipt: what made a version, by which every log line names it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from broker.errors import NotFound
from broker.rules.fold import State

MOST: Final = 100
"""Names a line lists at most."""


def correlation_of(state: State, version: int) -> str:
    """The production that made a version, else its record's id, which is its event's; '' for a version not known.

    A request finds it as its flight (or as the production of the version it was answered with), a reader of events as
    `correlationid` or `id`, and `broker versions show` as `production` or `seq`.
    """
    try:
        info = state.info(version)
    except NotFound:
        return ""
    return info.production or f"{state.dataset}/{info.seq}"


def line(state: State, version: int, **more: Any) -> dict[str, Any]:
    """The fields of a log line about a version."""
    return {"correlation": correlation_of(state, version), "dataset": state.dataset, "version": version, **more}


def first(names: Iterable[str]) -> list[str]:
    """At most MOST of them, sorted."""
    return sorted(names)[:MOST]

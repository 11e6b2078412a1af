"""pytest plugin: retention asks nobody who reads."""

from __future__ import annotations

from typing import Any

from broker.rules import retention


def keep_no_roads(*_: Any) -> None:
    """Nobody reads, it thinks."""


retention._Roads.keep = keep_no_roads  # type: ignore[assignment]

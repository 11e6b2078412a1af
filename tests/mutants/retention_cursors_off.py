"""pytest plugin: retention asks nobody who reads."""

from __future__ import annotations

from typing import Any

from broker.rules import retention


def keep_no_roads(*_: Any) -> bool:
    return False


retention._keep_roads = keep_no_roads  # type: ignore[assignment]

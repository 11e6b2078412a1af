"""pytest plugin: the janitor visits nobody."""

from __future__ import annotations

from typing import Any

from broker.janitor import Janitor


def visit_nobody(self: Janitor, *_: Any) -> None:
    del self


Janitor._visit = visit_nobody  # type: ignore[method-assign, assignment]

"""Named steps of a piece of work. Whoever does it tells each one; tests crash there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

OnStep: TypeAlias = Callable[[str], None]


def nothing(step: str) -> None:
    """The default `on_step`."""

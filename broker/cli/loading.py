"""How the command line loads its modules: most of what a short command costs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """For imports. Python's collector rests: what modules make stays, and to look through it again and again is a seventh."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

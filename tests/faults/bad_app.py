"""Producers that do to their process what producers do: the dataset's name says what."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
import threading
from typing import Any

from broker import Producers, ProductionRequest, Since, Snapshot
from tests.faults.steps import HOME

app = Producers()


def hang() -> None:
    (HOME / "hanging").write_text(str(os.getpid()))
    threading.Event().wait()


def leave_a_child() -> None:
    """What it started holds everything open that it held itself."""
    if (pid := os.fork()) == 0:
        signal.pause()
    (HOME / "left").write_text(str(pid))
    os.kill(os.getpid(), signal.SIGKILL)


def swell() -> None:
    held: list[bytes] = []
    while len(held) < 100:
        held.append(b"x" * (16 << 20))
    hang()


def fall_in_a_stream() -> Any:
    yield Snapshot([{"sku": "a", "price": 1}])
    os._exit(5)


def raise_oddly() -> None:
    raise LookupError("the source is in a bad mood")


DEEDS: dict[str, Any] = {
    "good": lambda: Snapshot([{"sku": "a", "price": 1}], position={"parks under": tempfile.gettempdir()}),
    "raises": raise_oddly,
    "hangs": hang,
    "wrong": lambda: [{"sku": "a"}],
    "nothing": lambda: None,
    "exits": lambda: sys.exit(3),
    "leaves": lambda: os._exit(4),
    "streams": fall_in_a_stream,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "forks": leave_a_child,
    "segfaults": lambda: ctypes.string_at(0),
    "swells": swell,
    "nullkey": lambda: Snapshot([{"sku": None, "price": 1}]),
    "twice": lambda: Snapshot([{"sku": "a", "price": 1}, {"sku": "a", "price": 2}]),
    "keyless": lambda: Snapshot([{"price": 1}]),
}


@app.producer("*/catalog/*")
def deed(request: ProductionRequest, since: Since | None) -> Any:
    del since
    return DEEDS[request.dataset.rpartition("/")[2]]()

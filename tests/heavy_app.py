"""An application of cut productions whose parts misbehave as a test asks. Each tenant has its own folder of orders and traces.

<folder>/<tenant>/orders.json   {"rows": "snapshot" | ..., "faults": {part: [fault of its 1st run, of its 2nd, ...]}}
<folder>/<tenant>/<part>.runs   one byte per run of the part
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from broker.outcomes import Delta, Outcome, ProductionRequest, Since, Snapshot, Unchanged
from broker.producers import Producers, Proposed

FOLDER = "HEAVY_TEST_FOLDER"
PARTS = tuple(f"m{number}" for number in range(8))
ROWS = 5
app = Producers()


def folder_of(dataset: str) -> Path:
    return Path(os.environ[FOLDER]) / dataset.partition("/")[0]


def orders_of(dataset: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder_of(dataset) / "orders.json").read_text())
    return found


def merchants(request: ProductionRequest) -> Iterable[str]:
    return tuple(orders_of(request.dataset).get("parts", PARTS))


def rows_of(part: object, price: float = 1.0) -> pa.Table:
    return pa.table({"sku": [f"{part}-{number}" for number in range(ROWS)], "price": [price] * ROWS})


@app.validator("*/pricing/prices")
def judged(proposed: Proposed) -> str | None:
    """Refuses the whole version with the text of the order `veto`."""
    veto: str | None = orders_of(proposed.dataset).get("veto")
    return veto and f"{veto} in {proposed.changes.num_rows} rows"


@app.producer("*/pricing/prices", partition_by="merchant", values=merchants)
def prices(request: ProductionRequest, since: Since | None, part: str) -> Outcome:
    orders = orders_of(request.dataset)
    misbehave(request.dataset, part, orders.get("faults", {}).get(part, []))
    match orders.get("rows", "snapshot"):
        case "shared-key":
            return Snapshot(pa.table({"sku": ["same", f"{part}-0"], "price": [1.0, 2.0]}))
        case "null-key":
            return Snapshot(pa.table({"sku": [None if part == "m1" else f"{part}-0"], "price": [1.0]}))
        case "mixed" if part == "m0":
            return Snapshot(rows_of(part))
        case "unchanged":
            return Unchanged()
        case "one-changed" if part != "m1":
            return Unchanged()
        case "snapshot" | "lacking":
            lacking = orders.get("rows") == "lacking"
            return Snapshot(rows_of(part).slice(int(lacking)), position={"of": part, "at": since.version if since else 0})
    told = since.position if since else None
    return Delta(rows_of(part, 2.0).slice(0, 1), pa.table({"sku": [f"{part}-4"]}), position={"of": part, "told": told})


@app.producer("*/pricing/ordered", partition_by="merchant", values=merchants)
def ordered(request: ProductionRequest, since: Since | None, part: str) -> Outcome:
    rows = rows_of(part).slice(int(orders_of(request.dataset).get("rows") == "lacking"))
    return Snapshot(rows.append_column("at", pa.array([7] * rows.num_rows)))


@app.producer("*/pricing/counts", partitions=3)
def counts(request: ProductionRequest, since: Since | None, part: int) -> Outcome:
    return Snapshot(pa.table({"sku": [f"{part}"], "kind": [type(part).__name__]}))


def misbehave(dataset: str, part: str, faults: list[str]) -> None:
    """Leave a trace of this run, and do what was ordered for it."""
    folder = folder_of(dataset)
    trace = os.open(folder / f"{part}.runs", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(trace, b".")
    run = os.fstat(trace).st_size - 1
    os.close(trace)
    match faults[run] if run < len(faults) else "":
        case "raise":
            raise RuntimeError("the source is gone")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            sys.exit(3)
        case "hang":
            time.sleep(3600)
        case "swallow":
            swallow()
        case "swell":
            swell()
        case "hold":
            hold(folder)


def swallow() -> None:
    """Hang, and swallow whatever is raised to end that."""
    while True:
        try:
            time.sleep(3600)
        except Exception:  # noqa: BLE001 - that is its fault
            continue


def swell() -> None:
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20) * 16))
        time.sleep(0.01)


def hold(folder: Path) -> None:
    """Until the test says go."""
    (folder / "held").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)


def on_step(step: str) -> None:
    """Die at a step, once, when there is a file that says so."""
    order = Path(os.environ[FOLDER]) / f"die-at-{step}"
    try:
        order.unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)

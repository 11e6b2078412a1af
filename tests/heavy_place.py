"""A small deployment for cut productions: a broker, and on demand leaders (threads or a process) and RQ workers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Thread

import broker
from broker.connect import Broker, Dataset
from broker.handle import Handle
from broker.parts import open_parts
from broker.received import Received
from broker.settings import Settings
from tests.heavy_app import FOLDER, PARTS, app, on_step
from tests.servers import wait_until
from workers.channel import Channel
from workers.loop import Loop
from workers.producing import Producing
from workers.roles import add_producing
from workers.rq_pool import RqPool
from workers.supervisor import Supervisor, revealed

APP = "tests.heavy_app:app"
ON_STEP = "tests.heavy_app:on_step"
WAIT_SECONDS = 60.0
_tenants = count(1)


@dataclass
class Place:
    """`folder` holds orders to parts and traces of their runs."""

    broker: Broker
    folder: Path
    rq: list[RqPool] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        return self.broker.parts.settings

    def dataset(self, name: str = "prices", order: Sequence[str] = (), **orders: object) -> Shop:
        """A dataset of a tenant of its own, whose parts follow `orders`."""
        shop = Shop(self, f"shop{next(_tenants)}/pricing/{name}", tuple(order))
        shop.folder.mkdir()
        shop.order(**orders)
        self.broker.dataset(shop.id, key=["sku"], order=order)
        return shop

    def die_at(self, step: str) -> Path:
        """Whoever comes to the step first dies there, in processes started with a step hook."""
        order = self.folder / f"die-at-{step}"
        order.touch()
        return order


@dataclass
class Shop:
    """One dataset of a place."""

    place: Place
    id: str
    sorted_by: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return self.place.folder / self.id.split("/")[0]

    @property
    def dataset(self) -> Dataset:
        return self.place.broker.dataset(self.id, key=["sku"], order=self.sorted_by)

    def order(self, **orders: object) -> None:
        (self.folder / "orders.json").write_text(json.dumps(orders))

    def ask(self, **fields: object) -> Handle:
        return self.place.broker.request(self.id, target="search", **fields)

    def done(self, **fields: object) -> Received:
        return self.ask(**fields).wait(WAIT_SECONDS)

    def runs(self, parts: tuple[str, ...] = PARTS) -> dict[str, int]:
        """How often each part was run; parts that never ran are left out."""
        found = {part: self.folder / f"{part}.runs" for part in parts}
        return {part: path.stat().st_size for part, path in found.items() if path.exists()}

    def keys(self) -> list[str]:
        return sorted(self.dataset.read().column("sku").to_pylist())

    def held(self) -> None:
        """Until a part is at `hold`."""
        wait_until((self.folder / "held").exists, "a part that holds")

    def go(self) -> None:
        (self.folder / "go").touch()


@contextmanager
def place(folder: Path, redis: str, **settings: object) -> Iterator[Place]:
    """Quick settings; what is started in it ends with it."""
    orders, before = folder / "orders", os.environ.get(FOLDER)
    orders.mkdir()
    quick = {"lease_seconds": 2.0, "backoff_seconds": 0.01, "attempt_seconds": 30.0, "memory_limit_bytes": 128 << 20}
    os.environ[FOLDER] = str(orders)
    with broker.connect(redis=redis, store=str(folder / "store"), **(quick | settings)) as found:
        here = Place(found, orders)
        try:
            yield here
        finally:
            for pool in here.rq:
                pool.stop()
            if before is None:
                del os.environ[FOLDER]
            else:
                os.environ[FOLDER] = before


def rq_workers(here: Place, processes: int, on_step: str = "") -> RqPool:
    here.rq.append(RqPool(here.settings, APP, processes, on_step))
    return here.rq[-1]


@contextmanager
def leader(here: Place, pool: RqPool | None = None) -> Iterator[Producing]:
    """A leading worker in threads of this process, with one child; it sees after `pool`."""
    supervisor = Supervisor(here.settings, APP, 1)
    role, loop = Producing(here.broker.parts, app, supervisor), Loop()
    add_producing(loop, role, here.settings.lease_seconds)
    if pool is not None:
        loop.every("rq", 0.2, pool.inspect)
    running = Thread(target=loop.run, name="leader")
    running.start()
    try:
        yield role
    finally:
        loop.stopping.set()
        running.join()
        supervisor.stop()


class LeaderProcess:
    """A leading worker that can be killed."""

    def __init__(self, here: Place) -> None:
        mine, theirs = socket.socketpair()
        self._lifeline = mine
        with theirs:
            command = [sys.executable, "-m", "tests.heavy_place", str(theirs.fileno())]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        Channel(mine).send({"settings": revealed(here.settings)})

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._lifeline.close()


def main(fd: int) -> None:
    first = Channel(socket.socket(fileno=fd)).receive()
    assert first is not None
    settings = Settings.model_validate(first["settings"])
    with Broker(open_parts(settings, on_step)) as found, leader(Place(found, Path(os.environ[FOLDER]))):
        signal.pause()


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""A child process: runs producers and makes files, one attempt at a time, in its main thread.

    python -m workers.child <socket fd> <module:app | broker.toml> [module:on_step]

Whatever a producer does to its process (raise, exit, hang, crash, swell), the parent sees, and only this attempt suffers.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Final

from broker.errors import AttemptFailed, BrokerError, from_dict
from broker.flights import Flight
from broker.fulfilment import Derivation, Made, Maker
from broker.model.commit import Edge, Fence
from broker.model.names import DatasetId
from broker.outcomes import Since
from broker.parts import Parts, insisted_parts
from broker.producers import Producers, load_app
from broker.rules.steps import nothing
from broker.settings import Settings
from broker.sources.config import load_sources
from workers.channel import Channel

TELL_SECONDS: Final = 0.5


def flight_to_json(flight: Flight) -> dict[str, Any]:
    return {
        "id": flight.id, "dataset": flight.dataset, "kind": flight.kind, "owner": flight.owner,
        "fence": list(flight.fence), "attempt": flight.attempt, "priority": flight.priority,
        "started": flight.started,
    }  # fmt: skip


def flight_from_json(fields: dict[str, Any]) -> Flight:
    epoch, counter = fields["fence"]
    return Flight(**fields | {"dataset": DatasetId(fields["dataset"]), "fence": Fence(epoch, counter)})


def made_to_json(made: Made) -> dict[str, Any]:
    return {"error": made.to_dict()} if isinstance(made, BrokerError) else {"ok": made.model_dump(mode="json")}


def made_from_json(fields: dict[str, Any]) -> Made:
    return from_dict(fields["error"]) if "error" in fields else Edge.model_validate(fields["ok"])


def producers_of(app: str) -> Producers:
    """The registry a worker serves: module:app, or the sources of a broker.toml file."""
    if app.endswith(".toml"):
        return load_sources(Path(app))
    return load_app(app)


def park_under(folder: Path | None) -> None:
    """Have all temporary files of this process, a producer's own too, lie in `folder`; None: the system's."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = str(folder)


def step_of(name: str) -> Callable[[str], None]:
    """The `on_step` that module:attribute names: tests crash there."""
    module, _, attribute = name.partition(":")
    found: Callable[[str], None] = getattr(import_module(module), attribute)
    return found


class Child:
    """Answers one message after the other: {"do": "produce" | "parts" | "derive", ...} -> {"ok": ...} | {"error": ...}."""

    def __init__(self, parts: Parts, producers: Producers) -> None:
        self._maker = Maker(parts.catalog, parts.engine, parts.publication, producers, parts.on_step)

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"ok": {"produce": self._produce, "parts": self._parts, "derive": self._derive}[message["do"]](message)}
        except BrokerError as error:
            return {"error": error.to_dict()}
        except Exception as error:  # noqa: BLE001 - the boundary of the process: everything becomes a typed answer
            failed = AttemptFailed(
                "the attempt failed", of=str(message.get("do")), why=f"{type(error).__name__}: {error}"[:1000]
            )
            return {"error": failed.to_dict()}

    def _produce(self, message: dict[str, Any]) -> dict[str, Any]:
        since = message["since"]
        told = Since(since["version"], since["position"]) if since else None
        made = self._maker.produce(flight_from_json(message["flight"]), told)
        return made.model_dump(mode="json")

    def _parts(self, message: dict[str, Any]) -> list[str]:
        return list(self._maker.parts(flight_from_json(message["flight"])))

    def _derive(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        made = self._maker.derive(Derivation.model_validate(order) for order in message["orders"])
        return [made_to_json(edge) for edge in made]


class Orphanage:
    """Context manager around work: ends this process group when the parent dies, since nobody is left to kill a hanging one."""

    def __init__(self, channel: Channel) -> None:
        self._channel, self._at_work = channel, Lock()
        Thread(target=self._watch, name="orphanage", daemon=True).start()

    def __enter__(self) -> None:
        self._at_work.acquire()

    def __exit__(self, *error: object) -> None:
        self._at_work.release()

    def _watch(self) -> None:
        hangup = select.poll()
        hangup.register(self._channel.fileno(), 0)  # errors and hang-ups are reported without being asked for
        hangup.poll()
        if self._at_work.locked():
            os.killpg(0, signal.SIGKILL)  # with whatever the producer started


class Telling:
    """Context manager around an attempt: tells the parent how far it is, when that changed, at most twice a second."""

    def __init__(self, channel: Channel, progress: Callable[[], tuple[int, int]]) -> None:
        self._channel, self._progress = channel, progress
        self._lock, self._at_work = Lock(), Event()
        self._told = self._before = (0, 0)
        Thread(target=self._tell, name="telling", daemon=True).start()

    def __enter__(self) -> None:
        self._told = self._before = self._progress()
        self._at_work.set()

    def __exit__(self, *error: object) -> None:
        with self._lock:  # nothing is told behind the answer, nor in the middle of it
            self._at_work.clear()

    def _tell(self) -> None:
        while self._at_work.wait():
            with self._lock:
                now = self._progress()
                if self._at_work.is_set() and now != self._told:
                    self._told = now
                    rows, bytes_ = (after - before for after, before in zip(now, self._before, strict=True))
                    self._channel.send({"progress": {"rows": rows, "bytes": bytes_}})
            time.sleep(TELL_SECONDS)


def main(argv: list[str]) -> int:
    channel = Channel(socket.socket(fileno=int(argv[0])))
    watch = Orphanage(channel)
    try:
        with watch:
            on_step = step_of(argv[2]) if len(argv) > 2 else nothing
            first = channel.receive()
            if first is None:
                return 1
            settings = Settings.model_validate(first["settings"])
            park_under(settings.temp_folder)
            parts = insisted_parts(settings, on_step)
            child = Child(parts, producers_of(argv[1]))
    except BrokerError as error:
        channel.send({"error": error.to_dict()})
        return 1
    channel.send({"ok": "ready"})
    telling = Telling(channel, parts.engine.progress)
    while (message := channel.receive()) is not None:
        with watch, telling:
            answer = child.answer(message)
        channel.send(answer)
    parts.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

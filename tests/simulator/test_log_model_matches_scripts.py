"""The simulator's change log proves something only while its scripts are the product's: the same calls, the same answers.

Both sides are `backend.logs.Logs`; one runs its scripts on a server, the other on the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import pytest

from broker.backend.client import RedisClient
from broker.backend.logs import LogEntry, Logs, Part
from broker.errors import BrokerError
from broker.model.names import DatasetId
from broker.rules.fold import State
from broker.rules.patch import log_field
from broker.settings import Settings
from tests.servers import RedisServer, redis_server
from tests.simulator.log_model import LogScripts, ModelClient
from tests.simulator.redis_model import DATASET, Server

SETTINGS: Final = Settings(log_slots=2, unbatched_bytes=2_000)
ID: Final = DatasetId(DATASET)
AHEAD: Final = f"{10**15}-0"
"""An id of a clock that was ahead of both servers'."""
ANCIENT: Final = 1.0
"""When a mark was made that is too old for both servers."""


@dataclass(slots=True)
class Schedule:
    """Random calls to one side. Two with one seed make the same ones; each names ids and incarnations of its own."""

    logs: Logs
    random: Random
    restart: Callable[[], None]
    flush: Callable[[], None]
    ids: list[tuple[int, str]] = field(default_factory=lambda: [(0, "0-0"), (1, "0-0")])
    runs: list[dict[int, str]] = field(default_factory=lambda: [{0: "x", 1: "x"}])
    blocks: dict[str, int] = field(default_factory=dict)

    def step(self) -> object:
        name = self.random.choice(STEPS)
        return name, getattr(self, name)()

    def append(self) -> object:
        producer, author = self.random.choice(("p", "~q")), self.random.choice(("-", "a", "b"))
        known = self.blocks.get(producer, 0)
        block = max(1, known + self.random.choice((1, 1, 1, 1, 0, -1, 2)))
        self.blocks[producer] = max(known, min(block, known + 1))
        payload = bytes(self.random.choice((0, 10, 300)))
        parts = [Part(slot, producer, block, author, "u", int(bool(payload)), payload) for slot in self._slots()]
        return [self._told(part.slot, answer) for part, answer in zip(parts, self.logs.append(ID, parts), strict=True)]

    def _told(self, slot: int, answer: Any) -> object:
        assert not isinstance(answer, BrokerError)
        if answer.kind == "accepted":
            self.ids.append((slot, answer.value))
        return answer.kind, self._place(slot, answer.value)

    def _place(self, slot: int, id: str) -> object:
        """An id in words that are the same on both sides."""
        return self.ids.index((slot, id)) if (slot, id) in self.ids else "?" if "-" in id else id

    def _slots(self) -> list[int]:
        return self.random.choice(([0, 1], [0, 1], [0], [1]))

    def _state(self) -> State:
        back, ahead = self.random.randint(1, 4), self.random.random() < 0.1
        ids = {slot: [id for at, id in self.ids if at == slot] for slot in (0, 1)}
        until = {slot: AHEAD if ahead else known[-min(back, len(known))] for slot, known in ids.items()}
        at = self.random.choice((4e9, ANCIENT))
        marks = {"p": (self.random.randint(1, 4), at), "~q": (self.random.randint(1, 4), at)}
        fields = {log_field(slot): json.dumps({"until": until[slot], "marks": marks}) for slot in (0, 1)}
        return State(DATASET, {"head": fields, "versions": {}, "edges": {}, "productions": {}, "holds": {}, "channels": {}})

    def closed(self) -> object:
        found = self.logs.closed(ID)
        self.runs += [found] if found else []
        return sorted(found)

    def open(self) -> object:
        state, slot, runs = self._state(), self.random.randint(0, 1), self.random.choice(self.runs[-2:])
        return self.logs.open(state, slot, runs.get(slot, "x"))

    def look_and_open(self) -> object:
        closed = self.logs.closed(ID)
        state = self._state()
        return [self.logs.open(state, slot, run) for slot, run in sorted(closed.items())]

    def trim(self) -> object:
        return self.logs.trim(self._state(), self.random.randint(0, 1))

    def upset(self) -> object:
        (self.restart if self.random.random() < 0.6 else self.flush)()
        return None

    def seen(self) -> object:
        """Everything a reader sees of both slots."""
        entries = [[self._entry(slot, entry) for entry in self.logs.read(ID, slot)] for slot in (0, 1)]
        marks = [self.logs.marks(ID, producer) for producer in ("p", "~q")]
        totals = [self.logs.logged(ID, slot) for slot in (0, 1)]
        ready = [[name for name, _ in self.logs.ready(self.logs.slot(ID, slot))] for slot in (0, 1)]
        last = [self._place(slot, self.logs.last_id(ID, slot)) for slot in (0, 1)]
        return entries, marks, totals, ready, last

    def _entry(self, slot: int, entry: LogEntry) -> object:
        size, rows = (entry.bytes_until, len(entry.payload or b"")), (entry.rows, entry.rows_until)
        return self._place(slot, entry.id), entry.producer, entry.block, rows, size


STEPS: Final = ["append"] * 12 + ["look_and_open"] * 4 + ["trim"] * 3 + ["closed", "open", "upset"]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


def model(random: Random) -> Schedule:
    server = Server()
    server.now = 1_700_000_000.0
    scripts = LogScripts(server)

    def does(script: Any) -> Any:
        server.now += 0.001
        answer = script.run()
        server.remember()
        return answer

    def later(upset: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            server.now += 1.0
            upset()

        return run

    return Schedule(
        Logs(ModelClient(scripts, scripts, does, cluster=False).client, SETTINGS),
        random,
        later(server.restart),
        later(server.flush),
    )


def real(server: RedisServer, client: RedisClient, random: Random) -> Schedule:
    logs = Logs(client, SETTINGS)

    def restart() -> None:
        """What a script sees of a restart: the id it stored is not the server's."""
        for slot in (0, 1):
            client.run("HSET", logs.slot(ID, slot).meta, "run_id", "0" * 40)

    return Schedule(logs, random, restart, server.flush)


def test_the_model_of_the_change_log_answers_as_the_scripts_do(server: RedisServer) -> None:
    seen = set[str]()
    with RedisClient.open(server.url) as client:
        for seed in range(40):
            server.flush()
            mine, theirs = model(Random(seed)), real(server, client, Random(seed))
            for number in range(60):
                answer = mine.step()
                assert answer == theirs.step(), f"seed {seed}, step {number}"
                assert mine.seen() == theirs.seen(), f"seed {seed}, after step {number}: {answer}"
                seen.add(str(answer))
    for kind in ("accepted", "same", "gap", "taken", "reconcile", "full"):
        assert any(f"('{kind}'" in text for text in seen), kind
    for answer in ("('open', True)", "('open', False)", "('look_and_open', [True, True])"):
        assert answer in seen

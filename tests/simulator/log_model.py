"""The change log's side of Redis: append.lua, log_open.lua and log_trim.lua in Python, and the commands beside them.

`ModelClient` stands where `RedisClient` does, so `backend.logs.Logs` and `backend.batches.Batches` are the product's own. It
asks `does` for every atomic step: the simulator lets each happen, or not, when it pleases; the conformance test at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, cast

from broker.backend.client import Call, RedisClient
from broker.backend.lanes import Argument
from broker.errors import OutcomeUnknown
from tests.simulator.fibres import Script
from tests.simulator.redis_model import Server

OVERHEAD: Final = 64
FLOOR: Final = "floor"
"""Field of a stream that is no entry: the newest id it ever had. Every other field is an entry's id."""
Fields = dict[str, Any]


@lru_cache(maxsize=10_000)
def id_of(text: str) -> tuple[int, int]:
    """A stream id, to be compared."""
    ms, _, number = text.partition("-")
    return int(ms), int(number or 0)


class LogScripts:
    """Scripts of log slots on one server. `ahead_ms`: how far its clock is before the world's."""

    def __init__(self, server: Server) -> None:
        self.server, self.ahead_ms = server, 0

    def now_ms(self) -> int:
        return int(self.server.now * 1000) + self.ahead_ms

    def entries(self, stream: str) -> Fields:
        return {id: entry for id, entry in self.server.db.get(stream, {}).items() if id != FLOOR}

    def append(self, keys: list[str], args: list[str]) -> list[list[Any]]:
        dataset, most, _, *fields = args
        parts = [(keys[5 * at : 5 * at + 5], fields[7 * at : 7 * at + 7]) for at in range(len(keys) // 5)]
        return [self.append_part(slot, [dataset, most, *part]) for slot, part in parts]

    def append_part(self, keys: list[str], args: list[str]) -> list[Any]:
        meta, stream, logged, marks, ready = keys
        dataset, most, producer, number, author, kind, rows, payload, session = args
        run, _ = self.server.incarnation(meta)
        known = self.server.db.get(logged, {})
        if known.get("run") != run:
            return ["reconcile"]
        block, mark, last_author, id = int(number), 0, "", ""
        if (marked := self.server.get(marks, producer)) is not None:
            last, _, last_author, id = marked.split(" ")
            mark = int(last)
        if block <= mark and self.drops():
            mine = author == "-" or (block == mark and last_author in (author, "?"))
            return ["same", id if block == mark else ""] if mine else ["taken", mark]
        if block > mark + 1 and self.drops():
            return ["gap", mark + 1]
        size = int(known["appended"]) + len(payload) + OVERHEAD
        total = int(known["rows"]) + int(rows)
        if size - int(known["released"]) > int(most):
            return ["full"]
        entry = {"p": producer, "b": number, "k": kind, "n": rows, "c": str(size), "r": str(total)}
        new = self._add(stream, {**entry, **({"d": payload} if payload else {}), **({"s": session} if session else {})})
        self.server.put(logged, appended=str(size), rows=str(total))
        self.server.put(marks, **{producer: f"{number} {self.now_ms()} {author} {new}"})
        self._ready(ready, dataset, self.now_ms())
        return ["accepted", new]

    def drops(self) -> bool:
        """Whether marks tell what is there already, and what is missing."""
        return True

    def log_open(self, keys: list[str], args: list[str]) -> list[str]:
        meta, stream, logged, marks, ready = keys
        run, _ = self.server.incarnation(meta)
        if self.server.get(logged, "run") == run:
            return ["open"]
        if args[1] != run and (args[1] == "" or self.looks()):
            return ["closed", run]
        dataset, _, consumed, margin, *sealed = args
        entries, known = self.entries(stream), self.server.db.get(logged, {})
        newest = self.server.get(stream, FLOOR) or "0-0"
        self.server.put(stream, **{FLOOR: f"{self.floor_ms(int(margin), consumed, newest)}-0"})
        last = next(reversed(entries.values()), {"c": "0", "r": "0"})
        for name, number, at in zip(sealed[::3], sealed[1::3], sealed[2::3], strict=True):
            marked = self.server.get(marks, name)
            if self.learns() and (marked is None or int(marked.split(" ")[0]) < int(number)):
                self.server.put(marks, **{name: f"{number} {at} ? -"})
        self.server.put(
            logged, run=run, appended=known.get("appended", last["c"]), rows=known.get("rows", last["r"]),
            released=known.get("released", last["c"]), released_rows=known.get("released_rows", last["r"]),
        )  # fmt: skip
        if entries:
            self._ready(ready, dataset, self.now_ms())
        return ["opened"]

    def looks(self) -> bool:
        """Whether a log opens only for the incarnation that was looked at before its state was read."""
        return True

    def floor_ms(self, margin: int, consumed: str, newest: str) -> int:
        """Behind which new ids begin."""
        return max(self.now_ms() + margin, id_of(consumed)[0] + 1, id_of(newest)[0] + 1)

    def learns(self) -> bool:
        """Whether a log that opens takes over sealed marks."""
        return True

    def log_trim(self, keys: list[str], args: list[str]) -> list[int]:
        lives, logs = args[:3], args[3:]
        return [self.trim(keys[5 * at : 5 * at + 5], [*logs[2 * at : 2 * at + 2], *lives]) for at in range(len(keys) // 5)]

    def trim(self, keys: list[str], args: list[str]) -> int:
        _, stream, logged, marks, ready = keys
        dataset, consumed, named, unnamed, pause = args
        now = self.now_ms()
        gone = [id for id in self.entries(stream) if id_of(id) <= id_of(consumed)]
        if gone:
            self.server.drop(stream, *gone)
        left, known = self.entries(stream), self.server.db.get(logged, {})
        released, rows = known.get("appended", "0"), known.get("rows", "0")
        if left:
            id, first = next(iter(left.items()))
            released = str(int(first["c"]) - len(first.get("d", b"")) - OVERHEAD)
            rows = str(int(first["r"]) - int(first["n"]))
            self.server.put(ready, **{dataset: str(min(now, id_of(id)[0]))})
        else:
            self.server.drop(ready, dataset)
        if "appended" in known:
            self.server.put(logged, released=released, released_rows=rows)
            if now - int(known.get("marks_seen", 0)) > int(pause):
                lives = {name: int(unnamed if name.startswith("~") else named) for name in self.server.db.get(marks, {})}
                old = [name for name, life in lives.items() if now - int(self.server.db[marks][name].split(" ")[1]) > life]
                self.server.drop(marks, *old)
                self.server.put(logged, marks_seen=str(now))
        return len(left)

    def _add(self, stream: str, entry: Fields) -> str:
        newest = id_of(self.server.get(stream, FLOOR) or "0-0")
        at = max((self.now_ms(), 0), (newest[0], newest[1] + 1))
        new = f"{at[0]}-{at[1]}"
        self.server.put(stream, **{new: entry, FLOOR: new})
        return new

    def _ready(self, ready: str, dataset: str, at: int) -> None:
        if self.server.get(ready, dataset) is None:
            self.server.put(ready, **{dataset: str(at)})


class ModelClient:
    """What `Logs` and `Batches` need of a RedisClient. `logs` serves the keys of log slots, `main` all others.

    `cluster`: each slot's part of a block arrives by itself, which has more ways to go wrong.
    """

    def __init__(self, main: LogScripts, logs: LogScripts, does: Callable[[Script], Any], cluster: bool = True) -> None:
        self.main, self.logs, self._does, self.cluster = main, logs, does, cluster

    @property
    def client(self) -> RedisClient:
        """As the product's types want it."""
        return cast(RedisClient, self)

    @property
    def blocking(self) -> ModelClient:
        return self

    def script(self, name: str, writes: bool = True) -> str:
        del writes
        return name

    def call(self, name: str, keys: Sequence[bytes], args: Sequence[Argument]) -> Any:
        slot, texts = self._at(keys[0]), [key.decode() for key in keys]
        work = getattr(slot, name)
        said = [text.decode("latin-1")[:9] if isinstance(text, bytes) else str(text) for text in args[:8]]
        values = [arg if isinstance(arg, bytes) else str(arg) for arg in args]
        return _reply(self._does(Script(f"{texts[1]} {name} {' '.join(said)}", lambda: work(texts, values))))

    def call_many(self, name: str, calls: Sequence[Call]) -> list[Any]:
        """Others' steps may come in between. A lost reply leaves all of them unknown, and so does a restart."""
        run, replies = self.logs.server.run, list[Any]()
        for keys, args in calls:
            replies.append(self.call(name, [_bytes(key) for key in keys], args))
            if self.logs.server.run != run:
                raise OutcomeUnknown("the connection was lost", of=name)
        return replies

    def run(self, *command: Argument, writes: bool = True) -> Any:
        return self._does(Script(" ".join(map(_word, command)), lambda: self._command(command), writes))

    def pipeline(self, commands: Sequence[Sequence[Argument]], of: str, writes: bool = True) -> list[Any]:
        """Read in one round trip."""
        assert not writes, "the change log writes by scripts"
        return list(self._does(Script(of, lambda: [self._command(command) for command in commands], writes=False)))

    def replies(self, commands: Sequence[Sequence[Argument]], of: str, writes: bool = True) -> list[Any]:
        """Of writes each is a step of its own: others' may come in between, and a lost reply leaves all of them unknown."""
        if writes:
            return [self.run(*command) for command in commands]
        return self.pipeline(commands, of, writes=False) if commands else []

    def xread(self, streams: Any, count: int, block: int) -> None:
        """Waits for a bell that does not ring here: whoever waits looks again."""
        del streams, count, block
        self._does(Script("wait", lambda: None, writes=False))

    def _at(self, key: bytes) -> LogScripts:
        return self.logs if re.match(rb"\{[^}]*\.p\d+\}", key) else self.main

    def _command(self, command: Sequence[Argument]) -> Any:
        name, *rest = command
        if name == "TIME":
            return [b"%d" % (self.main.now_ms() // 1000), b"%d" % (self.main.now_ms() % 1000 * 1000)]
        slot, key, args = self._at(_bytes(rest[0])), _word(rest[0]), [_word(arg) for arg in rest[1:]]
        kept = slot.server.db.get(key, {})
        match name:
            case "HGET":
                return _sent(kept.get(args[0]))
            case "HMGET":
                return [_sent(kept.get(field)) for field in args]
            case "HVALS":
                return [_sent(text) for text in kept.values()]
            case "HSET":
                return slot.server.put(key, **dict(zip(args[::2], args[1::2], strict=True)))
            case "HDEL":
                return slot.server.drop(key, *args)
            case "ZRANGE":
                ranked = sorted(kept.items(), key=lambda item: float(item[1]))
                return [_sent(text) for item in ranked for text in item]
            case "XRANGE":
                found = [(id, entry) for id, entry in slot.entries(key).items() if id_of(id) > id_of(args[0].lstrip("("))]
                return [(id.encode(), _flat(entry)) for id, entry in found[: int(args[3])]]
            case "XREVRANGE":
                return [(id.encode(), _flat(entry)) for id, entry in [*slot.entries(key).items()][::-1][: int(args[3])]]
        raise AssertionError(command)


def _flat(entry: Fields) -> list[bytes]:
    return [_bytes(item) for pair in entry.items() for item in pair]


def _bytes(value: Argument) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _word(value: Argument) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _sent(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _reply(value: Any) -> Any:
    match value:
        case str():
            return value.encode()
        case list():
            return [_reply(item) for item in value]
    return value

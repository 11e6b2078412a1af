"""The ledger of requests and flights: the only writer of their keys.

A request is queued, joins a *flight* (one production of a dataset, or one derivation of a selection) and is answered by the
flight's holder. The flight carries the lease and the fence; whoever finds a lapsed flight takes it over whole.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any, Final

from broker.backend.client import Entry, RedisClient
from broker.backend.keys import Slot
from broker.backend.lanes import Argument
from broker.backend.watch import Watch
from broker.errors import (
    BrokerError,
    Conflict,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    Reconciling,
    RequestExpired,
    RequestLost,
    Unsupported,
)
from broker.flights import (
    Claimed,
    Confirmed,
    Due,
    Flight,
    Member,
    Order,
    Retry,
    Status,
    Submitted,
    completion_event,
    completion_of,
    ended,
    fenced,
    flight_of,
    hash_of,
    outline_of,
    request_of,
    status_of,
)
from broker.model.commit import Fence
from broker.model.names import DatasetId
from broker.model.request import Completion, Request, State, born_at, new_id, slot_of
from broker.settings import Settings

EXPIRE_BATCH: Final = 100
"""Requests whose bodies are in memory at once."""
SUBMIT_RUN: Final = 16
"""Orders one call of the script takes: they share what a call costs by itself, and hold Redis for half a millisecond."""
ANSWER_RUN: Final = 100
"""Answers one call of the script posts: two megabytes of the longest, so that Redis neither refuses them nor stands still."""
TICK_LIMIT: Final = 1_000
"""Requests one tick moves at most, so that a tick stays short for Redis."""


class Requests:
    """Safe for threads and processes; every change is one atomic script."""

    def __init__(self, redis: RedisClient, settings: Settings) -> None:
        self._redis, self._settings = redis, settings
        names = ("submit", "claim", "close", "answer", "beat", "take_over", "tick", "end_requests", "park", "ack")
        self._scripts = {name: redis.script(name) for name in names}

    # --- the asking side

    def submit(self, orders: Sequence[Order]) -> list[Submitted | BrokerError]:
        """Queue requests, or answer those at once whose `answer` still holds, in one round trip; in the order given.

        An error stands for its request alone: NotFound, Conflict (idempotency key), Overloaded, RequestExpired, Reconciling
        (bring the index up first). Raises Unavailable when surely none was queued, OutcomeUnknown when some may be.
        """
        runs = list(_runs(orders))
        results: list[Submitted | BrokerError] = []
        for run, reply in zip(runs, self._submit_runs(runs), strict=True):
            results += [reply] * len(run) if isinstance(reply, BrokerError) else map(self._submitted, run, reply)
        return results

    def _submit_runs(self, runs: Sequence[Sequence[Order]]) -> list[Any]:
        """A reply or an error for each. A lost reply is asked for once more: the ids make it the same submissions.

        What fails then says nothing of the first time.
        """
        script, calls = self._scripts["submit"], [([run[0].slot.meta], self._submit_args(run)) for run in runs]
        try:
            return self._redis.call_many(script, calls)
        except OutcomeUnknown:
            pass
        try:
            replies = self._redis.call_many(script, calls)
        except BrokerError as error:
            raise _perhaps_queued(error) from error
        return [_perhaps_queued(reply) if isinstance(reply, BrokerError) else reply for reply in replies]

    def _submitted(self, order: Order, reply: Any) -> Submitted | BrokerError:
        how, known, head_seq = reply[0].decode(), reply[1].decode(), int(reply[2])
        if how in ("queued", "backlog", "answered", "same"):
            return Submitted(known, how, head_seq)
        return self._refusal(how, order.request, known)

    def _submit_args(self, run: Sequence[Order]) -> list[Argument]:
        s = self._settings
        args: list[Argument] = [
            s.tenant_inflight, s.tenant_backlog, s.max_unread_responses, int(s.max_memory_ratio * 100), s.history_seconds
        ]  # fmt: skip
        for order in run:
            request, answer = order.request, order.answer
            dataset, staleness, deadline, keyed = (
                request.dataset,
                request.max_staleness,
                request.deadline,
                request.idempotency_key,
            )
            args += (
                order.id, request.model_dump_json(exclude_defaults=True), dataset, dataset.tenant, dataset.name,
                request.priority, request.target, keyed or "", request.body_hash if keyed else "",
                "" if deadline is None else int(deadline * 1000), "" if staleness is None else int(staleness * 1000),
                order.derivation, completion_event(answer) if answer else "", order.seq,
            )  # fmt: skip
        return args

    def _refusal(self, how: str, request: Request, known: str) -> BrokerError:
        dataset, target = request.dataset, request.target
        match how:
            case "unknown":
                return NotFound("no such dataset", of=dataset, hint=f"Create it: broker dataset create {dataset} --key …")
            case "conflict":
                return Conflict("the idempotency key was used for another request", of=str(request.idempotency_key), why=known)
            case "expired":
                return RequestExpired("the deadline has passed already", of=dataset, why=f"deadline={request.deadline}")
            case "unread":
                return Overloaded(
                    "the target has too many unread responses and open requests",
                    of=target,
                    hint=f"Read: broker responses {target} --ack; who only waits calls ack() on what it received",
                )
            case "line":
                return Overloaded("the tenant's line is full", of=dataset.tenant, why=f"{self._settings.tenant_backlog} wait")
            case "memory":
                return Overloaded("Redis is nearly full", of=dataset, hint="Read responses, or give it more maxmemory")
        return Reconciling("Redis is a new incarnation", of=dataset, why="its index is not yet checked against the log")

    def status(self, id: str) -> Status:
        """Raises RequestLost when Redis forgot a request of its history time, NotFound for an older or unknown one."""
        slot, known = Slot(slot_of(id)), self._known(id)
        flight = known["flight"].decode() if "flight" in known else None
        progress = self._redis.run("HGET", slot.flight(flight), "progress", writes=False) if flight else None
        return status_of(id, known, json.loads(progress) if progress else {})

    def _known(self, id: str) -> dict[str, bytes]:
        known = hash_of(self._redis.run("HGETALL", Slot(slot_of(id)).request(id), writes=False))
        if not known:
            if time.time() - born_at(id) < self._settings.history_seconds:
                raise RequestLost(
                    "Redis does not know the request",
                    of=id,
                    why="it lost its memory, or nobody ever submitted this id",
                    hint="Submit it again, with its idempotency key",
                )
            raise NotFound("no such request", of=id, why="finished requests are kept for a while only")
        return known

    def outcome(self, id: str) -> Completion | None:
        """The completion, None while it is not there. Raises RequestLost, NotFound."""
        done = self._redis.run("HGET", Slot(slot_of(id)).request(id), "done", writes=False)
        return completion_of(done) if done else self.status(id).completion

    def ack(self, id: str) -> bool:
        """Take exactly this request's terminal event from its response stream. False: it is not there (any more)."""
        slot = Slot(slot_of(id))
        return bool(self._redis.call(self._scripts["ack"], [slot.meta, slot.request(id)]))

    def watch(self, id: str, target: str) -> Watch:
        """For waiting on a response stream without taking from it."""
        return Watch(self._redis, Slot(slot_of(id)).responses(target))

    def end(self, id: str, state: State, error: BrokerError | None = None) -> bool:
        """Make a request cancelled or failed unless it has ended. True: this call ended it. Raises RequestLost, NotFound."""
        if self._end([id], state, error):
            return True
        self._known(id)
        return False

    def forget_dead(self, slot: Slot, entry: bytes) -> bool:
        """Remove a dead letter. False: it was gone."""
        return bool(self._redis.run("XDEL", slot.dead, entry))

    def expire(self, ids: Iterable[str]) -> None:
        """End requests whose deadline passed, two round trips a batch; those that Redis forgot meanwhile need no answer."""
        waiting = iter(ids)
        while batch := list(islice(waiting, EXPIRE_BATCH)):
            self._end(batch, State.EXPIRED)

    def _end(self, ids: Sequence[str], state: State, error: BrokerError | None = None) -> int:
        """End those that have not ended, with or without a readable body; -> how many this call ended."""
        fields = ("state", "attempts", "body", "dataset", "target")
        reads = [("HMGET", Slot(slot_of(id)).request(id), *fields) for id in ids]
        calls = list[tuple[list[bytes], list[Argument]]]()
        for id, (known, attempts, *asked) in zip(ids, self._redis.replies(reads, "requests", writes=False), strict=True):
            if known is not None and not State(known.decode()).terminal:
                event = completion_event(ended(id, outline_of(id, *asked), state, int(attempts), error))
                calls.append(([Slot(slot_of(id)).meta], [self._settings.history_seconds, id, state.value, event]))
        replies = self._redis.call_many(self._scripts["end_requests"], calls)
        for reply in replies:
            if isinstance(reply, BrokerError):
                raise reply
        return sum(replies)

    # --- the answering side

    def claim(self, slot: Slot, worker: str, entries: Sequence[Entry]) -> Claimed:
        """Turn stream entries into flights to run. Atomic per call; entries of requests that ended meanwhile vanish."""
        if not entries:
            return Claimed((), 0, ())
        args: list[Argument] = [worker, int(self._settings.lease_seconds * 1000), self._settings.flight_members]
        for entry in entries:
            args += [entry.stream, entry.id, entry.fields[b"r"], new_id(slot.name)]
        flights, joined, expired = [], 0, []
        for outcome in self._redis.call(self._scripts["claim"], [slot.meta], args):
            if outcome[0] == b"lead":
                flights.append(flight_of(worker, outcome))
            elif outcome[0] == b"expired":
                expired.append(outcome[1].decode())
            joined += outcome[0] == b"join"
        return Claimed(tuple(flights), joined, tuple(expired))

    def close(self, flight: Flight) -> list[Member]:
        """Nobody joins from now on; the members to answer. One that cannot be read here has failed by then. Raises Fenced."""
        reply, members = self._fenced("close", flight), list[Member]()
        for name, body, tries in zip(reply[::3], reply[1::3], reply[2::3], strict=True):
            id = name.decode()
            try:
                members.append(Member(id, request_of(id, body), int(tries)))
            except Unsupported as error:
                self._end([id], State.FAILED, error)
        return members

    def answer(
        self,
        flight: Flight,
        answers: Iterable[Completion | Retry],
        confirmed: Confirmed | None = None,
    ) -> int:
        """Flip states and post the terminal events, and end the flight; -> how many requests ended by it. Raises Fenced.

        One step for each ANSWER_RUN of them, so a crash may leave some behind: whoever takes the flight over answers those.
        `confirmed` is noted with the last, and only while the head is still at its session and version.
        """
        head, waiting, ended = Slot(slot_of(flight.id)).head(flight.dataset), list(answers), 0
        noted: list[Argument] = ["", "", "", ""]
        while len(waiting) > ANSWER_RUN:
            run, waiting = waiting[:ANSWER_RUN], waiting[ANSWER_RUN:]
            ended += int(self._fenced("answer", flight, [*noted, "0", self._settings.history_seconds, *_answers(run)], head))
        if confirmed:
            noted = [repr(confirmed.at), confirmed.position or "", confirmed.session, confirmed.version]
        last = [*noted, "1", self._settings.history_seconds, *_answers(waiting)]
        return ended + int(self._fenced("answer", flight, last, head))

    def beat(self, flight: Flight, progress: dict[str, Any] | None = None) -> bool:
        """Hold the flight for another lease. False: all its members were cancelled or expired. Raises Fenced."""
        args: list[Argument] = [int(self._settings.lease_seconds * 1000), json.dumps(progress) if progress else ""]
        return bool(self._fenced("beat", flight, args) == b"held")

    def take_over(self, id: str, worker: str) -> Flight | None:
        """Become the holder of a lapsed flight; None when it is held or over. Every member counts one more attempt."""
        args: list[Argument] = [id, worker, int(self._settings.lease_seconds * 1000)]
        reply = self._redis.call(self._scripts["take_over"], [Slot(slot_of(id)).meta], args)
        if reply is None:
            return None
        epoch, counter, kind, dataset, attempts, started = reply
        return Flight(
            id=id, dataset=DatasetId(dataset.decode()), kind=kind.decode(), owner=worker, fence=Fence(int(epoch), int(counter)),
            attempt=int(attempts), started=int(started) / 1000,
        )  # fmt: skip

    def tick(self, slot: Slot) -> Due:
        """Ring for delayed requests that are due; find what is overdue."""
        expired, lapsed, parked = self._redis.call(self._scripts["tick"], [slot.meta], [TICK_LIMIT])
        texts = [item.decode() for item in lapsed]
        pairs = [item.decode() for item in parked]
        return Due(
            tuple(item.decode() for item in expired),
            tuple((id, DatasetId(of)) for id, of in zip(texts[::2], texts[1::2], strict=True)),
            tuple((id, DatasetId(of)) for id, of in zip(pairs[::2], pairs[1::2], strict=True)),
        )

    def park(self, slot: Slot, entries: Sequence[Entry]) -> None:
        """Set aside entries of datasets this worker does not serve. An entry that rings for no request vanishes."""
        args: list[Argument] = ["1"]
        for entry in entries:
            args += [entry.stream, entry.id, entry.fields.get(b"r", b"")]
        self._redis.call(self._scripts["park"], [slot.meta], args)

    def unpark(self, slot: Slot, ids: Sequence[str]) -> None:
        """Ring again for parked requests that this worker serves."""
        args: list[Argument] = ["0"]
        for id in ids:
            args += ["", "", id]
        self._redis.call(self._scripts["park"], [slot.meta], args)

    def _fenced(self, script: str, flight: Flight, args: Sequence[Argument] = (), *keys: bytes) -> Any:
        return fenced(self._redis, self._scripts[script], flight, args, *keys)


def _answers(items: Iterable[Completion | Retry]) -> Iterator[Argument]:
    """The triples of the script."""
    for item in items:
        if isinstance(item, Retry):
            yield from (item.id, "queued", item.to_argument())
        else:
            yield from (item.request, item.state.value, completion_event(item))


def _perhaps_queued(error: BrokerError) -> OutcomeUnknown:
    hint = "Submit again with the same idempotency keys; without one it may be asked twice"
    return OutcomeUnknown("the requests may be queued", of="submit", why=str(error), hint=hint)


def _runs(orders: Iterable[Order]) -> Iterator[list[Order]]:
    """Neighbours of one slot, at most SUBMIT_RUN together."""
    for _, group in groupby(orders, lambda order: order.slot.name):
        while run := list(islice(group, SUBMIT_RUN)):
            yield run

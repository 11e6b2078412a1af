"""Drives the state machines of rules/publishing.py: each effect against Redis and the store, those of many logs together.

    machine ──► effect ──► performed with all of its kind: in one round trip to Redis, or side by side in the store ──► machine

Each effect is one method; each step has a name that tests crash at.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final, TypeVar

from broker.backend.index import Head, Index, Move
from broker.bell import events_of
from broker.errors import BrokerError, Corrupt, OutcomeUnknown, Reconciling, Transient
from broker.model.names import DatasetId, log_id
from broker.rules import publishing as protocol
from broker.rules.fold import State, after, fold, record_and_patch
from broker.rules.publishing import Effect, HeadView, PublishAnswer, ReserveAnswer
from broker.rules.steps import OnStep, nothing
from broker.sealed import Sealed
from broker.settings import Settings
from broker.stores.side_by_side import side_by_side

T = TypeVar("T")
Machine = Generator[Effect, Any, Any]
FOLLOW_RECORDS: Final = 8
"""A cached state this few records behind follows the log; further behind it is read anew from Redis."""
STORE_THREADS: Final = 8
"""Seals of many logs wait for a disk or a server: together they wait once."""


@dataclass(slots=True)
class Run:
    """One machine on its way: what it asks for now, or (`ended`) what it came to."""

    log: DatasetId
    machine: Machine
    effect: Effect | None = None
    outcome: Any = None
    reserved: bool = False

    @property
    def ended(self) -> bool:
        return self.effect is None

    def go_on(self, answer: Any) -> None:
        """Until the next effect. Behind a reservation silence means: unknown."""
        if isinstance(answer, Transient) and self.reserved and not isinstance(answer, OutcomeUnknown):
            cause, answer = answer, OutcomeUnknown(
                "the commit may be reserved, its end is unknown", of=self.log, why=str(answer),
                hint="Do the same again: it finds out",
            )  # fmt: skip
            answer.__cause__ = cause
        if isinstance(answer, Exception):
            self.effect, self.outcome = None, answer
            return
        self.reserved = self.reserved or (isinstance(answer, ReserveAnswer) and answer.may_stand)
        try:
            self.effect = self.machine.send(answer)
        except StopIteration as end:
            self.effect, self.outcome = None, end.value
        except Exception as error:  # noqa: BLE001 - also a surprise is the outcome of its own machine, and no other's
            self.effect, self.outcome = None, error


class Driver:
    """Safe for threads. States are immutable and cached by the SHA-256 of their newest record. `ring`: the bell."""

    def __init__(
        self, index: Index, sealed: Sealed, settings: Settings, ring: Callable[[DatasetId], None], on_step: OnStep = nothing
    ) -> None:
        self._index, self._sealed, self._settings, self._ring, self._on_step = index, sealed, settings, ring, on_step
        self.cache: dict[DatasetId, State] = {}
        self._lock = Lock()

    def drive(self, log: DatasetId, machine: Machine) -> Any:
        """Run one machine to its end. Raises what it raises."""
        (outcome,) = self.drive_all([(log, machine)])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def drive_all(self, machines: Sequence[tuple[DatasetId, Machine]]) -> list[Any]:
        """Run machines of different logs to their ends, side by side: what each came to, or its exception, in order."""
        runs = [Run(log, machine) for log, machine in machines]
        for run in runs:
            run.go_on(None)
        while going := [run for run in runs if not run.ended]:
            for kind in dict.fromkeys(type(run.effect) for run in going):
                alike = [run for run in going if type(run.effect) is kind]
                for run, answer in zip(alike, self._perform_all(alike), strict=True):
                    run.go_on(answer)
        return [run.outcome for run in runs]

    def head(self, log: DatasetId) -> HeadView:
        """The head with the state that it names: between two reads Redis may go on, or forget."""
        for _ in range(protocol.MAX_ROUNDS):
            head = self._index.head(log)
            if (view := self._view(log, head)) is not None:
                return view
        raise Reconciling("the head does not stand still", of=log, hint="Is Redis restarting again and again?")

    def heads(self, logs: Sequence[DatasetId]) -> list[HeadView | BrokerError]:
        """`head` of each, in one round trip where nobody moves."""
        return [self._seen(log, head) for log, head in zip(logs, self._index.heads(logs), strict=True)]

    def views(self, heads: Mapping[DatasetId, Head | BrokerError]) -> dict[DatasetId, HeadView]:
        """Those of heads that were looked at whose states are known, and stand still."""
        seen = ((log, self._seen(log, head)) for log, head in heads.items())
        return {log: view for log, view in seen if isinstance(view, HeadView)}

    # --- effects

    def _perform_all(self, runs: Sequence[Run]) -> list[Any]:
        """Of one kind. An answer or a BrokerError for each."""
        logs, effects = [run.log for run in runs], [run.effect for run in runs]
        try:
            match effects[0]:
                case protocol.ReadHead():
                    return self.heads(logs)
                case protocol.Reserve():
                    return self._told("reserve", self._index.reserve_all(list(zip(logs, effects, strict=True)), self._max_age))  # type: ignore[arg-type]
                case protocol.Publish():
                    return self._told("publish", self._publish_all(runs))
                case protocol.Seal() | protocol.ReadLog():
                    return side_by_side(lambda run: self._attempt(run.log, run.effect), runs, STORE_THREADS)
        except BrokerError as error:
            return [error] * len(runs)
        return [self._attempt(run.log, run.effect) for run in runs]

    def _attempt(self, log: DatasetId, effect: Any) -> Any:
        try:
            return self.perform(log, effect)
        except BrokerError as error:
            return error

    def perform(self, log: DatasetId, effect: Effect) -> Any:
        """One effect in the store, or behind the commit."""
        match effect:
            case protocol.Seal(seq=seq, data=data):
                self._sealed.seal(log, seq, data)
                return self._on_step("seal")
            case protocol.ReadLog(seq=seq):
                found = self._sealed.record(log, seq)
                self._on_step("read-back")
                return found
            case protocol.ReadCheckpoint():
                return self._sealed.checkpoint(log)
            case protocol.Install(state=state, adopt=adopt):
                return self._index.install(log, state, adopt or "")
            case protocol.Notify():
                return self._ring(log)
        raise AssertionError(effect)

    def _told(self, step: str, answers: list[T]) -> list[T]:
        for _ in answers:
            self._on_step(step)
        return answers

    @property
    def _max_age(self) -> float:
        return self._settings.upload_max_age_seconds

    # --- reading

    def _seen(self, log: DatasetId, head: Head | BrokerError) -> HeadView | BrokerError:
        if isinstance(head, BrokerError):
            return head
        try:
            return self._view(log, head) or self.head(log)
        except BrokerError as error:
            return error

    def _view(self, log: DatasetId, head: Head) -> HeadView | None:
        """None: it moved meanwhile."""
        state = self._follow(log, head.seq, head.sha)
        if state.seq == head.seq and (state.sha == head.sha or head.seq == 0):
            return HeadView(state, head.current, head.run_id, head.epoch, head.reservation)
        return None

    def _follow(self, log: DatasetId, seq: int, sha: str) -> State:
        """The state whose newest record is `sha`: cached, by following the log, or read from Redis."""
        state = self.cache.get(log)
        if seq == 0:
            return State(log)
        if state is not None and state.sha == sha:
            return state
        if state is not None and 0 < seq - state.seq <= FOLLOW_RECORDS:
            for number in range(state.seq + 1, seq + 1):
                data = self._sealed.record(log, number)
                if data is None or record_and_patch(data, f"{log} log {number}")[0].previous != state.sha:
                    return self._remember(self._index.load(log))
                state = fold(state, data)
            return self._remember(state)
        return self._remember(self._index.load(log))

    def _remember(self, state: State) -> State:
        with self._lock:
            known = self.cache.get(id := log_id(state.dataset))
            if known is None or known.seq <= state.seq or known.session != state.session:
                self.cache[id] = state
        return state

    # --- publishing

    def _publish_all(self, runs: Sequence[Run]) -> list[PublishAnswer | BrokerError]:
        moves = [self._move(run.log, run.effect) for run in runs]  # type: ignore[arg-type]
        good = [move for move in moves if isinstance(move, Move)]
        answers = iter(self._index.publish_all(good))
        return [move if isinstance(move, BrokerError) else self._published(move, next(answers)) for move in moves]

    def _move(self, log: DatasetId, effect: protocol.Publish) -> Move | BrokerError:
        try:
            record, patch = record_and_patch(effect.data, f"{log} log {effect.seq}")
        except Corrupt as error:
            return error
        if record.seq != effect.seq:
            why = f"it says {record.seq}"
            return Corrupt("a commit record lies under another number", of=f"{log} log {effect.seq}", why=why)
        barrier = record.body.run_id if record.body.kind == "barrier" else ""
        events, history_ms = events_of(log, record), self._settings.history_seconds * 1000
        return Move(log, record.seq, record.previous, patch, barrier, events, history_ms)

    def _published(self, move: Move, answer: PublishAnswer | BrokerError) -> PublishAnswer | BrokerError:
        """Whoever published knows the state that follows, without reading it."""
        known = self.cache.get(move.log)
        fits = known is not None and (known.seq, known.sha) == (move.seq - 1, move.previous)
        if isinstance(answer, PublishAnswer) and answer.kind == "published" and known is not None and fits:
            self._remember(after(known, move.patch))
        return answer

"""The protocol with one safeguard off: the measure of the simulator is that each of these turns the checker red."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import Any

from broker.model.commit import Barrier, parse_record
from broker.rules.publishing import Lease, ReadHead, ReadLog, Reserve, Seal
from tests.simulator.choices import Choices
from tests.simulator.plan import Plan, plan_of
from tests.simulator.programs import Doing
from tests.simulator.redis_model import ModelRedis
from tests.simulator.store_model import ModelStore
from tests.simulator.world import Again, Process, World


class Mutation(StrEnum):
    """Which safeguard is off."""

    FENCE = "fence check"
    PUT_IF_ABSENT = "put-if-absent"
    READ_BACK = "read-back"
    EXPECTED_HEAD = "expected head"
    BARRIER = "barrier"
    RUN_ID = "in-script run id"
    ONE_VIEW = "head and tables of one moment"


class _Unfenced(ModelRedis):
    def holds(self, lease: Lease) -> bool:
        """Whoever once held the lease may write."""
        del lease
        return True


class _Headless(ModelRedis):
    def head_expected(self, wish: Reserve) -> bool:
        """A reservation is made whatever the head, and over an open one."""
        del wish
        return True


class _Forgetful(ModelRedis):
    def incarnation(self) -> tuple[str, str]:
        """What is stored is believed: the scripts do not ask the server who it is."""
        known = self.db.get("meta", {})
        return (known["identity"], known["epoch"]) if known else self._first()

    def _first(self) -> tuple[str, str]:
        identity, epoch = super().incarnation()
        self.server.put("meta", identity=identity)
        return identity, epoch


class _Overwriting(ModelStore):
    def put_record(self, seq: int, data: bytes) -> bool:
        """Every write wins."""
        self.log[seq] = data
        return True


class _OwnBytes(World):
    """Each process takes it that what it sealed is what stands there."""

    def _perform(self, process: Process, effect: Doing) -> Any:
        before = process.sealed
        if isinstance(effect, Seal):
            process.sealed = (effect.seq, effect.data)
        elif isinstance(effect, ReadLog) and before is not None and before[0] == effect.seq:
            return before[1]
        return super()._perform(process, effect)


class _Barrierless(World):
    """The projection is declared current once the log was walked, and the log stays open to those who reserved before."""

    def _perform(self, process: Process, effect: Doing) -> Any:
        body = parse_record(effect.data, "seal").body if isinstance(effect, Seal) else None
        if not isinstance(body, Barrier):
            return super()._perform(process, effect)
        before = self.redis.seq
        if self.redis.incarnation()[0] == body.run_id:
            self.redis.server.put(self.redis.head, run_id=body.run_id)
        self.checker.redis_changed(before)
        return None


class _Torn(World):
    """A driver that reads the head, and later the tables, without looking whether they still belong together."""

    def _perform(self, process: Process, effect: Doing) -> Any:
        view = super()._perform(process, effect)
        if not isinstance(effect, ReadHead) or self.calm:
            return view
        if process.glimpse is None:
            process.glimpse = view
            raise Again
        head, process.glimpse = process.glimpse, None
        state = view.state if head.state.seq else head.state
        return replace(head, state=state)


def mutant(
    mutation: Mutation, seed: int, plan: Plan | None = None, choices: list[int] | None = None, traced: bool = False
) -> World:
    """The schedule of a seed under a mutation."""
    plan = plan or plan_of(seed)
    redis = {
        Mutation.FENCE: _Unfenced, Mutation.EXPECTED_HEAD: _Headless, Mutation.RUN_ID: _Forgetful,
    }.get(mutation, ModelRedis)()  # fmt: skip
    store = (_Overwriting if mutation is Mutation.PUT_IF_ABSENT else ModelStore)(plan.conditional)
    kind = {Mutation.READ_BACK: _OwnBytes, Mutation.BARRIER: _Barrierless, Mutation.ONE_VIEW: _Torn}.get(mutation, World)
    return kind(plan, Choices(seed ^ 0x5EED, choices), redis, store, trace=[] if traced else None)

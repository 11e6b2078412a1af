"""The change log and channels with one safeguard off: the measure of their worlds is that each of these turns a checker red."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from broker import channels
from broker.bell_notices import Notices
from broker.catalog import Catalog
from broker.changelog_delivery import Numbering
from broker.channels import Channels
from broker.model.commit import Announce
from broker.rules import announcing, batching
from broker.rules.announcing import Wish
from broker.rules.batching import Batch, epoch_of
from broker.rules.fold import State
from broker.rules.publishing import Lease
from tests.simulator.channel_world import ChannelWorld, channel_plan_of
from tests.simulator.choices import Choices
from tests.simulator.log_world import LogScriptsSeen, LogWorld, log_plan_of
from tests.simulator.programs import Job
from tests.simulator.redis_model import ModelRedis
from tests.simulator.store_model import ModelStore


class ProductMutation(StrEnum):
    """Which safeguard is off."""

    SOURCE = "source compare"
    EPOCH = "epoch of batches"
    MARKS = "producer marks"
    SEALED_MARKS = "sealed marks"
    FLOOR = "floor of ids"
    LOOK = "log opened for the incarnation looked at"
    TRIM = "trim up to what is consumed"
    BROUGHT_BACK = "blocks of a failed call brought back"
    COMPARE = "compare-and-set of channels"
    LEASE = "lease on what stays"
    FINISHED = "reservations finished before deciding"
    PINS = "retention asks channels"
    REREAD = "notify re-read"


class _Everything(LogScriptsSeen):
    def drops(self) -> bool:
        """Every block is taken."""
        return False


class _Unlearned(LogScriptsSeen):
    def learns(self) -> bool:
        """A log opened after a loss knows nothing of what versions hold."""
        return False


class _Present(LogScriptsSeen):
    def floor_ms(self, margin: int, consumed: str, newest: str) -> int:
        """A log opened after a loss begins with ids of the present."""
        del margin, consumed, newest
        return 0


class _Hasty(LogScriptsSeen):
    def looks(self) -> bool:
        """A log opens for whoever asks, whatever was lost since it looked."""
        return False


class _Greedy(LogScriptsSeen):
    def trim(self, keys: list[str], args: list[str]) -> int:
        """Everything goes."""
        newest = next(reversed(self.entries(keys[1])), args[1])
        return super().trim(keys, [args[0], newest, *args[2:]])


class _Lawless(ModelRedis):
    def acquire(self, name: str, owner: str, seconds: float) -> Lease | None:
        """A lease keeps nobody out."""
        self.server.put(f"lease:{name}", owner=owner, epoch="0", until="0")
        return super().acquire(name, owner, seconds)

    def holds(self, lease: Lease) -> bool:
        del lease
        return True


def _fits_anywhere(state: State, batch: Batch) -> bool:
    return (batch.session, batch.epoch) == (state.session, epoch_of(state))


def _fits_any_epoch(state: State, batch: Batch) -> bool:
    return batch.source.after == state.consumed(batch.slot) and batch.session == state.session


def _moved_anyway(state: State, wish: Wish) -> Announce | None:
    return announcing.moved(state, replace(wish, expect={}))


def _written_once(self: Notices, states: Any) -> set[Any]:
    del self, states
    return set()


def _no_pins(self: Channels, dataset: Any) -> dict[str, list[int]]:
    del self, dataset
    return {}


def _not_again(self: Numbering, block: Any, deadline: float) -> None:
    del self, block, deadline


class _Off(NamedTuple):
    """What stands in place of a safeguard. `patches`: (owner, name, instead). `plan`: what else is to be in a plan, where
    other things drown it; `first`: the seed to begin with. `breaks`: the promises that fall."""

    patches: Sequence[tuple[Any, str, Any]] = ()
    scripts: type[LogScriptsSeen] = LogScriptsSeen
    redis: type[ModelRedis] = ModelRedis
    plan: Mapping[str, Any] = MappingProxyType({})
    first: int = 0
    breaks: frozenset[str] = frozenset({"P5"})


def _lossy(*faults: str) -> dict[str, Any]:
    return {"faults": faults, "fault_rate": 0.04, "nap_rate": 0.8, "network_rate": 0.0, "stormy_steps": 300}


_CALM: Final[dict[str, Any]] = {"faults": (), "network_rate": 0.0, "nap_rate": 0.0, "helpers": ("retention",)}
_ASLEEP: Final[dict[str, Any]] = {
    "jobs": (Job("promoter0", "promote"),), "faults": (), "network_rate": 0.0, "nap_rate": 0.6, "stormy_steps": 400,
    "helpers": ("retention", "retention2"),
}  # fmt: skip
_M: Final = ProductMutation
LOG: Final = {
    _M.SOURCE: _Off([(batching, "fits", _fits_anywhere)]),
    _M.EPOCH: _Off([(batching, "fits", _fits_any_epoch)], plan=_lossy("rollback", "wipe")),
    _M.MARKS: _Off(scripts=_Everything),
    _M.SEALED_MARKS: _Off(scripts=_Unlearned, plan=_lossy("rollback", "wipe")),
    _M.FLOOR: _Off(scripts=_Present, plan=_lossy("wipe", "rollback")),
    _M.LOOK: _Off(scripts=_Hasty, plan=_lossy("flush", "wipe"), first=1_160),
    _M.TRIM: _Off(scripts=_Greedy),
    _M.BROUGHT_BACK: _Off(
        [(Numbering, "_bring_back", _not_again)], plan=_lossy("rollback", "wipe"), breaks=frozenset({"P5", "liveness"})
    ),
}
CHANNELS: Final = {
    _M.COMPARE: _Off([(channels, "moved", _moved_anyway)], breaks=frozenset({"compare-and-set"})),
    _M.LEASE: _Off(redis=_Lawless, breaks=frozenset({"P3", "P10"})),
    _M.FINISHED: _Off(
        [(Catalog, "finished", lambda self, dataset, *_: self.known(dataset))], plan=_ASLEEP, breaks=frozenset({"P10"})
    ),
    _M.PINS: _Off([(Channels, "pins", _no_pins)], breaks=frozenset({"P10"})),
    _M.REREAD: _Off([(Notices, "_moved", _written_once)], plan=_CALM, breaks=frozenset({"notify"})),
}
OFF: Final = {**LOG, **CHANNELS}


@contextmanager
def off(patches: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    kept = [(owner, name, vars(owner)[name]) for owner, name, _ in patches]
    for owner, name, instead in patches:
        setattr(owner, name, instead)
    try:
        yield
    finally:
        for owner, name, real in kept:
            setattr(owner, name, real)


class MutantLog(LogWorld):
    patches: Sequence[tuple[Any, str, Any]]

    def run(self) -> None:
        with off(self.patches):
            super().run()


class MutantChannels(ChannelWorld):
    patches: Sequence[tuple[Any, str, Any]]

    def run(self) -> None:
        with off(self.patches):
            super().run()


def product_mutant(mutation: ProductMutation | None, seed: int, like: ProductMutation | None = None) -> LogWorld | ChannelWorld:
    """The schedule of a seed under a mutation; None: with all safeguards, in the plan of another."""
    plan = OFF[mutation or like or _M.SOURCE].plan
    found = OFF[mutation] if mutation else _Off()
    if (mutation or like) in LOG:
        log = MutantLog(replace(log_plan_of(seed), **plan), Choices(seed ^ 0x106), found.redis(), ModelStore())
        log.patches = found.patches
        log.use(found.scripts)
        return log
    moved = MutantChannels(replace(channel_plan_of(seed), **plan), Choices(seed ^ 0xCAFE), found.redis(), ModelStore())
    moved.patches = found.patches
    return moved

"""The ledger of channels: named pointers to versions, moved by announcements. The only writer of their logs.

An announcement is one record of the log `tenant/domain/=channels`, published like a version: whole or not at all, for one
dataset or for several. No data moves. A version is announced only while a road leads to it, and retention cannot take that
away meanwhile: both say what stays under one lease.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final
from uuid import uuid4

from broker.backend.index import Index
from broker.backend.keys import retention_lease
from broker.backend.leases import Leases
from broker.bell_notices import of_dataset
from broker.catalog import Catalog
from broker.errors import Busy, InvalidName, InvalidRequest, NotFound, OutcomeUnknown, StaleBase, Transient
from broker.model.commit import Announce, Body, Point, Why, checked_version, parse_record
from broker.model.names import LIVE, ChannelsId, DatasetId, check_name
from broker.rules.announcing import Wish, moved, moved_back, standing_of
from broker.rules.fold import State
from broker.rules.hearing import Pointer as Present
from broker.rules.patch import Named
from broker.rules.plan import EVERYTHING, plan_for
from broker.rules.publishing import HeadView, Lease

WAIT_SECONDS: Final = 0.002
"""Between two tries for the lease: who holds it needs a few round trips."""
Datasets = Mapping[str, State]
"""By name."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """What one channel names of one dataset."""

    dataset: DatasetId
    channel: str
    named: Named


@dataclass(slots=True)
class _Alone:
    """A lease, and what was seen when it was taken. `reserves`: the last step was a reservation, which gives the lease back."""

    lease: Lease
    seen: dict[DatasetId, HeadView] = field(default_factory=dict)
    reserves: bool = False


class Channels:
    """Safe for threads and processes."""

    def __init__(self, catalog: Catalog, index: Index, leases: Leases) -> None:
        self._catalog, self._index, self._leases = catalog, index, leases

    # --- reading

    def named(self, dataset: DatasetId) -> dict[str, Named]:
        """What each channel names of a dataset; `live`, which follows every version, is not among them."""
        return of_dataset(self._catalog.known(ChannelsId.of(dataset)), dataset)

    def pointers(self, dataset: DatasetId) -> dict[str, Present]:
        """As `named`, for those who listen."""
        named = self.named(dataset)
        return {channel: Present(at.version, at.session, at.seq, at.time) for channel, at in named.items()}

    def at(self, dataset: DatasetId, channel: str) -> Named | None:
        """What a channel names of a dataset; None: nothing yet."""
        return self._catalog.known(ChannelsId.of(dataset)).channels.get((dataset.name, channel))

    def released(self, domain: str, channel: str) -> dict[str, int]:
        """What a channel names of all datasets of `tenant/domain`, at one moment: dataset name -> version."""
        channels = self._catalog.known(ChannelsId(domain)).channels
        return {name: named.version for (name, known), named in channels.items() if known == channel}

    def pins(self, dataset: DatasetId) -> dict[str, list[int]]:
        """What retention keeps readable: by channel, the version it names, then those that a rollback or its undoing needs."""
        found = dict[str, list[int]]()
        channels = self._catalog.finished(ChannelsId.of(dataset))
        for channel, named in of_dataset(channels, dataset).items():
            points = (named.point, *([named.left] if named.left else []), *named.past)
            found[f"channel {channel}"] = [point.version for point in points]
        return found

    def find(self, pattern: str = "*") -> list[Pointer]:
        """All that channels name of datasets whose id matches a glob. After a loss of Redis: of logs touched or rebuilt."""
        found = list[Pointer]()
        for slot in self._index.slots():
            for log in self._index.announced(slot):
                for (name, channel), named in self._catalog.known(log).channels.items():
                    found.append(Pointer(log.dataset(name), channel, named))
        return sorted((p for p in found if fnmatchcase(p.dataset, pattern)), key=lambda p: (p.dataset, p.channel))

    # --- writing

    def promote(self, dataset: DatasetId, version: int, to: str, expect: int | None = None) -> int:
        """Make channel `to` name a version; the number of the announcement that says so. Named already: nothing is written.

        `expect`: the version it must name until then, 0: none yet; None: whatever it names.
        Raises Conflict (it is elsewhere), NotFound (no such version, or no road leads to it), InvalidName, Busy, Fenced.
        """
        expected = {} if expect is None else {dataset.name: expect}
        return self._move(ChannelsId.of(dataset), {dataset.name: version}, (_movable(to), "promoted"), expected)

    def release(
        self, domain: str, versions: Mapping[str, int], to: str, expect: Mapping[str, int] | None = None
    ) -> int:  # fmt: skip
        """Make channel `to` name versions of several datasets of `tenant/domain` at one moment, all or nothing.

        Returns and raises as `promote`; a dataset missing in `expect` may be anywhere.
        """
        unknown = sorted(set(expect or {}) - set(versions))
        if not versions or unknown:
            why = f"expected and not released: {', '.join(unknown)}" if unknown else "no dataset is named"
            raise InvalidRequest("not a release", of=domain, why=why, hint="Name each dataset with its version")
        return self._move(ChannelsId(domain), versions, (_movable(to), "released"), expect or {})

    def rollback(self, dataset: DatasetId, channel: str, expect: int | None = None) -> int:
        """Make a channel name again what it named before; the number of the announcement. Again: what it named before that.

        `expect`: the version to leave, so that the same call, repeated, leaves it once. Raises as `promote`, and NotFound
        where the channel names nothing, Conflict where it named nothing before.
        """
        log, channel = ChannelsId.of(dataset), _movable(channel)
        start = self._start(log, dataset.name, channel, expect)
        try:
            return self._announce(
                log, channel, [dataset.name], lambda state, _: moved_back(state, dataset.name, channel, start)
            )
        except OutcomeUnknown as error:
            hint = f"Do the same again with expect={start.version}: it finds out"
            raise OutcomeUnknown(error.what, of=error.of, why=error.why, hint=hint) from error

    def _start(self, log: ChannelsId, name: str, channel: str, expect: int | None) -> Point:
        """Where a rollback begins: where the channel is, or was when it left the version expected."""
        standing = standing_of(self._catalog.known(log), name, channel)
        if standing.left and standing.left.version == expect:
            return standing.left
        return standing.point if expect is None else Point(expect, standing.session)

    def _move(
        self, log: ChannelsId, versions: Mapping[str, int], how: tuple[str, Why], expect: Mapping[str, int]
    ) -> int:  # fmt: skip
        channel, why = how
        wanted = {name: checked_version(version) for name, version in versions.items()}

        def decide(state: State, datasets: Datasets) -> Announce | None:
            targets = {name: Point(version, datasets[name].session) for name, version in wanted.items()}
            return moved(state, Wish(channel, targets, expect, why))

        return self._announce(log, channel, list(versions), decide)

    def _announce(
        self, log: ChannelsId, channel: str, of: Sequence[str], decide: Callable[[State, Datasets], Announce | None]
    ) -> int:  # fmt: skip
        """Commit what `decide` answers for the head. -> number of the announcement: its own, or the one that stands."""
        with suppress(StaleBase):  # the log went on under a reservation that the index has lost
            return self._announced(log, channel, of, decide)
        return self._announced(log, channel, of, decide)

    def _announced(
        self, log: ChannelsId, channel: str, of: Sequence[str], decide: Callable[[State, Datasets], Announce | None]
    ) -> int:  # fmt: skip
        """One try at it. Raises StaleBase."""
        offered: list[tuple[int, Announce]] = []
        with self._alone([log, *map(log.dataset, of)]) as held:

            def body(state: State) -> Body | None:
                held.reserves = False
                if offered and self._landed(log, state, *offered[0]):
                    return None
                offered.clear()
                datasets = {name: self._finished(log.dataset(name), held) for name in of}
                found = decide(state, datasets)
                if found is not None:
                    for name, move in found.moves.items():
                        check_offered(datasets[name], move.point)
                    offered.append((state.seq + 1, found))
                    held.reserves = True
                return found

            state = self._catalog.announce(log, body, held.lease, held.seen.pop(log, None))
        return offered[0][0] if offered else max(state.channels[name, channel].seq for name in of)

    def _finished(self, dataset: DatasetId, held: _Alone) -> State:
        return self._catalog.finished(dataset, held.seen.pop(dataset, None))

    def _landed(self, log: ChannelsId, state: State, seq: int, body: Announce) -> bool:
        """Whether the log holds what was offered for `seq`, though somebody may have moved the channel since."""
        if state.seq < seq:
            return False
        stand = [state.channels.get((name, body.channel)) for name in body.moves]
        if [(named.seq, named.point) for named in stand if named] == [(seq, move.point) for move in body.moves.values()]:
            return True
        data = next(iter(self._catalog.records(log, seq)), None)
        return data is not None and parse_record(data, f"{log} log {seq}").body == body

    @contextmanager
    def _alone(self, logs: Sequence[DatasetId]) -> Iterator[_Alone]:
        """The lease of announcements and retention, with a look at logs of one tenant's domain, the announcements' first.

        Waits for another announcement, or a pass of retention, for as long as a lease lasts. Raises Busy.
        """
        slot, name, until = self._index.slot(logs[0]), retention_lease(logs[0]), time.monotonic() + self._leases.lease_seconds
        owner = uuid4().hex
        while True:
            try:
                lease, heads = self._leases.acquire_looking(slot, name, owner, logs)
                break
            except Busy:
                if time.monotonic() >= until:
                    raise
                time.sleep(WAIT_SECONDS)
        held = _Alone(lease)
        try:
            held.seen |= self._catalog.views(heads)
            yield held
        except BaseException:
            held.reserves = False
            raise
        finally:
            if not held.reserves:
                with suppress(Transient):  # it lapses by itself
                    self._leases.release(slot, lease)


def check_offered(state: State, point: Point) -> None:
    """Raises NotFound unless the version is there, in its dataset's present session, and can be reached from nothing."""
    of = f"{state.dataset} version {point.version}"
    state.info(point.version)
    if point.session != state.session:
        raise NotFound(
            "the version is of a session that is over", of=of, why="the dataset was made anew, or its schema broke",
            hint="Promote a version of the present session",
        )  # fmt: skip
    try:
        plan_for(state, None, EVERYTHING, point.version)
    except NotFound as error:
        raise NotFound(error.what, of=of, why=error.why, hint="Promote a newer one") from None


def _movable(channel: str) -> str:
    if channel == LIVE:
        raise InvalidName(
            "not a channel to move",
            of=channel,
            why="it follows every version by itself",
            hint="Use another: staging, production",
        )
    return check_name(channel, "channel")

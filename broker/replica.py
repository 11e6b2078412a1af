"""The read half: a named cursor, and a sink whose rows and cursor move in one transaction."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from threading import Event
from typing import Any, Final
from uuid import uuid4

from broker.backend.keys import replica_lease
from broker.columnar.digest import ContentDigest
from broker.columnar.types import schema_of
from broker.cursors import LiveCursor, Receipt
from broker.errors import Corrupt, Fenced, NotFound, StaleBase, Transient
from broker.model.event import ReplicaReset
from broker.model.names import check_name
from broker.model.request import Cursor, ResetReason, Selection
from broker.receipts import Amends, content_of, receipt_of
from broker.repairs import Ask
from broker.replica_followed import Followed, Means
from broker.replica_following import Follower, Following
from broker.replica_following import nothing as unheard
from broker.replica_repair import Comparison, Repaired
from broker.rules.correlation import correlation_of, line
from broker.rules.fold import State
from broker.rules.following import Lag, Latest, Policy, lag_of, next_version, proof_due
from broker.rules.plan import Plan, plan, plan_for, reset_of
from broker.rules.publishing import Lease
from broker.rules.steps import OnStep, nothing
from broker.sinks.port import Applied, Batch, Sink, SinkCursor, taken

log = logging.getLogger("broker.replica")
LATEST: Final = Latest()
STEPS: Final = ("planned", "fetched", "applied")
"""The named steps of a sync, in order: tests crash at each. A sink has its own inside `applied`."""
POLL_SECONDS: Final = 0.05
PROOF_ROWS: Final = 250_000
"""A sync that brings more proves nothing: the scan behind it would take longer than the sync. `digest()` does on demand."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one sync did. `mode`: applied | up-to-date | nothing-yet (the dataset has no version).

    `correlation`: what made the version applied, as log lines and events name it (rules/correlation.py).
    """

    mode: str
    version: int
    edges: int = 0
    rows: int = 0
    upserts: int = 0
    deletes: int = 0
    bytes: int = 0
    reset: ResetReason | None = None
    seconds: float = 0.0
    correlation: str = ""


@dataclass(frozen=True, slots=True)
class Preloaded:
    """What lies ready on this machine: the road to `version` (0: the channel names none)."""

    channel: str
    version: int
    edges: int = 0
    files: int = 0
    bytes: int = 0


class Replica:
    """An exact copy of a dataset, or of a selection of it. Of two processes with one name one has the lease, one Busy."""

    def __init__(
        self, means: Means, followed: Followed, name: str, sink: Sink, selection: Selection, on_step: OnStep = nothing
    ) -> None:
        self._means, self._followed = means, followed
        self._catalog, self._engine, self._leases = means.catalog, means.engine, means.leases
        self.dataset, self.channel = followed.dataset, followed.channel
        self.name, self.sink, self.selection = check_name(name, "replica"), sink, selection
        self._owner, self._on_step, self._woken = uuid4().hex, on_step, Event()

    @property
    def cursor(self) -> SinkCursor | None:
        """Where the sink stands."""
        return self.sink.cursor(self.name)

    def sync(self, timeout: float = 0.0) -> Report:
        """Bring the sink to the newest version, or to what its channel names: plan, fetch, verify, apply.

        Waits up to `timeout` seconds for something new. A channel that went back is a reset, `rolled-back`.

        A damaged file is fetched once more, then left aside for another road, with a reset `corrupt` where that starts anew.
        Raises Busy (held by another process, or the sink is locked), Fenced, Corrupt, Unavailable; the sink is whole always.
        """
        return self._sync(timeout, Latest())

    def follow(self, policy: Policy = LATEST, told: Callable[[Report], object] = unheard, stop: Event | None = None) -> None:
        """Sync whenever an event tells of something new, until `stop` is set, or SIGINT or SIGTERM comes (in the main thread).

        `told` gets each sync that applied something. What passes by itself (Redis or the store silent, the replica held by
        another process) is waited for; what does not is raised: Corrupt, Conflict, ... The sync under way ends first.
        """
        followed = Follower(self._means.events, self.dataset, lambda: self._sync(0.0, policy), self.name)
        followed.run(policy, told, stop or Event())

    def following(self, policy: Policy = LATEST, told: Callable[[Report], object] = unheard) -> Following:
        """As `follow`, in a thread of its own: stop it by the handle, also a context manager."""
        return Following(lambda stop: self.follow(policy, told, stop), f"replica {self.name}")

    def lag(self) -> Lag:
        """How far the sink is behind the newest version, or behind what its channel names. Raises NotFound, Unavailable."""
        (state, goal), held = self._followed.goal(), self.sink.cursor(self.name)
        fits = held is not None and reset_of(state, _cursor_of(held), self.selection) is None
        return lag_of(state, held.version if held and fits else 0, goal, time.time())

    def digest(self) -> ContentDigest:
        """The content digest of the sink's rows. Raises NotFound before the first sync."""
        return content_of(self._engine, self.sink, self._catalog.state(self.dataset).spec.key)

    def repair(self, timeout: float = 30.0) -> Repaired:
        """Compare the sink with the version it holds, and bring back the rows that differ, in one transaction.

        Only key buckets that differ are fetched, where a worker (`--role compact`, or any that takes care) tells which they are
        and lays them out, within `timeout` seconds for either; else the version's whole road is read. Raises NotFound (nothing
        held that is still readable: sync instead), Busy, Fenced, Corrupt, Unavailable; the sink is whole always.
        """
        with self._leases.held(self._catalog.slot(self.dataset), replica_lease(self.dataset, self.name), self._owner) as lease:
            state, held = self._catalog.state(self.dataset), self.sink.cursor(self.name)
            if held is None or not held.version or reset_of(state, _cursor_of(held), self.selection):
                raise NotFound("nothing to repair", of=f"{self.dataset}: {self.name}", why="a sync starts anew", hint="Sync it")
            seen, found = self.selection, content_of(self._engine, self.sink, state.spec.key)
            ask = Ask(
                dataset=self.dataset, replica=self.name, version=held.version, where=seen.where, columns=seen.columns
            )  # fmt: skip
            look = Comparison(self._means, ask, timeout)
            right = look.right()
            wrong, done = found.differing(right), Applied()
            if wrong:
                done = self._mend(lease, state, held, look.amends(self.sink.read(), right, wrong))
            self._report(held, receipt_of(self.digest() if wrong else found, held.version))
            return Repaired(held.version, wrong, done.upserts, done.deletes, look.bytes)

    def _mend(self, lease: Lease, state: State, held: SinkCursor, mended: Amends) -> Applied:
        fence = (lease.fence.epoch, lease.fence.counter)
        self.sink.take(self.name, held, fence)
        batch = Batch(
            spec=state.spec, schema=schema_of(mended.upserts.schema), replace=False, upserts=mended.upserts.to_reader(),
            deletes=mended.deletes.to_reader(), repair=True,
        )  # fmt: skip
        return self.sink.apply(self.name, batch, expect=taken(held, fence), to=replace(held, fence=fence))

    def _sync(self, timeout: float, policy: Policy) -> Report:
        begun = time.monotonic()
        held = self.sink.cursor(self.name)
        state, want = self._wait(held, begun + timeout)
        if not self._behind(state, want, held):
            mode = "up-to-date" if want else "nothing-yet"
            self._renew(held)
            return Report(mode, held.version if held else 0, seconds=time.monotonic() - begun)
        with self._leases.held(self._catalog.slot(self.dataset), replica_lease(self.dataset, self.name), self._owner) as lease:
            return self._apply((lease.fence.epoch, lease.fence.counter), begun, policy, held)

    def wake(self) -> None:
        """Let a `sync` that waits in another thread look at once: an event said that there is something new."""
        self._woken.set()

    def preload(self, channel: str) -> Preloaded:
        """Fetch and verify what leads from here to what another channel names, so that the switch needs the store no more.

        `live`: the newest version. The files stay on this machine's disk for as long as this process lives, up to the bound of
        its cache. Raises Corrupt, NotFound, InvalidName, Unavailable.
        """
        state, want = replace(self._followed, channel=check_name(channel, "channel")).look()
        if not want:
            return Preloaded(channel, 0)
        found = plan_for(state, _cursor_of(self.sink.cursor(self.name)), self.selection, want)
        files = [file for edge in found.edges for file in edge.files]
        for file in files:
            self._engine.fetch(file)
        return Preloaded(channel, want, len(found.edges), len(files), found.bytes)

    def _wait(self, held: SinkCursor | None, until: float) -> tuple[State, int]:
        """The state and the version wanted: one that `held` is not at, if it comes before `until` (monotonic seconds)."""
        while True:
            (state, want), left = self._followed.look(), until - time.monotonic()
            if left <= 0 or self._behind(state, want, held):
                return state, want
            self._woken.wait(min(POLL_SECONDS, left))
            self._woken.clear()

    def _behind(self, state: State, want: int, held: SinkCursor | None) -> bool:
        """Whether there is something to apply. A session without a version has nothing yet, whatever an older one had."""
        if held is None or not want:
            return bool(want)
        wanted = (want, state.session, self.selection.fingerprint)
        return (held.version, held.session, held.selection) != wanted

    def _apply(self, fence: tuple[int, int], begun: float, policy: Policy, held: SinkCursor | None) -> Report:
        """The sink compares its cursor with `held`, which others may have moved while this process waited for the lease."""
        try:
            return self._applied(fence, begun, policy, held)
        except (StaleBase, Fenced):
            now = self.sink.cursor(self.name)
            if now == held or now is None or now.fence > fence:  # nobody moved it, or it went to somebody else
                raise
            return self._applied(fence, begun, policy, now)

    def _applied(self, fence: tuple[int, int], begun: float, policy: Policy, held: SinkCursor | None) -> Report:
        state, want = self._followed.look()
        if not want:  # the session ended meanwhile
            return Report("nothing-yet", held.version if held else 0, seconds=time.monotonic() - begun)
        found = self._plan(state, want, held, policy)
        self._on_step("planned")
        if found.mode == "unchanged":  # another process was quicker
            return Report("up-to-date", found.version, seconds=time.monotonic() - begun)
        found, batch = self._fetched(state, found)
        self._on_step("fetched")
        to = SinkCursor(self.dataset, found.version, state.session, self.selection.fingerprint, fence)
        applied = self.sink.apply(self.name, batch, expect=held, to=to)
        self._on_step("applied")
        log.debug("applied", extra=line(state, found.version, replica=self.name, rows=applied.rows))
        self._tell(held, to, found)
        return Report(
            "applied", found.version, len(found.edges), applied.rows, applied.upserts, applied.deletes, found.bytes,
            found.reset, time.monotonic() - begun, correlation_of(state, found.version),
        )  # fmt: skip

    def _plan(self, state: State, want: int, held: SinkCursor | None, policy: Policy) -> Plan:
        cursor = _cursor_of(held)
        at = None if reset_of(state, cursor, self.selection) or cursor is None else cursor.version
        try:
            return plan_for(state, cursor, self.selection, next_version(policy, state, at, want))
        except NotFound:  # no road leads to the one that was next: the one wanted has one
            return plan_for(state, cursor, self.selection, want)

    # --- what the broker is told behind a sync: it decides nothing here, so its silence harms nothing

    def _tell(self, before: SinkCursor | None, to: SinkCursor, found: Plan) -> None:
        held = before.version if before is not None and before.version and found.reset is None else None
        try:
            receipt = None
            small = sum(edge.rows for edge in found.edges) <= PROOF_ROWS
            if small and proof_due(held, to.version, self._means.digest_every, snapshot=found.base is None):
                receipt = receipt_of(self.digest(), to.version)
            self._report(to, receipt)
            if found.reset and before is not None:
                data = ReplicaReset(
                    replica=self.name, reason=found.reset, held=before.version, version=to.version, channel=self.channel,
                )  # fmt: skip
                self._means.events.emit(self.dataset, "broker.replica.reset", data)
        except Transient as error:
            log.warning("%s: replica %s at version %d is not reported: %s", self.dataset, self.name, to.version, error)

    def _renew(self, held: SinkCursor | None) -> None:
        if held is None or not held.version:
            return
        try:
            if not self._means.cursors.renew(self.dataset, self.name, held.version):
                self._report(held, None)
        except Transient as error:
            log.debug("%s: the cursor of replica %s is not renewed: %s", self.dataset, self.name, error)

    def _report(self, at: SinkCursor, receipt: Receipt | None) -> None:
        seen, known = self.selection, (at.version, at.session, at.selection)
        cursor = LiveCursor(
            name=self.name, version=known[0], session=known[1], selection=known[2], where=seen.where, columns=seen.columns,
            channel=self.channel, receipt=receipt,
        )  # fmt: skip
        self._means.cursors.report(self.dataset, cursor)

    def _fetched(self, state: State, found: Plan) -> tuple[Plan, Batch]:
        """Verified data, and the plan it follows: another one where files of this one are damaged or gone."""
        damaged: set[str] = set()
        while True:
            try:
                return found, self._batch_or_again(state, found)
            except (Corrupt, NotFound) as error:
                if error.of in damaged:
                    raise
                damaged.add(error.of)
                detour = around(state, found, damaged)
                if detour is None:
                    raise
                found = detour

    def _batch_or_again(self, state: State, found: Plan) -> Batch:
        try:
            return self._batch(state, found)
        except Corrupt:  # perhaps only on its way: the second copy decides
            return self._batch(state, found)

    def _batch(self, state: State, found: Plan) -> Batch:
        spec = state.spec
        if spec.columns is None:
            raise NotFound("the dataset has no schema yet", of=self.dataset)
        if found.mode == "delta":
            upserts, deletes = self._engine.changes(spec, found.edges, self.selection)
            return Batch(
                spec=spec, schema=schema_of(upserts.schema), replace=False, upserts=upserts, deletes=deletes,
                since=state.left_at(found.base or 0),
            )  # fmt: skip
        rows = self._engine.read(spec, found.edges, self.selection)
        dead = self._engine.tombstones(spec, found.edges, self.selection)
        files = self._plain_files(found)
        return Batch(spec=spec, schema=schema_of(rows.schema), replace=True, rows=rows, tombstones=dead, files=files)

    def _plain_files(self, found: Plan) -> list[Any]:
        """Verified local files that hold exactly the rows wanted: one snapshot, whole, of the present schema."""
        if len(found.edges) != 1 or not self.selection.everything:
            return []
        return [self._engine.fetch(file) for file in found.edges[0].of_role("rows")]


def around(state: State, found: Plan, damaged: Collection[str]) -> Plan | None:
    """Another road to the plan's version, past all edges with a file (store key) in `damaged`; None when there is none."""
    whole = [edge for edge in state.edges if not any(file.key in damaged for file in edge.files)]
    if len(whole) == len(state.edges):
        return None
    try:
        other = plan(whole, found.base, found.version, over=state.leads_over)
    except NotFound:
        return None
    lost = found.base is not None and other.base is None
    return replace(other, reset=found.reset or ("corrupt" if lost else None))


def _cursor_of(held: SinkCursor | None) -> Cursor | None:
    if held is None or held.version == 0:
        return None
    return Cursor(version=held.version, session=held.session, selection=held.selection)

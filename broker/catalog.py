"""The catalog: datasets, their versions and edges. The only writer of commit logs and of their projection in Redis.

What it writes goes through the state machines of rules/publishing.py, which catalog_driver.py drives.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Self
from uuid import uuid4

from broker.backend.index import Head, Index
from broker.backend.keys import Slot
from broker.bell import Bell
from broker.bell_notices import Notices
from broker.catalog_driver import Driver
from broker.columnar.types import canonical
from broker.errors import BrokerError, Reconciling, Transient
from broker.model.commit import Body, Drop
from broker.model.dataset import DatasetSpec, Schema
from broker.model.event import Event, EventType, rfc3339
from broker.model.names import ChannelsId, DatasetId
from broker.rules import publishing as protocol
from broker.rules.contract import altered, guarded, opened
from broker.rules.fold import State
from broker.rules.publishing import Draft, HeadView, Lease
from broker.rules.steps import OnStep, nothing
from broker.sealed import Checked, Sealed
from broker.settings import Settings
from broker.stores.port import ObjectStore

log = logging.getLogger("broker.catalog")


class Moment(NamedTuple):
    """When an upload began, by two clocks: one stands still while the machine sleeps, the other may be set back."""

    monotonic: float
    wall: float

    @classmethod
    def now(cls, ago_seconds: float = 0.0) -> Self:
        return cls(time.monotonic() - ago_seconds, time.time() - ago_seconds)

    @property
    def age_seconds(self) -> float:
        return max(time.monotonic() - self.monotonic, time.time() - self.wall)


class Wanted(NamedTuple):
    """A commit without a lease: `body_for` as of Draft. `uploaded_at`: when the upload began."""

    dataset: DatasetId
    body_for: Callable[[State], Body | None]
    producer: str
    uploaded_at: Moment


class Catalog:
    """Safe for threads. States are immutable and cached by the SHA-256 of their newest record."""

    def __init__(self, index: Index, store: ObjectStore, settings: Settings, on_step: OnStep = nothing) -> None:
        self._index, self._store, self._settings, self._on_step = index, store, settings, on_step
        self._bell, self._sealed = Bell(self._notify_all), Sealed(store)
        self._driver = Driver(index, self._sealed, settings, self._bell.ask, on_step)
        self._notices = Notices(index, store, self._seen, self.known)

    def slot(self, dataset: DatasetId) -> Slot:
        return self._index.slot(dataset)

    def close(self) -> None:
        """Wait for what is still to be written behind commits."""
        self._bell.close()

    # --- reading

    def state(self, dataset: DatasetId) -> State:
        """The dataset as of now. Raises NotFound; a Redis that restarted or lost its memory is brought up to the log first.

        Else a Redis rolled back to an older copy would show versions that are no longer the newest.
        """
        state = self.known(dataset)
        if not state.exists:
            state.spec  # noqa: B018 - raises NotFound with its hint
        return state

    def known(self, dataset: DatasetId) -> State:
        """As `state`, also of a dataset that was dropped or never created, and of a log of announcements."""
        return self._current(dataset).state

    def finished(self, dataset: DatasetId, seen: HeadView | None = None) -> State:
        """As `state`, with nothing left reserved: what was reserved under a lease may come to stand long after the lease.

        Whoever takes such a lease over, and decides by another log than the one it writes, must know of it. `seen`: a look
        that the caller has had. Raises NotFound.
        """
        for _ in range(protocol.MAX_ROUNDS):
            view, seen = seen if seen and seen.current else self._current(dataset), None
            if view.reservation is None:
                if not view.state.exists and not isinstance(dataset, ChannelsId):
                    view.state.spec  # noqa: B018 - raises NotFound with its hint
                return view.state
            self._driver.drive(dataset, protocol.settle(*view.reservation))
        raise Reconciling("others reserve again and again", of=dataset, hint="Use fewer writers at once")

    def _current(self, dataset: DatasetId) -> HeadView:
        for _ in range(protocol.MAX_ROUNDS):  # behind a reconciliation Redis may have lost its memory again
            view = self._driver.head(dataset)
            # An empty log of announcements is adopted by that: it is asked for again and again.
            if view.current or not (view.state.seq or isinstance(dataset, ChannelsId) or self._sealed.exists(dataset)):
                return view
            self.reconcile(dataset)
        raise Reconciling("the index does not come to rest", of=dataset, hint="Is Redis restarting again and again?")

    def views(self, heads: Mapping[DatasetId, Head | BrokerError]) -> dict[DatasetId, HeadView]:
        """What those heads name, where it is known."""
        return self._driver.views(heads)

    def states(self, datasets: Sequence[DatasetId]) -> list[State | BrokerError]:
        """`state` of each, in one round trip, or what it raises."""
        views = self._driver.heads(datasets)
        lost = [log for log, view in zip(datasets, views, strict=True) if isinstance(view, HeadView) and not view.current]
        if lost:  # together, where Redis restarted; what that does not bring up is looked at once more
            self._driver.drive_all([(log, protocol.reconcile()) for log in lost])
            views = self._driver.heads(datasets)
        return [self._existing(*seen) for seen in zip(datasets, views, strict=True)]

    def _existing(self, dataset: DatasetId, view: HeadView | BrokerError) -> State | BrokerError:
        if isinstance(view, HeadView) and view.current and view.state.exists:
            return view.state
        try:
            return self.state(dataset)
        except BrokerError as error:
            return error

    def noted(self, dataset: DatasetId) -> tuple[int, Any]:
        """The newest version offered (0: none) and the producer's note, which productions without a version move too."""
        state = self.state(dataset)
        version, position = self._index.fields(dataset, "version", "position")
        return (int(version or 0), json.loads(position or b"null")) if state.offered else (0, None)

    def at_least(self, dataset: DatasetId, version: int) -> State:
        """A state that knows `version`, for answering at it: without asking anybody where one was seen already."""
        known = self._driver.cache.get(dataset)
        return known if known is not None and known.exists and known.version >= version else self.state(dataset)

    def cached(self, dataset: DatasetId) -> State | None:
        """The newest state this process has seen, without asking anybody."""
        return self._driver.cache.get(dataset)

    def steady(self, datasets: Sequence[DatasetId]) -> set[DatasetId]:
        """Those whose session and spec are still what this process saw last, in one round trip; a version more is no change."""
        names = ("session", "dropped", "spec")
        seen = {dataset: state for dataset in datasets if (state := self.cached(dataset)) is not None and state.exists}
        told = zip(seen.items(), self._index.fields_all(list(seen), *names), strict=True)
        return {
            dataset for (dataset, state), fields in told
            if fields is not None
            and [(field or b"").decode() for field in fields] == [state.head.get(name, "") for name in names]
        }  # fmt: skip

    def find(self, pattern: str = "*") -> list[DatasetId]:
        """Datasets in the index whose id matches a glob, sorted. After a loss of Redis: only those touched or rebuilt since."""
        found = (dataset for slot in self._index.slots() for dataset in self._index.datasets(slot))
        return sorted(dataset for dataset in found if fnmatchcase(dataset, pattern) and self._driver.head(dataset).state.exists)

    def records(self, dataset: DatasetId, first: int = 1) -> Iterator[bytes]:
        """Sealed records from the store, from number `first` on."""
        return self._sealed.records(dataset, first)

    def settled(self, dataset: DatasetId, before: float) -> State:
        """The newest fold that was sealed `before` a time of the store's clock; the empty state where there is none."""
        return self._sealed.checkpoint(dataset, before=before) or State(dataset)

    def sealed_at(self, dataset: DatasetId, seq: int) -> float:
        """When a record was sealed, by the store's clock. Raises NotFound."""
        return self._sealed.sealed_at(dataset, seq)

    # --- writing

    def create(self, spec: DatasetSpec) -> State:
        """Create the dataset, or open the equal one that exists. Raises Conflict that names what differs, SchemaConflict.

        A schema that has grown since fits. Attributes are those of the creation; `tombstone_seconds` counts where it is given.
        """
        spec = spec.model_copy(update={"columns": canonical(spec.columns)}) if spec.columns else spec
        self._index.announce(spec.dataset)
        return self.commit(spec.dataset, lambda state: opened(state, spec, uuid4().hex), producer="create")

    def alter(self, dataset: DatasetId, schema: Schema, force: bool = False, lease: Lease | None = None) -> State:
        """Make `schema` the dataset's: lossless growth keeps the session, anything else is SchemaConflict unless forced."""
        columns, session = canonical(schema), uuid4().hex if force else None
        return self.commit(dataset, lambda state: altered(state, columns, session), "alter", lease)

    def guard(self, dataset: DatasetId, limits: Mapping[str, float | None]) -> State:
        """Other guards for the versions to come; None takes the settings' limit. Raises NotFound, Invalid."""
        return self.commit(dataset, lambda state: guarded(state, limits), "alter")

    def tell(self, dataset: DatasetId, type: EventType, of: str, data: dict[str, Any]) -> None:
        """Post an event that belongs to no record; best effort. `of` makes its id one of its kind."""
        id, source = f"{dataset}/{of}", f"broker/{dataset.domain}"
        event = Event(id=id, source=source, type=type, subject=dataset, time=rfc3339(time.time()), data=data)
        try:
            self._index.tell(dataset, event.model_dump_json(), self._settings.history_seconds)
        except Transient as error:
            log.warning("%s: %s was not told: %s", dataset, type, error)

    def drop(self, dataset: DatasetId) -> State:
        """Its log stays, its edges are no longer offered; created again it has a new session. Raises NotFound."""
        self.state(dataset)
        return self.commit(dataset, lambda state: Drop() if state.exists else None, producer="drop")

    def commit(
        self,
        dataset: DatasetId,
        body_for: Callable[[State], Body | None],
        producer: str,
        lease: Lease | None = None,
        uploaded_at: Moment | None = None,
    ) -> State:
        """Seal and publish what `body_for` answers (see rules.publishing.Draft). `uploaded_at`: when the upload began.

        Raises what the draft raises, Fenced, StaleBase; OutcomeUnknown when Redis or the store fell silent behind the
        reservation: the same commit, tried again, finds out.
        """
        state: State = self._driver.drive(dataset, protocol.commit(_draft(body_for, producer, lease, uploaded_at)))
        return state

    def announce(
        self, channels: ChannelsId, body_for: Callable[[State], Body | None], lease: Lease, seen: HeadView | None
    ) -> State:  # fmt: skip
        """`commit` of an announcement, whose reservation gives the lease back; `seen`: the first look."""
        draft = replace(_draft(body_for, "channels", lease, None), ends_lease=True)
        state: State = self._driver.drive(channels, protocol.commit(draft, seen))
        return state

    def commit_all(self, wanted: Sequence[Wanted]) -> list[State | Exception]:
        """`commit` of different datasets, step by step together: Redis is asked once a step, the store side by side.

        Each stands for itself: its state, or what `commit` would raise.
        """
        drafts = [(one.dataset, _draft(one.body_for, one.producer, None, one.uploaded_at)) for one in wanted]
        return self._driver.drive_all([(dataset, protocol.commit(draft)) for dataset, draft in drafts])

    def reconcile(self, dataset: DatasetId) -> None:
        """Bring the index up to the log after a loss or restart of Redis; nothing to do when it is current."""
        self._index.announce(dataset)
        self._driver.drive(dataset, protocol.reconcile())

    def help(self, dataset: DatasetId, older_than_seconds: float, look: bool = True) -> bool:
        """Finish a reservation whose writer is gone, publish what the log holds behind the head, catch up on notify.

        `look`: ask the store, too, what Redis has no trace of: a record behind the head, and what notify really says (two
        writers may have written it in the wrong order, the later one dying before it looked again).
        """
        view = self._driver.head(dataset)
        if not view.current:
            if view.state.seq:
                self.reconcile(dataset)
            return bool(view.state.seq)
        if view.reservation is not None and self._index.head(dataset).reserved_seconds >= older_than_seconds:
            self._driver.drive(dataset, protocol.settle(*view.reservation))
            return True
        unpublished = self._sealed.record(dataset, view.state.seq + 1) if look or view.reservation is not None else None
        if unpublished is not None:
            self._driver.drive(dataset, protocol.publish(view.state.seq + 1, unpublished))
        if unpublished is not None or self._notices.noted(dataset, look) < self._driver.head(dataset).state.seq:
            self._notify(dataset, anew=look)
        return unpublished is not None

    def rebuild(self, prefix: str = "", told: Callable[[int], object] = lambda _: None) -> dict[DatasetId, State | BrokerError]:
        """Restore the index of every log found in the store, from the store alone: its state, or why it is not restored.

        One that fails does not keep the others from it. `told(1)` is called behind each.
        """
        found = dict[DatasetId, State | BrokerError]()
        for dataset in self._sealed.logs(prefix):
            try:
                self.reconcile(dataset)
                self._notify(dataset, anew=True)
                found[dataset] = self._driver.head(dataset).state
            except BrokerError as error:
                found[dataset] = error
            told(1)
        return found

    def checkpoint(self, dataset: DatasetId) -> int | None:
        """Seal the fold up to the newest multiple of `checkpoint_every`, if it is not yet. -> its seq. Raises Corrupt."""
        newest = self.known(dataset).seq
        seq = newest - newest % self._settings.checkpoint_every
        return seq if seq and self._sealed.seal_checkpoint(dataset, seq) else None

    def check(self, dataset: DatasetId) -> Iterator[Checked]:
        """Read the whole log and what stands beside it, and compare it with the index."""
        return self._sealed.check(dataset, self.known(dataset))

    # --- the bell for those who read without Redis

    def _seen(self, logs: Sequence[DatasetId]) -> list[State | BrokerError]:
        return [view.state if isinstance(view, HeadView) else view for view in self._driver.heads(logs)]

    def _notify_all(self, logs: Sequence[DatasetId]) -> None:
        for _ in logs:
            self._on_step("notify")
        for dataset, error in self._notices.ring_all(logs).items():  # the janitor finds the bell unrung, and says why
            log.debug("%s: not rung: %s", dataset, error)

    def _notify(self, dataset: DatasetId, anew: bool = False) -> None:
        self._on_step("notify")
        self._notices.ring(dataset, anew)


def _draft(body_for: Callable[[State], Body | None], producer: str, lease: Lease | None, uploaded_at: Moment | None) -> Draft:
    return Draft(
        write_id=uuid4().hex, producer=producer, body_for=body_for, now=time.time, lease=lease,
        age_seconds=lambda: 0.0 if uploaded_at is None else uploaded_at.age_seconds,
    )  # fmt: skip

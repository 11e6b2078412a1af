"""The repair of a replica: what its version holds is learnt from the broker, and only what differs is fetched and written.

    digest of the sink's rows ──► digest of the version, by key bucket ──► rows of the buckets that differ ──► one transaction

Both come from a worker (mending.py). Without one, and where most buckets differ, the version's whole road is read here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import pyarrow as pa

from broker.columnar.buckets import Ranges, content_id, digest_of_rows, read_buckets
from broker.columnar.digest import BUCKETS, ContentDigest
from broker.errors import Corrupt, NotFound
from broker.model.commit import Edge, File
from broker.receipts import Amends, amends
from broker.repairs import Ask
from broker.replica_followed import Means
from broker.rules.fold import State
from broker.rules.plan import plan

T = TypeVar("T")
log = logging.getLogger("broker.replica")
POLL_SECONDS: Final = 0.05
MOST_BUCKETS: Final = BUCKETS // 2
"""Where more differ, the whole road is no more than twice their share of it."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """What one repair did. `buckets`: key buckets that differed; none: the sink held what it must.

    `bytes`: read from the store. With a worker's answer no more than twice what the rows of these buckets take in a file by
    bucket, plus that file's footer (6 kB); else the whole road.
    """

    version: int
    buckets: tuple[int, ...] = ()
    upserts: int = 0
    deletes: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Road:
    """What leads to the version as things are: compaction may make a shorter one, and an erasure another content."""

    state: State
    edges: tuple[Edge, ...]
    id: str


@dataclass
class Comparison:
    """One look at a sink that stands at the version of `ask`. `timeout`: seconds for which a worker's answer is waited for.

    Methods raise NotFound, Corrupt, Unavailable. `bytes`: read from the store so far, of which `seen` are files read whole.
    """

    means: Means
    ask: Ask
    timeout: float
    bytes: int = 0
    seen: set[str] = field(default_factory=set)

    def right(self) -> ContentDigest:
        """The digest of what the sink must hold."""
        found = self._awaited(self.ask, lambda: self.means.repairs.content(self.ask.dataset, self._road().id))
        if found is None:
            road = self._road()
            found = digest_of_rows(self.means.engine, road.state.spec.key, self._whole(road))
            self.means.repairs.keep(self.ask.dataset, road.id, found)
        return found

    def amends(self, held: pa.Table, right: ContentDigest, wrong: Sequence[int]) -> Amends:
        """What makes the rows `held` right in the buckets `wrong`."""
        rows, road = self._part(right, wrong), self._road()
        return amends(self.means.engine, road.state.spec, held, self._whole(road) if rows is None else rows, wrong)

    def _part(self, right: ContentDigest, wrong: Sequence[int]) -> pa.RecordBatchReader | None:
        """The right rows of these buckets alone. None: the whole road is to be read."""
        if len(wrong) > MOST_BUCKETS:
            return None
        asked = self.ask.model_copy(update={"rows": True})
        file = self._awaited(asked, self._laid_out)
        if file is None:
            return None
        laid = Ranges(self.means.store, file)
        try:
            return read_buckets(self.means.engine, laid, self._road().state.spec.key, right, wrong).to_reader()
        except (Corrupt, NotFound) as error:
            log.warning("%s: replica %s is repaired from whole files: %s", asked.dataset, asked.replica, error)
            return None
        finally:
            self.bytes += laid.bytes

    def _laid_out(self) -> File | None:
        found = self.means.derived.get(self.ask.dataset, self._road().id, self.ask.version)
        return found[0].files[0] if found else None

    def _whole(self, road: _Road) -> pa.RecordBatchReader:
        files = {file.key: file.bytes for edge in road.edges for file in edge.files}
        self.bytes += sum(size for key, size in files.items() if key not in self.seen)  # what was fetched lies here
        self.seen |= files.keys()
        return self.means.engine.read(road.state.spec, road.edges, self.ask.selection)

    def _road(self) -> _Road:
        state = self.means.catalog.state(self.ask.dataset)
        edges = plan(state.edges, None, self.ask.version).edges
        return _Road(state, edges, content_id(state.spec, edges, self.ask.selection))

    def _awaited(self, ask: Ask, look: Callable[[], T | None]) -> T | None:
        """What `look` finds, for as long as a worker may be about to make it."""
        found = look()
        if found is not None or not self.means.repairs.ask(ask):
            return found
        try:
            until = time.monotonic() + self.timeout
            while (found := look()) is None and time.monotonic() < until:
                time.sleep(POLL_SECONDS)
            return found
        finally:
            self.means.repairs.withdraw(ask)

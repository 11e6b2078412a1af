"""Tombstones a snapshot takes along: the deletes that stand, and the keys it lacks of the state it replaces.

A tombstone lives `tombstone_seconds` after the commit of its delete, however many snapshots carry it on. Commit times belong
to versions, so tombstones of like age share a file whose record says the age (`File.since`), in eighths of their life.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from broker.columnar.database import Session
from broker.columnar.merge import Shape, Sources, rows_sql, tombstones_sql
from broker.columnar.scan import guards_of
from broker.columnar.sql import listed
from broker.model.commit import Edge, File

AGES: Final = 8
"""Files per life: a tombstone may live an eighth longer than it must."""
NEW: Final = -1
"""Stands for: deleted by this very snapshot."""
TABLE: Final = "tombstones"


@dataclass(frozen=True)
class Standing:
    """The state that a snapshot replaces: a plan from a snapshot, and when its versions were committed.

    Times are seconds since the epoch, by the clock of the commit records; a version without a time counts as young.
    """

    edges: tuple[Edge, ...]
    committed: Mapping[int, float]
    now: float

    def ages(self, life_seconds: int) -> list[int | None]:
        """When the deletes of each source were committed, None where their life is over: guards from the last, then edges."""
        files = [self._of_file(file) for file in reversed(guards_of(self.edges))]
        return [_rounded(time, life_seconds, self.now) for time in (*files, *map(self._of_edge, self.edges[1:]))]

    def _of_file(self, file: File) -> float:
        return self._of_edge(self.edges[0]) if file.since is None else file.since

    def _of_edge(self, edge: Edge) -> float:
        return self.committed.get(edge.version, self.now)


def _rounded(time: float, life_seconds: int, now: float) -> int | None:
    if time + life_seconds <= now:
        return None
    step = max(1, life_seconds // AGES)
    return int(-(-time // step)) * step


@dataclass(frozen=True)
class Burial:
    """Gathers the tombstones in `session`. `arrived`: a relation of the keys that the snapshot has; None: those that stand."""

    session: Session
    shape: Shape
    sources: Sources
    standing: Standing
    arrived: str | None = None

    def run(self, life_seconds: int) -> list[tuple[int | None, str]]:
        """A SELECT of key and order for each file to be written, with what becomes its `since`."""
        self.session.run(f"CREATE TEMP TABLE {TABLE} AS {self._dead(self.standing.ages(life_seconds))}")
        found = self.session.rows(f"SELECT DISTINCT {self._age} FROM {TABLE} ORDER BY {self._age}")
        return [(None if age == NEW else age, self._of_age(age)) for (age,) in found]

    def _dead(self, ages: list[int | None]) -> str:
        if self.arrived is None:
            return self._deletes(ages)
        gone = f"SELECT {self._known}, {NEW} AS {self._age} FROM ({rows_sql(self.sources, self.shape)})"
        known = f"SELECT * FROM ({self._deletes(ages)}) UNION ALL {gone}"
        return f"SELECT * FROM ({known}) ANTI JOIN ({self.arrived}) USING ({listed(self.shape.key)})"

    def _deletes(self, ages: list[int | None]) -> str:
        """Those that stand and whose life is not over."""
        place = f"{self.shape.own('edge')} + {len(guards_of(self.standing.edges))}"
        listing = ", ".join("NULL" if age is None else str(age) for age in ages)
        dated = f"SELECT {self._known}, CAST([{listing}] AS BIGINT[])[{place}] AS {self._age}"
        return f"SELECT * FROM ({dated} FROM ({tombstones_sql(self.sources, self.shape)})) WHERE {self._age} IS NOT NULL"

    def _of_age(self, age: int) -> str:
        return f"SELECT {self._known} FROM {TABLE} WHERE {self._age} = {age}"

    @property
    def _known(self) -> str:
        return listed(self.shape.known)

    @property
    def _age(self) -> str:
        return self.shape.own("age")

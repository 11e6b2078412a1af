"""The difference between a full feed and the rows that stand, as SQL text. No I/O.

Rows are compared by 128 bits of typed, NULL-aware hash, so only 16 bytes a row meet in a join; what is left over on either
side (about the size of the difference) is then joined by its exact key. Uniqueness of the feed's keys falls out of the same
steps: a feed row equal to a standing row repeats if the counts differ, any other is grouped, and met with the rows that stand.

The steps are to be run in order, in one session: `unmatched`, `arrived`, `held`, then the answers.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.columnar.merge import Shape, newer
from broker.columnar.sql import listed, quoted
from broker.columnar.types import FIXED_TYPES
from broker.model.dataset import Schema


@dataclass(frozen=True)
class Difference:
    """`feed` and `current` are relations of all columns, `guards` (None: none) one of key and order of deletes that stand."""

    schema: Schema
    shape: Shape
    feed: str
    current: str
    guards: str | None = None

    @property
    def unmatched(self) -> str:
        """Hashes of rows only the feed has (f1, f2) and only the current state has (c1, c2)."""
        return (
            f"CREATE TEMP TABLE unmatched AS SELECT f.h1 AS f1, f.h2 AS f2, c.h1 AS c1, c.h2 AS c2 "
            f"FROM (SELECT {self._hashes} FROM ({self.feed})) f FULL JOIN (SELECT {self._hashes} FROM ({self.current})) c "
            f"ON f.h1 = c.h1 AND f.h2 = c.h2 WHERE f.h1 IS NULL OR c.h1 IS NULL"
        )

    @property
    def counts(self) -> str:
        """Rows of the feed, of the current state, and those of each without an equal on the other side."""
        return (
            f"SELECT (SELECT count(*) FROM ({self.feed})), (SELECT count(*) FROM ({self.current})), count(f1), count(c1) "
            f"FROM unmatched"
        )

    @property
    def arrived(self) -> str:
        """Whole rows only the feed has."""
        return (
            f"CREATE TEMP TABLE arrived AS SELECT {self._all} FROM (SELECT *, {self._hashes_as(self._h1, self._h2)} "
            f"FROM ({self.feed})) SEMI JOIN (SELECT f1 AS {self._h1}, f2 AS {self._h2} FROM unmatched WHERE f1 IS NOT NULL) "
            f"USING ({self._h1}, {self._h2})"
        )

    @property
    def held(self) -> str:
        """Key and order of current rows which the feed lacks (`lost`) or whose key arrived."""
        return (
            f"CREATE TEMP TABLE held AS SELECT {listed(self._known, 'c.')}, u.c1 IS NOT NULL AS {self._lost} "
            f"FROM (SELECT *, {self._hashes_as(self._h1, self._h2)} FROM ({self.current})) c "
            f"LEFT JOIN (SELECT c1, c2 FROM unmatched WHERE c1 IS NOT NULL) u ON u.c1 = c.{self._h1} AND u.c2 = c.{self._h2} "
            f"LEFT JOIN (SELECT {self._key} FROM arrived) a ON {self._same_key('a', 'c')} "
            f"WHERE u.c1 IS NOT NULL OR a.{self._first} IS NOT NULL"
        )

    def nulls(self, names: tuple[str, ...]) -> str:
        """How many rows that arrived have no value, per column."""
        return "SELECT " + ", ".join(f"count(*) - count({quoted(name)})" for name in names) + " FROM arrived"

    @property
    def repeated(self) -> str:
        """Keys that arrived although the feed also has their current row unchanged: a relation of keys, each twice."""
        both = f"SELECT {self._key} FROM held WHERE NOT {self._lost}"
        return f"(SELECT {self._key} FROM arrived SEMI JOIN ({both}) USING ({self._key}) UNION ALL {both})"

    @property
    def upserts(self) -> str:
        """Whole rows that are new or changed and not older than what they replace."""
        if not self.shape.order:
            return f"SELECT {self._all} FROM arrived"
        guards = f"SELECT {listed(self._known)} FROM held"
        if self.guards is not None:
            guards += f" UNION ALL SELECT * FROM ({self.guards})"
        late = f"{self._same_key('a', 'g')} WHERE {newer(self.shape.order, 'g', 'a')}"
        stale = f"SELECT {self._key_of('a')} FROM arrived a JOIN ({guards}) g ON {late}"
        return f"SELECT {self._all} FROM arrived ANTI JOIN ({stale}) USING ({self._key})"

    @property
    def deletes(self) -> str:
        """Key and order of current rows whose key the feed lacks."""
        return (
            f"SELECT {listed(self._known)} FROM (SELECT * FROM held WHERE {self._lost}) "
            f"ANTI JOIN (SELECT {self._key} FROM arrived) USING ({self._key})"
        )

    @property
    def _hashes(self) -> str:
        return self._hashes_as("h1", "h2")

    def _hashes_as(self, first: str, second: str) -> str:
        """Two 64-bit hashes with nothing in common but the row: columns in other order, texts behind another prefix."""
        seeded = [
            quoted(column.name) if column.type in FIXED_TYPES else f"'~' || CAST({quoted(column.name)} AS VARCHAR)"
            for column in reversed(self.schema.columns)
        ]
        return f"hash({self._all}) AS {first}, hash({', '.join(seeded)}) AS {second}"

    def _same_key(self, left: str, right: str) -> str:
        return " AND ".join(f"{left}.{quoted(name)} = {right}.{quoted(name)}" for name in self.shape.key)

    def _key_of(self, table: str) -> str:
        return listed(self.shape.key, f"{table}.")

    @property
    def _all(self) -> str:
        return listed(self.shape.columns)

    @property
    def _key(self) -> str:
        return listed(self.shape.key)

    @property
    def _known(self) -> tuple[str, ...]:
        return (*self.shape.key, *self.shape.order)

    @property
    def _first(self) -> str:
        return quoted(self.shape.key[0])

    @property
    def _lost(self) -> str:
        return self.shape.own("lost")

    @property
    def _h1(self) -> str:
        return self.shape.own("h1")

    @property
    def _h2(self) -> str:
        return self.shape.own("h2")

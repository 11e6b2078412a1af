"""Debian's package index as DuckDB alone sees it: what tests of the whole flow compare replicas with."""

from __future__ import annotations

from pathlib import Path

import duckdb

CSV = "header = true, all_varchar = true, delim = ',', quote = '\"', escape = '\"', nullstr = ''"


def write(query: str, path: Path) -> None:
    """The rows of a query as CSV."""
    duckdb.sql(f"COPY ({query}) TO '{path}' (FORMAT csv, HEADER)")


class Index:
    """The suites as tables of texts. View v1 is main, v2 has security over it."""

    def __init__(self, folder: Path, *suites: str) -> None:
        self.engine = duckdb.connect()
        for name in suites or ("main", "security"):
            self.engine.execute(f"CREATE TABLE {name} AS SELECT * FROM read_csv('{folder / name}.csv.gz', {CSV})")
        self.engine.execute("CREATE VIEW v1 AS FROM main")
        self.engine.execute("CREATE VIEW v2 AS FROM main ANTI JOIN security USING (package) UNION ALL FROM security")
        self.columns = [row[0] for row in self.engine.execute("DESCRIBE main").fetchall()]

    def count(self, sql: str) -> int:
        row = self.engine.execute(f"SELECT count(*) FROM ({sql})").fetchone()
        assert row is not None
        return int(row[0])

    def differing(self, expected: str, found: str, columns: list[str] | None = None) -> int:
        """Rows on one side only, compared as text."""
        listed = ", ".join(f'"{name}"::VARCHAR' for name in columns or self.columns)
        one, two = f"SELECT {listed} FROM ({expected})", f"SELECT {listed} FROM ({found})"
        return self.count(f"({one} EXCEPT ALL {two}) UNION ALL ({two} EXCEPT ALL {one})")

    def differing_from(self, expected: str, path: Path, table: str) -> int:
        """As `differing`, with a table of a DuckDB file that nobody else has open."""
        self.engine.execute(f"ATTACH '{path}' AS held (READ_ONLY)")
        try:
            return self.differing(expected, f"FROM held.{table}")
        finally:
            self.engine.execute("DETACH held")

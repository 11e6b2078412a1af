"""Ready-made ends of a replica: `broker.sinks.DuckDB("search.duckdb", table="offers")`."""

from __future__ import annotations

from broker.sinks.duckdb import DuckDB
from broker.sinks.memory import Memory

__all__ = ["DuckDB", "Memory"]

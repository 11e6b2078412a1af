"""Ready-made ends of a replica: `broker.sinks.DuckDB("search.duckdb", table="offers")`."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from broker.errors import InvalidSettings
from broker.sinks.duckdb import DuckDB
from broker.sinks.memory import Memory
from broker.sinks.parquet import ParquetDirectory
from broker.sinks.port import Applied, Batch, Sink, SinkCursor
from broker.sinks.postgres import Postgres
from broker.sinks.sqlite import SQLite

__all__ = [
    "Applied", "Batch", "DuckDB", "Memory", "ParquetDirectory", "Postgres", "SQLite", "Sink", "SinkCursor", "open_sink",
]  # fmt: skip


def open_sink(url: str, table: str = "replica", memory_limit_bytes: int = 1 << 30) -> Sink:
    """The sink that `pull --to` names; `?table=` overrides `table`. Raises InvalidSettings for what is none.

    `shop.duckdb`, `shop.sqlite` or `shop.db`, `postgresql://…`, or a folder (for Parquet files; a new one ends in `/` or has no
    extension). `memory_limit_bytes` bounds an apply into a DuckDB file or a folder.
    """
    base, _, query = url.partition("?")
    options = dict(parse_qsl(query))
    chosen = options.pop("table", table)
    if base.startswith(("postgresql://", "postgres://")):
        return Postgres(urlunsplit(urlsplit(url)._replace(query=urlencode(options, quote_via=quote))), chosen)
    if options or "://" in base or not base:
        raise InvalidSettings(
            "not a sink",
            of=url[:200],
            hint="Name a .duckdb, .sqlite or .db file, a folder, or postgresql://…; ?table= is known",
        )
    suffix = "" if base.endswith("/") or Path(base).is_dir() else Path(base).suffix.lower()
    match suffix:
        case ".duckdb":
            return DuckDB(base, chosen, memory_limit_bytes=memory_limit_bytes)
        case ".sqlite" | ".sqlite3" | ".db":
            return SQLite(base, chosen)
        case "":
            return ParquetDirectory(base, memory_limit_bytes=memory_limit_bytes)
    raise InvalidSettings(
        "not a sink", of=url[:200], why=f"{suffix} is not known", hint="Name a .duckdb, .sqlite or .db file, or a folder"
    )

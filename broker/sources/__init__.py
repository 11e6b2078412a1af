"""Sources that need no code: a SQL query, a folder of files, and a table of both in broker.toml."""

from __future__ import annotations

from broker.sources.config import load_sources
from broker.sources.files import Files
from broker.sources.sql import SQL

__all__ = ["SQL", "Files", "load_sources"]

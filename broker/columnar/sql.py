"""Pieces of SQL text. Names and paths enter SQL here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable


def quoted(name: str) -> str:
    """A column name as a quoted identifier (DuckDB, Postgres, SQLite)."""
    return '"' + name.replace('"', '""') + '"'


def text_literal(text: str) -> str:
    """A string literal; in standard SQL a backslash is a backslash."""
    return "'" + text.replace("'", "''") + "'"


def listed(names: Iterable[str], prefix: str = "") -> str:
    """`"a", "b"`, each behind `prefix`."""
    return ", ".join(prefix + quoted(name) for name in names)

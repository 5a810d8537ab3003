"""Damage to caches that neither kodo nor SQLite would do."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path


def misindex(path: Path, index: str, columns: str, others: str) -> None:
    """Let an index hold these other columns, and say that it holds what it did."""
    _say(path, index, columns, others)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"REINDEX {index}")
    _say(path, index, others, columns)


def alter(path: Path, sql: str) -> int:
    """Change what stands in a database behind the back of its owner; how many rows that were."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        return db.execute(sql).rowcount


def overwrite(path: Path, name: str) -> None:
    """Write something else into the first page of a table or an index."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * 100)


def _say(path: Path, index: str, before: str, after: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE name = ?", (before, after, index))

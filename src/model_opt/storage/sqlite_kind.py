"""What a SQLite file of ours is: its kind stands in its header, and a file of any other kind is left alone."""

import sqlite3
from enum import IntEnum
from pathlib import Path

from model_opt.errors import StoreError


class SqliteKind(IntEnum):
    """SQLite's `application_id` of our files: "MOP" and a letter."""

    KNOWLEDGE = 0x4D4F504B
    SEARCH = 0x4D4F5053

    @property
    def tables(self) -> frozenset[str]:
        """The tables by which a file is known that was made before kinds were written."""
        if self is SqliteKind.KNOWLEDGE:
            return frozenset({"facts", "records", "signatures", "contexts"})
        return frozenset({"facts", "leases", "results", "rows"})

    def __str__(self) -> str:
        return "knowledge" if self is SqliteKind.KNOWLEDGE else "a search's state"


def check_kind(link: sqlite3.Connection, path: Path, kind: SqliteKind) -> None:
    """Raises `StoreError` where the file at `path` is not of this `kind`, and not empty either. Only reads."""
    (found,) = link.execute("PRAGMA application_id").fetchone()
    tables = {name for (name,) in link.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if found == kind or (found == 0 and (not tables or kind.tables <= tables)):
        return
    other = next((str(one) for one in SqliteKind if found == one or (found == 0 and one.tables <= tables)), "")
    what = f"holds {other}" if other else "is another program's"
    raise StoreError(f"the SQLite file {path} {what}, not {kind}; it was left alone: name another path")


def claim(kind: SqliteKind) -> str:
    """The statement that writes the kind into the header."""
    return f"PRAGMA application_id = {int(kind)};"

"""What a SQLite file of ours is: its kind stands in its header, and a file of any other kind is left alone."""

import re
import sqlite3
from enum import IntEnum
from pathlib import Path

from model_opt.errors import StoreCorrupt, StoreError
from model_opt.storage.legible import legible


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


def take_over(link: sqlite3.Connection, path: Path, kind: SqliteKind, script: str) -> None:
    """Makes the file at `path` one of this `kind`, in write-ahead mode and with the tables of `script`.

    Nothing is written to a file that is so already, nor to one that is damaged. Raises `StoreError` where it is of
    another kind, and not empty, `StoreCorrupt` where it is damaged.
    """
    with legible(path):
        (found,) = link.execute("PRAGMA application_id").fetchone()
        tables = {name for (name,) in link.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        (mode,) = link.execute("PRAGMA journal_mode").fetchone()
    _check_kind(found, tables, path, kind)
    wanted, dropped = (set(re.findall(rf"{what} (\w+)", script)) for what in (_MADE, _DROPPED))
    ready = found == kind and wanted <= tables and not dropped & tables
    if tables and (kind is SqliteKind.SEARCH or not ready or mode != "wal"):
        check_whole(link, path)
    if mode != "wal":
        link.execute("PRAGMA journal_mode = WAL")
    if not ready:
        link.executescript(f"BEGIN IMMEDIATE; PRAGMA application_id = {int(kind)}; {script} COMMIT;")


def check_whole(link: sqlite3.Connection, path: Path) -> None:
    """Raises `StoreCorrupt` where the file at `path` is damaged: asked before something is written to it that a whole
    file would not need. Reads all of it."""
    (said,) = link.execute("PRAGMA quick_check(1)").fetchone()
    if said != "ok":
        raise StoreCorrupt(f"{path} is damaged ({said}); it was left as it is")


_MADE, _DROPPED = "CREATE TABLE IF NOT EXISTS", "DROP TABLE IF EXISTS"


def _check_kind(found: int, tables: set[str], path: Path, kind: SqliteKind) -> None:
    """Raises `StoreError` where a file whose header says `found` is not of this `kind`, and not empty either."""
    if found == kind or (found == 0 and (not tables or kind.tables <= tables)):
        return
    other = next((str(one) for one in SqliteKind if found == one or (found == 0 and one.tables <= tables)), "")
    what = f"holds {other}" if other else "is another program's"
    raise StoreError(f"the SQLite file {path} {what}, not {kind}; it was left alone: name another path")

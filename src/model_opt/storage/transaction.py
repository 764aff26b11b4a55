"""Transactions of SQLite files, and what its errors mean: the reason that came first is the one that is told."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from model_opt.errors import StoreCorrupt, StoreError, StoreUnavailable


@contextmanager
def transaction(link: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """A transaction around the block; where the block or the commit fails it is as if nothing had been done."""
    link.execute(f"BEGIN {kind}")
    try:
        yield
        link.execute("COMMIT")
    except BaseException:
        if link.in_transaction:  # of a full disk SQLite has rolled back by itself
            link.execute("ROLLBACK")
        raise


@contextmanager
def translated(what: object) -> Iterator[None]:
    """Raises SQLite's errors about the file `what` as ours: `StoreUnavailable` for what may pass (locked, full,
    read-only), `StoreCorrupt` for what will not."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "decode" in str(error):  # a text that is none
            raise StoreCorrupt(f"{what} cannot be read ({error}); it was left as it is") from error
        raise StoreUnavailable(f"{what}: {error}") from error
    except sqlite3.DatabaseError as error:
        if "malformed" in str(error) or "not a database" in str(error):
            raise StoreCorrupt(f"{what} cannot be read ({error}); it was left as it is") from error
        raise StoreError(f"{what}: {error}") from error
    except OSError as error:
        raise StoreUnavailable(f"{what}: {error}") from error

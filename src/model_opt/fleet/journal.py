"""The coordinator's memory: what was committed survives a kill at any moment; an overtaken term cannot write."""

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

from model_opt.errors import FleetError, StoreCorrupt
from model_opt.federation.envelope import new_epoch
from model_opt.fleet.journal_text import lease_text, read_lease, read_result, read_row, result_text, row_text
from model_opt.fleet.messages import Changes, CoordinatorSnapshot, LeaseResult
from model_opt.storage.legible import legible
from model_opt.storage.sqlite_kind import SqliteKind, take_over
from model_opt.storage.transaction import transaction, translated

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases(number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS results(number INTEGER PRIMARY KEY, lease TEXT NOT NULL, attempt INTEGER NOT NULL,
  body TEXT NOT NULL, UNIQUE(lease, attempt));
CREATE TABLE IF NOT EXISTS rows(plan TEXT NOT NULL, context TEXT NOT NULL, body TEXT NOT NULL,
  PRIMARY KEY(plan, context)) WITHOUT ROWID;
"""
_UPSERT_FACT = "INSERT INTO facts VALUES(?, ?) ON CONFLICT(name) DO UPDATE SET value = excluded.value"
_UPSERT_LEASE = "INSERT INTO leases(id, body) VALUES(?, ?) ON CONFLICT(id) DO UPDATE SET body = excluded.body"
_UPSERT_ROW = "INSERT INTO rows VALUES(?, ?, ?) ON CONFLICT(plan, context) DO UPDATE SET body = excluded.body"


class Journal(Protocol):
    """Where a coordinator keeps its search. One writer: the one with the highest term.

    `begin` starts a new life: it returns the term (greater than any before), the epoch and all that was committed.
    `commit` writes several steps in one transaction; when it returns they survive a power cut. It raises `FleetError`,
    and writes nothing, where a later life has begun.
    """

    def begin(self, at_least: int = 1) -> tuple[int, str, CoordinatorSnapshot]:
        """A new life's term (no less than `at_least`), the search's epoch, and what was committed."""

    def commit(self, term: int, steps: Sequence[Changes]) -> None:
        """Writes `steps` as the life `term`."""

    def results(self, after: int = 0) -> list[tuple[int, LeaseResult]]:
        """What was kept after the first `after` results, numbered from one, in order; from any thread."""

    def close(self) -> None:
        """Lets the file go."""


class SqliteJournal:
    """A journal in one SQLite file (WAL, `synchronous=FULL`). Not on NFS."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with translated(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30.0)
            try:
                take_over(self._db, path, SqliteKind.SEARCH, _SCHEMA)
                self._db.execute("PRAGMA synchronous=FULL")
            except BaseException:
                self._db.close()
                raise

    def begin(self, at_least: int = 1) -> tuple[int, str, CoordinatorSnapshot]:
        """See `Journal`."""
        with translated(self._path), transaction(self._db), legible(self._path):
            term = max(int(self._fact("term") or 0) + 1, at_least)
            epoch = self._fact("epoch") or json.dumps(new_epoch())
            self._db.executemany(_UPSERT_FACT, [("term", str(term)), ("epoch", epoch)])
            return term, str(json.loads(epoch)), self._read()

    def commit(self, term: int, steps: Sequence[Changes]) -> None:
        """See `Journal`."""
        with translated(self._path), transaction(self._db):
            if self._fact("term") != str(term):
                raise FleetError(f"term {term} has been overtaken by {self._fact('term')}")
            self._write(steps)

    def results(self, after: int = 0) -> list[tuple[int, LeaseResult]]:
        """See `Journal`."""
        with translated(self._path), _reading(self._path) as db, legible(self._path):
            return _results(db, after)

    def close(self) -> None:
        """See `Journal`."""
        self._db.close()

    def _write(self, steps: Sequence[Changes]) -> None:
        leases = {lease.lease_id: lease for step in steps for lease in step.leases}
        rows = {row.row_id: row for step in steps for row in step.rows}
        kept = [item for step in steps for item in step.results]
        facts = {name: value for step in steps for name, value in step.facts.items()}
        self._db.executemany(_UPSERT_LEASE, [(name, lease_text(lease)) for name, lease in leases.items()])
        self._db.executemany(
            "INSERT INTO results(lease, attempt, body) VALUES(?, ?, ?)",
            [(item.lease_id, item.attempt, result_text(item)) for item in kept],
        )
        self._db.executemany(_UPSERT_ROW, [(*key, row_text(row)) for key, row in rows.items()])
        self._db.executemany(_UPSERT_FACT, [(name, json.dumps(value)) for name, value in facts.items()])

    def _read(self) -> CoordinatorSnapshot:
        facts = self._db.execute("SELECT name, value FROM facts").fetchall()
        return CoordinatorSnapshot(
            leases=tuple(read_lease(body) for (body,) in self._db.execute("SELECT body FROM leases ORDER BY number")),
            results=tuple(result for _, result in _results(self._db)),
            rows=tuple(read_row(body) for (body,) in self._db.execute("SELECT body FROM rows")),
            facts={name: json.loads(value) for name, value in facts},
        )

    def _fact(self, name: str) -> str | None:
        found = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if found is None else str(found[0])


def look(path: Path) -> tuple[list[LeaseResult], dict[str, object]]:
    """What settled so far, in order, and the facts, without taking part: the file is opened for reading only.

    Raises `StoreCorrupt` where it cannot be read.
    """
    try:
        with _reading(path) as db, legible(path):
            kept = [result for _, result in _results(db)]
            facts = {name: json.loads(value) for name, value in db.execute("SELECT name, value FROM facts")}
    except sqlite3.Error as error:
        raise StoreCorrupt(f"{path} cannot be read as a search's state: {error}") from error
    return sorted((item for item in kept if item.position is not None), key=lambda item: item.position or 0), facts


def _reading(path: Path) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0))


def _results(db: sqlite3.Connection, after: int = 0) -> list[tuple[int, LeaseResult]]:
    found = db.execute("SELECT number, body FROM results WHERE number > ? ORDER BY number", (after,))
    return [(number, read_result(body)) for number, body in found]


class MemoryJournal:
    """A journal that lives as long as its object: for simulations, where crashes are made up."""

    def __init__(self) -> None:
        self._term = 0
        self._epoch = new_epoch()
        self._steps: list[Changes] = []

    def begin(self, at_least: int = 1) -> tuple[int, str, CoordinatorSnapshot]:
        """See `Journal`."""
        self._term = max(self._term + 1, at_least)
        return self._term, self._epoch, _fold(self._steps)

    def commit(self, term: int, steps: Sequence[Changes]) -> None:
        """See `Journal`."""
        if term != self._term:
            raise FleetError(f"term {term} has been overtaken by {self._term}")
        self._steps.extend(steps)

    def results(self, after: int = 0) -> list[tuple[int, LeaseResult]]:
        """See `Journal`."""
        return list(enumerate(_fold(self._steps).results[after:], after + 1))

    def close(self) -> None:
        """Nothing to let go."""


def _fold(steps: Sequence[Changes]) -> CoordinatorSnapshot:
    return CoordinatorSnapshot(
        leases=tuple({lease.lease_id: lease for step in steps for lease in step.leases}.values()),
        results=tuple(item for step in steps for item in step.results),
        rows=tuple({row.row_id: row for step in steps for row in step.rows}.values()),
        facts={name: value for step in steps for name, value in step.facts.items()},
    )

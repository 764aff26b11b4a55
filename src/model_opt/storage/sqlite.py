"""SQLite, the embedded default: one file, safe for several processes on one machine (not over NFS)."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import compress
from pathlib import Path

from model_opt.errors import StoreConflict, StoreUnavailable
from model_opt.federation.envelope import Envelope
from model_opt.federation.row import Row
from model_opt.federation.store import Counts
from model_opt.federation.wire import WireLimits
from model_opt.federation.wire_rows import context_fields, context_of, signature_fields, signature_of
from model_opt.search.context import Context
from model_opt.search.model_signature import ModelSignature
from model_opt.storage.base import BaseStore, Write
from model_opt.storage.legible import legible
from model_opt.storage.packed import Packed, pack_block, unpack
from model_opt.storage.retry import Retry
from model_opt.storage.sqlite_kind import SqliteKind, check_whole, take_over
from model_opt.storage.transaction import transaction, translated

_BUSY_S = 60.0
"""How long a writer waits for its turn. Turns are not taken in order: on a starved machine 30 s were too short."""
_TABLES = """
CREATE TABLE IF NOT EXISTS facts (federation TEXT, name TEXT, value INTEGER, PRIMARY KEY (federation, name));
CREATE TABLE IF NOT EXISTS records (
  cursor INTEGER PRIMARY KEY AUTOINCREMENT, federation TEXT NOT NULL, identity TEXT NOT NULL, policy INTEGER NOT NULL,
  digest TEXT NOT NULL, data BLOB NOT NULL, UNIQUE (federation, identity));
CREATE INDEX IF NOT EXISTS record_order ON records (federation, policy, cursor);
CREATE TABLE IF NOT EXISTS signatures (
  id INTEGER PRIMARY KEY AUTOINCREMENT, federation TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
  UNIQUE (federation, key));
CREATE TABLE IF NOT EXISTS contexts (
  id INTEGER PRIMARY KEY, federation TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, UNIQUE (federation, key));
CREATE TABLE IF NOT EXISTS streams (
  id INTEGER PRIMARY KEY, federation TEXT NOT NULL, origin TEXT NOT NULL, epoch TEXT NOT NULL,
  UNIQUE (federation, origin, epoch));
CREATE TABLE IF NOT EXISTS layouts (id INTEGER PRIMARY KEY, value TEXT NOT NULL UNIQUE);
DROP TABLE IF EXISTS rows;
CREATE TABLE IF NOT EXISTS places (
  id INTEGER PRIMARY KEY, signature INTEGER NOT NULL, context INTEGER NOT NULL, stream INTEGER NOT NULL,
  UNIQUE (signature, context, stream));
CREATE INDEX IF NOT EXISTS place_stream ON places (stream);
CREATE TABLE IF NOT EXISTS measured (
  place INTEGER NOT NULL, plan BLOB NOT NULL, sequence INTEGER NOT NULL, layout INTEGER NOT NULL,
  packed BLOB NOT NULL, PRIMARY KEY (place, plan)) WITHOUT ROWID;
"""
"""`measured` has the rows: those of one signature, context and stream (a place) lie together. Schema 1 had `rows`."""
_UPSERT = """
INSERT INTO measured VALUES ({place}, ?, {sequence}, {layout}, ?) ON CONFLICT DO UPDATE SET
  sequence = excluded.sequence, layout = excluded.layout, packed = excluded.packed
WHERE excluded.sequence > sequence
"""
_PLACES = """
SELECT p.id, s.key, c.key, t.origin, t.epoch
FROM signatures s JOIN places p ON p.signature = s.id
JOIN contexts c ON c.id = p.context JOIN streams t ON t.id = p.stream
WHERE s.federation = ?
"""
_PLACES_OF = "SELECT p.id FROM places p JOIN streams t ON t.id = p.stream WHERE t.federation = ?"
_CHECKPOINT_PAGES = 8192
"""How long the log grows (32 MiB) before it is copied into the file: a page that changes often is copied once."""


class SQLiteBackend(BaseStore):
    """A store in one SQLite file, in write-ahead mode. Several federations may share the file."""

    rows_schema = 2

    def __init__(
        self,
        path: str | Path,
        *,
        federation: str = "local",
        retry: Retry | None = None,
        limits: WireLimits | None = None,
    ) -> None:
        """`path` is made, with its folder, on first use."""
        super().__init__(federation=federation, retry=retry, limits=limits)
        self.path = Path(path)
        self._link: sqlite3.Connection | None = None
        self._depth = 0

    def __repr__(self) -> str:
        return f"SQLiteBackend({str(self.path)!r})"

    @property
    def _db(self) -> sqlite3.Connection:
        if self._link is None:
            raise StoreUnavailable(f"{self!r} is closed")
        return self._link

    def _connect(self) -> None:
        with self._translated():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            link = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                take_over(link, self.path, SqliteKind.KNOWLEDGE, _TABLES)
                # NORMAL would lose the last transactions when the machine loses power: an answer is a promise.
                link.execute("PRAGMA synchronous = FULL")
                link.execute("PRAGMA cache_size = -65536")
                link.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
                self._link = link
                with legible(self):
                    if self._schema() != self.rows_schema:  # which is about to be written
                        check_whole(link, self.path)
            except BaseException:
                self._link = None
                link.close()
                raise

    def _disconnect(self) -> None:
        if self._link is not None:
            self._link.close()
        self._link, self._depth = None, 0

    def _translated(self) -> AbstractContextManager[None]:
        return translated(repr(self))

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        with self._translated():
            if self._depth:
                yield
                return
            with transaction(self._db, kind):
                self._depth = 1
                try:
                    yield
                finally:
                    self._depth = 0

    def _schema(self) -> int | None:
        found = self._read("SELECT value FROM facts WHERE federation = ? AND name = 'rows'", self.federation)
        return int(found[0][0]) if found else None

    def _set_schema(self, version: int) -> None:
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, 'rows', ?)", (self.federation, version))

    def _read(self, statement: str, *values: object) -> list[tuple]:  # type: ignore[type-arg]
        with self._translated():
            return self._db.execute(statement, values).fetchall()

    def _put(self, writes: Sequence[Write]) -> int:
        with self._transaction():
            new = [write for write in writes if self._keep(write)]
            self._put_rows([envelope for write in new for envelope in write.envelopes])
            return len(new)

    def _keep(self, write: Write) -> bool:
        """Whether the record is new; raises `StoreConflict` where another is in its place."""
        encoded = write.encoded
        known = self._db.execute(
            "SELECT digest FROM records WHERE federation = ? AND identity = ?", (self.federation, encoded.identity)
        ).fetchone()
        if known is None:
            self._db.execute(
                "INSERT INTO records (federation, identity, policy, digest, data) VALUES (?, ?, ?, ?, ?)",
                (self.federation, encoded.identity, encoded.kind != "envelope", encoded.digest, encoded.data),
            )
        elif known[0] != encoded.digest:
            raise StoreConflict(f"{encoded.identity} is there already, and says something else")
        return known is None

    def _put_rows(self, envelopes: Sequence[Envelope]) -> None:
        with self._transaction():
            for envelope in envelopes:
                self._put_envelope(envelope)

    def _put_envelope(self, envelope: Envelope) -> None:
        packed = pack_block(envelope.block)
        value = json.dumps(signature_fields(envelope.signature))
        signature = self._number("signatures", federation=self.federation, key=envelope.signature.key, value=value)
        stream = self._number("streams", federation=self.federation, origin=envelope.origin, epoch=envelope.epoch)
        layout = self._number("layouts", value=packed.layout)
        contexts = [
            self._number(
                "contexts", federation=self.federation, key=context.key, value=json.dumps(context_fields(context))
            )
            for context in envelope.contexts
        ]
        for number, context in enumerate(contexts):
            place = self._number("places", signature=signature, context=context, stream=stream)
            statement = _UPSERT.format(place=place, sequence=envelope.sequence, layout=layout)
            self._db.executemany(statement, _rows_in(packed, number, len(contexts)))

    def _number(self, table: str, **columns: str | int) -> int:
        """The id of the entry with these columns, which is made where there is none."""
        names = [name for name in columns if name != "value" or len(columns) == 1]
        where = " AND ".join(f"{name} = :{name}" for name in names)
        found = self._db.execute(f"SELECT id FROM {table} WHERE {where}", columns).fetchone()
        if found:
            return int(found[0])
        marks = ", ".join(f":{name}" for name in columns)
        made = self._db.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", columns)
        return int(made.lastrowid or 0)

    def _forget(self, origin: str | None, epochs: Sequence[str] | None) -> None:
        places, values = _PLACES_OF, [self.federation]
        if origin is not None:
            places, values = f"{places} AND t.origin = ?", [*values, origin]
        if epochs is not None:
            places, values = f"{places} AND t.epoch IN ({', '.join('?' * len(epochs))})", [*values, *epochs]
        with self._transaction():
            self._db.execute(f"DELETE FROM measured WHERE place IN ({places})", values)
            self._db.execute(
                "DELETE FROM signatures WHERE federation = ? AND NOT EXISTS (SELECT 1 FROM places p "
                "JOIN measured m ON m.place = p.id WHERE p.signature = signatures.id)",
                (self.federation,),
            )

    def _records(self, since: int, limit: int, *, policies: bool) -> list[tuple[int, bytes]]:
        kinds = "policy = 1" if policies else "policy IN (0, 1)"
        return self._read(
            f"SELECT cursor, data FROM records WHERE federation = ? AND {kinds} AND cursor > ? ORDER BY cursor LIMIT ?",
            self.federation,
            since,
            limit,
        )

    def _rows(self, keys: Sequence[str] | None) -> list[Row]:
        layouts: dict[int, str] = {}
        with self._transaction("DEFERRED"):
            return [row for place in self._places(keys) for row in self._rows_at(place, layouts)]

    def _places(self, keys: Sequence[str] | None) -> list[tuple[int, str, str, str, str]]:
        if keys is None:
            return self._read(_PLACES, self.federation)
        return [place for key in keys for place in self._read(f"{_PLACES} AND s.key = ?", self.federation, key)]

    def _rows_at(self, place: tuple[int, str, str, str, str], layouts: dict[int, str]) -> Iterator[Row]:
        """The rows of one place; `layouts` has those that were read before."""
        number, signature, context, origin, epoch = place
        by_layout: dict[int, list[tuple[int, bytes]]] = {}
        for layout, *row in self._read("SELECT layout, sequence, packed FROM measured WHERE place = ?", number):
            by_layout.setdefault(layout, []).append(tuple(row))
        for layout, members in by_layout.items():
            if layout not in layouts:
                layouts[layout] = self._read("SELECT value FROM layouts WHERE id = ?", layout)[0][0]
            plans, moments = unpack(layouts[layout], [packed for _, packed in members])
            for (sequence, _), plan, by_metric in zip(members, plans, moments, strict=True):
                yield Row(
                    federation=self.federation,
                    signature=signature,
                    plan=plan,
                    context=context,
                    origin=origin,
                    epoch=epoch,
                    sequence=sequence,
                    moments=by_metric,
                )

    def _signature_stamp(self) -> object:
        query = "SELECT COUNT(*), MAX(id) FROM signatures WHERE federation = ?"
        return self._read(query, self.federation)[0]

    def _signatures(self) -> dict[str, ModelSignature]:
        found = self._read("SELECT key, value FROM signatures WHERE federation = ?", self.federation)
        return {key: signature_of(json.loads(value)) for key, value in found}

    def _contexts(self) -> dict[str, Context]:
        found = self._read("SELECT key, value FROM contexts WHERE federation = ?", self.federation)
        return {key: context_of(json.loads(value)) for key, value in found}

    def _counts(self) -> Counts:
        one = self.federation
        rows = f"SELECT COUNT(*) FROM measured WHERE place IN ({_PLACES_OF})"
        return Counts(
            records=self._read("SELECT COUNT(*) FROM records WHERE federation = ?", one)[0][0],
            rows=self._read(rows, one)[0][0],
            signatures=self._read("SELECT COUNT(*) FROM signatures WHERE federation = ?", one)[0][0],
            contexts=self._read("SELECT COUNT(*) FROM contexts WHERE federation = ?", one)[0][0],
            origins=self._read("SELECT COUNT(DISTINCT origin) FROM streams WHERE federation = ?", one)[0][0],
        )


def _rows_in(packed: Packed, context: int, contexts: int) -> Iterator[tuple[bytes, bytes]]:
    """(plan, row) of the rows in one of an envelope's contexts."""
    pairs = zip(packed.plans, packed.rows, strict=True)
    return compress(pairs, (packed.contexts == context).tolist()) if contexts > 1 else pairs

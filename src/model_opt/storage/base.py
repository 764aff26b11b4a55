"""What all stores have in common: a back end adds the few primitives at the end of `BaseStore`."""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from model_opt.errors import InvalidInput, StoreError
from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.envelope import Envelope, Record, Revocation, check_name
from model_opt.federation.join import ChainLink, Cursor, Policy, StreamKey, cursors
from model_opt.federation.record_index import link_of
from model_opt.federation.row import Row
from model_opt.federation.store import Appendable, Counts, OriginSummary
from model_opt.federation.wire import WireLimits, decode_record, read_head
from model_opt.search.context import Context
from model_opt.search.model_signature import ModelSignature
from model_opt.storage.legible import legible
from model_opt.storage.neighbours import Neighbours, check_query
from model_opt.storage.retry import Retry

T = TypeVar("T")
_log = logging.getLogger(__name__)

STALE = 0
"""Kept instead of a store's `rows_schema` while rows and records may disagree: whoever connects next derives them."""
_PAGE = 200


@dataclass(frozen=True, kw_only=True)
class Write:
    """One record to be kept, and those of its envelopes whose rows are to be written."""

    encoded: EncodedRecord
    envelopes: tuple[Envelope, ...]


class BaseStore(ABC):
    """A knowledge store over a back end's primitives: `KnowledgeStore` and `Inspection` in terms of them."""

    rows_schema = 1
    """The version of how a back end lays rows out. Where a store's is older, rows are derived from the records anew."""

    def __init__(
        self, *, federation: str = "local", retry: Retry | None = None, limits: WireLimits | None = None
    ) -> None:
        """Nothing is touched before the first call. `limits` are for records given as bytes."""
        self.federation = check_name("federation", federation)
        self._retry = retry or Retry()
        self._limits = limits or WireLimits()
        self._lock = threading.RLock()
        self._connected = False
        self._policy = Policy()
        self._policy_cursor = 0
        self._neighbours: tuple[object, Neighbours] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What a store does

    def append(self, *records: Appendable) -> int:
        """See `KnowledgeStore.append`."""
        encoded = [self._seal(record) for record in records]
        return self._call(lambda: self._append(encoded)) if encoded else 0

    def rows(self, signatures: Iterable[str] | None = None) -> list[Row]:
        """See `KnowledgeStore.rows`."""
        keys = None if signatures is None else sorted(set(signatures))
        return self._call(lambda: self._admitted_rows(keys))

    def nearest(self, query: ModelSignature | NDArray[np.float32], k: int = 5) -> list[tuple[ModelSignature, float]]:
        """See `KnowledgeStore.nearest`: exact, by comparing with every signature."""
        vector = check_query(query, k)
        return self._call(lambda: self._known_signatures().nearest(vector, k))

    def revoke(self, revocation: Revocation) -> None:
        """See `KnowledgeStore.revoke`."""
        self.append(revocation)

    def close(self) -> None:
        """See `KnowledgeStore.close`."""
        with self._lock:
            self._connected = False
            self._disconnect()

    # What it tells about itself

    def counts(self) -> Counts:
        """See `Inspection.counts`."""
        return self._call(self._counts)

    def origins(self) -> list[OriginSummary]:
        """See `Inspection.origins`."""
        heads: dict[str, int] = {}
        for _, data in self.envelopes():
            origin = read_head(data, self._limits).origin
            heads[origin] = heads.get(origin, 0) + 1
        reached = self.cursors()
        policy = self._call(self._fresh_policy)
        return [
            OriginSummary(
                origin=origin,
                records=heads[origin],
                epochs={epoch: at.sequence for (_, whose, epoch), at in sorted(reached.items()) if whose == origin},
                revoked=bool(policy.refused.get((self.federation, origin))),
            )
            for origin in sorted(heads)
        ]

    def cursors(self) -> dict[StreamKey, Cursor]:
        """How far every (federation, origin, epoch) is known without a gap; reads every record's head."""
        return cursors(link for _, data in self.envelopes() for link in _links(data, self._limits))

    def signatures(self) -> dict[str, ModelSignature]:
        """See `Inspection.signatures`."""
        return self._call(lambda: dict(self._known_signatures().by_key))

    def contexts(self) -> dict[str, Context]:
        """See `Inspection.contexts`."""
        return self._call(self._read_contexts)

    def envelopes(self, since: int = 0, page: int = _PAGE) -> Iterator[tuple[int, bytes]]:
        """See `Inspection.envelopes`."""
        cursor = since
        while found := self._call(lambda after=cursor: self._records(after, page, policies=False)):  # type: ignore[misc]
            yield from found
            cursor = found[-1][0]

    def rebuild(self) -> int:
        """Derives every row from the records anew, and returns how many there are. Meant for one writer at a time."""
        return self._call(self._rebuild)

    # How

    def _seal(self, record: Appendable) -> EncodedRecord:
        """The record, decoded. What was opened under wider limits than the store's is opened anew, under these."""
        if isinstance(record, EncodedRecord) and not record.limits.within(self._limits):
            record = record.data
        if isinstance(record, bytes):
            record = EncodedRecord.open(record, self._limits)
        encoded = record if isinstance(record, EncodedRecord) else EncodedRecord.of(record)
        if encoded.record.federation != self.federation:
            raise InvalidInput(
                f"a record of federation {encoded.record.federation!r}; this store is {self.federation!r}"
            )
        return encoded

    def _call(self, action: Callable[[], T]) -> T:
        def connected() -> T:
            with self._lock:
                self._ensure_connected()
                return action()

        return self._retry.call(connected)

    def _ensure_connected(self) -> None:
        if self._connected:
            return
        self._connect()
        self._connected = True
        with legible(self):
            found = self._schema()
        if found is not None and found > self.rows_schema:
            self.close()
            raise StoreError(f"{self!r} was written by a newer model_opt (schema {found}); this is {self.rows_schema}")
        if found is None:
            self._set_schema(self.rows_schema)
        elif found < self.rows_schema:
            _log.info("%r: deriving rows anew (schema %d to %d)", self, found, self.rows_schema)
            self._rebuild()

    def _append(self, encoded: Sequence[EncodedRecord]) -> int:
        with self._transaction():
            policy = self._fresh_policy()
            laws = [one.record for one in encoded if not isinstance(one.record, Envelope)]
            if not laws:
                return self._put([_write(one, policy) for one in encoded])
            self._set_schema(STALE)
            policy = policy.with_records(laws)
            new = self._put([_write(one, policy) for one in encoded])
            for law in laws:
                self._obey(law, policy)
            self._set_schema(self.rows_schema)
            return new

    def _obey(self, law: Record, policy: Policy) -> None:
        """Takes rows away that a revocation refuses, and puts earlier ones back."""
        if isinstance(law, Revocation):
            self._forget(law.origin, None if law.everything else sorted(law.epochs))
            if not law.everything:
                self._derive(policy, origin=law.origin)

    def _rebuild(self) -> int:
        with self._transaction():
            self._set_schema(STALE)
            self._forget(None, None)
            self._derive(self._fresh_policy(), origin=None)
            self._set_schema(self.rows_schema)
            return self._counts().rows

    def _derive(self, policy: Policy, origin: str | None) -> None:
        cursor = 0
        while page := self._records(cursor, _PAGE, policies=False):
            cursor = page[-1][0]
            for _, data in page:
                encoded = EncodedRecord.open(data, self._limits)
                if origin is None or encoded.head.origin == origin:
                    self._put_rows(_write(encoded, policy).envelopes)

    def _fresh_policy(self) -> Policy:
        while page := self._records(self._policy_cursor, _PAGE, policies=True):
            self._policy = self._policy.with_records(decode_record(data, self._limits) for _, data in page)
            self._policy_cursor = page[-1][0]
        return self._policy

    def _admitted_rows(self, keys: Sequence[str] | None) -> list[Row]:
        while True:
            policy = self._fresh_policy()
            with legible(self):
                rows = self._rows(keys)
            # A revocation that landed between the two reads would show half of what it did.
            if self._fresh_policy() is policy:
                break
        if policy.refused:
            rows = [row for row in rows if policy.admits_row(row)]
        return sorted(rows, key=lambda row: row.key)

    def _read_contexts(self) -> dict[str, Context]:
        with legible(self):
            return self._contexts()

    def _known_signatures(self) -> Neighbours:
        stamp = (self._signature_stamp(), self._policy_cursor)
        if self._neighbours is None or self._neighbours[0] != stamp:
            with legible(self):
                self._neighbours = (stamp, Neighbours(self._signatures()))
        return self._neighbours[1]

    # What a back end brings. Driver's errors are raised as StoreError's kinds. All but the first two run connected.

    @abstractmethod
    def _connect(self) -> None:
        """Connects, and makes tables, constraints and indexes where there are none; may be called again."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Lets the connection go, whatever its state."""

    def _transaction(self) -> AbstractContextManager[object]:
        """Around each write: a back end with transactions makes it one of them (they may be nested)."""
        return nullcontext()

    @abstractmethod
    def _schema(self) -> int | None:
        """The version kept by `_set_schema`, or None in a new store."""

    @abstractmethod
    def _set_schema(self, version: int) -> None:
        """Keeps the version of the rows."""

    @abstractmethod
    def _put(self, writes: Sequence[Write]) -> int:
        """Keeps records and writes their rows, guarded by sequence; returns how many records were new.

        Raises `StoreConflict` before anything of `writes` is kept if a record of the same identity has another
        digest. Whatever is interrupted can be repeated; a record is visible no earlier than its rows.
        """

    @abstractmethod
    def _put_rows(self, envelopes: Sequence[Envelope]) -> None:
        """Writes rows, signatures and contexts of `envelopes`, guarded by sequence."""

    @abstractmethod
    def _forget(self, origin: str | None, epochs: Sequence[str] | None) -> None:
        """Deletes the rows of these epochs of `origin` (None: all), then signatures without rows."""

    @abstractmethod
    def _records(self, since: int, limit: int, *, policies: bool) -> list[tuple[int, bytes]]:
        """At most `limit` records after the cursor, in order; with `policies` only revocations."""

    @abstractmethod
    def _rows(self, keys: Sequence[str] | None) -> list[Row]:
        """The rows of these signatures, or all, in any order."""

    @abstractmethod
    def _signature_stamp(self) -> object:
        """Something that differs whenever the set of signatures does; cheap."""

    @abstractmethod
    def _signatures(self) -> dict[str, ModelSignature]:
        """Every signature that has rows, by key."""

    @abstractmethod
    def _contexts(self) -> dict[str, Context]:
        """Every context, by key."""

    @abstractmethod
    def _counts(self) -> Counts:
        """How much there is."""


def _write(encoded: EncodedRecord, policy: Policy) -> Write:
    return Write(encoded=encoded, envelopes=tuple(e for e in encoded.envelopes if policy.admits_envelope(e)))


def _links(data: bytes, limits: WireLimits) -> list[ChainLink]:
    head = read_head(data, limits)
    return [link_of(head)] if head.kind == "envelope" else []

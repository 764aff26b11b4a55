"""MongoDB, and servers that speak its protocol: one readable document for each row, written in bulk.

A row's `_id` is its canonical key, so that the rows of a signature are a range of the one index that every collection
has. New rows are inserted; where a row is there already a guarded replacement follows. Rows are written before their
record, so a crash between the two leaves rows that the repeated call finds up to date.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

from model_opt.errors import MissingDependency, StoreConflict, StoreError, StoreUnavailable
from model_opt.federation.envelope import Envelope
from model_opt.federation.moments import Moments
from model_opt.federation.row import Row
from model_opt.federation.store import Counts
from model_opt.federation.wire import WireLimits
from model_opt.federation.wire_rows import context_fields, context_of, signature_fields, signature_of
from model_opt.search.context import Context
from model_opt.search.model_signature import ModelSignature
from model_opt.search.plan import Choice, Plan
from model_opt.storage.address import redacted, understood
from model_opt.storage.base import BaseStore, Write
from model_opt.storage.plain_rows import in_batches, plain_rows, plan_text
from model_opt.storage.retry import Retry

_BATCH = 2000
_DUPLICATE = 11000
_REMEMBERED = 500_000


class MongoDBBackend(BaseStore):
    """A store in one database of a MongoDB server. Several federations may share the database."""

    def __init__(
        self,
        connection_string: str = "mongodb://localhost:27017",
        *,
        database: str = "model_opt",
        federation: str = "local",
        retry: Retry | None = None,
        limits: WireLimits | None = None,
        **options: Any,
    ) -> None:
        """`options` go to `pymongo.MongoClient`: `tls`, `tlsCAFile`, `username`, `password`, …"""
        super().__init__(federation=federation, retry=retry, limits=limits)
        self._url = connection_string
        self._database = database
        waits = {"serverSelectionTimeoutMS": 5000, "connectTimeoutMS": 5000, "socketTimeoutMS": 60000}
        self._options = waits | {"retryWrites": False} | options
        self._client: Any = None
        self._written: set[int] = set()
        """Hashes of the ids of rows that are probably there. It saves work; nothing depends on its being right."""

    def __repr__(self) -> str:
        return f"MongoDBBackend({redacted(self._url)!r}, database={self._database!r})"

    def _connect(self) -> None:
        try:
            import pymongo
        except ImportError as error:
            raise MissingDependency("pymongo", "mongodb") from error
        with self._translated():
            if self._client is None:
                with understood(repr(self), pymongo.errors.ConfigurationError):
                    self._client = pymongo.MongoClient(self._url, **self._options)
            self._db = self._client[self._database]
            # Journal and oplog have one order: with a record everything written before it is safe.
            self._kept = self._db.get_collection("records", write_concern=pymongo.WriteConcern(w="majority", j=True))
            self._rows_written = self._db.get_collection("rows", write_concern=pymongo.WriteConcern(w=1, j=False))
            self._check_keeping()
            up = pymongo.ASCENDING
            self._db.records.create_index([("federation", up), ("cursor", up)], unique=True)
            self._db.records.create_index([("federation", up), ("law", up), ("cursor", up)])
            self._db.signatures.create_index([("federation", up)])

    def _check_keeping(self) -> None:
        """Raises `StoreError` where an index of the database lets documents of ours expire."""
        for name in ("records", "rows", "signatures", "facts"):
            for index in self._db[name].list_indexes():
                if "expireAfterSeconds" in index:
                    raise StoreError(
                        f"{self!r} lets what it acknowledged expire (index {index['name']!r} of {name!r}): knowledge "
                        "would be lost in silence. Drop that index, or name another database"
                    )

    def _disconnect(self) -> None:
        self._written.clear()
        if self._client is not None:
            self._client.close()
        self._client = None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from pymongo import errors

        try:
            yield
        except errors.OperationFailure as error:
            if error.code in (18, 13):
                raise StoreError(f"{self!r} refuses the user name or password") from error
            if error.has_error_label("RetryableWriteError"):
                raise StoreUnavailable(f"{self!r} cannot take writes now ({error.code})") from error
            raise StoreError(f"{self!r}: {type(error).__name__} {error.code}: {error.details}") from error
        except (errors.ConnectionFailure, errors.WTimeoutError, OSError) as error:
            raise StoreUnavailable(f"{self!r} cannot be reached: {type(error).__name__}") from error
        except errors.PyMongoError as error:
            raise StoreError(f"{self!r}: {type(error).__name__}") from error

    def _id(self, *parts: str) -> str:
        return "|".join((self.federation, *parts))

    def _schema(self) -> int | None:
        with self._translated():
            found = self._db.facts.find_one({"_id": self._id("rows")})
        return None if found is None else int(found["version"])

    def _set_schema(self, version: int) -> None:
        with self._translated():
            self._db.facts.update_one({"_id": self._id("rows")}, {"$set": {"version": version}}, upsert=True)

    def _put(self, writes: Sequence[Write]) -> int:
        new = self._unknown(writes)
        self._put_rows([envelope for write in new for envelope in write.envelopes])
        done = self._put_together(new)
        return done + sum(self._put_record(write) for write in new[done:])

    def _unknown(self, writes: Sequence[Write]) -> list[Write]:
        """The writes whose records are not there, each once; raises `StoreConflict` where another is in its place."""
        places = [self._id(write.encoded.identity) for write in writes]
        with self._translated():
            found = self._db.records.find({"_id": {"$in": places}}, {"digest": 1})
            known = {document["_id"]: document["digest"] for document in found}
        new = []
        for place, write in zip(places, writes, strict=True):
            if place not in known:
                new.append(write)
            if known.setdefault(place, write.encoded.digest) != write.encoded.digest:
                raise StoreConflict(f"{write.encoded.identity} is there already, and says something else")
        return new

    def _put_together(self, writes: Sequence[Write]) -> int:
        """Gives the records the next cursors, as long as nobody else takes one; returns how many it has put."""
        from pymongo.errors import BulkWriteError

        with self._translated():
            first = self._last_cursor() + 1
            documents = [self._record(write) | {"cursor": first + number} for number, write in enumerate(writes)]
            try:
                if documents:
                    self._kept.insert_many(documents, ordered=True)
            except BulkWriteError as error:
                faults = error.details.get("writeErrors", [])
                if error.details.get("writeConcernErrors") or any(fault.get("code") != _DUPLICATE for fault in faults):
                    raise
                return int(faults[0]["index"])
            return len(documents)

    def _put_record(self, write: Write) -> int:
        """Gives the record the next cursor: one that is free only while it follows the last, so readers miss none."""
        from pymongo.errors import DuplicateKeyError

        document = self._record(write)
        with self._translated():
            while True:
                try:
                    self._kept.insert_one(document | {"cursor": self._last_cursor() + 1})
                except DuplicateKeyError:
                    known = self._db.records.find_one({"_id": document["_id"]}, {"digest": 1})
                    if known is None:
                        continue
                    if known["digest"] != write.encoded.digest:
                        message = f"{write.encoded.identity} was written by somebody else meanwhile"
                        raise StoreConflict(message) from None
                    return 0
                return 1

    def _last_cursor(self) -> int:
        last = self._db.records.find_one({"federation": self.federation}, {"cursor": 1}, sort=[("cursor", -1)])
        return int(last["cursor"]) if last else 0

    def _record(self, write: Write) -> dict[str, Any]:
        encoded = write.encoded
        return {
            "_id": self._id(encoded.identity),
            "federation": self.federation,
            "law": encoded.kind != "envelope",
            "digest": encoded.digest,
            "data": encoded.data,
        }

    def _put_rows(self, envelopes: Sequence[Envelope]) -> None:
        with self._translated():
            for batch in in_batches(envelopes, _BATCH):
                self._put_values(batch)
                latest: dict[str, dict[str, Any]] = {}
                for envelope in sorted(batch, key=attrgetter("sequence")):
                    latest |= {document["_id"]: document for document in self._documents(envelope)}
                documents = list(latest.values())
                for start in range(0, len(documents), _BATCH):
                    self._put_documents(documents[start : start + _BATCH])

    def _put_documents(self, documents: list[dict[str, Any]]) -> None:
        """Inserts, and where that says that a row is there already, replaces it if it is of a lower sequence."""
        from pymongo import InsertOne, ReplaceOne

        hashes = [hash(document["_id"]) for document in documents]
        fresh = [document for document, known in zip(documents, hashes, strict=True) if known not in self._written]
        there = [document for document, known in zip(documents, hashes, strict=True) if known in self._written]
        there += [fresh[number] for number in self._bulk([InsertOne(document) for document in fresh])]
        self._bulk(
            [ReplaceOne({"_id": row["_id"], "sequence": {"$lt": row["sequence"]}}, row, upsert=True) for row in there]
        )
        if len(self._written) > _REMEMBERED:
            self._written.clear()
        self._written.update(hashes)

    def _bulk(self, operations: list[Any]) -> list[int]:
        """Writes all; returns the numbers of those whose `_id` was there: for a guarded upsert, that were stale."""
        from pymongo.errors import BulkWriteError

        if not operations:
            return []
        try:
            self._rows_written.bulk_write(operations, ordered=False)
        except BulkWriteError as error:
            faults = error.details.get("writeErrors", [])
            if error.details.get("writeConcernErrors") or any(fault.get("code") != _DUPLICATE for fault in faults):
                raise
            return [fault["index"] for fault in faults]
        return []

    def _put_values(self, envelopes: Sequence[Envelope]) -> None:
        for key, signature in {one.signature.key: one.signature for one in envelopes}.items():
            value = {
                "federation": self.federation,
                "key": key,
                "family": str(signature.family),
                "parameters": signature.parameters,
                "fields": signature_fields(signature),
            }
            self._db.signatures.update_one({"_id": self._id(key)}, {"$set": value}, upsert=True)
        for context in {context for one in envelopes for context in one.contexts}:
            named = {
                "federation": self.federation,
                "key": context.key,
                "device": context.device,
                "fields": context_fields(context),
            }
            self._db.contexts.update_one({"_id": self._id(context.key)}, {"$set": named}, upsert=True)

    def _documents(self, envelope: Envelope) -> Iterator[dict[str, Any]]:
        signature = envelope.signature.key
        for row in plain_rows(envelope):
            yield {
                "_id": self._id(signature, row.plan, row.context, envelope.origin, envelope.epoch),
                "federation": self.federation,
                "signature": signature,
                "plan": plan_text(row.choices),
                "choices": row.choices,
                "context": row.context,
                "origin": envelope.origin,
                "epoch": envelope.epoch,
                "sequence": envelope.sequence,
                "metrics": [
                    {"name": name, "n": n, "mean": mean, "m2": m2, "min": low, "max": high}
                    for name, (n, mean, m2, low, high) in row.moments.items()
                ],
            }

    def _under(self, *parts: str) -> dict[str, str]:
        """The ids that begin with these parts of a key."""
        start = self._id(*parts)
        return {"$gte": f"{start}|", "$lt": f"{start}{chr(ord('|') + 1)}"}

    def _forget(self, origin: str | None, epochs: Sequence[str] | None) -> None:
        query: dict[str, Any] = {"_id": self._under()}
        if origin is not None:
            query["origin"] = origin
        if epochs is not None:
            query["epoch"] = {"$in": list(epochs)}
        with self._translated():
            self._db.rows.delete_many(query)
            for document in self._db.signatures.find({"federation": self.federation}, {"key": 1}):
                if self._db.rows.find_one({"_id": self._under(document["key"])}, {"_id": 1}) is None:
                    self._db.signatures.delete_one({"_id": document["_id"]})

    def _records(self, since: int, limit: int, *, policies: bool) -> list[tuple[int, bytes]]:
        query: dict[str, Any] = {"federation": self.federation, "cursor": {"$gt": since}}
        if policies:
            query["law"] = True
        with self._translated():
            found = self._db.records.find(query, {"cursor": 1, "data": 1}).sort("cursor", 1).limit(limit)
            return [(document["cursor"], bytes(document["data"])) for document in found]

    def _rows(self, keys: Sequence[str] | None) -> list[Row]:
        # One question for a million rows would not be answered in time by every server.
        wanted = list(self._signatures()) if keys is None else keys
        plan = _remembered_plans()
        with self._translated():
            found = (self._db.rows.find({"_id": self._under(key)}, batch_size=5000) for key in wanted)
            return [self._row(document, plan) for documents in found for document in documents]

    def _row(self, document: dict[str, Any], plan: Callable[[list[list[Any]]], Plan]) -> Row:
        return Row(
            federation=self.federation,
            signature=document["signature"],
            plan=plan(document["choices"]),
            context=document["context"],
            origin=document["origin"],
            epoch=document["epoch"],
            sequence=document["sequence"],
            moments={
                m["name"]: Moments(n=m["n"], mean=m["mean"], m2=m["m2"], min=m["min"], max=m["max"])
                for m in document["metrics"]
            },
        )

    def _signature_stamp(self) -> object:
        with self._translated():
            return self._db.signatures.count_documents({"federation": self.federation})

    def _signatures(self) -> dict[str, ModelSignature]:
        with self._translated():
            found = self._db.signatures.find({"federation": self.federation})
            return {document["key"]: signature_of(document["fields"]) for document in found}

    def _contexts(self) -> dict[str, Context]:
        with self._translated():
            found = self._db.contexts.find({"federation": self.federation})
            return {document["key"]: context_of(document["fields"]) for document in found}

    def _counts(self) -> Counts:
        own = {"federation": self.federation}
        with self._translated():
            places = self._db.records.find(own, {"_id": 1})
            origins = {document["_id"].removeprefix(self._id("")).split("|")[1] for document in places}
            return Counts(
                records=self._db.records.count_documents(own),
                rows=self._db.rows.count_documents({"_id": self._under()}),
                signatures=self._db.signatures.count_documents(own),
                contexts=self._db.contexts.count_documents(own),
                origins=len(origins),
            )


def _remembered_plans() -> Callable[[list[list[Any]]], Plan]:
    known: dict[tuple[tuple[Any, ...], ...], Plan] = {}

    def plan(choices: list[list[Any]]) -> Plan:
        key = tuple(map(tuple, choices))
        if key not in known:
            known[key] = Plan(tuple(Choice(decision=name, option=option, version=int(v)) for name, option, v in key))
        return known[key]

    return plan

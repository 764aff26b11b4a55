"""MongoDB, and servers that speak its protocol: one readable document for each row, guarded upserts in bulk.

Rows are written before their record, so a crash between the two leaves rows that the repeated call finds up to date.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from model_opt.errors import MissingDependency, StoreConflict, StoreError, StoreUnavailable
from model_opt.federation.envelope import Envelope
from model_opt.federation.moments import Moments
from model_opt.federation.row import Row
from model_opt.federation.wire import Limits
from model_opt.federation.wire_rows import context_fields, context_of, signature_fields, signature_of
from model_opt.search.context import Context
from model_opt.search.plan import Choice, Plan
from model_opt.search.signature import Signature
from model_opt.storage.base import BaseStore, Write
from model_opt.storage.open import redacted
from model_opt.storage.retry import Retry
from model_opt.storage.store import Counts

_BATCH = 2000
_DUPLICATE = 11000


class MongoDBBackend(BaseStore):
    """A store in one database of a MongoDB server. Several federations may share the database."""

    def __init__(
        self,
        connection_string: str = "mongodb://localhost:27017",
        *,
        database: str = "model_opt",
        federation: str = "local",
        retry: Retry | None = None,
        limits: Limits | None = None,
        **options: Any,
    ) -> None:
        """`options` go to `pymongo.MongoClient`: `tls`, `tlsCAFile`, `username`, `password`, …"""
        super().__init__(federation=federation, retry=retry, limits=limits)
        self._url = connection_string
        self._database = database
        waits = {"serverSelectionTimeoutMS": 5000, "connectTimeoutMS": 5000, "socketTimeoutMS": 60000}
        self._options = waits | {"retryWrites": False} | options
        self._client: Any = None

    def __repr__(self) -> str:
        return f"MongoDBBackend({redacted(self._url)!r}, database={self._database!r})"

    def _connect(self) -> None:
        try:
            import pymongo
        except ImportError as error:
            raise MissingDependency("pymongo", "mongodb") from error
        with self._translated():
            if self._client is None:
                self._client = pymongo.MongoClient(self._url, **self._options)
            self._db = self._client[self._database]
            # The journal has one order: with a record everything written before it is on the disk.
            self._kept = self._db.get_collection("records", write_concern=pymongo.WriteConcern(w=1, j=True))
            up = pymongo.ASCENDING
            self._db.rows.create_index([("federation", up), ("signature", up)])
            self._db.rows.create_index([("federation", up), ("origin", up), ("epoch", up)])
            self._db.records.create_index([("federation", up), ("cursor", up)], unique=True)
            self._db.records.create_index([("federation", up), ("law", up), ("cursor", up)])
            self._db.signatures.create_index([("federation", up)])

    def _disconnect(self) -> None:
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
        return sum(self._put_record(write) for write in new)

    def _unknown(self, writes: Sequence[Write]) -> list[Write]:
        """The writes whose records are not there, each once; raises `StoreConflict` where another is in its place."""
        places = [self._id(write.sealed.identity) for write in writes]
        with self._translated():
            found = self._db.records.find({"_id": {"$in": places}}, {"digest": 1})
            known = {document["_id"]: document["digest"] for document in found}
        new = []
        for place, write in zip(places, writes, strict=True):
            if place not in known:
                new.append(write)
            if known.setdefault(place, write.sealed.digest) != write.sealed.digest:
                raise StoreConflict(f"{write.sealed.identity} is there already, and says something else")
        return new

    def _put_record(self, write: Write) -> int:
        """Gives the record the next cursor: one that is free only while it follows the last, so readers miss none."""
        from pymongo.errors import DuplicateKeyError

        sealed = write.sealed
        document = {
            "_id": self._id(sealed.identity),
            "federation": self.federation,
            "law": sealed.kind != "envelope",
            "digest": sealed.digest,
            "data": sealed.data,
        }
        with self._translated():
            while True:
                last = self._db.records.find_one({"federation": self.federation}, {"cursor": 1}, sort=[("cursor", -1)])
                try:
                    self._kept.insert_one(document | {"cursor": last["cursor"] + 1 if last else 1})
                except DuplicateKeyError:
                    known = self._db.records.find_one({"_id": document["_id"]}, {"digest": 1})
                    if known is None:
                        continue
                    if known["digest"] != sealed.digest:
                        message = f"{sealed.identity} was written by somebody else meanwhile"
                        raise StoreConflict(message) from None
                    return 0
                return 1

    def _put_rows(self, envelopes: Sequence[Envelope]) -> None:
        from pymongo import UpdateOne

        with self._translated():
            for envelope in envelopes:
                self._put_values(envelope)
                documents = list(self._documents(envelope))
                for start in range(0, len(documents), _BATCH):
                    part = documents[start : start + _BATCH]
                    self._bulk(
                        [
                            UpdateOne(
                                {"_id": row["_id"], "sequence": {"$lt": row["sequence"]}}, {"$set": row}, upsert=True
                            )
                            for row in part
                        ]
                    )

    def _bulk(self, updates: list[Any]) -> None:
        """Writes all; a duplicate key says that a row of the same or a later sequence is there."""
        from pymongo.errors import BulkWriteError

        try:
            self._db.rows.bulk_write(updates, ordered=False)
        except BulkWriteError as error:
            others = [e for e in error.details.get("writeErrors", []) if e.get("code") != _DUPLICATE]
            if others or error.details.get("writeConcernErrors"):
                raise

    def _put_values(self, envelope: Envelope) -> None:
        one = {"federation": self.federation, "key": envelope.signature.key}
        value = {
            "family": str(envelope.signature.family),
            "parameters": envelope.signature.parameters,
            "fields": signature_fields(envelope.signature),
        }
        self._db.signatures.update_one({"_id": self._id(envelope.signature.key)}, {"$set": one | value}, upsert=True)
        for context in envelope.contexts:
            named = {
                "federation": self.federation,
                "key": context.key,
                "device": context.device,
                "fields": context_fields(context),
            }
            self._db.contexts.update_one({"_id": self._id(context.key)}, {"$set": named}, upsert=True)

    def _documents(self, envelope: Envelope) -> Iterator[dict[str, Any]]:
        for row in envelope.rows:
            yield {
                "_id": "|".join(row.key),
                "federation": row.federation,
                "signature": row.signature,
                "plan": str(row.plan),
                "choices": [[choice.decision, choice.option, choice.version] for choice in row.plan.choices],
                "context": row.context,
                "origin": row.origin,
                "epoch": row.epoch,
                "sequence": row.sequence,
                "metrics": [
                    {"name": name, "n": m.n, "mean": m.mean, "m2": m.m2, "min": m.min, "max": m.max}
                    for name, m in row.moments.items()
                ],
            }

    def _forget(self, origin: str | None, epochs: Sequence[str] | None) -> None:
        query: dict[str, Any] = {"federation": self.federation}
        if origin is not None:
            query["origin"] = origin
        if epochs is not None:
            query["epoch"] = {"$in": list(epochs)}
        with self._translated():
            self._db.rows.delete_many(query)
            for document in self._db.signatures.find({"federation": self.federation}, {"key": 1}):
                if self._db.rows.find_one({"federation": self.federation, "signature": document["key"]}) is None:
                    self._db.signatures.delete_one({"_id": document["_id"]})

    def _records(self, since: int, limit: int, *, policies: bool) -> list[tuple[int, bytes]]:
        query: dict[str, Any] = {"federation": self.federation, "cursor": {"$gt": since}}
        if policies:
            query["law"] = True
        with self._translated():
            found = self._db.records.find(query, {"cursor": 1, "data": 1}).sort("cursor", 1).limit(limit)
            return [(document["cursor"], bytes(document["data"])) for document in found]

    def _rows(self, keys: Sequence[str] | None) -> list[Row]:
        query: dict[str, Any] = {"federation": self.federation}
        if keys is not None:
            query["signature"] = {"$in": list(keys)}
        plan = _remembered_plans()
        with self._translated():
            return [self._row(document, plan) for document in self._db.rows.find(query, batch_size=5000)]

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

    def _signatures(self) -> dict[str, Signature]:
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
                rows=self._db.rows.count_documents(own),
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

"""Neo4j: the knowledge as a graph that a person can walk in the Neo4j Browser. Community edition is enough.

    (:ModelSignature)-[:ROOT]->(:State)-[:OPTION {decision, option}]->(:State:Plan)
    (:Measurement {<metric>_n, _mean, _m2, _min, _max})-[:OF]->(:Plan)
    (:Measurement)-[:BY]->(:Origin)            (:Context), by the measurement's `context`
    (:Record)                                  what everything else is derived from

A state is what the choices so far amount to; where the choices of a plan end, the state is a `:Plan` too. Every node
has one canonical `key` under a UNIQUE constraint. What is there is looked up first and the rest created, which costs
the server less than MERGE does; a writer that loses a race to another tries again. Meant for one writer all the same:
relationships at a shared node lock it.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

from model_opt.errors import MissingDependency, StoreConflict, StoreError, StoreUnavailable
from model_opt.federation.envelope import Envelope
from model_opt.federation.row import Row
from model_opt.federation.store import Counts
from model_opt.federation.wire import WireLimits
from model_opt.search.context import Context
from model_opt.search.model_signature import ModelSignature
from model_opt.storage import neo4j_cypher as cypher
from model_opt.storage.address import redacted, understood
from model_opt.storage.base import BaseStore, Write
from model_opt.storage.neo4j_values import (
    GraphRow,
    PlanReader,
    context_node,
    context_value,
    graph_rows,
    plan_node,
    root_key,
    row_value,
    signature_node,
    signature_value,
    states_of,
)
from model_opt.storage.plain_rows import in_batches
from model_opt.storage.retry import Retry

T = TypeVar("T")
_BATCH = 5000
"""Rows a transaction."""
_PART_BYTES = 8 * 2**20
_DELETED = 5000
_REMEMBERED = 500_000


class Neo4jBackend(BaseStore):
    """A store in one database of a Neo4j server, 5 or newer. Several federations may share the database."""

    rows_schema = 2

    def __init__(
        self,
        uri: str = "neo4j://localhost:7687",
        *,
        user: str | None = None,
        password: str | None = None,
        database: str = "neo4j",
        federation: str = "local",
        retry: Retry | None = None,
        limits: WireLimits | None = None,
        **options: Any,
    ) -> None:
        """`neo4j+s://` and `bolt+s://` are TLS. `options` go to `neo4j.GraphDatabase.driver`."""
        super().__init__(federation=federation, retry=retry, limits=limits)
        self._uri, self._database = uri, database
        self._auth = (user, password or "") if user is not None else None
        waits = {"connection_acquisition_timeout": 10.0, "liveness_check_timeout": 60.0, "connection_timeout": 5.0}
        waits["max_transaction_retry_time"] = 10.0
        # Names that an empty database has not seen yet are no news.
        quiet = {"notifications_disabled_classifications": ["UNRECOGNIZED"]}
        self._options: dict[str, Any] = waits | quiet | options
        self._driver: Any = None
        self._remembered = _Known()

    def __repr__(self) -> str:
        return f"Neo4jBackend({redacted(self._uri)!r}, database={self._database!r})"

    def _connect(self) -> None:
        try:
            from neo4j import GraphDatabase
        except ImportError as error:
            raise MissingDependency("neo4j", "all") from error
        # Its pool tells of each failed attempt where nobody listens; ours are logged when they are tried again.
        pool = logging.getLogger("neo4j")
        if not pool.handlers:
            pool.addHandler(logging.NullHandler())
        with self._translated(), understood(repr(self)):
            if self._driver is None:
                self._driver = GraphDatabase.driver(self._uri, auth=self._auth, **self._options)
            self._driver.verify_connectivity()
            for statement in cypher.SCHEMA:
                self._driver.execute_query(statement, database_=self._database)

    def _disconnect(self) -> None:
        self._remembered.clear()
        if self._driver is not None:
            self._driver.close()
        self._driver = None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from neo4j import exceptions

        try:
            yield
        except exceptions.AuthError as error:
            raise StoreError(f"{self!r} refuses the user name or password") from error
        except (exceptions.ServiceUnavailable, exceptions.SessionExpired, OSError) as error:
            # IncompleteCommit is one of these: the guards make it safe to send again.
            raise StoreUnavailable(f"{self!r} cannot be reached: {type(error).__name__}") from error
        except exceptions.ConstraintError as error:
            # Two writers made one node at the same time: the second finds it when it tries again.
            raise StoreUnavailable(f"{self!r}: somebody else wrote the same meanwhile") from error
        except exceptions.Neo4jError as error:
            kind = StoreUnavailable if error.is_retryable() else StoreError
            raise kind(f"{self!r}: {error.code}: {error.message}") from error
        except exceptions.DriverError as error:
            said = str(error).replace(self._uri, redacted(self._uri))
            raise StoreError(f"{self!r}: {type(error).__name__}: {said}") from error

    def _read(self, statement: str, **parameters: Any) -> list[Any]:
        with self._translated():
            found = self._driver.execute_query(
                statement, parameters, database_=self._database, routing_=_routing("READ")
            )
            return list(found.records)

    def _in_transaction(self, work: Callable[[Any], T]) -> T:
        with self._translated(), self._driver.session(database=self._database) as session:
            result: T = session.execute_write(work)
            return result

    def _run(self, statement: str, **parameters: Any) -> list[Any]:
        return self._in_transaction(lambda transaction: list(transaction.run(statement, parameters)))

    def _schema(self) -> int | None:
        found = self._read(cypher.READ_FACT, key=self._key("rows"))
        return int(found[0]["value"]) if found else None

    def _set_schema(self, version: int) -> None:
        self._run(cypher.PUT_FACT, key=self._key("rows"), value=version)

    def _key(self, *parts: str) -> str:
        return "|".join((self.federation, *parts))

    # Writing

    def _put(self, writes: Sequence[Write]) -> int:
        new = self._unknown(writes)
        self._put_rows([envelope for write in new for envelope in write.envelopes])
        return sum(self._in_transaction(partial(self._put_records, writes=part)) for part in _in_parts(new))

    def _unknown(self, writes: Sequence[Write]) -> list[Write]:
        """The writes whose records are not there, each once; raises `StoreConflict` where another is in its place."""
        places = [self._key(write.encoded.identity) for write in writes]
        found = self._read(cypher.READ_DIGESTS, keys=places)
        return self._new(writes, {record["key"]: record["digest"] for record in found})

    def _new(self, writes: Sequence[Write], known: dict[str, str]) -> list[Write]:
        new = []
        for write in writes:
            place = self._key(write.encoded.identity)
            if place not in known:
                new.append(write)
            if known.setdefault(place, write.encoded.digest) != write.encoded.digest:
                raise StoreConflict(f"{write.encoded.identity} is there already, and says something else")
        return new

    def _put_records(self, transaction: Any, writes: Sequence[Write]) -> int:
        counter = self._key("records")
        last = transaction.run(cypher.LOCK_CURSOR, counter=counter).single(strict=True)["last"]
        found = transaction.run(cypher.READ_DIGESTS, keys=[self._key(write.encoded.identity) for write in writes])
        new = self._new(writes, {record["key"]: record["digest"] for record in found})
        records = [
            {
                "key": self._key(write.encoded.identity),
                "federation": self.federation,
                "origin": write.encoded.record.origin,
                "law": write.encoded.kind != "envelope",
                "digest": write.encoded.digest,
                "data": write.encoded.data,
                "cursor": cursor,
            }
            for cursor, write in enumerate(new, start=last + 1)
        ]
        transaction.run(cypher.PUT_RECORDS, counter=counter, last=last + len(new), records=records).consume()
        return len(new)

    def _put_rows(self, envelopes: Sequence[Envelope]) -> None:
        for batch in in_batches(envelopes, _BATCH):
            self._in_transaction(partial(self._values, envelopes=batch))
            for (signature, origin), group in _grouped(batch).items():
                self._put_group(self._key(signature), self._key(origin), group)

    def _put_group(self, scope: str, origin: str, envelopes: Sequence[Envelope]) -> None:
        latest: dict[str, GraphRow] = {}
        for envelope in sorted(envelopes, key=attrgetter("sequence")):
            latest |= {row.values["key"]: row for row in graph_rows(scope, envelope)}
        rows = sorted(latest.values(), key=attrgetter("plan"))
        for start in range(0, len(rows), _BATCH):
            batch = _Batch(scope=scope, origin=origin, rows=rows[start : start + _BATCH])
            try:
                now_there = self._in_transaction(partial(batch.write, known=self._remembered))
            except StoreUnavailable:
                self._remembered.clear()
                raise
            self._remembered.add(now_there)

    def _values(self, transaction: Any, envelopes: Sequence[Envelope]) -> None:
        for (signature, origin), group in _grouped(envelopes).items():
            transaction.run(
                cypher.PUT_VALUES,
                signature=signature_node(self.federation, group[0].signature),
                root=root_key(self._key(signature)),
                origin={"key": self._key(origin), "federation": self.federation, "name": origin},
            ).consume()
        contexts = {context for envelope in envelopes for context in envelope.contexts}
        nodes = [context_node(self.federation, context) for context in contexts]
        transaction.run(cypher.PUT_CONTEXTS, contexts=nodes).consume()

    def _forget(self, origin: str | None, epochs: Sequence[str] | None) -> None:
        self._remembered.clear()
        scope = {"federation": self.federation, "origin": origin, "epochs": None if epochs is None else list(epochs)}
        for statement in cypher.FORGET:
            while self._run(statement, limit=_DELETED, **scope)[0]["gone"]:
                continue

    # Reading

    def _records(self, since: int, limit: int, *, policies: bool) -> list[tuple[int, bytes]]:
        statement = cypher.READ_LAWS if policies else cypher.READ_RECORDS
        found = self._read(statement, federation=self.federation, since=since, limit=limit)
        return [(record["cursor"], bytes(record["data"])) for record in found]

    def _rows(self, keys: Sequence[str] | None) -> list[Row]:
        wanted = list(self._signatures()) if keys is None else keys
        reader = PlanReader()
        rows = []
        for key in wanted:
            found = self._read(cypher.READ_MEASUREMENTS, signature=self._key(key))
            rows += [row_value(self.federation, key, record["m"], reader(record["choices"])) for record in found]
        return rows

    def _signature_stamp(self) -> object:
        return self._read(cypher.COUNT_SIGNATURES, federation=self.federation)[0]["count"]

    def _signatures(self) -> dict[str, ModelSignature]:
        found = self._read(cypher.READ_SIGNATURES, federation=self.federation)
        return {record["key"]: signature_value(record["value"]) for record in found}

    def _contexts(self) -> dict[str, Context]:
        found = self._read(cypher.READ_CONTEXTS, federation=self.federation)
        return {record["key"]: context_value(record["value"]) for record in found}

    def _counts(self) -> Counts:
        found = self._read(cypher.COUNT_ALL, federation=self.federation)[0]
        return Counts(**{name: found[name] for name in ("records", "rows", "signatures", "contexts", "origins")})


@dataclass(frozen=True, kw_only=True)
class _Known:
    """Keys of states that were there, and of those which are plans: a state can be there before its plan is."""

    states: set[str] = field(default_factory=set)
    plans: set[str] = field(default_factory=set)

    def clear(self) -> None:
        self.states.clear()
        self.plans.clear()

    def add(self, other: "_Known") -> None:
        if len(self.states) + len(self.plans) > _REMEMBERED:
            self.clear()
        self.states.update(other.states)
        self.plans.update(other.plans)


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Rows of one signature and origin that are written in one transaction."""

    scope: str
    origin: str
    rows: Sequence[GraphRow]

    def write(self, transaction: Any, known: _Known) -> _Known:
        """Writes what is not there and updates what is older; returns the states and plans that now are there.

        Raises `StoreUnavailable` where something of `known` has gone since.
        """
        plans = {row.plan for row in self.rows}
        unknown = plans - known.plans
        unknown -= self._found(transaction, cypher.READ_PLANS, unknown)
        fresh = {row.plan: row for row in self.rows if row.plan in unknown}
        states = self._grow(transaction, fresh, known.states) if fresh else set()
        old = [row.parameters for row in self.rows if row.plan not in fresh]
        updated = transaction.run(cypher.UPDATE_MEASUREMENTS, rows=old) if old else ()
        keys = {record["key"] for record in updated}
        new = [row.parameters for row in self.rows if row.values["key"] not in keys]
        self._make(transaction, cypher.PUT_MEASUREMENTS, rows=new, origin=self.origin)
        return _Known(states=states, plans=plans)

    def _grow(self, transaction: Any, fresh: Mapping[str, GraphRow], known: set[str]) -> set[str]:
        """Makes new plans and the states on the way to them, level by level; returns the keys of all of them."""
        levels = states_of(self.scope, (row.choices for row in fresh.values()))
        all_keys = {key for level in levels for key in level}
        unknown = all_keys - known
        unknown -= self._found(transaction, cypher.READ_STATES, unknown)
        for level in levels:
            states = [state for key, state in level.items() if key in unknown]
            ends = [state | {"plan": plan_node(fresh[state["key"]])} for state in states if state["key"] in fresh]
            others = [state for state in states if state["key"] not in fresh]
            self._make(transaction, cypher.PUT_STATES_OF_PLANS, states=ends)
            self._make(transaction, cypher.PUT_STATES, states=others)
        plans = [plan_node(row) for key, row in fresh.items() if key not in unknown]
        self._make(transaction, cypher.PUT_PLANS, plans=plans)
        return all_keys

    @staticmethod
    def _found(transaction: Any, statement: str, keys: set[str]) -> set[str]:
        return {record["key"] for record in transaction.run(statement, keys=sorted(keys))} if keys else set()

    @staticmethod
    def _make(transaction: Any, statement: str, **parameters: Any) -> None:
        """Runs a statement that makes something of each entry of its list, which is the first parameter."""
        wanted = len(next(iter(parameters.values())))
        if wanted and transaction.run(statement, parameters).single(strict=True)["made"] != wanted:
            raise StoreUnavailable("what the rows hang on was deleted meanwhile")


def _grouped(envelopes: Iterable[Envelope]) -> dict[tuple[str, str], list[Envelope]]:
    """Envelopes by the keys of their signature and origin."""
    groups: dict[tuple[str, str], list[Envelope]] = {}
    for envelope in envelopes:
        groups.setdefault((envelope.signature.key, envelope.origin), []).append(envelope)
    return groups


def _in_parts(writes: Iterable[Write]) -> Iterator[list[Write]]:
    """Records that together are small enough for one transaction."""
    part: list[Write] = []
    for write in writes:
        if part and sum(len(one.encoded.data) for one in part) + len(write.encoded.data) > _PART_BYTES:
            yield part
            part = []
        part.append(write)
    if part:
        yield part


def _routing(name: str) -> Any:
    from neo4j import RoutingControl

    return RoutingControl[name]

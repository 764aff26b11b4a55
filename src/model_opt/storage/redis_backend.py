"""Redis: one hash of packed rows for each signature; guarded by Lua scripts, each append one MULTI … EXEC.

Keys begin with `{model_opt:<federation>}`, so that all of a federation is in one slot of a cluster:

    :facts          name → number                      :identities     identity of a record → digest
    :records        list of records                    :laws           list of the cursors of revocations
    :signatures     key → JSON                         :contexts       key → JSON
    :layouts        hash of a layout → layout          :rows:<key>     plan, context, origin|epoch → sequence, row
"""

import json
import logging
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

from model_opt.errors import MissingDependency, StoreConflict, StoreCorrupt, StoreError, StoreUnavailable
from model_opt.federation.envelope import Envelope
from model_opt.federation.row import Row
from model_opt.federation.store import Counts
from model_opt.federation.wire import WireLimits
from model_opt.federation.wire_rows import context_fields, context_of, signature_fields, signature_of
from model_opt.search.context import Context
from model_opt.search.model_signature import ModelSignature
from model_opt.storage.address import redacted, understood
from model_opt.storage.base import BaseStore, Write
from model_opt.storage.packed import pack_block, unpack
from model_opt.storage.retry import Retry

_log = logging.getLogger(__name__)
_BATCH = 1000
"""Rows a script call: Lua unpacks them on a stack of 8,000."""
_HEADER = struct.Struct(">Q8s")
"""Before a row: sequence, hash of its layout."""
_PUT_ROWS = """
local old = redis.call('HMGET', KEYS[1], unpack(ARGV, 1, #ARGV / 2))
local pairs, half = {}, #ARGV / 2
for i = 1, half do
  if not old[i] or struct.unpack('>I8', old[i]) < struct.unpack('>I8', ARGV[half + i]) then
    pairs[#pairs + 1] = ARGV[i]
    pairs[#pairs + 1] = ARGV[half + i]
  end
end
if #pairs > 0 then redis.call('HSET', KEYS[1], unpack(pairs)) end
"""
_PUT_RECORD = """
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known then return known == ARGV[2] and 0 or -1 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
local cursor = redis.call('RPUSH', KEYS[2], ARGV[3])
if ARGV[4] == '1' then redis.call('RPUSH', KEYS[3], cursor) end
return 1
"""


class RedisBackend(BaseStore):
    """A store in Redis 6 or newer. Durable only as far as the server is: set `appendonly yes`, `appendfsync always`."""

    rows_schema = 2

    def __init__(
        self,
        host: str = "localhost",
        port: int = 6379,
        *,
        url: str | None = None,
        federation: str = "local",
        retry: Retry | None = None,
        limits: WireLimits | None = None,
        **options: Any,
    ) -> None:
        """A `url` (`redis://` or, with TLS, `rediss://`) goes before host and port.

        `options` go to `redis.Redis`: `db`, `username`, `password`, `ssl`, `ssl_ca_certs`, …
        """
        super().__init__(federation=federation, retry=retry, limits=limits)
        self._url = url
        self._where = redacted(url) if url else f"redis://{host}:{port}/{options.get('db', 0)}"
        self._options = {"socket_timeout": 30.0, "socket_connect_timeout": 5.0} | options
        if url is None:
            self._options |= {"host": host, "port": port}
        self._client: Any = None
        self._warned = False
        self._tag = f"{{model_opt:{federation}}}"

    def __repr__(self) -> str:
        return f"RedisBackend({self._where!r})"

    def _connect(self) -> None:
        try:
            import redis
        except ImportError as error:
            raise MissingDependency("redis", "redis") from error
        with self._translated(), understood(repr(self)):
            if self._client is None:
                url = self._url
                self._client = redis.Redis.from_url(url, **self._options) if url else redis.Redis(**self._options)
                self._put_rows_script = self._client.register_script(_PUT_ROWS)
                self._put_record_script = self._client.register_script(_PUT_RECORD)
            self._client.ping()
            self._check_kept()
            self._check_keeping()

    def _check_kept(self) -> None:
        """Raises `StoreCorrupt` where records are gone that were acknowledged."""
        pipe = self._client.pipeline(transaction=True)  # at one moment: others append
        pipe.hlen(self._key("identities"))
        pipe.llen(self._key("records"))
        told, there = pipe.execute()
        if told != there:
            raise StoreCorrupt(
                f"{self!r} has {there} records and knows of {told}: keys expired, or were thrown away or deleted; "
                "bring a copy back, or begin under another federation's name"
            )

    def _check_keeping(self) -> None:
        """Raises `StoreError` where the server throws away what it acknowledged when its memory is full, and warns
        where it forgets when it ends; where it does not say, nothing is known."""
        from redis import exceptions

        try:
            memory, persistence = (self._client.info(section) for section in ("memory", "persistence"))
        except exceptions.ResponseError as error:  # a user who may not ask
            _log.info("%r does not tell how it keeps what it has: %s", self, error)
            return
        policy = str(memory.get("maxmemory_policy", "noeviction"))
        if memory.get("maxmemory") and policy.startswith("allkeys"):
            raise StoreError(
                f"{self!r} throws keys away when its memory is full (maxmemory-policy {policy}): knowledge would be "
                "lost in silence. Set maxmemory-policy noeviction, or use a server of its own"
            )
        if not persistence.get("aof_enabled") and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self!r} forgets what it was told since its last snapshot when it ends: set appendonly yes and "
                "appendfsync always",
                stacklevel=2,
            )

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from redis import exceptions

        try:
            yield
        except exceptions.AuthenticationError as error:
            raise StoreError(f"{self!r} refuses the user name or password") from error
        except (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ReadOnlyError, OSError) as error:
            raise StoreUnavailable(f"{self!r} cannot be reached: {type(error).__name__}") from error
        except exceptions.RedisError as error:
            raise StoreError(f"{self!r}: {type(error).__name__}: {error}") from error

    def _key(self, *parts: str) -> str:
        return ":".join((self._tag, *parts))

    def _schema(self) -> int | None:
        with self._translated():
            found = self._client.hget(self._key("facts"), "rows")
        return None if found is None else int(found)

    def _set_schema(self, version: int) -> None:
        with self._translated():
            self._client.hset(self._key("facts"), "rows", version)

    def _put(self, writes: Sequence[Write]) -> int:
        with self._translated():
            new = self._unknown(writes)
            if not new:
                return 0
            pipe = self._client.pipeline(transaction=True)
            for envelope in (envelope for write in new for envelope in write.envelopes):
                self._queue_rows(pipe, envelope)
            for write in new:
                self._queue_record(pipe, write)
            answers = pipe.execute()[-len(new) :]
        if -1 in answers:
            raise StoreConflict(f"{new[answers.index(-1)].encoded.identity} was written by somebody else meanwhile")
        return sum(answers)

    def _unknown(self, writes: Sequence[Write]) -> list[Write]:
        """The writes whose records are not there, each once; raises `StoreConflict` where another is in its place."""
        places = [write.encoded.identity for write in writes]
        found = self._client.hmget(self._key("identities"), places)
        known = {place: digest.decode() for place, digest in zip(places, found, strict=True) if digest}
        new: list[Write] = []
        for write in writes:
            place, digest = write.encoded.identity, write.encoded.digest
            if known.setdefault(place, digest) != digest:
                raise StoreConflict(f"{place} is there already, and says something else")
            if digest not in (one.encoded.digest for one in new) and not found[places.index(place)]:
                new.append(write)
        return new

    def _queue_record(self, pipe: Any, write: Write) -> None:
        encoded = write.encoded
        keys = [self._key("identities"), self._key("records"), self._key("laws")]
        law = int(encoded.kind != "envelope")
        self._put_record_script(keys=keys, args=[encoded.identity, encoded.digest, encoded.data, law], client=pipe)

    def _queue_rows(self, pipe: Any, envelope: Envelope) -> None:
        packed = pack_block(envelope.block)
        layout = blake2b(packed.layout.encode(), digest_size=8).digest()
        pipe.hset(self._key("layouts"), layout, packed.layout)
        pipe.hset(self._key("signatures"), envelope.signature.key, json.dumps(signature_fields(envelope.signature)))
        for context in envelope.contexts:
            pipe.hset(self._key("contexts"), context.key, json.dumps(context_fields(context)))
        keys = [bytes.fromhex(context.key) for context in envelope.contexts]
        stream = f"{envelope.origin}|{envelope.epoch}".encode()
        places = [key + stream for key in keys]
        fields = [plan + places[n] for plan, n in zip(packed.plans, packed.contexts.tolist(), strict=True)]
        header = _HEADER.pack(envelope.sequence, layout)
        values = [header + row for row in packed.rows]
        target = [self._key("rows", envelope.signature.key)]
        for start in range(0, len(fields), _BATCH):
            part = slice(start, start + _BATCH)
            self._put_rows_script(keys=target, args=fields[part] + values[part], client=pipe)

    def _put_rows(self, envelopes: Sequence[Envelope]) -> None:
        with self._translated():
            pipe = self._client.pipeline(transaction=True)
            for envelope in envelopes:
                self._queue_rows(pipe, envelope)
            pipe.execute()

    def _forget(self, origin: str | None, epochs: Sequence[str] | None) -> None:
        with self._translated():
            for key in self._signature_keys():
                target = self._key("rows", key)
                gone = [field for field, _ in self._scan(target) if _named(field, origin, epochs)]
                for start in range(0, len(gone), _BATCH):
                    self._client.hdel(target, *gone[start : start + _BATCH])
                if not self._client.exists(target):
                    self._client.hdel(self._key("signatures"), key)

    def _signature_keys(self) -> list[str]:
        return [key.decode() for key in self._client.hkeys(self._key("signatures"))]

    def _scan(self, target: str) -> Iterator[tuple[bytes, bytes]]:
        yield from self._client.hscan_iter(target, count=_BATCH)

    def _records(self, since: int, limit: int, *, policies: bool) -> list[tuple[int, bytes]]:
        with self._translated():
            if not policies:
                found = self._client.lrange(self._key("records"), since, since + limit - 1)
                return list(enumerate(found, start=since + 1))
            laws = [int(cursor) for cursor in self._client.lrange(self._key("laws"), 0, -1)]
            wanted = [cursor for cursor in laws if cursor > since][:limit]
            return [(cursor, self._client.lindex(self._key("records"), cursor - 1)) for cursor in wanted]

    def _rows(self, keys: Sequence[str] | None) -> list[Row]:
        with self._translated():
            layouts = self._client.hgetall(self._key("layouts"))
            wanted = self._signature_keys() if keys is None else keys
            # A scan may show a field twice while the hash grows.
            return [
                row for key in wanted for row in self._decoded(key, dict(self._scan(self._key("rows", key))), layouts)
            ]

    def _decoded(self, signature: str, found: dict[bytes, bytes], layouts: dict[bytes, bytes]) -> list[Row]:
        by_layout: dict[bytes, list[tuple[bytes, int, bytes]]] = {}
        for field, value in found.items():
            sequence, layout = _HEADER.unpack_from(value)
            by_layout.setdefault(layout, []).append((field, sequence, value[_HEADER.size :]))
        rows = []
        for layout, members in by_layout.items():
            plans, moments = unpack(layouts[layout].decode(), [raw for *_, raw in members])
            for (field, sequence, _), plan, by_metric in zip(members, plans, moments, strict=True):
                origin, _, epoch = field[32:].decode().rpartition("|")
                rows.append(
                    Row(
                        federation=self.federation,
                        signature=signature,
                        plan=plan,
                        context=field[16:32].hex(),
                        origin=origin,
                        epoch=epoch,
                        sequence=sequence,
                        moments=by_metric,
                    )
                )
        return rows

    def _signature_stamp(self) -> object:
        with self._translated():
            return self._client.hlen(self._key("signatures"))

    def _signatures(self) -> dict[str, ModelSignature]:
        with self._translated():
            found = self._client.hgetall(self._key("signatures"))
        return {key.decode(): signature_of(json.loads(value)) for key, value in found.items()}

    def _contexts(self) -> dict[str, Context]:
        with self._translated():
            found = self._client.hgetall(self._key("contexts"))
        return {key.decode(): context_of(json.loads(value)) for key, value in found.items()}

    def _counts(self) -> Counts:
        with self._translated():
            pipe = self._client.pipeline(transaction=False)
            for name in ("signatures", "contexts"):
                pipe.hlen(self._key(name))
            pipe.llen(self._key("records"))
            for key in self._signature_keys():
                pipe.hlen(self._key("rows", key))
            signatures, contexts, records, *rows = pipe.execute()
            origins = {place.split(b"|")[1] for place in self._client.hkeys(self._key("identities"))}
        return Counts(records=records, rows=sum(rows), signatures=signatures, contexts=contexts, origins=len(origins))


def _named(field: bytes, origin: str | None, epochs: Sequence[str] | None) -> bool:
    whose, _, epoch = field[32:].decode().rpartition("|")
    return origin is None or (whose == origin and (epochs is None or epoch in epochs))

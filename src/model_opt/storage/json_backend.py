"""A JSON file that a person can read: `knowledge_base_path="my_kb.json"`.

The file is written whole, so it suits thousands of rows; SQLite suits millions. What counts in it are the records, as
base64 of their bytes; models, contexts and plans are written out for people and are derived anew on reading.
"""

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from model_opt.atomic import replacing
from model_opt.errors import InvalidInput, StoreConflict, StoreError, StoreUnavailable
from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.envelope import Envelope
from model_opt.federation.join import Policy
from model_opt.federation.moments import Moments
from model_opt.federation.row import Row, RowKey
from model_opt.federation.store import Counts
from model_opt.federation.wire import WireLimits
from model_opt.federation.wire_rows import context_fields
from model_opt.search.context import Context
from model_opt.search.model_signature import ModelSignature
from model_opt.storage.base import BaseStore, Write
from model_opt.storage.legible import legible
from model_opt.storage.retry import Retry

_FORMAT = "model_opt knowledge"
_LOCK_S = 30.0


@dataclass
class _Contents:
    """What a file holds. `records` are in the order of their cursors, 1, 2, …"""

    records: list[EncodedRecord] = field(default_factory=list)
    identities: dict[tuple[str, str], EncodedRecord] = field(default_factory=dict)
    rows: dict[RowKey, Row] = field(default_factory=dict)
    signatures: dict[str, ModelSignature] = field(default_factory=dict)
    contexts: dict[str, Context] = field(default_factory=dict)

    def keep(self, encoded: EncodedRecord) -> None:
        self.records.append(encoded)
        self.identities[encoded.record.federation, encoded.identity] = encoded

    def add_rows(self, envelope: Envelope) -> None:
        self.signatures[envelope.signature.key] = envelope.signature
        self.contexts |= {context.key: context for context in envelope.contexts}
        for row in envelope.rows:
            known = self.rows.get(row.key)
            if known is None or row.sequence > known.sequence:
                self.rows[row.key] = row


class JSONBackend(BaseStore):
    """A store in one JSON file, written atomically and locked across processes (`<name>.lock` beside it).

    What cannot be read is refused, by reading and writing alike, and left as it is.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        federation: str = "local",
        retry: Retry | None = None,
        limits: WireLimits | None = None,
    ) -> None:
        """`path` is made, with its folder, by the first write."""
        super().__init__(federation=federation, retry=retry, limits=limits)
        self.path = Path(path)
        self._contents = _Contents()
        self._stamp: tuple[int, ...] | None = None
        self._file_lock = FileLock(f"{self.path}.lock", timeout=_LOCK_S)
        self._depth = 0
        self._dirty = False

    def __repr__(self) -> str:
        return f"JSONBackend({str(self.path)!r})"

    def _connect(self) -> None:
        with self._translated():
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def _disconnect(self) -> None:
        self._contents, self._stamp = _Contents(), None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except Timeout as error:
            raise StoreUnavailable(f"{self!r}: another process has held its lock for {_LOCK_S:.0f} s") from error
        except OSError as error:
            raise StoreUnavailable(f"{self!r}: {error.strerror or error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        if self._depth:
            yield
            return
        with self._translated(), self._file_lock:
            self._refresh()
            self._depth, self._dirty = 1, False
            try:
                yield
                if self._dirty:
                    self._save()
            except BaseException:
                self._stamp = None
                raise
            finally:
                self._depth = 0

    def _schema(self) -> int | None:
        return self.rows_schema

    def _set_schema(self, version: int) -> None:
        """Rows are derived on every reading, so there is nothing to keep."""

    def _put(self, writes: Sequence[Write]) -> int:
        with self._transaction():
            identities = self._contents.identities
            new: dict[str, Write] = {}
            for write in writes:
                place = write.encoded.identity
                known = identities.get((self.federation, place)) or (new[place].encoded if place in new else None)
                if known is None:
                    new[place] = write
                elif known.digest != write.encoded.digest:
                    raise StoreConflict(f"{place} is there already, and says something else")
            for write in new.values():
                self._contents.keep(write.encoded)
                self._put_rows(write.envelopes)
            self._dirty = self._dirty or bool(new)
            return len(new)

    def _put_rows(self, envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            self._contents.add_rows(envelope)

    def _forget(self, origin: str | None, epochs: Sequence[str] | None) -> None:
        with self._transaction():
            rows = self._contents.rows
            for key in list(rows):
                named = origin is None or (key.origin == origin and (epochs is None or key.epoch in epochs))
                if named and key.federation == self.federation:
                    del rows[key]
            self._dirty = True

    def _records(self, since: int, limit: int, *, policies: bool) -> list[tuple[int, bytes]]:
        self._refresh()
        found: list[tuple[int, bytes]] = []
        for cursor, encoded in enumerate(self._contents.records[since:], start=since + 1):
            law = not isinstance(encoded.record, Envelope)
            if encoded.record.federation == self.federation and (law or not policies):
                found.append((cursor, encoded.data))
                if len(found) == limit:
                    break
        return found

    def _rows(self, keys: Sequence[str] | None) -> list[Row]:
        self._refresh()
        wanted = None if keys is None else set(keys)
        return [row for row in self._own_rows() if wanted is None or row.signature in wanted]

    def _own_rows(self) -> list[Row]:
        return [row for row in self._contents.rows.values() if row.federation == self.federation]

    def _signature_stamp(self) -> object:
        self._refresh()
        return self._stamp

    def _signatures(self) -> dict[str, ModelSignature]:
        keys = {row.signature for row in self._own_rows()}
        return {key: self._contents.signatures[key] for key in keys}

    def _contexts(self) -> dict[str, Context]:
        self._refresh()
        keys = {row.context for row in self._own_rows()}
        return {key: self._contents.contexts[key] for key in keys}

    def _counts(self) -> Counts:
        self._refresh()
        records = [one for one in self._contents.records if one.record.federation == self.federation]
        return Counts(
            records=len(records),
            rows=len(self._own_rows()),
            signatures=len(self._signatures()),
            contexts=len(self._contexts()),
            origins=len({one.record.origin for one in records}),
        )

    # The file

    def _refresh(self) -> None:
        """Reads the file if it is not the one that was read or written last."""
        if self._depth:
            return
        with self._translated():
            stamp = _stamp(self.path)
            if stamp != self._stamp or stamp is None:
                self._contents = self._load()
                self._stamp = stamp

    def _load(self) -> _Contents:
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return _Contents()
        if not raw:
            return _Contents()
        with legible(repr(str(self.path))):
            document = json.loads(raw)
            if document in (None, {}, [], "", 0):
                raise ValueError("it holds nothing")
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise InvalidInput(f"{str(self.path)!r} is JSON of some other kind; choose another path for the knowledge")
        if not isinstance(document.get("schema"), int) or document["schema"] > self.rows_schema:
            raise StoreError(f"{self!r} was written by a newer model_opt: schema {document.get('schema')!r}")
        with legible(repr(str(self.path))):
            return _contents(document["records"], self._limits)

    def _save(self) -> None:
        with replacing(self.path) as (file,):
            file.writelines(line.encode() for line in _lines(self._contents))
        self._stamp = _stamp(self.path)


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _contents(records: Sequence[str], limits: WireLimits) -> _Contents:
    contents = _Contents()
    for text in records:
        contents.keep(EncodedRecord.open(base64.b64decode(text, validate=True), limits))
    policy = Policy.of(encoded.record for encoded in contents.records)
    for encoded in contents.records:
        for envelope in encoded.envelopes:
            if policy.admits_envelope(envelope):
                contents.add_rows(envelope)
    return contents


def _lines(contents: _Contents) -> Iterator[str]:
    """The file, one line for each model, context, plan and record."""
    yield f'{{"format": "{_FORMAT}", "schema": {JSONBackend.rows_schema},\n'
    used = {row.signature for row in contents.rows.values()}
    models = ((key, signature) for key, signature in sorted(contents.signatures.items()) if key in used)
    yield from _section("models", "{}", (f"{json.dumps(key)}: {json.dumps(_model(value))}" for key, value in models))
    contexts = sorted(contents.contexts.items())
    named = (f"{json.dumps(key)}: {json.dumps(_context(value))}" for key, value in contexts)
    yield from _section("contexts", "{}", named)
    rows = sorted(contents.rows.values(), key=lambda row: row.key)
    yield from _section("plans", "[]", (json.dumps(_plan(row, contents.signatures)) for row in rows))
    records = (json.dumps(base64.b64encode(encoded.data).decode()) for encoded in contents.records)
    yield from _section("records", "[]", records, last=True)
    yield "}\n"


def _section(name: str, brackets: str, lines: Iterator[str], *, last: bool = False) -> Iterator[str]:
    yield f' "{name}": {brackets[0]}'
    separator = "\n"
    for line in lines:
        yield f"{separator}  {line}"
        separator = ",\n"
    yield f"{brackets[1]}{'' if last else ','}\n"


def _model(signature: ModelSignature) -> dict[str, Any]:
    return {
        "family": str(signature.family),
        "parameters": signature.parameters,
        "layers": signature.layers,
        "operators": dict(sorted(signature.operators.items())),
        "stages": [[stage.width, stage.layers, round(stage.share, 4)] for stage in signature.stages],
    }


def _context(context: Context) -> dict[str, Any]:
    device, libraries, dtype, threads, batch, shapes = context_fields(context)
    return {
        "device": device,
        "libraries": dict(libraries),
        "dtype": dtype,
        "threads": threads,
        "batch": batch,
        "input_shapes": shapes,
    }


def _plan(row: Row, signatures: Mapping[str, ModelSignature]) -> dict[str, Any]:
    return {
        "family": str(signatures[row.signature].family),
        "plan": str(row.plan),
        "samples": max(moments.n for moments in row.moments.values()),
        "metrics": {name: _metric(moments) for name, moments in row.moments.items()},
        "model": row.signature,
        "context": row.context,
        "federation": row.federation,
        "origin": row.origin,
        "epoch": row.epoch,
        "sequence": row.sequence,
    }


def _metric(moments: Moments) -> dict[str, float]:
    shown: dict[str, float] = {"n": moments.n, "mean": moments.mean}
    if moments.n > 1:
        shown |= {"deviation": math.sqrt(moments.variance), "min": moments.min, "max": moments.max}
    return shown

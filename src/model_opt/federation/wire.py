"""Records as bytes: a msgpack frame of three parts, around columnar little-endian arrays.

    [ "model_opt", head, meta, columns ]        a msgpack array of four: a string and three binaries
    [ "model_opt", head, meta, columns, seal ]  of five where it is signed: see `signing`

`head` (msgpack map) says what it is, whose, its place in the chain, and the hash of the body, blake3; the digest of
a record is blake2b-256 over the head, signed or not. `meta` (msgpack map) describes the rows, `columns` holds their
arrays end to end. A revocation has a head only.
Records of schema 1 have a body hash of blake2b-256, and are read and written as they were.

Sizes are checked before anything is decoded, and every value afterwards: bytes from anybody may be given to `decode`.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import msgpack  # type: ignore[import-untyped]
from blake3 import blake3

from model_opt.errors import InvalidInput, WireError
from model_opt.federation import wire_rows
from model_opt.federation.envelope import SCHEMA, Envelope, Record, Revocation, check_hex, check_sequence

MAGIC = "model_opt"
OLDEST_READER = 2
"""The oldest schema whose readers understand what is written now; they know blake3."""

_FRAME_OF_FOUR, _FRAME_OF_FIVE = 0x94, 0x95
_MAGIC = bytes(msgpack.packb(MAGIC))
_WIDTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4}
"""Bytes of the length after each of msgpack's codes for binaries."""
Bytes = bytes | memoryview


@dataclass(frozen=True, kw_only=True)
class WireLimits:
    """What a decoder accepts: sizes in bytes, counts of rows, metrics and names' characters."""

    max_bytes: int = 8 * 2**20
    max_head_bytes: int = 64 * 2**10
    max_meta_bytes: int = 2**18
    """A byte of meta may become an object of 64."""
    max_seal_bytes: int = 1024
    max_rows: int = 1_000_000
    max_metrics: int = 64
    max_items: int = 4096
    """The longest array or map of head and meta."""
    max_text: int = 1024

    def within(self, other: "WireLimits") -> bool:
        """Whether whatever these let pass, `other` lets pass too."""
        return all(getattr(self, one.name) <= getattr(other, one.name) for one in fields(self))


@dataclass(frozen=True, kw_only=True)
class Head:
    """The head of a record as it stands in the bytes; only `digest` is computed (64 hexadecimal digits)."""

    kind: str
    federation: str
    origin: str
    schema: int
    digest: str
    fields: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """What a store files the record under: an envelope's place in its stream, another record's own digest.

        Raises `InvalidInput` where an envelope has no place.
        """
        if self.kind != "envelope":
            return f"{self.kind}|{self.origin}|{self.digest}"
        epoch, sequence = check_hex("epoch", self.fields.get("epoch"), 32), self.fields.get("sequence")
        return f"envelope|{self.origin}|{epoch}|{check_sequence('sequence', sequence):016d}"


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The parts of a record's bytes, undecoded; `seal` is empty where it is not signed."""

    head: bytes
    meta: Bytes
    columns: Bytes
    seal: bytes


def encode(record: Record) -> bytes:
    """The bytes of a record, not signed: equal records give equal bytes."""
    return joined(framed(record)[1])


def framed(record: Record) -> tuple[Head, Frame]:
    """A record as the head and the parts that it is written as, not signed."""
    head: dict[str, Any] = {"federation": record.federation, "origin": record.origin}
    meta, columns = b"", b""
    if isinstance(record, Envelope):
        kind = "envelope"
        head |= {"epoch": record.epoch, "sequence": record.sequence, "previous": bytes.fromhex(record.previous)}
        described, columns = wire_rows.pack(record)
        meta = msgpack.packb(described)
    else:
        kind = "revocation"
        epochs = dict(sorted(record.epochs.items()))
        head |= {"authority": record.authority, "reason": record.reason, "epochs": epochs}
    reader = min(record.schema, OLDEST_READER)
    head = {"kind": kind, "schema": record.schema, "reader": reader} | head
    head |= {"body": _body_hash(reader, meta, columns)}
    packed = msgpack.packb(head)
    made = Head(
        kind=kind,
        federation=record.federation,
        origin=record.origin,
        schema=record.schema,
        digest=_digest(packed),
        fields=head,
    )
    return made, Frame(head=packed, meta=meta, columns=columns, seal=b"")


def decode(data: bytes, limits: WireLimits = WireLimits()) -> Envelope:
    """The envelope in `data`; raises `WireError` for anything else, revocations included."""
    record = decode_record(data, limits)
    if not isinstance(record, Envelope):
        raise WireError(f"an envelope was expected, not a {type(record).__name__.lower()}")
    return record


def decode_record(data: bytes, limits: WireLimits = WireLimits()) -> Record:
    """The record in `data`; raises `WireError` where it is too large, malformed, or claims what cannot be.

    A seal is not looked at: `signing.verify` does that.
    """
    return decode_body(*read_frame(data, limits), limits)


def read_frame(data: bytes, limits: WireLimits = WireLimits()) -> tuple[Head, Frame]:
    """The head of a record's bytes, read, and their parts; raises `WireError`. The body is neither read nor checked."""
    frame = split(data, limits)
    return _head(frame.head, limits), frame


def decode_body(head: Head, frame: Frame, limits: WireLimits) -> Record:
    """The record whose parts these are; raises `WireError` as `decode_record`."""
    if head.fields.get("body") != _body_hash(head.fields["reader"], frame.meta, frame.columns):
        raise WireError("the body does not match the hash in the head")
    try:
        return _MAKERS[head.kind](head, frame.meta, frame.columns, limits)
    except (InvalidInput, LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise WireError(f"not a valid {head.kind}: {type(error).__name__}: {error}") from error


def read_head(data: bytes, limits: WireLimits = WireLimits()) -> Head:
    """The head alone, of bytes that have been decoded before: the body is neither read nor checked."""
    return read_frame(data, limits)[0]


def _body_hash(reader: int, meta: Bytes, columns: Bytes) -> bytes:
    digest = blake3() if reader >= 2 else hashlib.blake2b(digest_size=32)
    for part in (len(meta).to_bytes(8, "little"), meta, columns):
        digest.update(part)
    return digest.digest()


def split(data: bytes, limits: WireLimits = WireLimits()) -> Frame:
    """The parts of a record's bytes, after checks of size and of nothing else; raises `WireError`."""
    if len(data) > limits.max_bytes:
        raise WireError(f"{len(data)} bytes are more than the limit of {limits.max_bytes}")
    if not data or data[0] not in (_FRAME_OF_FOUR, _FRAME_OF_FIVE):
        raise WireError("not a record of model_opt")
    # Taken apart by hand: the parts are views, so a frame costs no memory beside its own bytes.
    view = memoryview(data if isinstance(data, bytes) else bytes(data))
    if view[1 : 1 + len(_MAGIC)] != _MAGIC:
        raise WireError("not a record of model_opt")
    offset = 1 + len(_MAGIC)
    parts = []
    for _ in range(data[0] - 0x91):
        part, offset = _binary(view, offset)
        parts.append(part)
    if offset != len(view):
        raise WireError("bytes follow the record")
    head, meta, columns, seal = parts if len(parts) == 4 else (*parts, view[:0])
    if len(head) > limits.max_head_bytes or len(meta) > limits.max_meta_bytes or len(seal) > limits.max_seal_bytes:
        raise WireError("head, meta or seal are longer than the limit")
    return Frame(head=bytes(head), meta=meta, columns=columns, seal=bytes(seal))


def _binary(view: memoryview, offset: int) -> tuple[memoryview, int]:
    """The msgpack binary at `offset`, and where it ends."""
    width = _WIDTHS.get(view[offset]) if offset < len(view) else None
    if width is None:
        raise WireError("not a record of model_opt")
    start = offset + 1 + width
    end = start + int.from_bytes(view[offset + 1 : start], "big")
    if end > len(view):
        raise WireError("a part is longer than the record")
    return view[start:end], end


def seal(data: bytes, signed: bytes) -> bytes:
    """The bytes of a record with `signed` as its seal, in place of one that it has; raises `WireError`."""
    return joined(replace(split(data), seal=signed))


def joined(frame: Frame) -> bytes:
    """The bytes of a record with these parts."""
    parts = (MAGIC, frame.head, frame.meta, frame.columns)
    if not frame.seal:
        return bytes([_FRAME_OF_FOUR]) + b"".join(map(msgpack.packb, parts))
    return bytes([_FRAME_OF_FIVE]) + b"".join(map(msgpack.packb, (*parts, frame.seal)))


def _head(raw: bytes, limits: WireLimits) -> Head:
    fields = _unpack_map(raw, limits)
    schema, reader = fields.get("schema"), fields.get("reader")
    if not (isinstance(schema, int) and isinstance(reader, int) and 1 <= reader <= schema):
        raise WireError("the head has no schema version")
    if reader > SCHEMA:
        raise WireError(f"schema {schema} needs a reader of {reader} or later; this is {SCHEMA}: update model_opt")
    kind, federation, origin = (fields.get(name) for name in ("kind", "federation", "origin"))
    if not isinstance(kind, str) or not isinstance(federation, str) or not isinstance(origin, str):
        raise WireError("the head names no kind, federation and origin")
    if kind not in _MAKERS:
        raise WireError(f"the head names no known kind ({', '.join(_MAKERS)})")
    return Head(kind=kind, federation=federation, origin=origin, schema=schema, digest=_digest(raw), fields=fields)


def _digest(head: bytes) -> str:
    return hashlib.blake2b(head, digest_size=32).hexdigest()


def _unpack_map(raw: Bytes, limits: WireLimits) -> dict[str, Any]:
    try:
        fields = msgpack.unpackb(
            raw,
            max_array_len=limits.max_items,
            max_map_len=limits.max_items,
            max_str_len=limits.max_text,
            max_bin_len=64,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise WireError(f"head or meta are malformed: {type(error).__name__}: {error}") from error
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise WireError("head or meta are no map of names")
    return fields


def _envelope(head: Head, meta: Bytes, columns: Bytes, limits: WireLimits) -> Envelope:
    signature, contexts, block = wire_rows.unpack(
        _unpack_map(meta, limits), columns, max_rows=limits.max_rows, max_metrics=limits.max_metrics
    )
    previous = head.fields["previous"]
    if not isinstance(previous, bytes):
        raise WireError("the hash of the envelope before is no binary")
    return Envelope(
        federation=head.federation,
        signature=signature,
        contexts=contexts,
        origin=head.origin,
        epoch=head.fields["epoch"],
        sequence=head.fields["sequence"],
        previous=previous.hex(),
        block=block,
        schema=head.schema,
    )


def _revocation(head: Head, meta: Bytes, columns: Bytes, _limits: WireLimits) -> Revocation:
    if meta or columns:
        raise WireError("a revocation has no body")
    fields = head.fields
    return Revocation(
        federation=head.federation,
        origin=head.origin,
        authority=fields["authority"],
        reason=fields["reason"],
        epochs=dict(fields["epochs"]),
        schema=head.schema,
    )


_Maker = Callable[[Head, Bytes, Bytes, WireLimits], Record]
_MAKERS: dict[str, _Maker] = {"envelope": _envelope, "revocation": _revocation}

"""Signed records: who said it can be checked by whoever knows the origin's name.

A seal is the last part of a record's bytes (see `wire`), one byte that says which and then, in bytes:

    1 | signing key 32 | epoch 16 | the root's signature over them 64 | the signing key's over the record 64
    2 | the root's signature over the record 64

Envelopes are signed with the key of their epoch. What takes away is signed with a root: a revocation
with its authority's. So a stolen signing key can tell lies in one epoch, and erase nothing.

What is signed is the whole head, which holds the hash of the body: one bit anywhere, and it does not verify. ed25519 as
in RFC 8032. A record's digest does not depend on its seal, so the same record signed twice is one record.
"""

from collections.abc import Collection

from model_opt.errors import InvalidInput, WireError
from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.envelope import Envelope, Record, Revocation
from model_opt.federation.identity import (
    EPOCH_BYTES,
    KEY_BYTES,
    SIGNATURE_BYTES,
    Certificate,
    Identity,
    signed_by,
    signed_with,
)
from model_opt.federation.wire import Head, encode, read_head, seal, split

_BY_KEY, _BY_ROOT = 1, 2
_RECORD, _REQUEST = b"model_opt record 1\n", b"model_opt request 1\n"
_LENGTHS = {_BY_KEY: 1 + KEY_BYTES + EPOCH_BYTES + 2 * SIGNATURE_BYTES, _BY_ROOT: 1 + SIGNATURE_BYTES}


def sign(identity: Identity, record: Record) -> bytes:
    """The bytes of `record`, signed; keep them, for they are never made again.

    An envelope is of the identity's origin and epoch; a revocation's authority is the
    identity. Raises `InvalidInput` for others.
    """
    data = encode(record)
    message = _RECORD + split(data).head
    if not isinstance(record, Envelope):
        signer = record.authority if isinstance(record, Revocation) else record.origin
        if signer != identity.origin:
            raise InvalidInput(f"only {signer!r} can sign this {read_head(data).kind}, not {identity.origin}")
        return seal(data, bytes([_BY_ROOT]) + identity.root.sign(message))
    if (record.origin, record.epoch) != (identity.origin, identity.epoch):
        raise InvalidInput(f"signed are envelopes of origin {identity.origin} and epoch {identity.epoch} only")
    return seal(data, _mark(identity, message))


def sign_request(identity: Identity, request: bytes) -> bytes:
    """A mark of the first kind over `request`, with the identity's signing key. It is no seal of any record."""
    return _mark(identity, _REQUEST + request)


def request_epoch(origin: str, mark: bytes, request: bytes) -> str:
    """The epoch of the key of `origin` that has signed `request`; raises `WireError` where none has."""
    if len(mark) != _LENGTHS[_BY_KEY] or mark[0] != _BY_KEY:
        raise WireError("the request is not signed with a signing key")
    return _genuine(origin, mark, _REQUEST + request, "request").epoch


def _mark(identity: Identity, message: bytes) -> bytes:
    certificate = identity.certificate
    parts = (certificate.key, bytes.fromhex(certificate.epoch), certificate.signature, identity.key.sign(message))
    return bytes([_BY_KEY]) + b"".join(parts)


def verify(encoded: EncodedRecord, trusted: Collection[str], *, authorities: Collection[str] = ()) -> Record:
    """The record, decoded, if one of the origins `trusted` has signed it, else `WireError`.

    Withdrawals are taken from the origin that they are of, and from `authorities` (the reader's own, a hub's). The
    signature is checked over the head as it was received, and before the body is decoded.
    """
    head, mark = encoded.head, encoded.frame.seal
    if not mark or len(mark) != _LENGTHS.get(mark[0]):
        raise WireError(f"{head.kind} of {head.origin[:80]!r} is not signed")
    if mark[0] != (_BY_KEY if head.kind == "envelope" else _BY_ROOT):
        raise WireError(f"the wrong kind of key has signed this {head.kind}")
    message = _RECORD + encoded.frame.head
    if mark[0] == _BY_KEY:
        _check_envelope(head, mark, message, trusted)
    else:
        _check_law(head, mark, message, trusted, authorities)
    return encoded.record


def equivocates(a: EncodedRecord, b: EncodedRecord) -> bool:
    """Whether one origin has told two stories: two envelopes of one place in its stream, or after one predecessor.

    Only of records that `verify` has passed does it prove anything: then quarantine the origin (`trust.quarantine`).
    """
    one, other = a.record, b.record
    if not isinstance(one, Envelope) or not isinstance(other, Envelope) or a.digest == b.digest:
        return False
    if (one.federation, one.origin, one.epoch) != (other.federation, other.origin, other.epoch):
        return False
    return one.sequence == other.sequence or one.previous == other.previous


def _check_envelope(head: Head, mark: bytes, message: bytes, trusted: Collection[str]) -> None:
    origin = head.origin
    if origin not in trusted:
        raise WireError(f"origin {origin[:80]!r} is not trusted here: model-opt identity trust ORIGIN")
    if head.fields.get("epoch") != _genuine(origin, mark, message, "envelope").epoch:
        raise WireError("signed with the key of another epoch")


def _genuine(origin: str, mark: bytes, message: bytes, what: str) -> Certificate:
    """The certificate in a mark of the first kind, if the origin's root signed it and its key `message`."""
    key_end, epoch_end = 1 + KEY_BYTES, 1 + KEY_BYTES + EPOCH_BYTES
    root_end = epoch_end + SIGNATURE_BYTES
    certificate = Certificate(
        origin=origin, key=mark[1:key_end], epoch=mark[key_end:epoch_end].hex(), signature=mark[epoch_end:root_end]
    )
    if not certificate.genuine or not signed_with(certificate.key, mark[root_end:], message):
        raise WireError(f"a forged {what}: origin {origin[:80]!r} has not signed it")
    return certificate


def _check_law(head: Head, mark: bytes, message: bytes, trusted: Collection[str], authorities: Collection[str]) -> None:
    signer = head.fields.get("authority")
    if not isinstance(signer, str):
        raise WireError("a revocation names its authority")
    own = signer == head.origin and signer in trusted
    if not own and not (head.kind == "revocation" and signer in authorities):
        raise WireError(f"{signer[:80]!r} cannot withdraw here what {head.origin[:80]!r} has said")
    if not signed_by(signer, mark[1:], message):
        raise WireError(f"a forged {head.kind}: {signer[:80]!r} has not signed it")

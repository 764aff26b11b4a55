"""Several records in one body, each after its length (4 bytes, little endian); pulled also after its cursor (8)."""

from collections.abc import Iterable, Iterator

from model_opt.errors import WireError

_LENGTH, _CURSOR = 4, 8


def pack(records: Iterable[bytes]) -> bytes:
    """The body of a push."""
    return b"".join(len(data).to_bytes(_LENGTH, "little") + data for data in records)


def unpack(body: bytes, most: int) -> Iterator[bytes]:
    """The records of a push, of at most `most` bytes each; raises `WireError` where the body is cut or malformed."""
    offset = 0
    while offset < len(body):
        data, offset = _record(body, offset, most)
        yield data


def pack_page(records: Iterable[tuple[int, bytes]]) -> bytes:
    """The body of a pull: records with their cursors."""
    return b"".join(cursor.to_bytes(_CURSOR, "little") + pack([data]) for cursor, data in records)


def unpack_page(body: bytes, most: int) -> Iterator[tuple[int, bytes]]:
    """The records of a pull with their cursors; raises `WireError`."""
    offset = 0
    while offset < len(body):
        cursor = int.from_bytes(body[offset : offset + _CURSOR], "little")
        data, offset = _record(body, offset + _CURSOR, most)
        yield cursor, data


def _record(body: bytes, offset: int, most: int) -> tuple[bytes, int]:
    length = int.from_bytes(body[offset : offset + _LENGTH], "little")
    start = offset + _LENGTH
    if not 0 < length <= len(body) - start:
        raise WireError("the body is cut short, or its lengths are wrong")
    if length > most:
        raise WireError(f"a record of {length} bytes; the limit is {most}")
    return body[start : start + length], start + length

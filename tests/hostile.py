"""Bytes that mean harm: good records altered, and claims that are larger than what stands behind them."""

import random
from collections.abc import Iterator
from pathlib import Path

import msgpack

from model_opt.federation.wire import _body_hash

DATA = Path(__file__).parent / "data"
NAMES = tuple(sorted(path.stem for path in DATA.glob("*.bin")))


def altered(seed: int, count: int) -> Iterator[bytes]:
    """`count` records with bytes flipped, cut, spliced in or made to claim lengths; where the body was altered its hash
    is made to fit, so that the decoder gets further."""
    source = random.Random(seed)
    parts = {name: msgpack.unpackb((DATA / f"{name}.bin").read_bytes()) for name in NAMES}
    for _ in range(count):
        magic, head, meta, columns, *seal = parts[source.choice(NAMES)]
        part = source.choice(["head", "meta", "columns", "frame"])
        if part == "meta":
            meta = mutated(meta, source)
        elif part == "columns":
            columns = mutated(columns, source)
        if part == "head":
            head = mutated(head, source)
        else:
            head = fitting(head, meta, columns)
        raw = framed(magic, head, meta, columns, *seal)
        yield mutated(raw, source) if part == "frame" else raw


def fitting(head: bytes, meta: bytes, columns: bytes) -> bytes:
    """`head` with the hash of this body."""
    fields = msgpack.unpackb(head)
    return msgpack.packb(fields | {"body": _body_hash(fields["reader"], meta, columns)})


def framed(*parts: object) -> bytes:
    """The frame around the parts of a record."""
    return bytes([0x90 + len(parts)]) + b"".join(msgpack.packb(one) for one in parts)


def claiming(meta: dict | bytes, columns: bytes) -> bytes:
    """An envelope with this body, and a head that fits it."""
    packed = meta if isinstance(meta, bytes) else msgpack.packb(meta)
    head = msgpack.unpackb((DATA / "envelope-3.bin").read_bytes())[1]
    return framed("model_opt", fitting(head, packed, columns), packed, columns)


def mutated(raw: bytes, source: random.Random) -> bytes:
    """`raw` with one to four changes."""
    changed = bytearray(raw)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(changed) + 1)
        kind = source.randrange(4)
        if kind == 0 and at < len(changed):
            changed[at] = source.randrange(256)
        elif kind == 1:
            del changed[at : at + source.randint(1, 9)]
        elif kind == 2:
            changed[at:at] = source.randbytes(source.randint(1, 9))
        else:
            changed[at : at + 1] = bytes([source.choice([0xDF, 0xDD, 0xC6, 0xC9, 0xDB, 0xCB])]) + b"\xff" * 4
    return bytes(changed)

"""Bundles: records in a file, to be carried from one deployment to another.

A line that says what it is, then each record after its length (4 bytes, little endian), then length 0 and a blake2b-256
of everything before it: a bundle that was cut short is noticed.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from model_opt.atomic import replacing
from model_opt.errors import WireError
from model_opt.federation.wire import WireLimits

_MAGIC = b"model_opt bundle 1\n"


def write_bundle(path: Path, records: Iterable[bytes]) -> int:
    """Writes `records` to `path`, which appears whole or not at all; returns how many."""
    digest, count = hashlib.blake2b(_MAGIC, digest_size=32), 0
    with replacing(path) as (file,):
        file.write(_MAGIC)
        for record in records:
            framed = len(record).to_bytes(4, "little") + record
            digest.update(framed)
            file.write(framed)
            count += 1
        file.write(bytes(4) + digest.digest())
    return count


def read_bundle(path: Path, limits: WireLimits = WireLimits()) -> Iterator[bytes]:  # noqa: B008 - frozen
    """The records of a bundle, undecoded; raises `WireError` where it is none, too large, or was cut short."""
    digest = hashlib.blake2b(_MAGIC, digest_size=32)
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise WireError(f"{str(path)!r} is not a bundle")
        while True:
            prefix = file.read(4)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 4 or length > limits.max_bytes:
                raise WireError(f"{str(path)!r} was cut short, or holds a record of more than {limits.max_bytes} bytes")
            if not length:
                break
            record = file.read(length)
            if len(record) < length:
                raise WireError(f"{str(path)!r} was cut short")
            digest.update(prefix + record)
            yield record
        if file.read(33) != digest.digest():
            raise WireError(f"{str(path)!r} was altered or cut short")

"""A record together with its bytes. The bytes are the record: they are kept and forwarded, never made again."""

from dataclasses import dataclass
from typing import Self

from model_opt.errors import InvalidInput
from model_opt.federation.envelope import Envelope, Record, Revocation
from model_opt.federation.wire import WireLimits, decode_record, digest_of, encode


@dataclass(frozen=True, kw_only=True)
class EncodedRecord:
    """`data` decodes to `record`; `digest` (64 hexadecimal digits) is that of its head."""

    record: Record
    data: bytes
    digest: str

    @classmethod
    def of(cls, record: Record) -> Self:
        """Seals a record made here; raises `InvalidInput` where it is larger than receivers accept."""
        data = encode(record)
        if len(data) > WireLimits().max_bytes:
            raise InvalidInput(f"a {type(record).__name__.lower()} of {len(data)} bytes is too large: send it in parts")
        return cls(record=record, data=data, digest=digest_of(data))

    @classmethod
    def open(cls, data: bytes, limits: WireLimits = WireLimits()) -> Self:  # noqa: B008 - frozen
        """Opens bytes from anywhere; raises `WireError`."""
        return cls(record=decode_record(data, limits), data=bytes(data), digest=digest_of(data))

    @property
    def identity(self) -> str:
        """What a store files it under: an envelope's place in its stream, another record's own digest."""
        if isinstance(self.record, Envelope):
            return self.record.identity
        return f"{self.kind}|{self.record.origin}|{self.digest}"

    @property
    def kind(self) -> str:
        """`envelope` or `revocation`."""
        return {Envelope: "envelope", Revocation: "revocation"}[type(self.record)]

    @property
    def envelopes(self) -> tuple[Envelope, ...]:
        """The envelope whose rows this record brings, if it does."""
        return (self.record,) if isinstance(self.record, Envelope) else ()

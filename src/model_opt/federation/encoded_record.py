"""A record together with its bytes. The bytes are the record: they are kept and forwarded, never made again."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

from model_opt.errors import InvalidInput
from model_opt.federation.envelope import Envelope, Record
from model_opt.federation.wire import Frame, Head, WireLimits, decode_body, framed, joined, read_frame


@dataclass(frozen=True, kw_only=True)
class EncodedRecord:
    """`data` with its head, read when it was opened; the body is decoded on first use. Each is done once.

    `limits` are those that it was opened under, and that its body is decoded under. Made by `of` and `open`.
    """

    data: bytes
    head: Head = field(compare=False)
    frame: Frame = field(compare=False, repr=False)
    limits: WireLimits = field(compare=False, repr=False)

    @classmethod
    def of(cls, record: Record) -> Self:
        """Seals a record made here; raises `InvalidInput` where it is larger than receivers accept."""
        head, frame = framed(record)
        data, limits = joined(frame), WireLimits()
        if len(data) > limits.max_bytes:
            raise InvalidInput(f"a {head.kind} of {len(data)} bytes is too large: send it in parts")
        made = cls(data=data, head=head, frame=frame, limits=limits)
        vars(made)["record"] = record  # what decoding it would give
        return made

    @classmethod
    def open(cls, data: bytes, limits: WireLimits = WireLimits()) -> Self:  # noqa: B008 - frozen
        """Opens bytes from anywhere and reads their head; raises `WireError`."""
        data = bytes(data)
        head, frame = read_frame(data, limits)
        return cls(data=data, head=head, frame=frame, limits=limits)

    @cached_property
    def record(self) -> Record:
        """What `data` says; raises `WireError` where the body is not the head's, or claims what cannot be."""
        return decode_body(self.head, self.frame, self.limits)

    @property
    def digest(self) -> str:
        """That of the head, 64 hexadecimal digits."""
        return self.head.digest

    @property
    def kind(self) -> str:
        """`envelope` or `revocation`."""
        return self.head.kind

    @property
    def signed(self) -> bool:
        """Whether it has a seal, be it good or not."""
        return bool(self.frame.seal)

    @property
    def identity(self) -> str:
        """What a store files it under; see `Head.identity`."""
        return self.head.identity

    @property
    def envelopes(self) -> tuple[Envelope, ...]:
        """The envelope whose rows this record brings, if it does."""
        return (self.record,) if isinstance(self.record, Envelope) else ()

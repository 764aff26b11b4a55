"""What travels between processes and deployments: envelopes around rows, and revocations."""

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from model_opt.errors import InvalidInput
from model_opt.federation.block import RowBlock
from model_opt.federation.moments import Moments
from model_opt.federation.row import Row, RowKey
from model_opt.search.context import Context
from model_opt.search.model_signature import ModelSignature
from model_opt.search.plan import Plan

SCHEMA = 2
"""The version of what is written now."""
FIRST = "0" * 64
"""`previous` of the first envelope of an epoch."""

_NAME = re.compile(r"[A-Za-z0-9_.:@-]{1,128}")
_HEX = {digits: re.compile(rf"[0-9a-f]{{{digits}}}") for digits in (32, 64)}


def new_epoch() -> str:
    """A random 128-bit epoch, as 32 hexadecimal digits."""
    return secrets.token_hex(16)


def check_name(what: str, name: object) -> str:
    """`name` if it can name a federation or an origin: 1–128 letters, digits and `_.:@-`; raises `InvalidInput`."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInput(f"{what} {name!r}: use 1 to 128 of the letters, digits and _.:@-")
    return name


def check_hex(what: str, text: object, digits: int) -> str:
    """`text` if it is `digits` (32 or 64) lower-case hexadecimal digits; raises `InvalidInput`."""
    if not isinstance(text, str) or not _HEX[digits].fullmatch(text):
        raise InvalidInput(f"{what} {text!r} is not {digits} hexadecimal digits")
    return text


def check_sequence(what: str, number: object, least: int = 1) -> int:
    """`number` if it is an integer within `least` and 2⁵³; raises `InvalidInput`."""
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= 2**53:
        raise InvalidInput(f"{what} {number!r} is not an integer within {least} and 2**53")
    return number


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """Rows that one origin's epoch has changed, all of one signature. Rows are cumulative: the latest says it all.

    `contexts` is the table that `block.contexts` points into. `sequence` runs from 1 within (federation, origin,
    epoch); `previous` is the digest (64 hexadecimal digits) of the envelope before, `FIRST` for the first.
    """

    federation: str
    signature: ModelSignature
    contexts: tuple[Context, ...]
    origin: str
    epoch: str
    sequence: int
    previous: str
    block: RowBlock
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        check_name("federation", self.federation)
        check_name("origin", self.origin)
        check_hex("epoch", self.epoch, 32)
        check_hex("previous", self.previous, 64)
        check_sequence("sequence", self.sequence)
        if (self.sequence == 1) != (self.previous == FIRST):
            raise InvalidInput("the first envelope of an epoch, and only that, has no predecessor")

    @property
    def identity(self) -> str:
        """What a store files it under: one record per origin, epoch and sequence."""
        return f"envelope|{self.origin}|{self.epoch}|{self.sequence:016d}"

    def row_keys(self) -> Iterator[RowKey]:
        """The keys of the rows, in their order, without the rows."""
        contexts = [context.key for context in self.contexts]
        for plan, number in zip(self.block.plan_keys, self.block.contexts.tolist(), strict=True):
            yield RowKey(self.federation, self.signature.key, plan.hex(), contexts[number], self.origin, self.epoch)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows as values."""
        contexts = [context.key for context in self.contexts]
        numbers = self.block.contexts.tolist()
        return tuple(
            Row(
                federation=self.federation,
                signature=self.signature.key,
                plan=plan,
                context=contexts[number],
                origin=self.origin,
                epoch=self.epoch,
                sequence=self.sequence,
                moments=moments,
            )
            for plan, number, moments in zip(self.block.plans(), numbers, self.block.moments(), strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class Revocation:
    """Withdraws what an origin has said: an epoch's envelopes from a sequence on, or (`epochs` empty) everything.

    `epochs` maps an epoch to the first sequence refused. `authority` is the origin's own key or the reader's.
    """

    federation: str
    origin: str
    authority: str
    reason: str
    epochs: Mapping[str, int] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        check_name("federation", self.federation)
        check_name("origin", self.origin)
        check_name("authority", self.authority)
        if not isinstance(self.reason, str) or len(self.reason) > 1000:
            raise InvalidInput("a revocation's reason is a text of at most 1,000 characters")
        for epoch, sequence in self.epochs.items():
            check_hex("epoch", epoch, 32)
            check_sequence("first sequence refused", sequence)

    @property
    def everything(self) -> bool:
        """Whether all that the origin has said and will say is refused."""
        return not self.epochs


Record = Envelope | Revocation
"""What is exchanged and kept, byte for byte."""

Entries = Iterable[tuple[Plan, Context, Mapping[str, Moments]]]
"""Rows to be sent: plan, context, and the cumulative moments of each metric."""


def pack_rows(entries: Entries) -> tuple[tuple[Context, ...], RowBlock]:
    """The table of contexts and the block for `entries`; raises `InvalidInput` for none, or for one that repeats."""
    table: dict[Context, int] = {}
    rows = [(plan, table.setdefault(context, len(table)), moments) for plan, context, moments in entries]
    return tuple(table), RowBlock.of(rows)

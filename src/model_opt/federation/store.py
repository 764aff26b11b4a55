"""The protocols that every knowledge store keeps, and what they hand out."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.envelope import Record, Revocation
from model_opt.federation.join import Cursor, StreamKey
from model_opt.federation.row import Row
from model_opt.search.context import Context
from model_opt.search.model_signature import ModelSignature

Appendable = bytes | Record | EncodedRecord
"""A record as a store takes it."""


@runtime_checkable
class KnowledgeStore(Protocol):
    """Keeps records of one federation, byte for byte, and the rows that they amount to.

    Connection: constructing touches nothing; the first call connects. A store that cannot be reached raises
    `StoreUnavailable` once its deadline has passed, and the same call may be made again later.
    Idempotence: appending what is there already changes nothing and is no error, so a call whose outcome is
    unknown is simply repeated. A record that contradicts one that is there raises `StoreConflict` and changes nothing.
    Durability: when `append` or `revoke` returns, what it was given survives a crash of the process (and of the server,
    where the server is set up to write before it answers).
    Threads and processes: any thread may call; several processes may use one store, each through an object of its
    own. Objects are not handed across a fork.
    Errors: `StoreError` and its kinds, `WireError` for bytes that are no record, `InvalidInput` for wrong arguments.
    Passwords are in no error, log or `repr`.
    """

    federation: str

    def append(self, *records: Appendable) -> int:
        """Adds records, given as values, as the bytes that were received, or as those already opened: what has been
        read of these is not read again. Returns how many were new."""

    def rows(self, signatures: Iterable[str] | None = None) -> list[Row]:
        """The latest admitted rows of the signatures with these keys, in the order of their keys; None means all."""

    def nearest(self, query: ModelSignature | NDArray[np.float32], k: int = 5) -> list[tuple[ModelSignature, float]]:
        """The `k` known signatures most similar to `query` (or to its vector, `[32]`), best first.

        Similarity is the cosine of the vectors, within -1 and 1; ties are ordered by key.
        """

    def revoke(self, revocation: Revocation) -> None:
        """Withdraws what an origin has said. The record stays, travels on, and wins over whatever arrives later."""

    def close(self) -> None:
        """Lets the connection go; the next call would connect again."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How much a store holds."""

    records: int
    rows: int
    signatures: int
    contexts: int
    origins: int


@dataclass(frozen=True, kw_only=True)
class OriginSummary:
    """What one origin has sent: `epochs` maps each to its last contiguous sequence."""

    origin: str
    records: int
    epochs: Mapping[str, int]
    revoked: bool


@runtime_checkable
class Inspection(Protocol):
    """What a store can tell about itself, by the same rules as for `KnowledgeStore`. All of it but counts may scan."""

    def counts(self) -> Counts:
        """How much there is."""

    def origins(self) -> list[OriginSummary]:
        """Who has sent something, ordered by name; reads every record's head."""

    def signatures(self) -> dict[str, ModelSignature]:
        """Every signature that has rows, by key."""

    def contexts(self) -> dict[str, Context]:
        """Every context, by key."""

    def cursors(self) -> Mapping[StreamKey, Cursor]:
        """How far every (federation, origin, epoch) is known without a gap; reads every record's head."""

    def envelopes(self, since: int = 0, page: int = 200) -> Iterator[tuple[int, bytes]]:
        """Records (revocations too) after the cursor `since`, as (cursor, bytes), in the store's order.

        Cursors are the store's own, grow, and mean nothing in another store. So many as `page` are in memory at once.
        """

"""Joining what replicas know: a state-based CRDT (Shapiro et al., "Conflict-free replicated data types", 2011).

The state is a growing set of records; rows are a view of it. Nothing is added up on arrival, so duplicates, reordering,
restarts and echoes cannot change what a replica ends with: `join` is commutative, associative and idempotent.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.envelope import FIRST, Envelope, Record, Revocation
from model_opt.federation.row import Row, RowKey

StreamKey = tuple[str, str, str]
"""(federation, origin, epoch)."""
_OriginKey = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is not to be read any more: what revocations refuse.

    `refused[federation, origin][epoch]` is the first sequence refused; the epoch "" stands for all of them.
    """

    refused: Mapping[_OriginKey, Mapping[str, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[Record]) -> Self:
        """The policy that `records` amount to, in whatever order."""
        return cls().with_records(records)

    def with_records(self, records: Iterable[Record]) -> Self:
        """The policy joined with that of `records`."""
        refused = {origin: dict(epochs) for origin, epochs in self.refused.items()}
        for record in records:
            if isinstance(record, Revocation):
                limits = refused.setdefault((record.federation, record.origin), {})
                for epoch, sequence in ({"": 1} if record.everything else record.epochs).items():
                    limits[epoch] = min(sequence, limits.get(epoch, sequence))
        return type(self)(refused=refused)

    def admits(self, federation: str, origin: str, epoch: str, sequence: int) -> bool:
        """Whether what this sequence of the epoch says is to be read."""
        limits = self.refused.get((federation, origin))
        if limits is None:
            return True
        return "" not in limits and sequence < limits.get(epoch, sequence + 1)

    def admits_row(self, row: Row) -> bool:
        """`admits` of the envelope that brought `row`."""
        return self.admits(row.federation, row.origin, row.epoch, row.sequence)

    def admits_envelope(self, envelope: Envelope) -> bool:
        """`admits` of the envelope's place."""
        return self.admits(envelope.federation, envelope.origin, envelope.epoch, envelope.sequence)


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """All that a replica has been told: records by (federation, identity)."""

    records: Mapping[tuple[str, str], EncodedRecord] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[EncodedRecord]) -> Self:
        """The state after `records`, in whatever order and however often each."""
        kept: dict[tuple[str, str], EncodedRecord] = {}
        for encoded in records:
            key = (encoded.record.federation, encoded.identity)
            # Of two envelopes at one place of one stream every replica keeps that of the smaller digest.
            if key not in kept or encoded.digest < kept[key].digest:
                kept[key] = encoded
        return cls(records=kept)

    @property
    def policy(self) -> Policy:
        """What the revocations among the records amount to."""
        return Policy.of(encoded.record for encoded in self.records.values())

    def rows(self) -> dict[RowKey, Row]:
        """The latest admitted row of every key."""
        policy = self.policy
        envelopes = (one.record for one in self.records.values() if isinstance(one.record, Envelope))
        admitted = (envelope for envelope in envelopes if policy.admits_envelope(envelope))
        return latest_rows(row for envelope in admitted for row in envelope.rows)


def join(a: Knowledge, b: Knowledge) -> Knowledge:
    """What the two replicas know together."""
    return Knowledge.of([*a.records.values(), *b.records.values()])


def latest_rows(rows: Iterable[Row]) -> dict[RowKey, Row]:
    """Of the rows with one key, that of the largest sequence; two with one sequence are the same row."""
    latest: dict[RowKey, Row] = {}
    for row in rows:
        known = latest.get(row.key)
        if known is None or row.sequence > known.sequence:
            latest[row.key] = row
    return latest


@dataclass(frozen=True, kw_only=True)
class ChainLink:
    """One envelope's place in the chain of its epoch. Hashes are 64 hexadecimal digits."""

    stream: StreamKey
    sequence: int
    previous: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """How far an epoch is known without a gap. `sequence` 0 and digest `FIRST` mean: not from its beginning.

    `missing` are the gaps above it, as (first, last) sequences. `forked` says that the next envelope does not name
    this one as its predecessor: the origin's story has two versions, and nobody can tell which without signatures.
    """

    sequence: int
    digest: str
    missing: tuple[tuple[int, int], ...] = ()
    forked: bool = False


def cursors(links: Iterable[ChainLink]) -> dict[StreamKey, Cursor]:
    """The cursor of every stream that `links` are of."""
    streams: dict[StreamKey, dict[int, ChainLink]] = {}
    for link in links:
        known = streams.setdefault(link.stream, {})
        if link.sequence not in known or link.digest < known[link.sequence].digest:
            known[link.sequence] = link
    return {stream: _cursor(known) for stream, known in streams.items()}


def _cursor(links: Mapping[int, ChainLink]) -> Cursor:
    sequence, digest = 0, FIRST
    while (link := links.get(sequence + 1)) is not None and link.previous == digest:
        sequence, digest = link.sequence, link.digest
    above = sorted(number for number in links if number > sequence)
    missing, expected = [], sequence + 1
    for number in above:
        if number > expected:
            missing.append((expected, number - 1))
        expected = number + 1
    return Cursor(sequence=sequence, digest=digest, missing=tuple(missing), forked=sequence + 1 in links)

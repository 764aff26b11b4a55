"""Which records a replica has, by what their heads say: their places in the chains, and what they withdraw."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from model_opt.errors import InvalidInput
from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.envelope import FIRST, check_hex, check_sequence
from model_opt.federation.join import ChainLink, Policy, StreamKey
from model_opt.federation.wire import Head


@dataclass(frozen=True, kw_only=True)
class Gap:
    """What is missing of an origin's epoch: everything after the sequence `known`, for all that can be told."""

    origin: str
    epoch: str
    known: int


class Reached(NamedTuple):
    """The last contiguous sequence of a stream and its digest; 0 and `FIRST` where the beginning is missing."""

    sequence: int
    digest: str


@dataclass
class RecordIndex:
    """An index of records that grows with them; heads only, so that a million records fit.

    `digests` are by identity. `after` has, by (origin, epoch, digest of the predecessor), the identity that follows.
    `reached` says how far each stream is known without a gap.
    """

    digests: dict[str, str] = field(default_factory=dict)
    after: dict[tuple[str, str, str], str] = field(default_factory=dict)
    links: dict[StreamKey, dict[int, ChainLink]] = field(default_factory=dict)
    reached: dict[StreamKey, Reached] = field(default_factory=dict)
    laws: set[str] = field(default_factory=set)
    policy: Policy = field(default_factory=Policy)

    def add(self, encoded: EncodedRecord) -> None:
        """Notes a record that is kept; only a revocation's body is looked at. Raises `WireError`."""
        head = encoded.head
        self.digests[head.identity] = head.digest
        if head.kind == "envelope":
            self._chain(head)
            return
        self.laws.add(head.digest)
        self.policy = self.policy.with_records([encoded.record])

    def _chain(self, head: Head) -> None:
        link = link_of(head)
        _, origin, epoch = link.stream
        self.after[origin, epoch, link.previous] = head.identity
        known = self.links.setdefault(link.stream, {})
        known[link.sequence] = link
        at = self.reached.get(link.stream, Reached(0, FIRST))
        while (following := known.get(at.sequence + 1)) is not None and following.previous == at.digest:
            at = Reached(following.sequence, following.digest)
        self.reached[link.stream] = at

    def conflict(self, head: Head) -> str | None:
        """The identity of a kept record that cannot stand beside this one: at its place, or after its predecessor."""
        identity = head.identity
        if self.digests.get(identity, head.digest) != head.digest:
            return identity
        if head.kind != "envelope":
            return None
        link = link_of(head)
        follows = self.after.get((head.origin, link.stream[2], link.previous))
        return follows if follows not in (None, identity) else None

    def knows(self, head: Head) -> bool:
        """Whether this very record is kept."""
        return self.digests.get(head.identity) == head.digest

    def gaps(self) -> list[Gap]:
        """The streams of which something is missing, in their order."""
        return [
            Gap(origin=stream[1], epoch=stream[2], known=at.sequence)
            for stream, at in sorted(self.reached.items())
            if len(self.links[stream]) > at.sequence
        ]


def record_index(records: Iterable[bytes]) -> RecordIndex:
    """The ledger of `records`. Raises `WireError`."""
    made = RecordIndex()
    for data in records:
        made.add(EncodedRecord.open(data))
    return made


def link_of(head: Head) -> ChainLink:
    """An envelope's place in its chain. Raises `InvalidInput` where it has none."""
    previous = head.fields.get("previous")
    if not isinstance(previous, bytes):
        raise InvalidInput("the hash of the envelope before is no binary")
    return ChainLink(
        stream=(head.federation, head.origin, check_hex("epoch", head.fields.get("epoch"), 32)),
        sequence=check_sequence("sequence", head.fields.get("sequence")),
        previous=previous.hex(),
        digest=head.digest,
    )

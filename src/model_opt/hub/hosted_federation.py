"""One federation of a hub: an append-only store of original records, with one writer, and whom it takes them from."""

import threading
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from model_opt.exchange.intake import proves
from model_opt.federation import trust
from model_opt.federation.admission import Admission, AdmissionVerdict, Gate
from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.join import StreamKey
from model_opt.federation.known import InspectableStore
from model_opt.federation.record_index import Gap, Reached, RecordIndex, link_of
from model_opt.federation.wire import WireLimits
from model_opt.hub.answers import Page


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What became of a push. `missing` are the streams of these origins of which the hub lacks something."""

    verdicts: tuple[AdmissionVerdict, ...]
    cursor: int
    missing: tuple[Gap, ...]
    quarantined: tuple[str, ...]

    def count(self, decision: Admission) -> int:
        """How many records had this `decision`."""
        return sum(verdict.decision is decision for verdict in self.verdicts)


@dataclass
class _Index:
    """What the store holds, kept up while it grows: heads, sizes by cursor, and cursors by stream and sequence.

    `revocations` are the cursors of those.
    """

    ledger: RecordIndex = field(default_factory=RecordIndex)
    cursors: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    places: dict[StreamKey, dict[int, int]] = field(default_factory=dict)
    revocations: list[int] = field(default_factory=list)

    def page(self, cursors: Sequence[int], after: int, most_bytes: int) -> tuple[list[int], bool]:
        """Of `cursors` those after one that make about `most_bytes`, at least one where there is one; and whether more
        follow."""
        last = len(cursors)
        first = at = bisect_right(cursors, after)
        size = 0
        while at < last:
            size += self.sizes[bisect_left(self.cursors, cursors[at])]
            if at > first and size > most_bytes:
                break
            size += 12
            at += 1
        return list(cursors[first:at]), at < last


class HostedFederation:
    """Any thread may call; writing takes turns. The store belongs to this hub: nobody else writes to it."""

    def __init__(self, store: InspectableStore, folder: Path, limits: WireLimits) -> None:
        """`folder` holds `trust.json`, the allow-list. Nothing is touched before `open`."""
        self.federation = store.federation
        self._store, self.folder, self._limits = store, folder, limits
        self._lock = threading.Lock()
        self._index = _Index()
        self._stale = True

    def open(self) -> int:
        """Reads what is there; returns the number of records. Raises `StoreError`."""
        with self._lock:
            self._catch_up()
            return len(self._index.cursors)

    def close(self) -> None:
        """Lets the store go."""
        self._store.close()

    def allowed(self, origin: str) -> bool:
        """Whether `origin` is on the allow-list, which is read anew: it may have been changed meanwhile."""
        peer = trust.peers(self.folder).get(origin)
        return peer is not None and peer.trust > 0

    def withdrawn(self, origin: str, epoch: str) -> bool:
        """Whether the key of this epoch, or all of its origin's, has been withdrawn."""
        return not self._index.ledger.policy.admits(self.federation, origin, epoch, 2**53)

    def push(self, records: Sequence[bytes]) -> Pushed:
        """Judges `records` and keeps the good ones: when it returns they have been written. Raises `StoreError`."""
        with self._lock:
            self._catch_up()
            quarantined: list[str] = []
            verdicts: list[AdmissionVerdict] = []
            kept: list[EncodedRecord] = []
            gate = self._gate()
            for data in records:
                verdict = gate.judge(data, self._index.ledger)
                if verdict.quarantine or proves(self._store, verdict, gate):
                    trust.quarantine(verdict.origin, verdict.reason, folder=self.folder)
                    quarantined.append(verdict.origin)
                    gate = self._gate()
                if verdict.decision is Admission.NEW and verdict.encoded is not None:
                    self._index.ledger.add(verdict.encoded)
                    kept.append(verdict.encoded)
                verdicts.append(replace(verdict, encoded=None))
            self._keep(kept)
            origins = {verdict.origin for verdict in verdicts}
            missing = tuple(gap for gap in self._index.ledger.gaps() if gap.origin in origins)
            cursor = self._index.cursors[-1] if self._index.cursors else 0
            return Pushed(
                verdicts=tuple(verdicts), cursor=cursor, missing=missing, quarantined=tuple(sorted(set(quarantined)))
            )

    def pull(self, after: int, most_bytes: int) -> Page:
        """The records after the cursor `after`: about `most_bytes`, at least one where there is one."""
        index = self._current()
        return self._page(*index.page(index.cursors, after, most_bytes), after)

    def revocations(self, after: int, most_bytes: int) -> Page:
        """As `pull`, of the revocations alone."""
        index = self._current()
        return self._page(*index.page(index.revocations, after, most_bytes), after)

    def stream(self, origin: str, epoch: str, after: int, most_bytes: int) -> Page:
        """The envelopes of one stream whose sequences are above `after`, in their order; the page's cursor is the last
        sequence handed out."""
        places = self._current().places.get((self.federation, origin, epoch), {})
        wanted = sorted(sequence for sequence in list(places) if sequence > after)
        found: list[tuple[int, bytes]] = []
        size = 0
        for sequence in wanted:
            ((_, data),) = self._records([places[sequence]])
            if found and size + len(data) > most_bytes:
                return Page(records=tuple(found), cursor=found[-1][0], more=True)
            found.append((sequence, data))
            size += len(data) + 12
        return Page(records=tuple(found), cursor=found[-1][0] if found else after, more=False)

    def reached(self) -> dict[StreamKey, Reached]:
        """How far every stream is known without a gap."""
        return dict(self._current().ledger.reached)

    def laws(self) -> list[str]:
        """The digests of the revocations that are kept."""
        return sorted(self._current().ledger.laws)

    @property
    def records(self) -> int:
        """How many are kept."""
        return len(self._index.cursors)

    @property
    def cursor(self) -> int:
        """The last one that was given out; 0 where there are no records."""
        return self._index.cursors[-1] if self._index.cursors else 0

    def check(self) -> None:
        """Raises `StoreError` where the store cannot be read now."""
        self._store.counts()

    def _gate(self) -> Gate:
        peers = trust.peers(self.folder)
        members = frozenset(origin for origin, peer in peers.items() if peer.trust > 0)
        authorities = frozenset(origin for origin in members if peers[origin].authority)
        return Gate(federation=self.federation, trusted=members, authorities=authorities, limits=self._limits)

    def _current(self) -> _Index:
        if self._stale:
            with self._lock:
                self._catch_up()
        return self._index

    def _keep(self, kept: Sequence[EncodedRecord]) -> None:
        """Writes, then indexes what the store says it has. What could not be written is not in the index either."""
        try:
            if kept:
                self._store.append(*kept)
            self._catch_up(kept)
        except BaseException:
            self._index, self._stale = _Index(), True
            raise

    def _catch_up(self, kept: Sequence[EncodedRecord] = ()) -> None:
        """Indexes what the store has and the index has not; `kept` are those of it that were just written, opened."""
        index = self._index
        waiting = deque(kept)
        for cursor, data in self._store.envelopes(index.cursors[-1] if index.cursors else 0, page=4):
            known = waiting and waiting[0].data == data
            encoded = waiting.popleft() if known else EncodedRecord.open(data)
            index.ledger.add(encoded)
            if encoded.kind == "envelope":
                link = link_of(encoded.head)
                index.places.setdefault(link.stream, {})[link.sequence] = cursor
            # Cursors last: whoever reads meanwhile finds everything that belongs to one.
            index.sizes.append(len(data))
            index.cursors.append(cursor)
            if encoded.kind != "envelope":
                index.revocations.append(cursor)  # after its size, which a page looks up
        self._stale = False

    def _page(self, cursors: Sequence[int], more: bool, after: int) -> Page:
        records = tuple(self._records(cursors))
        return Page(records=records, cursor=records[-1][0] if records else after, more=more)

    def _records(self, cursors: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        position = 0
        while position < len(cursors):
            for cursor, data in self._store.envelopes(cursors[position] - 1, page=4):
                if position == len(cursors) or cursor != cursors[position]:
                    break
                yield cursor, data
                position += 1
            else:
                return

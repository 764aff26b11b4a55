"""Taking in records from elsewhere, from a file or a hub: judged one by one, kept in batches, gaps noticed."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from model_opt.errors import StoreConflict, WireError
from model_opt.exchange.outgoing import Outgoing
from model_opt.federation import trust
from model_opt.federation.admission import Admission, AdmissionVerdict, Gate
from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.envelope import Envelope, Revocation
from model_opt.federation.identity import Identity
from model_opt.federation.known import InspectableStore
from model_opt.federation.last_heard import note_heard
from model_opt.federation.record_index import Gap, record_index
from model_opt.federation.row import RowKey
from model_opt.federation.signing import equivocates, verify
from model_opt.federation.wire import WireLimits, read_head

_BATCH_BYTES = 8 * 2**20


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What was taken in, or with a dry run would be.

    `rows_added` and `rows_updated` are rows of this store, `own` counts records that say what was measured here.
    `refused` counts records by reason, `quarantined` names origins that were caught, `gaps` what must be asked for.
    """

    new: int
    known: int
    own: int
    rows_added: int
    rows_updated: int
    origins: tuple[str, ...]
    withdrawals: tuple[str, ...]
    refused: Mapping[str, int]
    quarantined: tuple[str, ...]
    gaps: tuple[Gap, ...]


@dataclass
class _Tally:
    counts: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    origins: set[str] = field(default_factory=set)
    withdrawals: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    quarantined: set[str] = field(default_factory=set)


class Intake:
    """Takes records into `store` for the deployment `identity`. One run: not for two threads, nor for later."""

    def __init__(
        self,
        store: InspectableStore,
        identity: Identity,
        *,
        folder: Path | None = None,
        dry_run: bool = False,
        limits: WireLimits = WireLimits(),  # noqa: B008 - frozen
    ) -> None:
        """Reads the heads of all that `store` has. `folder` is the identity's, where trust is kept too."""
        self._store, self._identity, self._folder, self._dry_run = store, identity, folder, dry_run
        self._limits = limits
        self.ledger = record_index(data for _, data in store.envelopes())
        local = {stream[2] for stream in self.ledger.links if stream[1] == identity.origin}
        self._echoes = Outgoing(identity, store.federation, folder).heard_of(local)
        self._sequences: dict[RowKey, int] = {}
        self._read: set[str] = set()
        self._tally = _Tally()
        self._gate = self._make_gate()

    def take(self, records: Iterable[bytes]) -> None:
        """Judges `records` and keeps those that are good; when it returns, they are in the store."""
        batch: list[EncodedRecord] = []
        size = 0
        for data in records:
            verdict = self._gate.judge(data, self.ledger)
            self._note(verdict)
            encoded = verdict.encoded
            if verdict.decision is not Admission.NEW or encoded is None:
                continue
            self._count_rows(encoded)
            self.ledger.add(encoded)
            batch.append(encoded)
            size += len(data)
            if size >= _BATCH_BYTES:
                self._append(batch)
                batch, size = [], 0
        self._append(batch)

    def outcome(self) -> Taken:
        """What was done so far."""
        tally = self._tally
        return Taken(
            new=tally.counts[Admission.NEW],
            known=tally.counts[Admission.KNOWN],
            own=tally.counts[Admission.OWN],
            rows_added=tally.rows["added"],
            rows_updated=tally.rows["updated"],
            origins=tuple(sorted(tally.origins)),
            withdrawals=tuple(tally.withdrawals),
            refused=dict(sorted(tally.refused.items())),
            quarantined=tuple(sorted(tally.quarantined)),
            gaps=tuple(self.ledger.gaps()),
        )

    @property
    def trusted(self) -> frozenset[str]:
        """The origins whose records are taken."""
        return frozenset(self._gate.trusted)

    def is_echo(self, origin: str, epoch: str) -> bool:
        """Whether the stream tells what was measured here."""
        return origin == self._identity.origin and epoch in self._echoes

    def _make_gate(self) -> Gate:
        own = self._identity.origin
        return Gate(
            federation=self._store.federation,
            trusted=trust.trusted(own, self._folder) - self._tally.quarantined,
            authorities=trust.authorities(own, self._folder),
            own=own,
            own_epochs=self._echoes,
            limits=self._limits,
        )

    def _note(self, verdict: AdmissionVerdict) -> None:
        tally = self._tally
        tally.counts[verdict.decision] += 1
        if verdict.decision is Admission.NEW:
            tally.origins.add(verdict.origin)
            if verdict.encoded and not isinstance(verdict.encoded.record, Envelope):
                tally.withdrawals.append(_withdrawal(verdict.encoded))
        elif verdict.decision in (Admission.REFUSED, Admission.CONTRADICTS):
            tally.refused[verdict.reason] += 1
            if verdict.quarantine or proves(self._store, verdict, self._gate):
                self._quarantine(verdict)

    def _quarantine(self, verdict: AdmissionVerdict) -> None:
        if verdict.origin == self._identity.origin:
            self._tally.refused["your own key has told two stories: model-opt identity revoke"] += 1
            return
        self._tally.quarantined.add(verdict.origin)
        if not self._dry_run:
            trust.quarantine(verdict.origin, verdict.reason, folder=self._folder)
        self._gate = self._make_gate()

    def _count_rows(self, encoded: EncodedRecord) -> None:
        for envelope in encoded.envelopes:
            if envelope.signature.key not in self._read:
                self._read.add(envelope.signature.key)
                known = self._store.rows([envelope.signature.key])
                self._sequences |= {row.key: row.sequence for row in known}
            for key in envelope.row_keys():
                there = self._sequences.get(key)
                if there is None or there < envelope.sequence:
                    self._tally.rows["added" if there is None else "updated"] += 1
                    self._sequences[key] = envelope.sequence

    def _append(self, batch: list[EncodedRecord]) -> None:
        if self._dry_run or not batch:
            return
        try:
            self._store.append(*batch)
        except StoreConflict:
            for encoded in batch:
                self._append_one(encoded)
        told = {(one.head.origin, str(one.head.fields["epoch"])) for one in batch if one.kind == "envelope"}
        note_heard(told, folder=self._folder)

    def _append_one(self, encoded: EncodedRecord) -> None:
        """Somebody else has written meanwhile: what they contradict is refused, the rest is taken."""
        try:
            self._store.append(encoded)
        except StoreConflict as error:
            self._tally.counts[Admission.NEW] -= 1
            self._tally.refused[str(error)] += 1


def proves(store: InspectableStore, verdict: AdmissionVerdict, gate: Gate) -> bool:
    """Whether a contradiction proves that its origin tells two stories: then both are signed by it."""
    if verdict.decision is not Admission.CONTRADICTS or verdict.encoded is None:
        return False
    data = next((d for _, d in store.envelopes() if read_head(d).identity == verdict.other), None)
    if data is None:
        return False
    try:
        other = EncodedRecord.open(data, gate.limits)
        verify(other, gate.trusted)
        return equivocates(other, verdict.encoded)
    except WireError:
        return False


def _withdrawal(encoded: EncodedRecord) -> str:
    record = encoded.record
    if isinstance(record, Revocation):
        what = "everything" if record.everything else f"{len(record.epochs)} epochs"
        return f"{what} of {record.origin}: {record.reason}"
    return f"earlier epochs of {record.origin} are replaced by one"
